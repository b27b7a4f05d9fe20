"""Hash grid in plain torch: the reference every other kernel is tested against, on any device and any float type.

Convention: `positions` [n, d] in [0, 1] (clamped), `table` [entries, F], result [n, levels · F], level-major; levels
and indices as in `encodings.layout`. Everything is computed in the positions' type, and the result has the table's.
Gradients, to the table and to the positions, are autograd's own.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dialogue_nerfstudio.encodings.layout import GridLevel


def corner_offsets(num_dims: int, device: torch.device) -> Int[Tensor, "corners d"]:
    """The 2^d corners of a unit cell, axis 0 fastest."""
    corners = torch.arange(2**num_dims, device=device)
    return (corners[:, None] >> torch.arange(num_dims, device=device)) & 1


def entry_index(vertices: Int[Tensor, "*batch d"], level: GridLevel) -> Int[Tensor, "*batch"]:
    """Entry of the whole table that holds each integer vertex of `level`."""
    strides = level.strides(vertices.shape[-1])
    index = vertices[..., 0] * strides[0]
    for axis in range(1, vertices.shape[-1]):
        along_axis = vertices[..., axis] * strides[axis]
        index = index ^ along_axis if level.hashed else index + along_axis
    return index % level.size + level.offset


def encode_level(
    positions: Float[Tensor, "n d"], table: Float[Tensor, "entries F"], level: GridLevel
) -> Float[Tensor, "n F"]:
    """d-linear interpolation of one level: Σ over corners of Π_axis (fraction or 1 − fraction) · entry."""
    num_dims = positions.shape[-1]
    scaled = positions * level.scale + 0.5
    cell = scaled.detach().floor()
    fraction = scaled - cell
    corners = corner_offsets(num_dims, positions.device)
    index = entry_index(cell.long()[:, None, :] + corners, level)
    weights = torch.where(corners.bool(), fraction[:, None, :], 1.0 - fraction[:, None, :]).prod(dim=-1)
    entries = table.index_select(0, index.reshape(-1)).reshape(*index.shape, table.shape[-1])
    return (weights[..., None] * entries).sum(dim=1)


def encode(
    positions: Float[Tensor, "n d"], table: Float[Tensor, "entries F"], levels: Sequence[GridLevel]
) -> Float[Tensor, "n out_dim"]:
    """Features of every level side by side. Positions outside [0, 1] read the edge and get no gradient."""
    clamped, entries = positions.clamp(0.0, 1.0), table.to(positions.dtype)
    return torch.cat([encode_level(clamped, entries, level) for level in levels], dim=-1).to(table.dtype)
