"""Distortion against the double sum it stands for, and in closed form."""

import pytest
import torch

from dialogue_nerfstudio.rendering.distortion import distortion


def brute_force(rays, t, delta, weights, num_rays):
    total = 0.0
    for ray in range(num_rays):
        mine = [
            (float(tt), float(d), float(w))
            for r, ts, ds, ws in zip(rays, t, delta, weights, strict=True)
            for rr, tt, d, w in zip(r, ts, ds, ws, strict=True)
            if int(rr) == ray
        ]
        total += sum(w * v * abs(s - u) for s, _, w in mine for u, _, v in mine)
        total += sum(w * w * d for _, d, w in mine) / 3.0
    return total / num_rays


def packed(counts, seed):
    generator = torch.Generator().manual_seed(seed)
    rays = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    t = torch.cat([torch.sort(torch.rand(count, generator=generator)).values for count in counts])
    total = sum(counts)
    return rays, t + 0.7, torch.rand(total, generator=generator), torch.rand(total, generator=generator)


@pytest.mark.parametrize("layouts", [([3, 0, 5, 1],), ([3, 0, 5, 1], [2, 4, 0, 1]), ([4, 4, 0],)])
def test_it_is_the_double_sum(layouts):
    """Rays without samples, also the last, and the samples of two sources interleaved."""
    sources = [packed(counts, seed) for seed, counts in enumerate(layouts)]
    rays, t, delta, weights = (list(parts) for parts in zip(*sources, strict=True))
    found = distortion(rays, t, delta, weights, len(layouts[0]))
    assert float(found) == pytest.approx(brute_force(rays, t, delta, weights, len(layouts[0])), rel=1e-5)


def test_two_sheets_and_one_slab():
    """Two sheets of weight ½ at a distance d: ½ d. One sample of weight 1 and length δ: δ / 3."""
    rays, none = torch.zeros(2, dtype=torch.long), torch.zeros(2)
    sheets = distortion([rays], [torch.tensor([1.0, 1.2])], [none], [torch.tensor([0.5, 0.5])], 1)
    assert float(sheets) == pytest.approx(0.1, rel=1e-5)
    slab = distortion([rays[:1]], [torch.tensor([0.4])], [torch.tensor([0.3])], [torch.tensor([1.0])], 1)
    assert float(slab) == pytest.approx(0.1, rel=1e-5)


def test_gradients_pull_weight_together_and_nothing_gives_nothing():
    rays = torch.zeros(3, dtype=torch.long)
    weights = torch.tensor([0.6, 0.3, 0.1], requires_grad=True)
    distortion([rays], [torch.tensor([1.0, 1.1, 2.0])], [torch.full((3,), 0.01)], [weights], 1).backward()
    assert weights.grad[2] > weights.grad[1] > weights.grad[0] > 0
    empty = torch.zeros(0)
    assert float(distortion([empty.long()], [empty], [empty], [empty], 4)) == 0.0
