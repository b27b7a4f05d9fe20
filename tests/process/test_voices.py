"""Voices to faces, on lips and turns that are known."""

import numpy as np
import pytest
from synthetic_voice import voice

from dialogue_nerfstudio.conversation.roles import SpeechSegment, frames_to_segments
from dialogue_nerfstudio.metrics.tracking import role_accuracy
from dialogue_nerfstudio.process.audio_features import SAMPLE_RATE
from dialogue_nerfstudio.process.diarization import diarize
from dialogue_nerfstudio.process.voices import (
    VoiceConfig,
    add_overlaps,
    agreement_beyond_chance,
    assign_voices,
    bridge_pauses,
    fit_levels,
    fuse_roles,
    lip_activity,
    lip_scores,
    match_voices,
)

FPS = 25.0


def conversation(num_people: int, seed: int, turns: int = 10, swap: bool = False):
    """True roles [T, P], openings by id, and segments whose voices are right but for ragged edges."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(25, 80, turns)
    speaker = np.repeat(np.arange(turns) % num_people, lengths)
    pause = np.concatenate([[False] * (n - 6) + [True] * 6 for n in lengths])
    speaking = (speaker[:, None] == np.arange(num_people)) & ~pause[:, None]
    time = np.arange(len(speaker)) / FPS
    openings = {}
    for person in range(num_people):
        syllables = np.abs(np.sin(2 * np.pi * (2.3 + 0.3 * person) * time + rng.uniform(0, 6))) * rng.uniform(
            0.5, 1.5, len(time)
        )
        smile = 0.05 * np.clip(np.sin(2 * np.pi * 0.15 * time + person), 0, 1)
        openings[f"p{person}"] = np.where(speaking[:, person], 0.12 * syllables, smile) + 0.003 * rng.normal(
            size=len(time)
        )
    order = list(range(num_people))[::-1] if swap else list(range(num_people))
    shifted = np.roll(speaking, 2, axis=0)
    segments = frames_to_segments(shifted, [f"voice{order[p]}" for p in range(num_people)], FPS)
    return speaking, openings, segments


@pytest.mark.parametrize("num_people", [2, 3])
@pytest.mark.parametrize("swap", [False, True])
def test_each_voice_gets_the_face_that_moves_with_it(num_people, swap):
    speaking, openings, segments = conversation(num_people, seed=0, swap=swap)
    result = assign_voices(segments, openings, FPS)
    expected = {f"voice{num_people - 1 - p if swap else p}": f"p{p}" for p in range(num_people)}
    assert result.voice_to_participant == expected
    assert result.method == "voices+lips" and result.reason == ""
    assert min(result.confidence.values()) > 0.6 and result.disagreement < 0.15
    assert role_accuracy(result.speaking, speaking)["per_frame"] > 0.9
    assert {segment.speaker for segment in result.segments} == set(openings)


def test_wrong_turns_of_the_diarizer_are_mended_by_the_lips():
    speaking, openings, segments = conversation(2, seed=1)
    broken = [
        SpeechSegment(s.start, s.end, {"voice0": "voice1", "voice1": "voice0"}[s.speaker]) if i == 4 else s
        for i, s in enumerate(segments)
    ]
    fused = assign_voices(broken, openings, FPS)
    assert fused.method == "voices+lips"
    assert role_accuracy(fused.speaking, speaking)["per_frame"] > 0.9


def test_one_voice_for_two_people_falls_back_on_lips_and_says_so():
    speaking, openings, segments = conversation(2, seed=2)
    result = assign_voices([SpeechSegment(s.start, s.end, "voice0") for s in segments], openings, FPS)
    assert result.method == "lips" and "one voice" in result.reason and result.voice_to_participant == {}
    assert role_accuracy(result.speaking, speaking)["per_frame"] > 0.88


def test_two_voices_from_one_face_fall_back_on_lips_and_say_so():
    speaking, openings, _ = conversation(2, seed=3)
    openings["p1"] = 0.002 * np.random.default_rng(0).normal(size=len(speaking))
    segments = [
        SpeechSegment(s.start, s.end, f"voice{i % 2}")
        for i, s in enumerate(frames_to_segments(speaking[:, :1], ["p0"], FPS))
    ]
    result = assign_voices(segments, openings, FPS)
    assert result.method == "lips" and "'p0'" in result.reason
    assert {segment.speaker for segment in result.segments} == {"p0"}


def test_unseen_faces_leave_the_decision_to_the_voices():
    speaking, openings, segments = conversation(2, seed=4)
    hidden = {name: opening.copy() for name, opening in openings.items()}
    hidden["p0"][150:250] = np.nan
    hidden["p1"][180:260] = np.nan
    result = assign_voices(segments, hidden, FPS)
    assert result.method == "voices+lips"
    assert role_accuracy(result.speaking, speaking)["per_frame"] > 0.88


def test_one_participant_gets_all_speech_unless_the_lips_never_move():
    speaking, openings, _ = conversation(2, seed=5)
    mine = frames_to_segments(speaking[:, :1], ["voice0"], FPS)
    result = assign_voices(mine, {"ann": openings["p0"]}, FPS)
    assert result.method == "single" and result.voice_to_participant == {"voice0": "ann"}
    np.testing.assert_array_equal(result.speaking, speaking[:, :1])
    still = assign_voices(mine, {"ann": np.full(len(speaking), 0.1)}, FPS)
    assert still.method == "silent" and still.segments == [] and "'ann'" in still.reason


def test_no_speech():
    result = assign_voices([], {"a": np.zeros(50), "b": np.zeros(50)}, FPS)
    assert result.method == "silent" and result.segments == [] and result.speaking.shape == (50, 2)


def test_matching_is_one_to_one_even_where_one_face_is_best_for_both():
    assert match_voices(np.array([[5.0, 4.0], [3.0, 0.0]])).tolist() == [1, 0]
    assert match_voices(np.array([[1.0, 0.0], [0.0, 1.0], [0.2, 0.9]])).tolist() == [0, 1, 1]


def test_activity_of_a_sine_is_its_deviation():
    time = np.arange(200) / FPS
    activity = lip_activity(0.1 * np.sin(2 * np.pi * 4.0 * time), FPS, 0.2)
    np.testing.assert_allclose(activity[50:150], 0.1 / np.sqrt(2), rtol=0.1)
    assert np.isnan(lip_activity(np.full(20, np.nan), FPS, 0.2)).all()
    np.testing.assert_allclose(lip_activity(np.full(50, 0.2), FPS, 0.2), 0.0, atol=1e-12)


def test_scores_rise_with_activity_and_unseen_is_zero():
    config = VoiceConfig()
    activity = np.geomspace(1e-3, 1.0, 50)[:, None]
    level = np.log(np.array([config.speaking_activity])), np.log(np.array([config.listening_activity]))
    scores = lip_scores(activity, *level, config)[:, 0]
    assert scores[0] < -1 and scores.argmax() > 15 and (scores[activity[:, 0] > 0.02] >= 0).all()
    assert lip_scores(np.full((3, 1), np.nan), *level, config).tolist() == [[0.0]] * 3


def test_levels_follow_the_data_when_there_is_much_of_it():
    speaking = np.arange(10_000)[:, None] < 5_000
    activity = np.where(speaking, 0.08, 0.02)
    levels = fit_levels(activity, speaking, FPS, VoiceConfig())
    np.testing.assert_allclose(np.exp(levels), [[0.08], [0.02]], rtol=0.05)
    prior = fit_levels(activity, np.zeros_like(speaking), FPS, VoiceConfig())
    assert np.exp(prior[0][0]) == pytest.approx(VoiceConfig().speaking_activity)


def test_short_pauses_are_bridged_and_changes_of_speaker_are_not():
    roles = {"a": [True, False], "b": [False, True], ".": [False, False], "2": [True, True]}

    def bridged(text: str) -> str:
        result = bridge_pauses(np.array([roles[c] for c in text]), FPS, 0.2)
        return "".join(next(c for c, role in roles.items() if role == row) for row in result.tolist())

    assert bridged("..aa....aa..") == "..aaaaaaaa.."
    assert bridged("aa.....aa") == "aa.....aa"
    assert bridged("aa..bb..aa") == "aa..bb..aa"
    assert bridged("a..2..2.b") == "a..2..2.b"
    assert bridged("......") == "......"


def test_one_participants_short_pauses_are_bridged_too():
    opening = 0.1 * np.abs(np.sin(np.arange(100)))
    segments = [SpeechSegment(0.4, 2.0, "voice0"), SpeechSegment(2.12, 3.0, "voice0")]
    assert assign_voices(segments, {"a": opening}, FPS).segments == [SpeechSegment(0.4, 3.0, "a")]


def test_who_speaks_meanwhile_needs_lips_that_move_long_enough_and_a_speaker():
    speaking = np.zeros((60, 2), bool)
    speaking[5:40, 0] = True
    scores = np.zeros((60, 2))
    scores[10:14, 1], scores[20:23, 1], scores[45:55, 1] = 2.5, 6.0, 6.0
    scores[25:35, 1] = 1.5
    expected = speaking.copy()
    expected[10:14, 1] = True
    np.testing.assert_array_equal(add_overlaps(speaking, scores, FPS, VoiceConfig()), expected)


def test_a_word_put_in_is_heard_from_its_lips_and_a_smile_is_not():
    speaking, openings, segments = conversation(2, seed=6)
    frames = np.flatnonzero(speaking[:, 0])
    start = next(f for f in frames if f >= 12 and speaking[f - 12 : f + 22, 0].all())
    word, smile = openings["p1"].copy(), openings["p1"].copy()
    word[start : start + 10] += 0.12 * np.abs(np.sin(np.arange(10) * 2 * np.pi * 2.5 / FPS))
    smile += 0.08 * np.clip((np.arange(len(smile)) - start) / 10, 0, 1)
    alone = assign_voices(segments, openings, FPS)
    heard = assign_voices(segments, {**openings, "p1": word}, FPS)
    added = np.flatnonzero(heard.speaking[:, 1] & ~alone.speaking[:, 1])
    assert set(range(start + 2, start + 8)) <= set(added) <= set(range(start - 4, start + 14))
    assert heard.speaking[start : start + 10, 0].all()
    assert len({segment.speaker for segment in heard.segments if segment.start <= (start + 5) / FPS < segment.end}) == 2
    smiling = assign_voices(segments, {**openings, "p1": smile}, FPS)
    assert not smiling.speaking[start - 5 : start + 15, 1].any()


def test_two_voices_at_once_need_less_of_the_lips_than_one():
    speaking = np.zeros((40, 2), bool)
    speaking[5:35, 0] = True
    scores = np.full((40, 2), -1.0)
    scores[10:20, 1] = 1.0
    config = VoiceConfig(heard_overlap_evidence=0.0)
    assert not add_overlaps(speaking, scores, FPS, config)[:, 1].any()
    heard = np.zeros_like(speaking)
    heard[8:18, 1] = True
    added = add_overlaps(speaking, scores, FPS, config, heard)[:, 1]
    assert np.flatnonzero(added).tolist() == list(range(10, 18))


def test_overlapping_segments_mark_both_and_count_the_time():
    speaking, openings, segments = conversation(2, seed=7)
    frames = np.flatnonzero(speaking[:, 0])
    start = next(f for f in frames if f >= 12 and speaking[f - 12 : f + 22, 0].all())
    mumbled = openings["p1"].copy()
    mumbled[start : start + 15] += 0.05 * np.abs(np.sin(np.arange(15) * 2 * np.pi * 2.5 / FPS))
    both = [*segments, SpeechSegment(start / FPS, (start + 15) / FPS, "voice1")]
    result = assign_voices(both, {**openings, "p1": mumbled}, FPS)
    assert result.voice_to_participant == {"voice0": "p0", "voice1": "p1"}
    assert result.speaking[start : start + 15].all(1).sum() >= 8 and result.overlap_seconds >= 8 / FPS


def test_one_voice_cut_in_two_at_random_is_not_believed():
    speaking, openings, segments = conversation(2, seed=8)
    rng = np.random.default_rng(0)
    torn = []
    for segment in segments:
        edges = np.arange(segment.start, segment.end, 0.3)
        torn += [SpeechSegment(e, min(e + 0.3, segment.end), f"voice{rng.integers(2)}") for e in edges]
    result = assign_voices(torn, openings, FPS)
    assert result.method == "lips" and "told apart" in result.reason and result.voice_to_participant == {}
    assert role_accuracy(result.speaking, speaking)["per_frame"] > 0.85


def test_two_people_with_the_same_voice_are_told_apart_by_their_lips():
    """Sound and all: the diarizer is asked for two voices and makes them up of one."""
    speaking, openings, _ = conversation(2, seed=6, turns=8)
    spoken = voice(120, 1.0, len(speaking) / FPS, 0)
    heard = np.repeat(speaking.any(1), SAMPLE_RATE // int(FPS))[: len(spoken)]
    segments = diarize(np.where(heard, spoken[: len(heard)], 0.0).astype(np.float32), SAMPLE_RATE, 2)
    result = assign_voices(segments, openings, FPS)
    assert role_accuracy(result.speaking, speaking)["per_frame"] > 0.9
    assert result.disagreement > 0.2, "what the report shows of the doubt"


def test_a_third_voice_that_no_lips_follow_is_out_of_the_picture():
    speaking, openings, segments = conversation(3, seed=9)
    seen = {name: openings[name] for name in ("p0", "p1")}
    result = assign_voices(segments, seen, FPS)
    assert result.off_screen == ["voice2"]
    assert result.voice_to_participant == {"voice0": "p0", "voice1": "p1"}
    assert role_accuracy(result.speaking, speaking[:, :2])["per_frame"] > 0.85
    assert result.confidence["voice2"] > 0.5


def test_an_interviewer_out_of_the_picture_of_one():
    speaking, openings, segments = conversation(2, seed=10)
    result = assign_voices(segments, {"ann": openings["p0"]}, FPS)
    assert result.method == "single" and result.off_screen == ["voice1"]
    assert result.voice_to_participant == {"voice0": "ann"}
    assert role_accuracy(result.speaking, speaking[:, :1])["per_frame"] > 0.85


def test_agreement_is_beyond_chance_and_of_sure_lips_only():
    scores = np.array([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, 3.0], [0.1, 0.0]])
    assert agreement_beyond_chance(np.array([0, 0, 1, 1, 1]), scores) == pytest.approx(1.0)
    assert agreement_beyond_chance(np.array([0, 1, 0, 1, 0]), scores) == pytest.approx(0.0)
    assert agreement_beyond_chance(np.array([1, 1, 0, 0, 0]), scores) == pytest.approx(-1.0)
    assert np.isnan(agreement_beyond_chance(np.array([0, 1]), np.zeros((2, 2))))


def test_nobody_speaks_where_there_is_no_speech():
    speech = np.array([False] * 10 + [True] * 30 + [False] * 10)
    roles = fuse_roles(speech, np.where(speech, 1, -1), np.zeros((50, 2)), FPS, VoiceConfig())
    assert not roles[~speech].any() and roles[speech, 1].all() and not roles[:, 0].any()
