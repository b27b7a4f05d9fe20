"""Joint volume rendering: the samples of every head and torso, merged by depth and composited once.

Convention. A *source* is one field as a ray sees it: one participant's head, or torso. Its samples along a ray are t
(position, ascending), delta (length of ray a sample stands for), density (σ >= 0, per unit of t) and rgb (0 … 1). t
means the same in all sources, because rays are carried between spaces by rigid transforms that keep their length.
*Dense* samples are [num_rays, S]; *packed* ones are flat [N], ray after ray and ascending in t, with `rays` [N] naming
the ray of each. The optical depth of a sample is τ = σ · delta, and

    T_i = exp(−Σ_{j<i} τ_j)                        transmittance in front of sample i        DialogueNeRF eq. 5
    w_i = T_i (1 − exp(−τ_i)) = T_i − T_{i+1}      its weight
    C   = Σ_i w_i c_i + T_end · background         colour                                     DialogueNeRF eq. 4

where the sums run over the samples of *all* sources in order of depth (section 4.2, "Volume Rendering", for any number
of sources). Σ w + T_end = 1 by construction.

Accumulated optical depth is clamped at MAX_OPTICAL_DEPTH: what lies behind it gets a weight of 0 instead of one below
float32's resolution of 1, and exp is never asked for very negative numbers, which CPUs compute many times slower.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_OPTICAL_DEPTH = 16.0
"""exp(−16) ≈ 1e-7, half of float32's step at 1."""

LIGHT_THRESHOLD = 1e-3
"""Weights and transmittances below it are invisible: a quarter of an 8-bit step."""


@dataclass
class Samples:
    """Dense samples of one source."""

    t: Float[Tensor, "num_rays S"]
    delta: Float[Tensor, "num_rays S"]
    density: Float[Tensor, "num_rays S"]
    rgb: Float[Tensor, "num_rays S 3"]


@dataclass
class Composite:
    """What a batch of rays sees."""

    rgb: Float[Tensor, "num_rays 3"]
    """Colour over the background."""
    depth: Float[Tensor, " num_rays"]
    """Mean t of what is seen, Σ w t / Σ w; 0 where nothing is."""
    accumulation: Float[Tensor, " num_rays"]
    """Σ w = 1 − T_end: the share of the pixel that is not background."""
    opacity: Float[Tensor, "num_rays num_sources"]
    """Σ w of each source alone, occlusion included: what a segmentation mask shows of it. Sums to accumulation."""
    weights: list[Tensor]
    """Each source's weights, in the shape of its samples."""


