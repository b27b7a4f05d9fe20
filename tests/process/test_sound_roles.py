"""Roles of known people in a sound: by channel levels, by RTTM under any names, by voices, also too many of them."""

import numpy as np
import pytest

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.roles import SpeechSegment, write_rttm
from dialogue_nerfstudio.process import sound_roles
from dialogue_nerfstudio.process.diarization import Diarization, DiarizationConfig, VoiceTrack
from dialogue_nerfstudio.process.sound_roles import (
    further_voice,
    one_person_a_channel,
    roles_by_channel,
    roles_by_rttm,
    roles_by_voice,
)
from dialogue_nerfstudio.process.sound_source import ArraySound


def levels(first: list[float], second: list[float], repeats: int = 50) -> np.ndarray:
    """Each pair of levels for 50 frames."""
    return np.repeat(np.stack([first, second], axis=1), repeats, axis=0)


@pytest.mark.parametrize(
    "first, second, expected",
    [
        ([0.2, 0.01, 0.3, 0.0], [0.01, 0.2, 0.02, 0.0], True),  # a call: now one, now the other
        ([0.2, 0.2, 0.3], [0.15, 0.25, 0.3], False),  # a room in stereo
        ([0.2, 0.3, 0.2], [0.0, 0.0, 0.0], False),  # one channel is silent: nobody is heard to answer
        ([0.2, 0.2, 0.01], [0.2, 0.2, 0.2], False),  # mostly together
        ([0.0, 0.0], [0.0, 0.0], False),
    ],
)
def test_channels_are_people_where_they_take_turns(first, second, expected):
    assert one_person_a_channel(levels(first, second)) is expected
    assert one_person_a_channel(np.zeros((0, 2))) is False


def test_what_a_channel_hears_of_the_other_is_not_its_own(monkeypatch):
    # Both microphones hear speech from 0 to 4 s; in the second half the other one is much louder.
    monkeypatch.setattr(
        sound_roles, "diarize_source", lambda *_, **__: Diarization([SpeechSegment(0.0, 4.0, "voice0")])
    )
    roles = roles_by_channel(
        [ArraySound(np.zeros(64000, np.float32))] * 2, levels([0.2, 0.02], [0.02, 0.2]), ["a", "b"], 25.0
    )
    assert [(s.start, s.end, s.speaker) for s in roles.segments] == [(0.0, 2.0, "a"), (2.0, 4.0, "b")]
    assert roles.method == "channels" and "channel 2 is b" in roles.notes[0]


def rttm(path, *speakers: str):
    write_rttm(path, [SpeechSegment(float(k), k + 0.5, speaker) for k, speaker in enumerate(speakers)])
    return path


def test_an_rttm_may_have_names_of_its_own(tmp_path):
    roles = roles_by_rttm(rttm(tmp_path / "a.rttm", "SPEAKER_01", "SPEAKER_00", "SPEAKER_01"), ["p0", "p1"])
    assert [segment.speaker for segment in roles.segments] == ["p0", "p1", "p0"]
    assert "SPEAKER_01 is p0" in roles.notes[0]
    assert roles_by_rttm(rttm(tmp_path / "b.rttm", "p1"), ["p0", "p1"]).notes == []
    assert "everybody listens" in roles_by_rttm(rttm(tmp_path / "c.rttm"), ["p0"]).notes[0]


@pytest.mark.parametrize("speakers", [("a", "b", "c"), ("p0", "SPEAKER_00"), ("p0", "p1", "guest")])
def test_an_rttm_of_strangers_is_refused_with_their_names(tmp_path, speakers):
    with pytest.raises(DialogueError, match=rf"x\.rttm names {len(speakers)} speaker.*{speakers[-1]}.*p0, p1"):
        roles_by_rttm(rttm(tmp_path / "x.rttm", *speakers), ["p0", "p1"])


def embeddings(truth: np.ndarray, spread: float = 0.3) -> VoiceTrack:
    rng = np.random.default_rng(3)
    means = np.abs(rng.normal(size=(truth.max() + 1, 256)))
    values = np.abs(means[truth] + spread * rng.normal(size=(len(truth), 256)))
    values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return VoiceTrack(np.arange(len(truth)) * 0.05, values, 0.05, lambda rows: rows, lambda made: made)


def test_a_third_voice_among_two_is_noticed_and_two_are_two():
    three = np.repeat([0, 1, 2, 0, 1], 60)
    assert further_voice(embeddings(three), 2, DiarizationConfig()) == pytest.approx(3.0, abs=0.3)
    assert further_voice(embeddings(np.repeat([0, 1, 0, 1], 60)), 2, DiarizationConfig()) == 0.0
    # A cough of another voice is no person.
    short = np.concatenate([np.repeat([0, 1], 100), np.full(20, 2)])
    assert further_voice(embeddings(short), 2, DiarizationConfig()) == 0.0


def heard(monkeypatch, *segments: tuple[float, float, str], voices: VoiceTrack | None = None) -> list[int]:
    asked = []

    def diarize(source, num_speakers, config, progress):
        asked.append(num_speakers)
        return Diarization([SpeechSegment(*segment) for segment in segments], voices)

    monkeypatch.setattr(sound_roles, "diarize_source", diarize)
    return asked


def test_voices_are_people_in_the_order_in_which_they_are_heard(monkeypatch):
    asked = heard(monkeypatch, (0, 1, "voice0"), (1, 5, "voice1"))
    roles = roles_by_voice(ArraySound(np.zeros(1)), ["ann", "bob"])
    assert asked == [2] and [segment.speaker for segment in roles.segments] == ["ann", "bob"]
    assert "voice1 is bob (4.0 s)" in roles.notes[0]


def test_three_voices_of_two_people_are_said_and_may_be_left_out(monkeypatch):
    track = embeddings(np.repeat([0, 1, 2], 60))
    heard(monkeypatch, (0, 1, "voice0"), (1, 5, "voice1"), voices=track)
    note = roles_by_voice(ArraySound(np.zeros(1)), ["ann", "bob"]).notes[-1]
    assert "3 voices" in note and "--num-voices 3" in note and "--rttm" in note
    asked = heard(monkeypatch, (0, 1, "voice0"), (1, 5, "voice1"), (5, 8, "voice2"), voices=track)
    roles = roles_by_voice(ArraySound(np.zeros(1)), ["ann", "bob"], num_voices=3)
    assert asked == [3] and [(s.start, s.speaker) for s in roles.segments] == [(1, "ann"), (5, "bob")]
    assert "1 further voice(s) speak for 1.0 s" in roles.notes[-1]


def test_too_few_voices_and_none_are_said(monkeypatch):
    heard(monkeypatch, (0, 1, "voice0"))
    assert "bob only listens" in roles_by_voice(ArraySound(np.zeros(1)), ["ann", "bob"]).notes[-1]
    heard(monkeypatch)
    roles = roles_by_voice(ArraySound(np.zeros(1)), ["ann", "bob"])
    assert roles.segments == [] and roles.method == "speech" and "No speech" in roles.notes[0]
