"""Measures against constructed truth, and what is found for each constructed problem."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from quality_truth import FPS, FRAMES, good_person, good_pictures, lost, measured_folder
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.conversation import DialogueError, load_conversation
from dialogue_nerfstudio.metrics.lips import SyncCurve
from dialogue_nerfstudio.process.quality import (
    HIGH_BLUR,
    MAX_ERROR,
    MAX_LOOKS,
    LipSync,
    ParticipantQuality,
    Quality,
    SoundQuality,
    conversation_findings,
    face_blur,
    lip_sync,
    look_at,
    measure_quality,
    measure_sound,
    participant_findings,
    speech_envelope,
    unusable_sentences,
)


def said(person: ParticipantQuality) -> list:
    return [(finding.severity, finding.problem) for finding in participant_findings(person, FPS)]


def sound_quality(**changes) -> SoundQuality:
    return replace(SoundQuality(-20.0, 0.0, 0.1, 0.1, np.zeros(FRAMES)), **changes)


def test_nothing_is_said_of_a_good_recording():
    assert said(good_person()) == []


def lag_of(seconds: float, peak: float = 0.6) -> LipSync:
    curve = SyncCurve(np.array([0.0, seconds]), np.array([0.0, peak]))
    return LipSync(curve, curve.best, 0.3)


@pytest.mark.parametrize(
    ("severity", "words", "changes"),
    [
        ("unusable", "found in only 100 of 500 frames", {"visible": lost(100, 500)}),
        ("unusable", "found in only 0 of 500 frames", {"visible": lost(0, 500)}),
        ("problem", "lost in 20 of 500 frames, longest for 0.8 s at 4.0 s", {"visible": lost(100, 120)}),
        ("unusable", "no rigid head", {"reprojection_error": np.full(FRAMES, MAX_ERROR + 1)}),
        ("problem", "4.0 px", {"reprojection_error": np.full(FRAMES, 4.0)}),
        ("problem", "slips in 25 frames, worst at 8.0 s", {"reprojection_error": 0.9 + 3 * ~lost(200, 225)}),
        ("unusable", "photograph", {"motion": 0.05}),
        ("problem", "turned by 88°", {"tilt": 88.0}),
        ("problem", "turned by 175°", {"tilt": -175.0}),
        ("problem", "trembles by 0.40°", {"jitter": 0.4}),
        ("note", "No blink was found in 20 s", {"blinks": np.zeros(0)}),
        ("problem", "2.0 blinks a second", {"blinks": np.arange(40) / 2}),
        ("note", "turns by only", {"rotation": np.full((FRAMES, 3), 2.0)}),
        ("problem", "20 px from eye to eye", {"eye_distance": 20.0}),
        ("note", "never speaks", {"speaking": np.zeros(FRAMES, bool)}),
        ("problem", "240 ms after the sound", {"lips": lag_of(0.24)}),
        ("problem", "320 ms before the sound", {"lips": lag_of(-0.32)}),
    ],
)
def test_each_problem_of_a_person_is_found_alone(severity, words, changes):
    findings = said(replace(good_person(), **changes))
    assert (severity, True) in [(found, words in problem) for found, problem in findings], findings
    alone = "visible" not in changes or severity == "problem"
    assert len(findings) == 1 or not alone


@pytest.mark.parametrize("lips", [lag_of(0.08), lag_of(-0.16), lag_of(0.4, peak=0.2)])
def test_lags_that_viewers_accept_or_chance_makes_are_not_told(lips):
    assert said(replace(good_person(), lips=lips)) == []


@pytest.mark.parametrize(
    ("severity", "words", "changes"),
    [
        ("problem", "dark: grey level 20", {"brightness": np.full(20, 20.0)}),
        ("problem", "overexposed", {"brightness": np.full(20, 240.0)}),
        ("problem", "overexposed", {"clipped": np.full(20, 0.2)}),
        (
            "problem",
            "light on the face changes from grey level 80 to 160",
            {"brightness": np.repeat([80.0, 160.0], 10)},
        ),
        ("problem", "out of focus", {"blur": np.full(20, 0.8)}),
        ("problem", "20% of the pictures are blurred", {"blur": np.repeat([0.5, 0.8], [16, 4])}),
        ("problem", "background is not still", {"background_change": np.full(20, 12.0)}),
        ("note", "border in 80% of the looks", {"cut": np.repeat([True, False], [16, 4])}),
    ],
)
def test_each_problem_of_the_pictures_is_found_alone(severity, words, changes):
    findings = said(replace(good_person(), pictures=replace(good_pictures(), **changes)))
    assert len(findings) == 1 and findings[0][0] == severity and words in findings[0][1], findings


def recording(people: int = 2, **changes) -> Quality:
    sound = sound_quality()
    roles = {"method": "voices+lips", "disagreement": 0.05, "reason": ""}
    return replace(Quality(FRAMES, FPS, [good_person()] * people, sound, roles), **changes)


@pytest.mark.parametrize(
    ("severity", "words", "changes"),
    [
        ("note", "short: 4.0 s", {"num_frames": 100}),
        ("problem", "very quiet: -60 dB", {"sound": sound_quality(level=-60.0)}),
        ("problem", "no sound at all in the last 14.0 s of 20.0 s", {"sound": sound_quality(missing_end=14.0)}),
        (
            "problem",
            "in the first 3.0 s and the last 2.0 s",
            {"sound": sound_quality(missing_start=3.0, missing_end=2.0)},
        ),
        ("note", "1.0% of the sound is clipped", {"sound": sound_quality(clipped=0.01)}),
        ("problem", "disagree in 60%", {"roles": {"method": "voices+lips", "disagreement": 0.6}}),
        ("note", "one voice", {"roles": {"method": "lips", "disagreement": 0.1, "reason": "only one voice"}}),
        (
            "problem",
            "Nobody speaks",
            {"participants": [replace(good_person(), speaking=np.zeros(FRAMES, bool))], "roles": {"method": "silent"}},
        ),
    ],
)
def test_each_problem_of_the_recording_is_found_alone(severity, words, changes):
    findings = conversation_findings(recording(**changes))
    assert len(findings) == 1 and findings[0].severity == severity and words in findings[0].problem, findings
    assert conversation_findings(recording()) == []


def test_unusable_sentences_name_the_person_and_the_way_out():
    findings = recording(findings=participant_findings(replace(good_person(), motion=0.0), FPS)).summary()["findings"]
    assert "Participant ann: Nothing in this face moves" in unusable_sentences(findings)
    assert "--num-people" in unusable_sentences(findings)
    assert unusable_sentences([]) == ""


# Measures.


def syllables(seed: int = 0) -> tuple:
    """A mouth that opens at irregular intervals, and noise of 500-2500 Hz as loud as it is open."""
    rng = np.random.default_rng(seed)
    opening = gaussian_filter1d((rng.random(FRAMES) < 0.15).astype(float), 1.2)
    noise = rng.standard_normal(FRAMES * 640)
    spectrum = np.fft.rfft(noise)
    frequency = np.fft.rfftfreq(len(noise), 1 / 16000)
    spectrum[(frequency < 500) | (frequency > 2500)] = 0
    return opening, np.fft.irfft(spectrum, len(noise)) * np.interp(
        np.arange(FRAMES * 640) / 640, np.arange(FRAMES) + 0.5, opening
    )


@pytest.mark.parametrize("lag", [-8, 0, 6])
def test_known_lag(lag):
    opening, audio = syllables()
    envelope = speech_envelope(audio, FRAMES, FPS)
    found = lip_sync(np.roll(opening, lag), envelope, np.ones(FRAMES, bool), FPS)
    assert found.certain and found.offset.seconds == pytest.approx(lag / FPS)


def test_the_lag_is_taken_where_the_person_speaks_alone():
    opening, audio = syllables(0)
    other, _ = syllables(1)
    alone = np.arange(FRAMES) < 250
    mouth = np.where(alone, np.roll(opening, 5), np.roll(other, -7))
    found = lip_sync(mouth, speech_envelope(audio, FRAMES, FPS), alone, FPS)
    assert found.certain and found.offset.seconds == pytest.approx(5 / FPS)


def test_unrelated_lips_are_rarely_certain():
    certain = 0
    for seed in range(20):
        _, audio = syllables(seed)
        opening, _ = syllables(seed + 100)
        certain += lip_sync(opening, speech_envelope(audio, FRAMES, FPS), np.ones(FRAMES, bool), FPS).certain
    assert certain <= 3


def test_little_speech_tells_no_lag():
    opening, audio = syllables()
    assert lip_sync(opening, speech_envelope(audio, FRAMES, FPS), np.arange(FRAMES) < 30, FPS) is None


def test_envelope_is_the_band_s_level_and_has_a_row_a_frame():
    seconds = np.arange(16000) / 16000
    tone = np.sqrt(2) * 0.1 * np.sin(2 * np.pi * 1000 * seconds)
    envelope = speech_envelope(tone, 40, FPS)
    assert envelope.shape == (40,)
    assert np.allclose(envelope[3:22], np.log(0.101), atol=0.02)
    assert np.allclose(envelope[28:], np.log(1e-3), atol=0.05), "after the end there is silence"
    hum = np.sqrt(2) * 0.1 * np.sin(2 * np.pi * 50 * seconds)
    assert (speech_envelope(hum, 25, FPS)[3:22] < np.log(0.01)).all()


def test_level_and_clipping():
    square = np.tile(np.repeat([0.1, -0.1], 40), 200)
    sound = measure_sound(square, 25, FPS)
    assert sound.level == pytest.approx(-20.0, abs=0.01) and sound.clipped == 0.0
    assert measure_sound(np.where(np.arange(16000) % 10 == 0, 1.0, 0.0), 25, FPS).clipped == pytest.approx(0.1)


def test_a_late_and_short_track():
    audio = np.zeros(4 * 16000)
    audio[16000:40000] = 0.1
    sound = measure_sound(audio, 100, FPS)
    assert sound.missing_start == pytest.approx(1.0) and sound.missing_end == pytest.approx(1.5)
    silence = measure_sound(np.zeros(64000), 100, FPS)
    assert silence.missing_start == pytest.approx(4.0) and silence.missing_end == 0.0


def test_known_blur_is_ranked():
    rng = np.random.default_rng(0)
    drawing = np.zeros((200, 200), np.uint8)
    for x, y, value in rng.integers(0, (200, 200, 255), (60, 3)).tolist():
        cv2.rectangle(drawing, (x, y), (x + 25, y + 25), value, -1)
    sharp = cv2.GaussianBlur(drawing, (0, 0), 0.8)
    values = [face_blur(sharp)] + [face_blur(cv2.GaussianBlur(sharp, (0, 0), sigma)) for sigma in (1, 2, 4)]
    assert (np.diff(values) > 0).all() and values[0] < HIGH_BLUR < values[-1]


def test_a_look_at_a_drawn_person():
    plate = np.full((128, 128, 3), 100, np.uint8)
    picture, label = plate + 4, np.zeros((128, 128), np.uint8)
    picture[40:90, 40:90] = 180
    label[40:90, 40:90] = 3
    landmarks = np.random.default_rng(0).uniform(42, 88, (478, 2))
    look = look_at(picture, label, plate, landmarks)
    assert look["brightness"] == 180 and look["clipped"] == 0 and not look["cut"]
    assert look["background_change"] == pytest.approx(4.0)
    picture[40:90, 40:65] = 255
    label[:, :45] = 3
    look = look_at(picture, label, plate, landmarks)
    assert 0.4 < look["clipped"] < 0.6 and look["cut"]


# Folders.


def test_a_folder_is_measured(tmp_path):
    conversation = load_conversation(measured_folder(tmp_path / "chat"))
    quality = measure_quality(conversation)
    first, second = quality.participants
    assert (first.lost, second.lost) == (0, 3)
    # 32 px wide pictures, thresholds for 512.
    assert first.error == pytest.approx(0.8, rel=1e-3)
    assert first.motion == pytest.approx(16.0, rel=0.1)
    np.testing.assert_array_equal(first.speaking, conversation.speaking[:, 0])
    assert len(first.blinks) == 10, "every eighth frame"
    assert len(first.pictures.frames) == MAX_LOOKS
    severities = [finding.severity for finding in quality.findings]
    assert severities == sorted(severities, key=["unusable", "problem", "note"].index)
    assert not quality.unusable and "lost in 3 of 75" in str(quality.findings)


def test_known_jitter(tmp_path):
    conversation = load_conversation(measured_folder(tmp_path / "chat"))
    rng = np.random.default_rng(0)
    motion = conversation.participants[0].motion
    noise = Rotation.from_rotvec(np.radians(rng.normal(0, 0.5, (75, 3))))
    motion.head_pose[:, :3] = noise.as_rotvec()
    assert measure_quality(conversation).participants[0].jitter == pytest.approx(0.5, rel=0.3)


def test_a_folder_that_process_did_not_write(tmp_path):
    write_tiny_conversation(tmp_path / "chat")
    with pytest.raises(DialogueError, match=r"face\.npz.*ns-dialogue process"):
        measure_quality(load_conversation(tmp_path / "chat"))