def transmittance(optical_depth: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch S_plus_1"]:
    """T in front of every sample of depth-ordered rays, and T_end after the last (DialogueNeRF eq. 5)."""
    accumulated = optical_depth.cumsum(dim=-1).clamp(max=MAX_OPTICAL_DEPTH)
    return torch.nn.functional.pad(torch.exp(-accumulated), (1, 0), value=1.0)


def depth_weights(
    t: Sequence[Float[Tensor, "num_rays _"]], optical_depth: Sequence[Float[Tensor, "num_rays _"]]
) -> tuple[list[Float[Tensor, "num_rays _"]], Float[Tensor, " num_rays"]]:
    """Weights of several sources' samples when all are composited together in order of depth.

    Only depths and optical depths are sorted; the weights are put back in the sources' own order, so that colours never
    move. Equal depths keep the order of the sources.

    Returns:
        One tensor of weights a source, and T_end.
    """
    sizes = [depths.shape[-1] for depths in t]
    joined = torch.cat(list(optical_depth), dim=-1)
    if len(sizes) == 1:
        through = transmittance(joined)
        return [through[:, :-1] - through[:, 1:]], through[:, -1]
    order = torch.sort(torch.cat(list(t), dim=-1), dim=-1, stable=True).indices
    through = transmittance(joined.gather(-1, order))
    weights = torch.zeros_like(joined).scatter(-1, order, through[:, :-1] - through[:, 1:])
    return list(weights.split(sizes, dim=-1)), through[:, -1]


def composite(sources: Sequence[Samples], background: Float[Tensor, "*#num_rays 3"]) -> Composite:
    """Joint rendering of dense samples: exactly what compositing `merge_by_depth(sources)` gives.

    Args:
        sources: at least one; the numbers of samples may differ.
        background: the last sample of every ray, one colour a ray or one for all.
    """
    weights, remaining = depth_weights([s.t for s in sources], [s.density * s.delta for s in sources])
    colours = [torch.einsum("rs,rsc->rc", w, s.rgb) for w, s in zip(weights, sources, strict=True)]
    depths = [(w * s.t).sum(dim=-1) for w, s in zip(weights, sources, strict=True)]
    opacity = torch.stack([w.sum(dim=-1) for w in weights], dim=-1)
    return Composite(
        rgb=sum(colours) + remaining[:, None] * background,
        depth=mean_depth(sum(depths), opacity.sum(dim=-1)),
        accumulation=1.0 - remaining,
        opacity=opacity,
        weights=weights,
    )


def mean_depth(
    weighted: Float[Tensor, " num_rays"], accumulation: Float[Tensor, " num_rays"]
) -> Float[Tensor, " num_rays"]:
    """Σ w t / Σ w, and 0 where nothing is seen."""
    seen = accumulation > 0
    return torch.where(seen, weighted / torch.where(seen, accumulation, 1.0), 0.0)


@torch.no_grad()
def light_reach(
    t: Sequence[Float[Tensor, "num_rays _"]], composite: Composite, threshold: float = LIGHT_THRESHOLD
) -> Float[Tensor, " num_rays"]:
    """How far along each ray light gets: the t of the last sample that is seen, infinity where the background is.

    Args:
        t: the sources' dense samples, as they were composited.
        threshold: weights and transmittances below it count as not seen.
    """
    seen = [
        torch.where(w > threshold, depths, 0.0).amax(dim=-1) for w, depths in zip(composite.weights, t, strict=True)
    ]
    last = torch.stack(seen).amax(dim=0)
    return torch.where(composite.accumulation < 1.0 - threshold, torch.inf, last)


def merge_by_depth(
    sources: Sequence[Samples],
) -> tuple[Samples, Int[Tensor, "num_rays S"]]:
    """All samples as one depth-ordered list, and the source each came from. Of equal depths, the earlier source
    comes first."""
    depths, order = torch.sort(torch.cat([s.t for s in sources], dim=-1), dim=-1, stable=True)
    tags = torch.cat([torch.full_like(s.t, index, dtype=torch.long) for index, s in enumerate(sources)], dim=-1)
    rgb = torch.cat([s.rgb for s in sources], dim=1)
    merged = Samples(
        t=depths,
        delta=torch.cat([s.delta for s in sources], dim=-1).gather(-1, order),
        density=torch.cat([s.density for s in sources], dim=-1).gather(-1, order),
        rgb=rgb.gather(1, order[..., None].expand(-1, -1, 3)),
    )
    return merged, tags.gather(-1, order)


# Packed samples ------------------------------------------------------------------------------------------------------


def first_of_ray(rays: Int[Tensor, " N"], num_rays: int) -> Int[Tensor, " num_rays_plus_1"]:
    """Where each ray's packed samples begin; the last entry is their number. `rays` ascends."""
    if rays.is_cuda:
        # Counting would make the host wait for the device, to learn the largest ray.
        return torch.searchsorted(rays, torch.arange(num_rays + 1, device=rays.device))
    counts = torch.bincount(rays, minlength=num_rays)
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def sum_over_rays(
    values: Float[Tensor, "N ..."], rays: Int[Tensor, " N"], num_rays: int
) -> Float[Tensor, "num_rays ..."]:
    """Σ of each ray's packed values."""
    return values.new_zeros(num_rays, *values.shape[1:]).index_add(0, rays, values)


def merged_positions(rays: Sequence[Int[Tensor, " _"]], t: Sequence[Float[Tensor, " _"]]) -> list[Int[Tensor, " _"]]:
    """Where each packed sample of each source stands in the one list of all, ordered by ray, then by t.

    Every source is ordered already, so a sample's place is its own index plus how many of each other source precede it:
    a merge, without sorting. Of equal depths, the earlier source comes first.
    """
    if len(rays) == 1:
        return [torch.arange(rays[0].shape[0], device=rays[0].device)]
    filled = [depths for depths in t if depths.numel()]
    # Stacked: Python's own min would wait for the device to compare.
    nearest = torch.stack([depths.min() for depths in filled]).amin() if filled else 0.0
    span = torch.stack([depths.max() for depths in filled]).amax() - nearest if filled else 1.0
    # Ray and depth in one number: float64 keeps float32's steps of t apart for up to a million rays.
    keys = [r.double() + (d.double() - nearest) / (1.001 * span + 1e-30) for r, d in zip(rays, t, strict=True)]
    places = []
    for index, key in enumerate(keys):
        place = torch.arange(key.shape[0], device=key.device)
        for other, other_key in enumerate(keys):
            if other != index:
                place = place + torch.searchsorted(other_key, key, right=other < index)
        places.append(place)
    return places


def packed_weights(
    rays: Sequence[Int[Tensor, " _"]],
    t: Sequence[Float[Tensor, " _"]],
    optical_depth: Sequence[Float[Tensor, " _"]],
    num_rays: int,
) -> tuple[list[Float[Tensor, " _"]], Float[Tensor, " num_rays"]]:
    """`depth_weights` for packed samples.

    Sums along rays are differences of one running sum over all samples, kept in float64 and over optical depths clamped
    one by one, so that far more rays than fit in memory would be needed to lose float32's precision.

    Returns:
        One tensor of weights a source, and T_end.
    """
    if len(rays) == 1:
        all_rays, taus, places = rays[0], optical_depth[0], None
    else:
        places = merged_positions(rays, t)
        joined = torch.cat(places)
        all_rays = torch.empty_like(joined).scatter(0, joined, torch.cat(list(rays)))
        unordered = torch.cat(list(optical_depth))
        taus = torch.zeros_like(unordered).scatter(0, joined, unordered)
    clamped = taus.clamp(max=MAX_OPTICAL_DEPTH).double()
    running = torch.nn.functional.pad(clamped.cumsum(0), (1, 0))
    starts = first_of_ray(all_rays, num_rays)
    at_start = running.index_select(0, starts)
    base = at_start.index_select(0, all_rays)
    through = torch.exp(-(running[:-1] - base).clamp(max=MAX_OPTICAL_DEPTH).to(taus.dtype))
    beyond = torch.exp(-(running[1:] - base).clamp(max=MAX_OPTICAL_DEPTH).to(taus.dtype))
    remaining = torch.exp(-(at_start[1:] - at_start[:-1]).clamp(max=MAX_OPTICAL_DEPTH).to(taus.dtype))
    weights = through - beyond
    if places is None:
        return [weights], remaining
    return [weights.index_select(0, place) for place in places], remaining
