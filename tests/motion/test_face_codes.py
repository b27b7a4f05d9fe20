"""Swapped faces are the true ones, and after a short training a mouth code moves mouths and an eye code eyes."""

import numpy as np
import pytest
import torch
from spoken_windows import SpokenConversation, SpokenWindows, flat_statistics, train_briefly

from dialogue_nerfstudio.conversation import DialogueError, Motion
from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES
from dialogue_nerfstudio.motion.face_codes import (
    FaceAutoEncoder,
    FaceCodes,
    FaceCodesConfig,
    face_losses,
    leakage,
    swapped,
)
from dialogue_nerfstudio.motion.face_landmarks import EYE_POINTS, MOUTH_POINTS, FaceLandmarks


class _Oracle(FaceAutoEncoder):
    """An autoencoder as it should become: its codes are the points themselves."""

    def __init__(self):
        torch.nn.Module.__init__(self)

    def encode(self, landmarks):
        return landmarks[:, list(MOUTH_POINTS)].flatten(1), landmarks[:, list(EYE_POINTS)].flatten(1)

    def decode(self, mouth, eye):
        landmarks = torch.empty(len(mouth), 68, 3)
        landmarks[:, list(MOUTH_POINTS)] = mouth.unflatten(1, (-1, 3))
        landmarks[:, list(EYE_POINTS)] = eye.unflatten(1, (-1, 3))
        return landmarks


def _faces(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    expression = torch.rand(count, len(EXPRESSION_NAMES), generator=generator)
    return FaceLandmarks()(expression, torch.rand(count, 2, generator=generator))


def test_a_swapped_face_has_one_ones_mouth_and_the_others_eyes():
    mine, theirs = _faces(4, 0), _faces(4, 1)
    face = swapped(mine, theirs)
    assert torch.equal(face[:, list(MOUTH_POINTS)], mine[:, list(MOUTH_POINTS)])
    assert torch.equal(face[:, list(EYE_POINTS)], theirs[:, list(EYE_POINTS)])


def test_losses_and_leakage_vanish_for_codes_that_are_apart():
    mine, theirs = _faces(6, 0), _faces(6, 1)
    assert all(float(value) == 0.0 for value in face_losses(_Oracle(), mine, theirs).values())
    assert leakage(_Oracle(), mine, theirs) == {"mouth_to_eyes": 0.0, "eyes_to_mouth": 0.0}


def test_a_leak_is_seen():
    class Leaking(_Oracle):
        def decode(self, mouth, eye):
            landmarks = super().decode(mouth, eye)
            landmarks[:, list(EYE_POINTS)] += 0.1 * landmarks[:, [57] * len(EYE_POINTS)]
            return landmarks

    mine, theirs = _faces(6, 0), _faces(6, 1)
    found = leakage(Leaking(), mine, theirs)
    assert found["mouth_to_eyes"] > 0.05 and found["eyes_to_mouth"] == 0.0
    losses = face_losses(Leaking(), mine, theirs)
    assert losses["swap"] > 0.0 and losses["reconstruction"] > 0.0


@pytest.fixture(scope="module")
def trained() -> tuple[FaceCodes, SpokenWindows]:
    conversations = [SpokenConversation(seed, 250) for seed in (0, 1)]
    model = FaceCodesConfig(widths=(64, 64)).build(flat_statistics())
    train_briefly(model, SpokenWindows(conversations, 25), steps=200, count=6, rate=6e-3)
    return model, SpokenWindows([SpokenConversation(5, 250)], 25)


def test_a_short_training_sets_mouth_and_eyes_apart(trained):
    model, held_out = trained
    windows = held_out.draw(16, np.random.default_rng(1))
    torch.manual_seed(0)
    before = FaceCodesConfig(widths=(64, 64)).build(flat_statistics()).figures(windows)
    after = model.figures(windows)
    assert before["mouth_to_eyes"] > 0.4 and before["eyes_to_mouth"] > 0.4
    assert after["mouth_to_eyes"] < 0.05 and after["eyes_to_mouth"] < 0.1
    assert after["reconstruction"] < 0.35 * before["reconstruction"]


def test_codes_of_a_motion_come_back_as_its_expression(trained):
    model, _ = trained
    performance = SpokenConversation(6, 250).dialogue.performances[0]
    motion = Motion(
        performance.head_pose,
        performance.expression.astype(np.float32),
        performance.blink.astype(np.float32),
        performance.gaze,
        np.zeros((250, 0)),
    )
    mouth, eye = model.encode(motion)
    assert mouth.shape == (250, 32) and eye.shape == (250, 16)
    expression, blink = model.decode(mouth, eye)
    jaw = EXPRESSION_NAMES.index("jaw_open")
    assert np.corrcoef(expression[:, jaw], motion.expression[:, jaw])[0, 1] > 0.98
    assert np.corrcoef(blink[:, 0], motion.blink[:, 0])[0, 1] > 0.9
    # Another face's eyes leave the mouth's coefficients where they were.
    swapped_expression, _ = model.decode(mouth, np.roll(eye, 100, axis=0))
    assert np.abs(swapped_expression[:, jaw] - expression[:, jaw]).mean() < 0.02


def test_expressions_of_another_basis_are_refused(trained):
    model, _ = trained
    motion = Motion(
        head_pose=np.zeros((2, 6)),
        expression=np.zeros((2, 1)),
        blink=np.zeros((2, 2)),
        gaze=np.zeros((2, 2, 2)),
        expression_residual=np.zeros((2, 0)),
        expression_basis="bfm",
        expression_names=("bfm_0",),
    )
    with pytest.raises(DialogueError, match="refit"):
        model.encode(motion)


def test_face_codes_generate_nothing_and_say_what_does(trained):
    with pytest.raises(DialogueError, match="dialogue-lip-sync"):
        trained[0].generator()
