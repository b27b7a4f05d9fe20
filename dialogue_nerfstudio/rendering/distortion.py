"""Distortion of a ray's weights: how far apart along the ray the light comes from (Mip-NeRF 360).

Conventions: as in `rendering.compositing`; packed samples ordered by ray, then by t.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dialogue_nerfstudio.rendering.compositing import first_of_ray, merged_positions


def distortion(
    rays: Sequence[Int[Tensor, " _"]],
    t: Sequence[Float[Tensor, " _"]],
    delta: Sequence[Float[Tensor, " _"]],
    weights: Sequence[Float[Tensor, " _"]],
    num_rays: int,
) -> Float[Tensor, ""]:
    """Σ_i Σ_j w_i w_j |t_i − t_j| + ⅓ Σ_i w_i² δ_i, mean over rays, all sources' samples together (Barron et al. 2022,
    equation 15, in the units of t).

    The double sum is 2 Σ_i w_i (t_i W_i − D_i) with W_i and D_i the sums of w and w t over the samples before i: linear
    in their number.

    Args:
        rays, t, delta, weights: packed samples of each source.
        num_rays: rays of the batch.
    """
    order = torch.argsort(torch.cat(merged_positions(rays, t)))
    ray, depth, length, weight = (torch.cat(list(parts))[order] for parts in (rays, t, delta, weights))
    # From each ray's first depth on, in float64: a running sum over all rays loses what a single ray adds.
    starts = first_of_ray(ray, num_rays)
    if not len(ray):
        return depth.new_zeros(())
    first = depth.index_select(0, starts[:-1].clamp(max=len(ray) - 1))
    depth, weight = (depth - first.index_select(0, ray)).double(), weight.double()

    def before(values: Tensor) -> Tensor:
        running = torch.nn.functional.pad(values.cumsum(0), (1, 0))
        return running[:-1] - running.index_select(0, starts[:-1]).index_select(0, ray)

    pairs = 2.0 * weight * (depth * before(weight) - before(weight * depth))
    return ((pairs + weight.square() * length / 3.0).sum() / num_rays).to(length.dtype)
