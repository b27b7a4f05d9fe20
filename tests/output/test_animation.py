"""A sound becomes a folder of sound, roles and motion that drives avatars; it resumes and says what made it."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from motion_generators import LoudnessNods, OpenMouths, recorded_person
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.conversation import load_conversation
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.motion import Motion
from dialogue_nerfstudio.conversation.roles import SpeechSegment, read_rttm, write_rttm
from dialogue_nerfstudio.motion.animation import NamedGenerator
from dialogue_nerfstudio.output.animation import (
    AnimationModel,
    AnimationOptions,
    SoundAnimation,
    recorded_characters,
)
from dialogue_nerfstudio.output.driving import drive_by_motion, load_other_motion
from dialogue_nerfstudio.process.audio_features import load_audio

PEOPLE = [recorded_person("p0"), recorded_person("p1", seed=1)]


def models(scale: float = 1.0) -> list[AnimationModel]:
    return [
        AnimationModel(NamedGenerator("nods", LoudnessNods(late=3, scale=scale)), {"method": "test"}, [scale]),
        AnimationModel(NamedGenerator("mouths", OpenMouths())),
    ]


def noise(path: Path, seconds: float, channels: int = 1, rate: int = 16000) -> Path:
    sound = 0.1 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
    soundfile.write(path, sound.astype(np.float32), rate, subtype="FLOAT")
    return path


def turns(path: Path) -> Path:
    write_rttm(path, [SpeechSegment(0.0, 2.0, "p1"), SpeechSegment(2.0, 4.0, "p0"), SpeechSegment(9.0, 10.0, "p0")])
    return path


@pytest.fixture
def animation(tmp_path):
    options = AnimationOptions(rttm=turns(tmp_path / "turns.rttm"), seed=2)
    sound = noise(tmp_path / "new.wav", 4.03)
    return SoundAnimation(sound, tmp_path / "chat2", PEOPLE, models(), "chat", options)


def test_the_folder_has_sound_roles_and_motion_and_says_that_it_is_synthetic(animation, tmp_path):
    record = animation.run()
    assert record == json.loads((tmp_path / "chat2" / "animation.json").read_text())
    assert record["synthetic"] is True and record["made_by"] == "ns-dialogue animate" and record["seed"] == 2
    assert record["num_frames"] == 100 and record["models"][0] == {"name": "nods", "method": "test"}
    assert record["participants"]["p0"]["sources"]["head_pose"] == "generated: nods"
    assert record["participants"]["p1"]["speaking_share"] == pytest.approx(0.5)
    assert any("after the sound's end" in note for note in record["notes"])
    motion = Motion.load(tmp_path / "chat2" / "participants" / "p0" / "motion.npz")
    assert motion.num_frames == 100 and motion.fps == 25.0
    assert motion.sources == record["participants"]["p0"]["sources"]
    np.testing.assert_array_equal(motion.expression[:, 0], np.repeat([0.0, 1.0], 50))
    assert not list((tmp_path / "chat2").rglob("*.raw"))
    np.testing.assert_allclose(
        load_audio(tmp_path / "chat2" / "audio.wav"), load_audio(tmp_path / "new.wav"), atol=1e-4
    )


def test_rendering_takes_sound_and_roles_of_the_folder(animation, tmp_path):
    animation.run()
    conversation = load_conversation(write_tiny_conversation(tmp_path / "tiny"))
    driving = drive_by_motion(conversation, load_other_motion(tmp_path / "chat2"))
    assert driving.num_frames == 100 and len(driving.audio) == 64000
    np.testing.assert_allclose(driving.audio, load_audio(tmp_path / "new.wav")[:64000], atol=1e-4)
    np.testing.assert_array_equal(driving.speaking[:, 0], np.repeat([False, True], 50))
    np.testing.assert_array_equal(driving.speaking[:, 1], ~driving.speaking[:, 0])
    swapped = drive_by_motion(conversation, load_other_motion(tmp_path / "chat2"), ["p0=p1", "p1=p0"])
    np.testing.assert_array_equal(swapped.speaking, driving.speaking[:, ::-1])


def test_roles_of_somebody_else_in_a_folder_of_motions_are_refused_by_name(animation, tmp_path):
    animation.run()
    write_rttm(tmp_path / "chat2" / "roles.rttm", [SpeechSegment(0, 1, "bob")])
    with pytest.raises(DialogueError, match=r"chat2/roles\.rttm.*bob"):
        load_other_motion(tmp_path / "chat2")


def test_finished_stages_are_not_run_again_and_others_are(animation, tmp_path):
    animation.run()
    files = [*sorted((tmp_path / "chat2").rglob("*.npz")), tmp_path / "chat2" / "audio.wav"]
    before = [path.stat().st_mtime_ns for path in files]

    def again(seed: int, scale: float) -> list[int]:
        options = AnimationOptions(rttm=tmp_path / "turns.rttm", seed=seed)
        SoundAnimation(tmp_path / "new.wav", tmp_path / "chat2", PEOPLE, models(scale), "chat", options).run()
        return [path.stat().st_mtime_ns for path in files]

    assert again(2, 1.0) == before
    other_seed = again(3, 1.0)
    assert other_seed[-1] == before[-1] and all(a != b for a, b in zip(other_seed[:-1], before[:-1], strict=True))
    assert again(3, 0.5)[:-1] != other_seed[:-1], "another checkpoint makes other motion"


def test_an_interrupted_animation_is_refused_by_rendering_and_goes_on(animation, tmp_path):
    def stopped(blocks):
        next(blocks)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        animation.run(stopped)
    with pytest.raises(DialogueError, match=r"chat2 never finished.*animate"):
        load_other_motion(tmp_path / "chat2")
    sound = (tmp_path / "chat2" / "audio.wav").stat().st_mtime_ns
    assert animation.run()["num_frames"] == 100
    assert (tmp_path / "chat2" / "audio.wav").stat().st_mtime_ns == sound


def test_what_is_consumed_is_what_is_written_when_generated_and_when_recorded(animation, tmp_path):
    def consumed() -> np.ndarray:
        poses = []
        animation.run(lambda blocks: poses.extend(block["p1"].head_pose for block in blocks))
        return np.concatenate(poses)

    generated, recorded = consumed(), consumed()
    written = Motion.load(tmp_path / "chat2" / "participants" / "p1" / "motion.npz").head_pose
    np.testing.assert_array_equal(generated, written)
    np.testing.assert_array_equal(recorded, written)


def test_motion_is_made_on_one_thread_and_consumed_on_all(tmp_path, monkeypatch):
    threads: dict[str, set[int]] = {"made": set(), "consumed": set()}

    class Watched(LoudnessNods):
        def begin(self, characters, seed):
            stream = super().begin(characters, seed)
            for step in ("advance", "finish"):
                monkeypatch.setattr(stream, step, self.counting(getattr(stream, step)), raising=True)
            return stream

        def counting(self, step):
            def counted(*args):
                threads["made"].add(torch.get_num_threads())
                return step(*args)

            return counted

    def consume(blocks):
        for _ in blocks:
            threads["consumed"].add(torch.get_num_threads())

    all_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        watched = [AnimationModel(NamedGenerator("nods", Watched()))]
        sound = noise(tmp_path / "new.wav", 4.0)
        options = AnimationOptions(speaker="p0")
        SoundAnimation(sound, tmp_path / "chat2", PEOPLE, watched, "chat", options).run(consume)
    finally:
        torch.set_num_threads(all_threads)
    assert threads == {"made": {1}, "consumed": {2}}


@pytest.mark.parametrize("rate", [16000, 44100])
def test_two_channels_that_are_two_people_are_used_as_such(tmp_path, rate, monkeypatch):
    left, right = (0.3 * np.random.default_rng(n).standard_normal(4 * rate) for n in range(2))
    times = np.arange(4 * rate) / rate
    left[times >= 2], right[times < 2] = 0.001 * left[times >= 2], 0.001 * right[times < 2]
    soundfile.write(tmp_path / "call.wav", np.stack([left, right], axis=1), rate, subtype="FLOAT")
    # What is speech is Silero's business; here everything loud is.
    monkeypatch.setattr(
        "dialogue_nerfstudio.process.diarization.speech_probability",
        lambda source, progress=None: np.float32(
            np.abs(source.read(0, len(source) // 512 * 512)).reshape(-1, 512).mean(axis=1) > 0.05
        ),
    )
    record = SoundAnimation(tmp_path / "call.wav", tmp_path / "out", PEOPLE, models(), "chat").run()
    assert record["roles"] == {"method": "channels", "channels_are_people": True}
    segments = read_rttm(tmp_path / "out" / "roles.rttm")
    assert [segment.speaker for segment in segments] == ["p0", "p1"]
    assert segments[0].end == pytest.approx(2.0, abs=0.1) and segments[1].start == pytest.approx(2.0, abs=0.1)
    own = load_audio(tmp_path / "out" / "audio" / "p1.wav")
    assert np.abs(own[:30000]).max() < 0.01 < np.abs(own[33000:]).max()
    mix = SoundAnimation(
        tmp_path / "call.wav", tmp_path / "mix", PEOPLE, models(), "chat", AnimationOptions("p0", channels="mix")
    ).run()
    assert mix["roles"] == {"method": "speaker", "channels_are_people": False}
    assert not (tmp_path / "mix" / "audio").exists()


def test_stereo_of_one_room_is_mixed(tmp_path):
    sound = noise(tmp_path / "room.wav", 2.0, channels=2)
    record = SoundAnimation(sound, tmp_path / "out", PEOPLE, models(), "chat", AnimationOptions("p0")).run()
    assert record["roles"]["channels_are_people"] is False and not (tmp_path / "out" / "audio").exists()


def test_a_fifth_of_a_second_is_five_frames_and_less_than_one_is_refused(tmp_path):
    record = SoundAnimation(noise(tmp_path / "short.wav", 0.2), tmp_path / "out", PEOPLE, models(), "chat").run()
    assert record["num_frames"] == 5
    with pytest.raises(DialogueError, match=r"nothing\.wav is shorter than one frame"):
        SoundAnimation(noise(tmp_path / "nothing.wav", 0.03), tmp_path / "no", PEOPLE, models(), "chat").run()


def test_in_silence_and_music_everybody_listens_and_it_is_said(tmp_path):
    times = np.arange(3 * 16000) / 16000
    chord = sum(0.1 * np.sin(2 * np.pi * f * times) for f in (220.0, 277.2, 329.6, 440.0))
    for name, sound in (("silence", 0 * times), ("music", chord)):
        soundfile.write(tmp_path / f"{name}.wav", sound, 16000)
        record = SoundAnimation(tmp_path / f"{name}.wav", tmp_path / name, PEOPLE, models(), "chat").run()
        assert record["roles"]["method"] == "speech" and "everybody listens" in record["notes"][0]
        assert read_rttm(tmp_path / name / "roles.rttm") == []
        assert record["participants"]["p0"]["head_motion"]["frozen_share"] == 0.0


@pytest.mark.parametrize(
    "options, message",
    [
        (AnimationOptions(speaker="bob"), "--speaker bob.*p0, p1"),
        (AnimationOptions(speaker="p0", rttm=Path("x.rttm")), "not both"),
        (AnimationOptions(rttm=Path("none.rttm")), r"--rttm none\.rttm.*no such file"),
        (AnimationOptions(num_voices=0), "--num-voices 0"),
        (AnimationOptions(channels="person-each"), "does not have two channels"),
    ],
)
def test_impossible_options_are_refused_by_name(tmp_path, options, message):
    sound = noise(tmp_path / "a.wav", 1.0)
    with pytest.raises(DialogueError, match=message):
        SoundAnimation(sound, tmp_path / "out", PEOPLE, models(), "chat", options).run()


def test_foreign_files_are_not_written_into(tmp_path):
    sound = noise(tmp_path / "a.wav", 1.0)
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_text("x")
    with pytest.raises(DialogueError, match="holiday holds other files"):
        SoundAnimation(sound, tmp_path / "holiday", PEOPLE, models(), "chat")
    tiny = write_tiny_conversation(tmp_path / "tiny")
    with pytest.raises(DialogueError, match="tiny is a conversation"):
        SoundAnimation(sound, tiny, PEOPLE, models(), "chat")
    with pytest.raises(DialogueError, match=r"nothing\.wav: there is no such file"):
        SoundAnimation(tmp_path / "nothing.wav", tmp_path / "out", PEOPLE, models(), "chat")


def test_characters_are_what_training_saw(tmp_path):
    conversation = load_conversation(write_tiny_conversation(tmp_path / "tiny", num_frames=60))
    characters = recorded_characters(conversation, ["p1"])
    assert [character.id for character in characters] == ["p1"]
    seen = conversation.train_frames
    np.testing.assert_array_equal(
        characters[0].reference.head_pose, conversation.participant("p1").motion.head_pose[seen]
    )
    np.testing.assert_array_equal(characters[0].was_speaking, conversation.speaking[seen, 1])
    with pytest.raises(DialogueError, match="no participant 'p9'"):
        recorded_characters(conversation, ["p9"])
