"""Ray marching on live samples only: cull, evaluate density, composite, and colour only what is seen.

Convention: as in `rendering.compositing`; everything is packed. A `Source` is one body part of one participant as a
batch of rays sees it, with the rays carried into its own space; ray r of every source is the same pixel. Packed samples
are ordered by ray, then by t, so that rays grouped by frame give samples grouped by frame.

The two callables of a source are its field:

    density(points [N, 3], rays [N]) -> (σ [N], geometry)        geometry: a tuple of [N, ...] tensors, may be empty
    colour(geometry, points [M, 3], rays [M]) -> rgb [M, 3]      geometry rows of the M samples that are seen
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dialogue_nerfstudio.rendering.compositing import (
    LIGHT_THRESHOLD,
    MAX_OPTICAL_DEPTH,
    Composite,
    first_of_ray,
    mean_depth,
    packed_weights,
    sum_over_rays,
)
from dialogue_nerfstudio.rendering.occupancy import OccupancyGrid
from dialogue_nerfstudio.rendering.sampling import stratified

Geometry = tuple[Tensor, ...]
DensityFunction = Callable[[Tensor, Tensor], tuple[Tensor, Geometry]]
ColourFunction = Callable[[Geometry, Tensor, Tensor], Tensor]


@dataclass
class Source:
    """A field, the rays in its space, and where along them it is."""

    origins: Float[Tensor, "num_rays 3"]
    directions: Float[Tensor, "num_rays 3"]
    near: Float[Tensor, " num_rays"]
    far: Float[Tensor, " num_rays"]
    """far <= near: the ray misses this source."""
    num_samples: int
    """Samples a ray between near and far, before culling."""
    density: DensityFunction
    colour: ColourFunction
    occupancy: OccupancyGrid | None = None
    """Culls samples; None keeps all that hit the box."""


@dataclass
class PackedSamples:
    """The live samples of one source, ordered by ray, then by t."""

    rays: Int[Tensor, " N"]
    t: Float[Tensor, " N"]
    delta: Float[Tensor, " N"]
    points: Float[Tensor, "N 3"]

    def __getitem__(self, index: Tensor) -> "PackedSamples":
        """The samples at ascending indices."""
        return PackedSamples(*(v.index_select(0, index) for v in (self.rays, self.t, self.delta, self.points)))


@dataclass
class March:
    """What the rays saw, and the samples they saw it with."""

    composite: Composite
    """`weights` are packed, one tensor a source, in the order of `samples`."""
    samples: list[PackedSamples]
    """The evaluated samples of each source."""

    @torch.no_grad()
    def light_reach(self, threshold: float = LIGHT_THRESHOLD) -> Float[Tensor, " num_rays"]:
        """How far along each ray light gets (`compositing.light_reach`)."""
        last = torch.zeros_like(self.composite.accumulation)
        for samples, weight in zip(self.samples, self.composite.weights, strict=True):
            last = last.scatter_reduce(0, samples.rays, torch.where(weight > threshold, samples.t, 0.0), "amax")
        return torch.where(self.composite.accumulation < 1.0 - threshold, torch.inf, last)

    def mark_visible(self, sources: Sequence[Source]) -> None:
        """Tell the occupancy grid of each marched source where light got. For training steps, and after them for poses
        and frames that training rarely met."""
        reach = self.light_reach()
        for source in sources:
            if source.occupancy is not None:
                source.occupancy.mark_visible(source.origins, source.directions, reach)


def pack_samples(source: Source, perturb: bool = False, generator: torch.Generator | None = None) -> PackedSamples:
    """The samples of `source` that lie in its box and in occupied cells."""
    hit = (source.far > source.near).nonzero().squeeze(-1)
    origins, directions = source.origins.index_select(0, hit), source.directions.index_select(0, hit)
    t, delta = stratified(source.near[hit], source.far[hit], source.num_samples, perturb, generator)
    if source.occupancy is None:
        live = torch.arange(t.numel(), device=t.device)
    else:
        live = source.occupancy.query_along(origins, directions, t).flatten().nonzero().squeeze(-1)
    row = live // source.num_samples
    t = t.flatten().index_select(0, live)
    points = torch.addcmul(origins.index_select(0, row), t[:, None], directions.index_select(0, row))
    # Every bin of a ray has the ray's width: one gather a sample from [num_hits], not from [num_hits, S].
    return PackedSamples(rays=hit.index_select(0, row), t=t, delta=delta[:, 0].index_select(0, row), points=points)


def transmittance_at(
    samples: PackedSamples, optical_depth: Float[Tensor, " N"], at: PackedSamples, num_rays: int
) -> Float[Tensor, " M"]:
    """Transmittance of `samples` alone in front of each sample of `at` (DialogueNeRF eq. 5)."""
    clamped = optical_depth.clamp(max=MAX_OPTICAL_DEPTH).double()
    running = torch.nn.functional.pad(clamped.cumsum(0), (1, 0))
    starts = first_of_ray(samples.rays, num_rays)
    nearest = torch.cat([samples.t, at.t]).min() if at.t.numel() else 0.0
    span = 1.001 * (torch.cat([samples.t, at.t]).max() - nearest) + 1e-30 if at.t.numel() else 1.0
    keys = samples.rays.double() + (samples.t.double() - nearest) / span
    wanted = at.rays.double() + (at.t.double() - nearest) / span
    in_front = running.index_select(0, torch.searchsorted(keys, wanted))
    depth = in_front - running.index_select(0, starts.index_select(0, at.rays))
    return torch.exp(-depth.clamp(max=MAX_OPTICAL_DEPTH)).to(optical_depth.dtype)


def march(
    sources: Sequence[Source],
    background: Float[Tensor, "*#num_rays 3"],
    weight_threshold: float = LIGHT_THRESHOLD,
    transmittance_threshold: float = 0.0,
    perturb: bool = False,
    generator: torch.Generator | None = None,
) -> March:
    """Render rays through all sources jointly. Differentiable; at inference call it under `torch.no_grad`.

    Args:
        sources: at least one, all with the same rays.
        background: behind everything, one colour a ray or one for all.
        weight_threshold: samples below it get no colour of their own; the coloured samples of their ray share their
            weight, so that no light is lost. 0 colours every sample.
        transmittance_threshold: samples of a source of which less than this can be seen past the sources before it in
            the list are not evaluated. 0 evaluates all.
        perturb: stratified instead of regular samples.
    """
    num_rays = sources[0].origins.shape[0]
    samples: list[PackedSamples] = []
    optical_depths: list[Tensor] = []
    geometries: list[Geometry] = []
    for source in sources:
        packed = pack_samples(source, perturb, generator)
        if transmittance_threshold > 0:
            for earlier, depth in zip(samples, optical_depths, strict=True):
                visible = transmittance_at(earlier, depth, packed, num_rays) > transmittance_threshold
                packed = packed[visible.nonzero().squeeze(-1)]
        density, geometry = source.density(packed.points, packed.rays)
        samples.append(packed)
        optical_depths.append(density * packed.delta)
        geometries.append(geometry)

    weights, remaining = packed_weights([s.rays for s in samples], [s.t for s in samples], optical_depths, num_rays)
    light = remaining.new_zeros(num_rays, 4)
    for source, packed, weight, geometry in zip(sources, samples, weights, geometries, strict=True):
        seen = (weight > weight_threshold).nonzero().squeeze(-1)
        rays = packed.rays.index_select(0, seen)
        colour = source.colour(
            tuple(part.index_select(0, seen) for part in geometry), packed.points.index_select(0, seen), rays
        )
        kept = weight.index_select(0, seen)[:, None]
        light = light.index_add(0, rays, torch.cat([kept * colour, kept], dim=-1))

    opacity = torch.stack([sum_over_rays(w, s.rays, num_rays) for w, s in zip(weights, samples, strict=True)], dim=-1)
    depth = sum(sum_over_rays(w * s.t, s.rays, num_rays) for w, s in zip(weights, samples, strict=True))
    accumulation = 1.0 - remaining
    coloured = light[:, 3:]
    share = torch.where(coloured > 0, accumulation[:, None] / coloured.clamp(min=1e-12), 0.0)
    seen_share = torch.where(coloured > 0, accumulation[:, None], 0.0)
    composite = Composite(
        rgb=light[:, :3] * share + (1.0 - seen_share) * background,
        depth=mean_depth(depth, opacity.sum(dim=-1)),
        accumulation=accumulation,
        opacity=opacity,
        weights=weights,
    )
    return March(composite, samples)
