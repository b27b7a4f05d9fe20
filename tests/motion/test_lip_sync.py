"""Retrieval on truth and by chance, and a short training after which sound finds its own mouth."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from spoken_windows import (
    SMALL_LIP_SYNC,
    SpokenConversation,
    SpokenWindows,
    flat_statistics,
    train_briefly,
    trained_lip_sync,
)

from dialogue_nerfstudio.motion.lip_sync import (
    REACH,
    LipSync,
    LipSyncConfig,
    bce_loss,
    info_nce_loss,
    retrieval,
    retrieved_lags,
    varied_sound,
)


def _codes(length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(length, 16, generator=generator), dim=-1)


def test_lags_are_found_with_their_sign():
    codes = _codes(80)
    assert (retrieved_lags(codes, codes) == 0).all() and len(retrieved_lags(codes, codes)) == 80 - 2 * REACH
    # The mouth at t does what is heard at t + 3.
    assert (retrieved_lags(codes.roll(3, 0), codes) == 3)[:-3].all()
    assert retrieval(torch.tensor([0, 1, -1, 7])) == {"retrieval_exact": 0.25, "retrieval_within_1": 0.75}
    assert len(retrieved_lags(codes[:30], codes[:30])) == 0


def test_more_frames_are_more_evidence():
    sound = _codes(400)
    mouth = F.normalize(sound + 0.9 * _codes(400, seed=1), dim=-1)
    alone, together = (retrieval(retrieved_lags(sound, mouth, count))["retrieval_exact"] for count in (1, 5))
    assert len(retrieved_lags(sound, mouth, 5)) == 400 - 2 * REACH - 4
    assert 0.3 < alone < together and together > 0.95
    unrelated = retrieval(retrieved_lags(sound, _codes(400, seed=2)))["retrieval_within_1"]
    assert unrelated < 0.2


def test_losses_are_least_for_true_pairs():
    sound = _codes(6 * 40).unflatten(0, (6, 40))
    chosen, scale = torch.ones(6, 40, dtype=torch.bool), torch.tensor(10.0, requires_grad=True)
    bias = torch.tensor(-5.0, requires_grad=True)
    for loss in (
        lambda mouth: bce_loss(sound, mouth, chosen, scale, bias),
        lambda mouth: info_nce_loss(sound, mouth, chosen, scale),
    ):
        torch.manual_seed(0)
        right, late = loss(sound), loss(sound.roll(2, 1))
        assert right < 0.3 * late
        (gradient,) = torch.autograd.grad(late, scale)
        assert torch.isfinite(gradient)


def test_louder_and_higher_sound_leaves_silence_alone():
    mel = torch.full((4, 32, 80), -1.0)
    mel[:, 8:16, 20:30] = 0.2
    torch.manual_seed(0)
    varied = varied_sound(mel, 0.1, 2)
    assert (varied[:, :8] == -1.0).all() and (varied[:, 16:] == -1.0).all()
    assert (varied[:, 8:16].amax(dim=(1, 2)) - 0.2).abs().max() <= 0.1
    assert not torch.equal(varied[:, 8:16], mel[:, 8:16])


@pytest.fixture(scope="module")
def trained() -> tuple[LipSync, SpokenWindows]:
    return trained_lip_sync(), SpokenWindows([SpokenConversation(seed, 500) for seed in (7, 8)], 50)


def test_sound_finds_its_mouth_after_a_short_training_and_not_before(trained):
    model, held_out = trained
    windows = held_out.draw(24, np.random.default_rng(3))
    torch.manual_seed(1)
    untrained = SMALL_LIP_SYNC.build(flat_statistics()).eval().figures(windows)
    found = model.figures(windows)
    # By chance: 3 of 31 lags are within a frame. Four trainings found 0.60 to 0.75, and the same one differs by
    # machine.
    assert untrained["retrieval_within_1"] < 0.3
    assert found["retrieval_within_1"] > 0.45
    assert found["mouth_error"] < 0.6 * found["mouth_spread"]
    assert found["mouth_to_eyes"] < 0.15


def test_training_notes_how_far_mouths_move(trained):
    model, held_out = trained
    faces = held_out.draw(24, np.random.default_rng(3)).own
    moved = model.landmarks(faces.expression, faces.blink)[faces.speaking]
    assert 0.3 < float(model.typical_articulation) / float((moved - moved.mean(0)).square().sum(-1).mean().sqrt()) < 3.0


def test_the_papers_loss_trains_too():
    config = LipSyncConfig(**{**vars(SMALL_LIP_SYNC), "contrast": "bce"})
    model, windows = config.build(flat_statistics()), SpokenWindows([SpokenConversation(0, 250)], 50)
    batch = windows.draw(4, np.random.default_rng(0))
    torch.manual_seed(0)
    before = float(model.losses(batch, 0)["contrast"].detach())
    train_briefly(model, windows, steps=25, count=4)
    torch.manual_seed(0)
    assert float(model.losses(batch, 0)["contrast"].detach()) < 0.9 * before
