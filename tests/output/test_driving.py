"""What drives a render: lengths, roles, mappings and sound are as asked, and bad requests are refused by name."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.acoustics import mel_features
from dialogue_nerfstudio.conversation.conversation import Camera, Conversation, Participant, save_conversation
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES, Motion
from dialogue_nerfstudio.conversation.roles import SpeechSegment, write_rttm
from dialogue_nerfstudio.conversation.split import split_frames
from dialogue_nerfstudio.output.driving import (
    choose_frames,
    drive_by_audio,
    drive_by_motion,
    drive_by_recording,
    fit_audio,
    imitate,
    load_other_motion,
    map_motions,
    ping_pong,
    quiet_mouth,
    resample_motion,
)


def make_motion(num_frames: int, seed: int, residuals: int = 2, fps: float = 25.0) -> Motion:
    rng = np.random.default_rng(seed)
    return Motion(
        head_pose=rng.normal(0, 0.1, (num_frames, 6)).astype(np.float32),
        expression=rng.uniform(0, 1, (num_frames, len(EXPRESSION_NAMES))).astype(np.float32),
        blink=rng.uniform(0, 1, (num_frames, 2)).astype(np.float32),
        gaze=rng.normal(0, 0.1, (num_frames, 2, 2)).astype(np.float32),
        expression_residual=rng.normal(0, 1, (num_frames, residuals)).astype(np.float32),
        fps=fps,
    )


def make_conversation(root, ids=("p0", "p1"), num_frames=50, seed=0) -> Conversation:
    """The parts of a folder that driving reads: motions, roles, sound and mel features."""
    camera = Camera(64, 64, 128.0, 32.0, 32.0, np.hstack([np.eye(3), [[0], [0], [0.7]]]))
    people = [
        Participant(
            name, name, camera, np.array([[-0.1] * 3, [0.1] * 3]), np.array([[-0.3] * 3, [0.3] * 3]),
            make_motion(num_frames, seed + index, residuals=2 + index),
        )
        for index, name in enumerate(ids)
    ]  # fmt: skip
    half = num_frames / 50
    segments = [SpeechSegment(0, half, ids[0]), SpeechSegment(half, 2 * half, ids[-1])]
    conversation = Conversation(num_frames, people, segments, *split_frames(num_frames))
    audio = np.random.default_rng(seed).uniform(-0.5, 0.5, round(num_frames / 25 * 16000)).astype(np.float32)
    (root / "features").mkdir(parents=True)
    soundfile.write(root / "audio.wav", audio, 16000, subtype="FLOAT")
    np.savez(root / "features" / "mel.npz", features=mel_features(audio, 16000, num_frames))
    save_conversation(conversation, root)
    return conversation


@pytest.fixture
def conversation(tmp_path):
    return make_conversation(tmp_path / "a")


def test_ping_pong_goes_back_and_forth_without_a_jump():
    assert ping_pong(4, 10).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]
    assert ping_pong(1, 3).tolist() == [0, 0, 0]
    assert ping_pong(9, 4).tolist() == [0, 1, 2, 3]


def test_the_recording_drives_itself(conversation):
    driving = drive_by_recording(conversation)
    assert driving.num_frames == 50 and len(driving.audio) == 32000
    assert np.array_equal(driving.speaking, conversation.speaking)
    assert driving.features.shape == (50, 16, 80)
    assert driving.motions["p1"] is conversation.participant("p1").motion


def test_taking_frames_takes_their_sound(conversation):
    driving = drive_by_recording(conversation)
    frames = np.array([3, 4, 20])
    taken = driving.take(frames)
    expected = np.concatenate([driving.audio[3 * 640 : 5 * 640], driving.audio[20 * 640 : 21 * 640]])
    assert np.array_equal(taken.audio, expected)
    assert np.array_equal(taken.motions["p0"].head_pose, driving.motions["p0"].head_pose[frames])
    assert np.array_equal(taken.features, driving.features[frames])


def test_resampling_keeps_a_constant_rotation_speed():
    angle = np.linspace(0, 2, 61)
    motion = replace(make_motion(61, 0), fps=30.0)
    motion.head_pose[:] = 0
    motion.head_pose[:, 1] = angle
    slow = resample_motion(motion, 25.0)
    assert slow.num_frames == round(61 * 25 / 30) and slow.fps == 25.0
    times = (np.arange(slow.num_frames) + 0.5) / 25 - 0.5 / 30
    expected = np.clip(times * 30 / 60 * 2, 0, 2)
    assert np.abs(slow.head_pose[:, 1] - expected).max() < 1e-5


def test_resampling_takes_the_short_way_round():
    motion = replace(make_motion(2, 0), fps=30.0)
    motion.head_pose[:, :3] = [[0, 3.0, 0], [0, -3.0, 0]]
    middle = resample_motion(motion, 90.0).head_pose[2, :3]
    assert np.rad2deg((Rotation.from_rotvec(middle) * Rotation.from_rotvec([0, np.pi, 0]).inv()).magnitude()) < 9


def test_imitation_drops_the_other_persons_residual():
    own, other = make_motion(5, 0, residuals=3), make_motion(8, 1, residuals=7)
    driven = imitate(own, other, "other")
    assert driven.expression_residual.shape == (8, 3) and not driven.expression_residual.any()
    assert np.array_equal(driven.expression, other.expression)


def test_mixing_bases_is_refused():
    other = replace(make_motion(5, 1), expression_basis="BFM 2009")
    with pytest.raises(DialogueError, match=r"motion of bob in chat2.*BFM 2009"):
        imitate(make_motion(5, 0), other, "motion of bob in chat2")


def test_nan_in_a_motion_is_refused_by_frame(tmp_path, conversation):
    motion = make_motion(9, 3)
    motion.gaze[4, 0, 1] = np.nan
    motion.save(tmp_path / "bad.npz")
    with pytest.raises(DialogueError, match=r"bad\.npz.*gaze.*frame 4"):
        load_other_motion(tmp_path / "bad.npz")


def test_another_conversation_drives_with_its_length_sound_and_roles(tmp_path, conversation):
    other = make_conversation(tmp_path / "b", ids=("x", "y"), num_frames=100, seed=7)
    driving = drive_by_motion(conversation, load_other_motion(tmp_path / "b"), ["p0=y", "p1=x"])
    assert driving.num_frames == 100
    assert np.array_equal(driving.motions["p0"].head_pose, other.participant("y").motion.head_pose)
    assert np.array_equal(driving.speaking, other.speaking[:, ::-1])
    assert np.allclose(driving.audio, other.audio()[0])
    assert np.allclose(driving.features, other.feature("mel"), atol=2e-3)
    assert driving.motions["p1"].expression_residual.shape == (100, 3)


def test_an_avatar_without_a_partner_keeps_its_own_motion(tmp_path, conversation):
    make_motion(70, 9).save(tmp_path / "solo.npz")
    driving = drive_by_motion(conversation, load_other_motion(tmp_path / "solo.npz"), ["p1=solo"])
    assert driving.num_frames == 70 and not driving.speaking.any() and not driving.audio.any()
    own = conversation.participant("p0").motion
    assert np.array_equal(driving.motions["p0"].head_pose, own.head_pose[ping_pong(50, 70)])


def test_a_folder_of_motions_drives(tmp_path, conversation):
    (tmp_path / "m").mkdir()
    make_motion(30, 1).save(tmp_path / "m" / "p0.npz")
    make_motion(40, 2).save(tmp_path / "m" / "p1.npz")
    driving = drive_by_motion(conversation, load_other_motion(tmp_path / "m"))
    assert driving.num_frames == 40
    assert np.array_equal(driving.motions["p0"].head_pose[30], driving.motions["p0"].head_pose[28])


def test_mapping_by_name_then_by_order():
    assert map_motions(["a", "b"], ["b", "a"], []) == {"a": "a", "b": "b"}
    assert map_motions(["a", "b"], ["x", "y"], []) == {"a": "x", "b": "y"}
    assert map_motions(["a", "b"], ["x"], []) == {"a": "x"}
    for pair, message in (("a", "no '='"), ("c=x", "no avatar 'c'"), ("a=z", "no motion of 'z'")):
        with pytest.raises(DialogueError, match=message):
            map_motions(["a", "b"], ["x"], [pair])


def test_new_audio_for_the_speaker(tmp_path, conversation):
    sound = np.random.default_rng(3).uniform(-0.3, 0.3, 3 * 16000).astype(np.float32)
    soundfile.write(tmp_path / "new.wav", sound, 16000, subtype="FLOAT")
    driving = drive_by_audio(conversation, tmp_path / "new.wav", speaker="p1")
    assert driving.num_frames == 75
    assert driving.speaking[:, 1].all() and not driving.speaking[:, 0].any()
    assert np.allclose(driving.audio, sound, atol=1e-4)
    assert np.allclose(driving.features, mel_features(sound, 16000, 75), atol=2e-3)
    own = conversation.participant("p1").motion
    assert np.array_equal(driving.motions["p1"].head_pose, own.head_pose[ping_pong(50, 75)])


def test_roles_by_rttm_and_their_unknown_names(tmp_path, conversation):
    soundfile.write(tmp_path / "new.wav", np.zeros(32000, np.float32), 16000)
    write_rttm(tmp_path / "roles.rttm", [SpeechSegment(0.0, 1.0, "p1"), SpeechSegment(1.0, 2.0, "p0")])
    driving = drive_by_audio(conversation, tmp_path / "new.wav", rttm=tmp_path / "roles.rttm")
    assert driving.speaking[:25, 1].all() and driving.speaking[25:, 0].all() and driving.speaking.sum() == 50
    write_rttm(tmp_path / "roles.rttm", [SpeechSegment(0.0, 1.0, "SPEAKER_07")])
    with pytest.raises(DialogueError, match="SPEAKER_07"):
        drive_by_audio(conversation, tmp_path / "new.wav", rttm=tmp_path / "roles.rttm")


def test_audio_without_a_speaker_is_refused(tmp_path, conversation):
    soundfile.write(tmp_path / "new.wav", np.zeros(32000, np.float32), 16000)
    with pytest.raises(DialogueError, match="--speaker with one of p0, p1"):
        drive_by_audio(conversation, tmp_path / "new.wav")
    with pytest.raises(DialogueError, match="no such avatar"):
        drive_by_audio(conversation, tmp_path / "new.wav", speaker="nobody")


def test_new_audio_over_another_motion(tmp_path, conversation):
    make_conversation(tmp_path / "b", num_frames=60, seed=7)
    soundfile.write(tmp_path / "new.wav", np.zeros(16000, np.float32), 16000)
    base = drive_by_motion(conversation, load_other_motion(tmp_path / "b"))
    driving = drive_by_audio(conversation, tmp_path / "new.wav", speaker="p0", base=base)
    assert driving.num_frames == 25
    assert np.array_equal(driving.motions["p0"].head_pose, base.motions["p0"].head_pose[:25])
    assert str(tmp_path / "b") in driving.sources and str(tmp_path / "new.wav") in driving.sources


def test_a_listener_does_not_babble():
    motion = make_motion(6, 0)
    was, now = np.array([1, 1, 1, 0, 0, 0], bool), np.array([0, 1, 0, 0, 1, 0], bool)
    quiet = quiet_mouth(motion, was, now)
    jaw, brow = EXPRESSION_NAMES.index("jaw_open"), EXPRESSION_NAMES.index("brow_raise_left")
    rest = np.median(motion.expression[3:, jaw])
    assert np.allclose(quiet.expression[[0, 2], jaw], rest)
    assert np.array_equal(quiet.expression[[1, 3, 4, 5], jaw], motion.expression[[1, 3, 4, 5], jaw])
    assert np.array_equal(quiet.expression[:, brow], motion.expression[:, brow])


def test_sound_is_cut_or_padded():
    assert len(fit_audio(np.ones(100, np.float32), 1000, 2, 25.0)) == 80
    padded = fit_audio(np.ones(50, np.float32), 1000, 2, 25.0)
    assert len(padded) == 80 and not padded[50:].any()


def test_choosing_frames():
    assert choose_frames(10).tolist() == list(range(10))
    assert choose_frames(10, "2:5").tolist() == [2, 3, 4]
    assert choose_frames(10, ":3").tolist() == [0, 1, 2]
    assert choose_frames(10, "8:").tolist() == [8, 9]
    assert choose_frames(10, None, "eval", np.arange(9), np.array([9])).tolist() == [9]
    for bad in ("5", "a:b", "5:5", "0:11", "-1:3"):
        with pytest.raises(DialogueError, match="--frames"):
            choose_frames(10, bad)
    with pytest.raises(DialogueError, match="not both"):
        choose_frames(10, "0:3", "eval", np.arange(9), np.array([9]))
