"""Mouths from sound: a stream is one shot, silence closes, lips meet where they must, and everybody keeps their own
way."""

import copy

import numpy as np
import pytest
import torch
from spoken_windows import SpokenConversation, trained_lip_sync

from dialogue_nerfstudio.conversation import DialogueError, Motion
from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES
from dialogue_nerfstudio.motion.generator import Character, join_parts
from dialogue_nerfstudio.motion.mouth_from_sound import LOOK_AHEAD, MouthGenerator, speech_gate
from dialogue_nerfstudio.motion.signals import MotionSignals

JAW = EXPRESSION_NAMES.index("jaw_open")


@pytest.fixture(scope="module")
def generator() -> MouthGenerator:
    return trained_lip_sync().generator()


@pytest.fixture(scope="module")
def conversation() -> SpokenConversation:
    return SpokenConversation(9, 400)


def _characters(conversation: SpokenConversation) -> list[Character]:
    return [
        Character(
            name,
            Motion(
                person.head_pose,
                person.expression.astype(np.float32),
                person.blink.astype(np.float32),
                person.gaze,
                np.zeros((len(person.head_pose), 0)),
            ),
            speaking,
        )
        for name, person, speaking in zip(
            ("p0", "p1"), conversation.dialogue.performances, conversation.signals.speaking, strict=True
        )
    ]


def test_mouths_follow_the_truth_and_lips_meet(generator, conversation):
    parts = generator.generate(conversation.signals, _characters(conversation), 0)
    for person, name in enumerate(("p0", "p1")):
        found, true = parts[name]["expression"], conversation.dialogue.performances[person].expression
        assert found.shape == true.shape and found.dtype == np.float32
        speaking = conversation.signals.speaking[person]
        assert np.corrcoef(found[speaking, JAW], true[speaking, JAW])[0, 1] > 0.7
        closed, open_ = conversation.middles(person, ("m", "b", "p")), conversation.middles(person, ("aa", "ae", "ah"))
        assert found[closed, JAW].mean() < 0.6 * found[open_, JAW].mean()


def test_a_stream_is_one_shot_however_the_sound_is_cut(generator, conversation):
    characters, signals = _characters(conversation), conversation.signals
    whole = generator.generate(signals, characters, 0)
    for cuts in ((5, 10, 200, 400), tuple(range(5, 401, 5))):
        stream, blocks, start, given = generator.begin(characters, 0), [], 0, 0
        for stop in cuts:
            blocks.append(stream.advance(signals.frames(start, stop)))
            given += len(blocks[-1]["p0"]["expression"]) if blocks[-1] else 0
            # Nobody waits longer than the look-ahead.
            assert given == max(0, stop - LOOK_AHEAD)
            start = stop
            assert stream._kept.num_frames < 30 + LOOK_AHEAD
        blocks.append(stream.finish())
        joined = join_parts(blocks)
        for name in ("p0", "p1"):
            np.testing.assert_allclose(joined[name]["expression"], whole[name]["expression"], atol=1e-3)


def test_silence_closes_the_mouth_and_listeners_rest_at_their_own_median(generator, conversation):
    characters = _characters(conversation)
    silent = MotionSignals(
        ("p0", "p1"),
        np.zeros((2, 50, 2), np.float32),
        np.full((2, 160, 80), -1.0, np.float32),
        np.array([[True] * 50, [False] * 50]),
    )
    parts = generator.generate(silent, characters, 0)
    assert parts["p0"]["expression"][:, JAW].max() < 0.12
    reference = characters[1].reference.expression[~characters[1].was_speaking]
    np.testing.assert_allclose(parts["p1"]["expression"], np.tile(np.median(reference, axis=0), (50, 1)), atol=1e-6)


def test_who_articulates_more_in_their_reference_moves_more(generator, conversation):
    plain = _characters(conversation)
    strong = copy.deepcopy(plain)
    strong[0].reference.expression *= 1.4
    moved = [
        generator.generate(conversation.signals, people, 0)["p0"]["expression"][:, JAW] for people in (plain, strong)
    ]
    ratio = generator.personal_articulation(strong[0]) / generator.personal_articulation(plain[0])
    assert 1.15 < ratio < 1.4
    speaking = conversation.signals.speaking[0]
    assert moved[1][speaking].std() / moved[0][speaking].std() == pytest.approx(ratio, rel=0.1)
    mute = Character("p0", plain[0].reference, np.zeros_like(plain[0].was_speaking))
    assert generator.personal_articulation(mute) == 1.0


def test_somebody_who_always_speaks_rests_with_a_closed_mouth(generator, conversation):
    person = _characters(conversation)[0]
    always = Character("p0", person.reference, np.ones_like(person.was_speaking))
    opening = person.reference.expression[:, JAW]
    assert generator.resting_expression(always)[JAW] <= np.quantile(opening, 0.1) + 1e-6


def test_the_gate_is_open_in_speech_and_falls_beside_it():
    speaking = np.zeros(20, bool)
    speaking[8:12] = True
    gate = speech_gate(speaking)
    np.testing.assert_allclose(gate[3:9], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], atol=1e-6)
    np.testing.assert_allclose(gate[3:17], gate[3:17][::-1], atol=1e-6)
    assert (gate[8:12] == 1.0).all() and not speech_gate(np.zeros(3, bool)).any()


def test_people_and_bases_it_cannot_move_are_named(generator, conversation):
    people = _characters(conversation)
    other = copy.deepcopy(people)
    other[1].reference.expression_basis = "bfm"
    with pytest.raises(DialogueError, match="p1 cannot be moved by sound"):
        generator.begin(other, 0)
    with pytest.raises(ValueError, match="signals are of"):
        generator.begin(people[:1], 0).advance(conversation.signals)


def test_an_empty_conversation_moves_nobody(generator, conversation):
    assert generator.begin(_characters(conversation), 0).finish() == {}
    assert torch.is_grad_enabled()
