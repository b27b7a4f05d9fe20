"""Which cells of a box are worth evaluating: they hold density, and light reaches it.

Convention: a grid of resolution³ cells over one box (head or torso of one participant, in that body part's space); a
cell's index is x + y · resolution + z · resolution². Densities are per metre.

A cell is occupied while both hold, each widened by `dilation` cells:

- the largest density met in it lately exceeds `density_threshold` (a maximum that decays, so that a mouth that opens
  now and then keeps its cells: Müller et al. 2022, appendix E.2). A new grid counts as dense everywhere, and what
  `warm_up` updates do not find dense is culled: fields thin out in their first steps, before they know where anything
  is, and a field that is culled everywhere gets no gradient and never comes back;
- light lately reached it: some ray's transmittance was still visible there. Nothing ever pushes down the density
  behind an opaque surface, so the first test alone keeps whole solid heads. A new grid counts as reached everywhere,
  and what no `mark_visible` confirms is forgotten after `updates_to_forget` updates: that is also its warm-up.

The second test heals itself. A culled cell stops no light, so where a surface recedes or a mouth opens before a cell
that was culled, light passes through it, marks it, and the next update has it back.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.rendering.boxes import intersect_box

UNREACHED = 0.01
"""Visibility under which a cell counts as dark; light sets it to 1."""

MAX_RESOLUTION = 256
"""Up to here cell indices are whole numbers of float32."""


@dataclass
class OccupancyGridConfig:
    """Size of an occupancy grid and what it calls occupied."""

    resolution: int = 32
    """Cells along an axis."""
    density_threshold: float = 1.0
    """Density (1/m) above which a cell holds something: at 1, a centimetre of it hides 1 % of the light."""
    density_decay: float = 0.95
    """What remains of a cell's largest density after an update that met less."""
    warm_up: int = 0
    """Updates for which a new grid counts as dense everywhere."""
    updates_to_forget: int = 24
    """Updates after which a cell that light no longer reached is culled; 0 keeps dark cells for ever."""
    dilation: int = 1
    """Cells by which what is occupied is widened in every direction."""


