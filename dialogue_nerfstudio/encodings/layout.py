"""Where each level of a hash grid lives in the table, and at what scale it reads positions.

Convention (tiny-cuda-nn's, so that a table trained here can be read there): level l of a grid with base resolution b
and growth g has

    scale_l      = b · g^l − 1                      (float32)
    resolution_l = ⌈scale_l⌉ + 1                    vertices along an axis
    vertex space: u = x · scale_l + 1/2             x in [0, 1]^d, cell = ⌊u⌋, fraction = u − cell
    dense  when resolution_l^d ≤ 2^T:   index = (c₀ + c₁·res + c₂·res²) mod size_l
    hashed otherwise:                   index = (c₀·1 ⊕ c₁·2654435761 ⊕ c₂·805459861) mod size_l

where size_l = min(resolution_l^d rounded up to a multiple of 8, 2^T) is the level's number of entries. The half-cell
shift keeps levels from sharing vertices; because of it the last half cell of a dense level reads one vertex past the
edge, which wraps to the next row exactly as it does in tiny-cuda-nn.

Müller et al., "Instant Neural Graphics Primitives with a Multiresolution Hash Encoding", section 3, eq. 2–4.
"""

from dataclasses import dataclass

import numpy as np

HASH_PRIMES = (1, 2654435761, 805459861)
ENTRY_ALIGNMENT = 8


@dataclass(frozen=True)
class GridLevel:
    """One level of a hash grid: `size` entries of the table from `offset` on."""

    scale: float
    resolution: int
    offset: int
    size: int
    hashed: bool

    def strides(self, num_dims: int) -> tuple[int, ...]:
        """What one step along each axis adds (dense) or multiplies in (hashed) to an entry's index."""
        return HASH_PRIMES[:num_dims] if self.hashed else tuple(self.resolution**axis for axis in range(num_dims))


def growth_factor(num_levels: int, base_resolution: int, max_resolution: int) -> float:
    """Ratio g between neighbouring levels, so that level 0 has `base_resolution` and the last one `max_resolution`."""
    if num_levels == 1:
        return 1.0
    return float((max_resolution / base_resolution) ** (1.0 / (num_levels - 1)))


def grid_levels(
    num_dims: int, num_levels: int, base_resolution: int, growth: float, log2_hashmap_size: int
) -> tuple[GridLevel, ...]:
    """Scale, resolution and place in the table of every level (module docstring).

    The scale is computed in float32, as tiny-cuda-nn does: the ceiling after it makes the last bit matter.
    """
    levels, offset = [], 0
    log2_growth = np.log2(np.float32(growth))
    for level in range(num_levels):
        scale = np.exp2(np.float32(level) * log2_growth) * np.float32(base_resolution) - np.float32(1.0)
        resolution = int(np.ceil(scale)) + 1
        vertices = resolution**num_dims
        padded = -(-vertices // ENTRY_ALIGNMENT) * ENTRY_ALIGNMENT
        size = min(padded, 2**log2_hashmap_size)
        levels.append(GridLevel(float(scale), resolution, offset, size, hashed=vertices > size))
        offset += size
    return tuple(levels)
