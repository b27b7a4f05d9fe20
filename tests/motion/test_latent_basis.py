"""Bases of latent spaces: known mixtures are undone, length scales found, and layers changed that say the same."""

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from torch import nn

from dialogue_nerfstudio.motion.latent_basis import LAG, LatentMoments, change_inputs, change_outputs

POLES = np.array([0.95, 0.7, 0.2])


def _mixed(seed: int = 0, batch: int = 60, length: int = 400):
    """(independent processes of unit variance with POLES, their mixture, the mixing matrix), `[B, 3, N]`."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal((batch, 3, length + 100))
    processes = [lfilter([np.sqrt(1 - pole**2)], [1.0, -pole], white[:, d], axis=-1) for d, pole in enumerate(POLES)]
    sources = torch.from_numpy(np.stack(processes, 1)[..., 100:])
    mixing = torch.from_numpy(rng.standard_normal((3, 3)))
    return sources, torch.einsum("ij,bjn->bin", mixing, sources) + torch.tensor([1.0, -2.0, 0.5])[:, None], mixing


def test_a_mixture_of_independent_processes_is_undone():
    _, mixed, mixing = _mixed()
    moments = LatentMoments(3)
    moments.collect(mixed)
    basis = moments.fitting_basis()
    torch.testing.assert_close(basis.mean, torch.tensor([1.0, -2.0, 0.5]).double(), atol=0.3, rtol=0.0)
    # Slowest first, each one of the processes up to its sign.
    unmixed = basis.change @ mixing
    torch.testing.assert_close(unmixed.abs(), torch.eye(3).double(), atol=0.1, rtol=0.0)
    torch.testing.assert_close(basis.memory, torch.from_numpy(POLES**LAG), atol=0.03, rtol=0.0)
    scales = basis.length_scales()
    correlation = 1.0 / (1.0 + (LAG / scales) ** 2)
    torch.testing.assert_close(correlation[:2], basis.memory[:2])
    assert scales[0] > scales[1] > scales[2] >= 0.5


def test_recent_latents_count_more():
    moments = LatentMoments(2)
    with pytest.raises(ValueError, match="no latents"):
        moments.fitting_basis()
    for scale in (10.0, 1.0):
        for step in range(100):
            draw = torch.Generator().manual_seed(step)
            moments.collect(scale * torch.randn(8, 2, 30, generator=draw))
    change = moments.fitting_basis().change
    torch.testing.assert_close(change.square().sum(1), torch.ones(2).double(), rtol=0.5, atol=0.0)
    moments.forget()
    assert not moments.weight > 0.0


def test_layers_on_both_sides_agree_about_the_new_basis():
    torch.manual_seed(0)
    output, inner, outer = nn.Linear(5, 6), nn.Linear(3, 4), nn.Linear(3, 2)
    _, mixed, _ = _mixed(1)
    moments = LatentMoments(3)
    moments.collect(mixed)
    basis, hidden = moments.fitting_basis(), torch.randn(7, 5)
    target, said = output(hidden)[:, :3], (inner(output(hidden)[:, :3]), outer(output(hidden)[:, :3]))
    change_outputs(output, basis)
    change_inputs((inner, outer), basis)
    changed = output(hidden)[:, :3]
    torch.testing.assert_close(changed, ((target.double() - basis.mean) @ basis.change.T).float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close((inner(changed), outer(changed)), said, atol=1e-4, rtol=1e-4)
