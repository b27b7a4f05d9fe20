"""Encodings of a position in a unit box, chosen by name: what a field reads space with.

Convention: positions are [n, 3] in [0, 1]; features are [n, out_dim]. An encoding has `out_dim` and `kernel`, the name
of what computes it; its hash tables are parameters named `table`.
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.encodings.frequency import FrequencyEncoding
from dialogue_nerfstudio.encodings.hash_grid import HashGrid, HashGridConfig

EncodingName = Literal["grid", "tri-plane", "frequency"]

PLANES = ((0, 1), (1, 2), (0, 2))
"""The axes of a tri-plane's planes: frontal, sagittal and horizontal."""


class TriPlane(nn.Module):
    """Three hash grids over the xy, yz and xz planes, their features side by side (ER-NeRF, section 3.2).

    Collisions of a plane's table grow with the square of the resolution instead of the cube, at the price of features
    that every point along a normal of a plane shares.

    Args:
        config: of each plane, except for its `num_dims`.
    """

    def __init__(self, config: HashGridConfig):
        super().__init__()
        self.planes = nn.ModuleList(HashGrid(replace(config, num_dims=2)) for _ in PLANES)

    @property
    def out_dim(self) -> int:
        """Number of features per position: three times a plane's."""
        return sum(plane.out_dim for plane in self.planes)

    @property
    def kernel(self) -> str:
        """The kernel that runs where the tables are now."""
        return self.planes[0].kernel

    def forward(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n features"]:
        """Features of the xy, the yz and the xz plane, in this order."""
        return torch.cat(
            [plane(positions[:, list(axes)]) for plane, axes in zip(self.planes, PLANES, strict=True)], dim=-1
        )


def spatial_encoding(name: str, grid: HashGridConfig) -> nn.Module:
    """The encoding of that name over a unit box.

    Args:
        name: "grid", one hash grid over space, "tri-plane", or "frequency", NeRF's positional encoding.
        grid: the size of the hash grid or of each plane; of the positional encoding, its levels are the octaves.

    Raises:
        DialogueError: there is no such encoding.
    """
    if name == "grid":
        return HashGrid(grid)
    if name == "tri-plane":
        return TriPlane(grid)
    if name == "frequency":
        return FrequencyEncoding(grid.num_levels)
    raise DialogueError(f"there is no encoding '{name}'; choose grid, tri-plane or frequency.")
