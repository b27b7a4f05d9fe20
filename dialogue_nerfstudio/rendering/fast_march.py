"""Ray marching at inference on a CPU: `rendering.march` compiled, for any number of heads and torsos in one picture.

Conventions: as in `rendering.march`. Rays are given once, in an outer space (person space, or the scene's), and every
source says by a rigid transform where it stands in it; the kernel carries rays by itself. Samples, occupancy and
weights are those of `march`, so that pictures agree but for float32's rounding and for light below the termination
threshold.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from jaxtyping import Float
from torch import Tensor

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.fields.program import FieldProgram, join
from dialogue_nerfstudio.rendering.compositing import LIGHT_THRESHOLD, mean_depth
from dialogue_nerfstudio.rendering.occupancy import OccupancyGrid

MAX_SAMPLES = 64
"""Samples a ray and source whose occupancy fits into one word."""
WAVE_SAMPLES = 2
"""Samples of a ray evaluated before asking again whether light still passes."""


@dataclass(frozen=True)
class FastSource:
    """One body part of one participant at one frame."""

    program: FieldProgram
    """The field, in the source's own space."""
    rotation: Float[Tensor, "3 3"]
    """Own space → outer space, x ↦ R x + t."""
    translation: Float[Tensor, "3"]
    occupancy: OccupancyGrid
    num_samples: int
    """Samples a ray between its first and its last occupied cell."""


@dataclass(frozen=True)
class FastComposite:
    """What the rays see; as `compositing.Composite`, without weights."""

    rgb: Float[Tensor, "num_rays 3"]
    depth: Float[Tensor, " num_rays"]
    """Mean t of what is seen; 0 where nothing is."""
    accumulation: Float[Tensor, " num_rays"]
    opacity: Float[Tensor, "num_rays num_sources"]
    num_evaluated: int
    """Samples whose density was needed."""
    num_coloured: int
    """Those whose colour was."""


def fast_march_is_available() -> bool:
    """Whether numba, which compiles the kernel, is installed."""
    return importlib.util.find_spec("numba") is not None


def fits(num_samples: Sequence[int], occupancies: Sequence[OccupancyGrid]) -> bool:
    """Whether sources of these sizes can be marched together here."""
    return max(num_samples) <= MAX_SAMPLES and len({grid.config.resolution for grid in occupancies}) == 1


@torch.no_grad()
def fast_march(
    origins: Float[Tensor, "num_rays 3"],
    directions: Float[Tensor, "num_rays 3"],
    sources: Sequence[FastSource],
    background: Float[Tensor, "num_rays 3"],
    weight_threshold: float = LIGHT_THRESHOLD,
    transmittance_threshold: float = LIGHT_THRESHOLD,
    stop: Optional[Float[Tensor, " num_rays"]] = None,
) -> FastComposite:
    """Render rays through all sources jointly, front to back. Not differentiable; CPU, float32.

    Args:
        origins, directions: in the outer space; directions of unit length.
        sources: at least one, in any order.
        background: behind everything.
        weight_threshold: samples below it get no colour of their own, as in `march`.
        transmittance_threshold: a ray ends where less light than this is left; that counts as stopped there.
        stop: where an opaque surface, whose colour `background` has, ends each ray; nothing behind it is seen.

    Raises:
        DialogueError: `fits` does not hold for the sources.
    """
    from dialogue_nerfstudio.rendering.kernels import march_kernel

    occupancies = [source.occupancy for source in sources]
    if not fits([source.num_samples for source in sources], occupancies):
        raise DialogueError(
            f"The fast march takes up to {MAX_SAMPLES} samples a ray and occupancy grids of one resolution: set "
            "--pipeline.model.fast-inference False."
        )
    num_rays, num_sources = len(origins), len(sources)
    transforms = torch.stack([torch.cat([s.rotation, s.translation[:, None]], dim=1) for s in sources])
    boxes = torch.stack([grid.box for grid in occupancies])
    instructions, weights, begins = join([p for s in sources for p in (s.program.density, s.program.colour)])
    layout = torch.tensor([[s.program.density_row, *s.program.geometry, s.program.colour_row] for s in sources])
    near, width = torch.empty(num_sources, num_rays), torch.empty(num_sources, num_rays)
    live = torch.empty(num_sources, num_rays, dtype=torch.int64)
    rays_in = (origins.contiguous().numpy(), directions.contiguous().numpy(), transforms.numpy())
    rgb, depth, opacity = background.clone(), torch.zeros(num_rays), torch.zeros(num_rays, num_sources)
    with march_kernel.threads() as num_workers:
        bits = live.numpy().view("uint64")
        march_kernel.find_samples(
            *rays_in,
            boxes.numpy(),
            torch.stack([grid.occupied for grid in occupancies]).numpy(),
            occupancies[0].config.resolution,
            torch.tensor([s.num_samples for s in sources]).numpy(),
            (torch.full((num_rays,), torch.inf) if stop is None else stop.float().contiguous()).numpy(),
            near.numpy(),
            width.numpy(),
            bits,
        )
        rays = (live != 0).any(dim=0).nonzero().squeeze(-1)
        evaluated = torch.zeros(num_workers, num_sources, 2, dtype=torch.int64)
        march_kernel.march_rays(
            *rays_in,
            rays.numpy(),
            near.numpy(),
            width.numpy(),
            bits,
            torch.tensor(begins).numpy(),
            layout.numpy(),
            instructions,
            weights,
            max(p.num_rows for s in sources for p in (s.program.density, s.program.colour)),
            rgb.numpy(),
            weight_threshold,
            transmittance_threshold,
            WAVE_SAMPLES,
            num_workers,
            torch.zeros(1, dtype=torch.int64).numpy(),
            rgb.numpy(),
            depth.numpy(),
            opacity.numpy(),
            evaluated.numpy(),
        )
    accumulation = opacity.sum(dim=-1).clamp(max=1.0)
    counted = evaluated.sum(dim=(0, 1)).tolist()
    return FastComposite(rgb, mean_depth(depth, opacity.sum(dim=-1)), accumulation, opacity, counted[0], counted[1])
