"""The march of `rendering.march` with tensors of fixed sizes, so that the host never waits for the device: what a CUDA
graph can record.

Convention: as in `rendering.march`, for inference and rays of one frame. Lists of samples have a *capacity* instead of
a length: they are filled from the front, in order of ray and t, and what is left over belongs to ray `num_rays`, one
beyond the last, with t = 0 and delta = 0, so that it has no weight. What did not fit is not seen; `needed` says how
much room there should have been, so that the caller can look once a frame and render again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dialogue_nerfstudio.rendering.compositing import (
    LIGHT_THRESHOLD,
    Composite,
    mean_depth,
    packed_weights,
    sum_over_rays,
)
from dialogue_nerfstudio.rendering.march import Geometry, PackedSamples, Source, transmittance_at
from dialogue_nerfstudio.rendering.sampling import stratified


@dataclass(frozen=True)
class Capacity:
    """Room for the samples of one source."""

    live: int
    """In its box and in occupied cells."""
    visible: int
    """Of those, what can be seen past the sources before it."""
    coloured: int
    """Of those, what is seen enough to need a colour."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        return (self.live, self.visible, self.coloured)


@dataclass
class FixedMarch:
    """What the rays saw, if everything fitted."""

    composite: Composite
    needed: Int[Tensor, "num_sources 3"]
    """Samples there were: live, visible, coloured. It fitted if none exceeds its capacity; counts after one that does
    are too low."""


def compact(kept: Bool[Tensor, " M"], capacity: int) -> tuple[Int[Tensor, " capacity"], Int[Tensor, ""]]:
    """Where `kept` is true, in order, then M as often as there is room; and how often it is true."""
    place = kept.cumsum(0)
    # Whatever does not fit goes to one more place, which is cut off.
    target = torch.where(kept & (place <= capacity), place - 1, capacity)
    index = torch.full((capacity + 1,), len(kept), dtype=torch.long, device=kept.device)
    index.scatter_(0, target, torch.arange(len(kept), device=kept.device))
    return index[:capacity], place[-1]


def _taken(samples: PackedSamples, index: Int[Tensor, " C"], num_rays: int) -> PackedSamples:
    """Samples at indices, nothing at those beyond the end."""
    there = index < len(samples.rays)
    row = index.clamp(max=len(samples.rays) - 1)
    return PackedSamples(
        rays=torch.where(there, samples.rays.index_select(0, row), num_rays),
        t=torch.where(there, samples.t.index_select(0, row), 0.0),
        delta=torch.where(there, samples.delta.index_select(0, row), 0.0),
        points=samples.points.index_select(0, row),
    )


def fixed_samples(source: Source, capacity: int) -> tuple[PackedSamples, Int[Tensor, ""]]:
    """`march.pack_samples` with room for `capacity`, and how many there are."""
    num_rays, size = len(source.origins), source.num_samples
    t, delta = stratified(source.near, source.far, size)
    live = (source.far > source.near)[:, None].expand(-1, size)
    if source.occupancy is not None:
        live = live & source.occupancy.query_along(source.origins, source.directions, t)
    index, count = compact(live.flatten(), capacity)
    there = index < live.numel()
    dense = index.clamp(max=live.numel() - 1)
    ray = dense // size
    t = torch.where(there, t.flatten().index_select(0, dense), 0.0)
    delta = torch.where(there, delta[:, 0].index_select(0, ray), 0.0)
    points = torch.addcmul(source.origins.index_select(0, ray), t[:, None], source.directions.index_select(0, ray))
    if source.occupancy is not None:
        # Fields are asked about places in their box only.
        points = torch.where(there[:, None], points, source.occupancy.box.mean(dim=0))
    return PackedSamples(torch.where(there, ray, num_rays), t, delta, points), count


@torch.no_grad()
def fixed_march(
    sources: Sequence[Source],
    background: Float[Tensor, "*#num_rays 3"],
    capacities: Sequence[Capacity],
    weight_threshold: float = LIGHT_THRESHOLD,
    transmittance_threshold: float = 0.0,
) -> FixedMarch:
    """`march`, with room for so many samples of each source."""
    num_rays = len(sources[0].origins)
    samples: list[PackedSamples] = []
    optical_depths: list[Tensor] = []
    geometries: list[Geometry] = []
    needed: list[list[Tensor]] = []
    for source, capacity in zip(sources, capacities, strict=True):
        packed, live = fixed_samples(source, capacity.live)
        visible = live
        if transmittance_threshold > 0 and samples:
            seen = packed.rays < num_rays
            for earlier, depth in zip(samples, optical_depths, strict=True):
                seen = seen & (transmittance_at(earlier, depth, packed, num_rays + 1) > transmittance_threshold)
            index, visible = compact(seen, capacity.visible)
            packed = _taken(packed, index, num_rays)
        density, geometry = source.density(packed.points, packed.rays.clamp(max=num_rays - 1))
        samples.append(packed)
        optical_depths.append(density * packed.delta)
        geometries.append(geometry)
        needed.append([live, visible])

    weights, remaining = packed_weights([s.rays for s in samples], [s.t for s in samples], optical_depths, num_rays + 1)
    light = remaining.new_zeros(num_rays + 1, 4)
    for source, capacity, packed, weight, geometry, counts in zip(
        sources, capacities, samples, weights, geometries, needed, strict=True
    ):
        index, coloured = compact(weight > weight_threshold, capacity.coloured)
        counts.append(coloured)
        row = index.clamp(max=len(weight) - 1)
        rays = torch.where(index < len(weight), packed.rays.index_select(0, row), num_rays)
        colour = source.colour(
            tuple(part.index_select(0, row) for part in geometry),
            packed.points.index_select(0, row),
            rays.clamp(max=num_rays - 1),
        )
        kept = weight.index_select(0, row)[:, None]
        light = light.index_add(0, rays, torch.cat([kept * colour, kept], dim=-1))

    opacity = torch.stack(
        [sum_over_rays(w, s.rays, num_rays + 1) for w, s in zip(weights, samples, strict=True)], dim=-1
    )[:num_rays]
    depth = sum(sum_over_rays(w * s.t, s.rays, num_rays + 1) for w, s in zip(weights, samples, strict=True))
    accumulation, light = 1.0 - remaining[:num_rays], light[:num_rays]
    has_colour = light[:, 3:] > 0
    share = torch.where(has_colour, accumulation[:, None] / light[:, 3:].clamp(min=1e-12), 0.0)
    composite = Composite(
        rgb=light[:, :3] * share + (1.0 - torch.where(has_colour, accumulation[:, None], 0.0)) * background,
        depth=mean_depth(depth[:num_rays], opacity.sum(dim=-1)),
        accumulation=accumulation,
        opacity=opacity,
        weights=weights,
    )
    return FixedMarch(composite, torch.stack([torch.stack(counts) for counts in needed]))
