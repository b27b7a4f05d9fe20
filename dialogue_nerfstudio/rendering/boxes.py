"""Where rays enter and leave axis-aligned boxes.

Convention: a ray is r(t) = origin + t · direction; directions need not have unit length, and t counts in units of it.
near and far are values of t; far <= near means that the ray misses.
"""

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST_COMPONENT = 1e-12
"""A direction parallel to a slab is tilted by this much, so that no 0 · ∞ arises on the slab's own plane."""


def intersect_box(
    origins: Float[Tensor, "num_rays 3"],
    directions: Float[Tensor, "num_rays 3"],
    box_min: Float[Tensor, "*#num_rays 3"],
    box_max: Float[Tensor, "*#num_rays 3"],
    nearest: float = 0.0,
) -> tuple[Float[Tensor, " num_rays"], Float[Tensor, " num_rays"]]:
    """Slab test: near = max over axes of the entries, far = min over axes of the exits.

    Args:
        box_min: lower corner, one for all rays or one a ray.
        box_max: upper corner.
        nearest: rays start here; a box behind them is missed.

    Returns:
        near and far, far <= near where the ray misses.
    """
    tilted = torch.where(directions < 0, -SMALLEST_COMPONENT, SMALLEST_COMPONENT)
    inverse = torch.where(directions.abs() < SMALLEST_COMPONENT, tilted, directions).reciprocal()
    to_min, to_max = (box_min - origins) * inverse, (box_max - origins) * inverse
    near = torch.minimum(to_min, to_max).amax(dim=-1).clamp(min=nearest)
    far = torch.maximum(to_min, to_max).amin(dim=-1)
    return near, far
