"""Behaviour: turns alternate, listeners answer after their cause, blinks and poses stay human."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation import EXPRESSION_NAMES
from dialogue_nerfstudio.conversation.simulate.dialogue import act_dialogue, blink_curve, nod_curve, speak_dialogue

FPS = 25.0
FRAMES = 750


@pytest.fixture(scope="module")
def dialogue():
    return act_dialogue(2, FRAMES, FPS, seed=3)


def test_same_seed_same_dialogue(dialogue):
    again, other = act_dialogue(2, FRAMES, FPS, seed=3), act_dialogue(2, FRAMES, FPS, seed=4)
    for ours, theirs in zip(dialogue.performances, again.performances, strict=True):
        np.testing.assert_array_equal(ours.head_pose, theirs.head_pose)
        np.testing.assert_array_equal(ours.expression, theirs.expression)
    assert dialogue.segments == again.segments != other.segments


def test_everybody_speaks_and_nobody_twice_in_a_row(dialogue):
    main = [turn for turn in dialogue.turns if not turn.is_backchannel]
    assert {turn.participant for turn in main} == {0, 1}
    assert all(a.participant != b.participant and a.end < b.start for a, b in pairwise(main))
    assert all(0 <= s.start < s.end <= FRAMES / FPS for s in dialogue.segments)


def test_responses_come_after_their_cause(dialogue):
    assert {"nod", "blink", "smile"} <= {response.kind for response in dialogue.responses}
    for response in dialogue.responses:
        assert 0.1 < response.time - response.cause < 0.85
    # The cause of a nod is the end of something that somebody else said.
    for response in dialogue.responses:
        if response.kind == "nod":
            ends = [
                turn.start + end
                for turn in dialogue.turns
                if turn.participant != response.participant
                for _, end in turn.utterance.speech_spans(bridge=0.10)
            ]
            assert min(abs(end - response.cause) for end in ends) < 1e-6


def test_nods_are_acted_out(dialogue):
    """The head's pitch falls within a third of a second after a nod starts, on average over the nods."""
    falls = []
    for response in dialogue.responses:
        if response.kind == "nod":
            pose = dialogue.performances[response.participant].head_pose[:, :3]
            pitch = -Rotation.from_rotvec(pose).as_euler("YXZ")[:, 1]
            first = int(response.time * FPS)
            falls.append(pitch[first] - pitch[first : first + 9].min())
    assert np.rad2deg(np.mean(falls)) > 3.0


def test_blinks_of_truth_are_in_the_curves(dialogue):
    for who, performance in enumerate(dialogue.performances):
        assert 3 <= len(performance.blinks) <= 30
        for start, duration in performance.blinks:
            assert 0.15 <= duration <= 0.25
            frames = slice(int(start * FPS), int((start + duration) * FPS) + 2)
            assert performance.blink[frames].max() > 0.85
        assert (performance.blink[:, 0] < 0.05).mean() > 0.75
        acted = {time for time, _ in performance.blinks}
        assert all(
            response.time in acted
            for response in dialogue.responses
            if response.participant == who and response.kind == "blink"
        )


def test_motion_is_human(dialogue):
    for performance in dialogue.performances:
        angles = np.rad2deg(Rotation.from_rotvec(performance.head_pose[:, :3]).as_euler("YXZ"))
        assert np.abs(angles).max() < 15.0
        assert angles.std(axis=0).min() > 0.5
        assert np.abs(np.diff(angles, axis=0)).max() < 5.0
        assert np.abs(performance.head_pose[:, 3:]).max() < 0.06
        assert performance.expression.min() >= 0.0 and performance.expression.max() <= 1.0
        assert np.abs(performance.gaze).max() < 0.5


def test_torso_follows_the_head_later(dialogue):
    head, torso = (
        np.concatenate([getattr(p, name)[:, 1] - getattr(p, name)[:, 1].mean() for p in dialogue.performances])
        for name in ("head_pose", "torso_pose")
    )
    lags = range(-12, 25)
    correlation = [np.corrcoef(head[25:-25], np.roll(torso, -lag)[25:-25])[0, 1] for lag in lags]
    best = list(lags)[int(np.argmax(correlation))]
    assert 3 <= best <= 15 and max(correlation) > 0.8
    assert np.abs(torso).mean() < 0.5 * np.abs(head).mean()


def test_mouths_move_while_speaking(dialogue):
    jaw = EXPRESSION_NAMES.index("jaw_open")
    times = (np.arange(FRAMES) + 0.5) / FPS
    for who, performance in enumerate(dialogue.performances):
        speaking = np.zeros(FRAMES, bool)
        for segment in dialogue.segments:
            if segment.speaker == f"p{who}":
                speaking |= (times >= segment.start) & (times < segment.end)
        assert performance.expression[speaking, jaw].mean() > 6 * performance.expression[~speaking, jaw].mean()


def test_sound_follows_the_roles(dialogue):
    tracks, mix = speak_dialogue(dialogue, int(FRAMES / FPS * 16000), seed=3)
    assert np.abs(mix).max() <= 0.96
    times = np.arange(len(mix)) / 16000
    for who, track in enumerate(tracks):
        speaking = np.zeros(len(mix), bool)
        for segment in dialogue.segments:
            if segment.speaker == f"p{who}":
                speaking |= (times >= segment.start) & (times < segment.end + 0.02)
        assert (track[speaking] ** 2).sum() > 0.99 * (track**2).sum()


@pytest.mark.parametrize("num_people", [1, 3, 4])
def test_other_numbers_of_people(num_people):
    dialogue = act_dialogue(num_people, 500, FPS, seed=0)
    assert len(dialogue.performances) == num_people
    assert {segment.speaker for segment in dialogue.segments} <= {f"p{i}" for i in range(num_people)}
    if num_people == 1:
        assert all(response.participant == 0 for response in dialogue.responses) and not dialogue.responses


def test_curves():
    times = np.linspace(0, 1, 101)
    lid = blink_curve(times, 0.2, 0.2)
    assert lid.max() == pytest.approx(1.0) and lid[times < 0.2].max() == 0 and lid[times > 0.401].max() < 1e-9
    nod = nod_curve(times, 0.1, 0.1, 2.2)
    assert nod[times <= 0.1].any() == False and nod[20] < 0 and -0.1 < nod.min() < -0.04  # noqa: E712