class OccupancyGrid(nn.Module):
    """Occupancy of one box. All its state is in buffers, so that checkpoints carry it.

    Raises:
        DialogueError: the configuration describes no grid.
    """

    box: Float[Tensor, "2 3"]
    density: Float[Tensor, " cells"]
    visibility: Float[Tensor, " cells"]
    occupied: Bool[Tensor, " cells"]

    def __init__(self, box: Float[Tensor, "2 3"], config: OccupancyGridConfig) -> None:
        super().__init__()
        counts = (config.dilation, config.warm_up, config.updates_to_forget)
        if not 2 <= config.resolution <= MAX_RESOLUTION or min(counts) < 0:
            raise DialogueError(
                f"An occupancy grid needs a resolution of 2 to {MAX_RESOLUTION} and no negative dilation, warm_up or "
                f"updates_to_forget, not {config.resolution}, {', '.join(map(str, counts[:2]))} and {counts[2]}."
            )
        self.config = config
        cells = config.resolution**3
        self.register_buffer("box", box.detach().clone().float())
        # A whisker below what would last for one update more.
        dense = config.density_threshold * config.density_decay**-config.warm_up if config.warm_up else 0.0
        self.register_buffer("density", torch.full((cells,), 0.9999 * dense))
        self.register_buffer("visibility", torch.ones(cells))
        self.register_buffer("occupied", torch.ones(cells, dtype=torch.bool))

    @property
    def occupied_fraction(self) -> float:
        """Share of the box that is evaluated."""
        return self.occupied.float().mean().item()

    def query(self, points: Float[Tensor, "*batch 3"]) -> Bool[Tensor, "*batch"]:
        """Whether each point's cell is occupied; False outside the box."""
        scaled = self._to_cells(points)
        inside = ((scaled >= 0) & (scaled <= self.config.resolution)).all(dim=-1)
        return self._look_up(scaled) & inside

    @torch.no_grad()
    def query_along(
        self,
        origins: Float[Tensor, "num_rays 3"],
        directions: Float[Tensor, "num_rays 3"],
        t: Float[Tensor, "num_rays S"],
    ) -> Bool[Tensor, "num_rays S"]:
        """`query` of r(t) for samples known to lie in the box; any outside count for the nearest cell."""
        return self.occupied.index_select(0, self._cells_along(origins, directions, t).flatten()).view(t.shape)

    @torch.no_grad()
    def mark_visible(
        self,
        origins: Float[Tensor, "num_rays 3"],
        directions: Float[Tensor, "num_rays 3"],
        reach: Float[Tensor, " num_rays"],
        generator: torch.Generator | None = None,
    ) -> None:
        """Remember that light passed along these rays, in this grid's space, as far as `reach` or to the box's end.

        Culled cells on the way are marked too: that is how they come back. About one point a cell is marked, at a
        random phase. Cheap enough to call with every training step's rays.

        Args:
            reach: where light ends, in all sources together (`compositing.light_reach`, `March.light_reach`).
        """
        near, far = intersect_box(origins, directions, self.box[0], self.box[1])
        stop = torch.minimum(far, reach)
        lit = (stop >= near) & (far > near)
        near, far, stop = near[lit], far[lit], stop[lit]
        phase = torch.rand(near.shape[0], 1, device=near.device, generator=generator)
        steps = torch.arange(self.config.resolution + 1, device=near.device)
        t = near[:, None] + (steps + phase) * ((far - near) / self.config.resolution)[:, None]
        # Never past the end, for the cells right behind a surface are dark; but the end itself always.
        cells = self._cells_along(origins[lit], directions[lit], torch.minimum(t, stop[:, None]))
        self.visibility.index_fill_(0, cells.flatten().long(), 1.0)

    def reset_visibility(self, reached: bool = True) -> None:
        """Count every cell as reached by light, or as dark (before rays that will mark all there is to see)."""
        self.visibility.fill_(1.0 if reached else 0.0)

    @torch.no_grad()
    def update(
        self,
        density: Callable[[Float[Tensor, "n 3"]], Float[Tensor, " n"]],
        fraction: float = 1.0,
        within: Bool[Tensor, " cells"] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Meet the field once in every cell that light reaches, at a random point of it, and decide anew.

        Dark cells are culled whatever they hold; they keep the density last met there, for when light comes back.

        Args:
            density: the field, at a moment (frame, expression, pose) that differs from update to update.
            fraction: random share of those cells that is met; only they decay.
            within: cells that can hold anything at all, e.g. a visual hull; the others are neither met nor occupied.
            generator: of the random points.
        """
        device = self.density.device
        candidates = self._lit() if within is None else self._lit() & within
        met = candidates.nonzero().squeeze(-1)
        if fraction < 1.0:
            met = met[torch.rand(met.shape, device=device, generator=generator) < fraction]
        corners = self._cell_corner(met)
        jitter = torch.rand(corners.shape, device=device, generator=generator)
        points = self.box[0] + (corners + jitter) * ((self.box[1] - self.box[0]) / self.config.resolution)
        if len(met):
            decayed = self.density[met] * self.config.density_decay
            self.density[met] = torch.maximum(decayed, density(points).to(self.density.dtype))
        if self.config.updates_to_forget:
            self.visibility.mul_(UNREACHED ** (1.0 / self.config.updates_to_forget))
        self.refresh(within)

    def refresh(self, within: Bool[Tensor, " cells"] | None = None) -> None:
        """Recompute `occupied` from density and visibility, without meeting the field."""
        occupied = self._dilated(self.density > self.config.density_threshold) & self._lit()
        self.occupied.copy_(occupied if within is None else occupied & within)

    def _lit(self) -> Bool[Tensor, " cells"]:
        """Cells that light lately reached, or beside such."""
        if self.config.updates_to_forget == 0:
            return torch.ones_like(self.occupied)
        # A whisker above the threshold, so that a cell fades in exactly `updates_to_forget` updates.
        return self._dilated(self.visibility > 1.0001 * UNREACHED)

    @property
    def _cells_per_metre(self) -> Float[Tensor, "3"]:
        return self.config.resolution / (self.box[1] - self.box[0])

    def _to_cells(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        return (points - self.box[0]) * self._cells_per_metre

    def _cells_along(
        self,
        origins: Float[Tensor, "num_rays 3"],
        directions: Float[Tensor, "num_rays 3"],
        t: Float[Tensor, "num_rays S"],
    ) -> Int[Tensor, "num_rays S"]:
        """Cell index of r(t). The one function that runs over every sample there is: axis by axis and in place it takes
        half the time that it would by way of points."""
        resolution, index = self.config.resolution, torch.zeros_like(t)
        starts, steps = self._to_cells(origins), directions * self._cells_per_metre
        for axis in (0, 1, 2):
            cell = torch.addcmul(starts[:, axis, None], t, steps[:, axis, None]).clamp_(0, resolution - 1).floor_()
            index.add_(cell, alpha=resolution**axis)
        return index.int()

    def _cell_index(self, scaled: Float[Tensor, "*batch 3"]) -> Int[Tensor, "*batch"]:
        """Cell index of positions in cells; positions outside count for the nearest cell."""
        resolution = self.config.resolution
        x, y, z = scaled.clamp(0, resolution - 1).int().unbind(dim=-1)
        return (x + resolution * (y + resolution * z)).long()

    def _look_up(self, scaled: Float[Tensor, "*batch 3"]) -> Bool[Tensor, "*batch"]:
        return self.occupied.index_select(0, self._cell_index(scaled).reshape(-1)).view(scaled.shape[:-1])

    def _cell_corner(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n 3"]:
        resolution = self.config.resolution
        z, rest = index // resolution**2, index % resolution**2
        return torch.stack([rest % resolution, rest // resolution, z], dim=-1).float()

    def _dilated(self, mask: Bool[Tensor, " cells"]) -> Bool[Tensor, " cells"]:
        if self.config.dilation == 0:
            return mask
        volume = mask.view(1, 1, *(3 * [self.config.resolution])).float()
        reach = self.config.dilation
        return torch.nn.functional.max_pool3d(volume, 2 * reach + 1, stride=1, padding=reach).flatten() > 0
