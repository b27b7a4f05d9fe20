"""What stands behind people in a scene: a level ground that fades into a gradient, without lights or textures.

Conventions: scene space, metres, y up; colours 0 … 1. The colour of a ray depends only on where it meets the ground, or
else on its direction, so that all views of a scene agree. Where people stand, the ground is darker: a contact shade, no
cast shadow, because nobody knows where the light of a recording came from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FARTHEST = 20.0
"""Metres at which what is no ground is said to lie, in depth pictures."""


@dataclass
class BackdropConfig:
    """Colours of ground and backdrop."""

    ground: bool = True
    """Whether there is a ground; without one, people's lower ends are seen."""
    zenith: tuple[float, float, float] = (0.42, 0.47, 0.54)
    """Colour straight up."""
    horizon: tuple[float, float, float] = (0.80, 0.81, 0.82)
    """Colour level with the eye, which the far ground takes too."""
    near_ground: tuple[float, float, float] = (0.58, 0.57, 0.56)
    """Colour of the ground in the middle of the scene."""
    fade: float = 1.6
    """Metres over which the ground turns from its own colour to the horizon's."""
    contact: float = 0.45
    """How much darker the ground is under a person; 0 for no contact shade."""


@dataclass(frozen=True, eq=False)
class Footprint:
    """The ellipse of the ground that a person covers."""

    centre: Float[Tensor, "2"]
    """x and z, metres"""
    axes: Float[Tensor, "2 2"]
    """rows: the person's own x and z axis in the scene's (x, z)"""
    radii: Float[Tensor, "2"]
    """along those axes, metres"""


class Backdrop:
    """The backdrop of a scene.

    Args:
        config: its colours.
        height: of the ground, y in metres.
        footprints: where people stand on it.
    """

    def __init__(self, config: BackdropConfig, height: float, footprints: Sequence[Footprint]) -> None:
        self.config, self.height, self.footprints = config, height, footprints

    def distance(
        self, origins: Float[Tensor, "num_rays 3"], directions: Float[Tensor, "num_rays 3"]
    ) -> Float[Tensor, " num_rays"]:
        """How far along unit directions the ground is; infinite where it is not met."""
        down = directions[:, 1]
        distance = (self.height - origins[:, 1]) / torch.where(down == 0, 1e-12, down)
        met = (distance > 0) & self.config.ground
        return torch.where(met, distance, torch.inf)

    def __call__(
        self, origins: Float[Tensor, "num_rays 3"], directions: Float[Tensor, "num_rays 3"]
    ) -> tuple[Float[Tensor, "num_rays 3"], Float[Tensor, " num_rays"]]:
        """(colour, distance) along rays with unit directions; the distance is infinite past the ground's edge."""
        config = self.config
        zenith, horizon, near_ground = (
            origins.new_tensor(colour) for colour in (config.zenith, config.horizon, config.near_ground)
        )
        # Below the horizon, where there is no ground, the gradient goes on as if mirrored.
        height = directions[:, 1:2].abs().clamp(max=1.0)
        colour = horizon + (zenith - horizon) * (1.0 - (1.0 - height) ** 2)
        distance = self.distance(origins, directions)
        on_ground = torch.isfinite(distance).nonzero().squeeze(-1)
        if len(on_ground):
            points = (origins + directions * distance.nan_to_num(posinf=0.0)[:, None])[on_ground][:, (0, 2)]
            near = torch.exp(-points.square().sum(dim=-1, keepdim=True) / config.fade**2)
            shade = torch.ones_like(near)
            for footprint in self.footprints:
                local = ((points - footprint.centre) @ footprint.axes.T) / footprint.radii
                shade = shade * (1.0 - config.contact * torch.exp(-local.square().sum(dim=-1, keepdim=True)))
            colour = colour.index_copy(0, on_ground, (horizon + (near_ground - horizon) * near) * shade)
        return colour, distance
