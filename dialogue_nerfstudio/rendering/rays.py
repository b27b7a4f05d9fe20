"""Carrying rays between spaces: scene → person → head.

Convention: rotations are [..., 3, 3] matrices acting on column vectors; a rigid transform (R, t) maps x to R x + t. A
head pose is axis-angle (rad) ‖ translation (m), head → person: x_person = R x_head + t. Directions keep their length,
so that a depth t along a ray means the same in every space.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from dialogue_nerfstudio.encodings.precision import full_precision

SMALL_ANGLE_SQUARED = 1e-8
"""Below this θ², sin θ / θ and (1 − cos θ) / θ² are taken from their series, exact to float32."""


def axis_angle_to_matrix(axis_angle: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Rodrigues: R = I + (sin θ / θ) K + ((1 − cos θ) / θ²) K², differentiable at θ = 0."""
    squared = (axis_angle * axis_angle).sum(dim=-1)[..., None, None]
    small = squared < SMALL_ANGLE_SQUARED
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    sine = torch.where(small, 1.0 - squared / 6.0, angle.sin() / angle)
    cosine = torch.where(small, 0.5 - squared / 24.0, (1.0 - angle.cos()) / safe)
    x, y, z = axis_angle.unbind(dim=-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    with full_precision(axis_angle):
        return identity + sine * cross + cosine * (cross @ cross)


def matrix_to_axis_angle(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """The inverse of `axis_angle_to_matrix`, angles in [0, π]; at π the sign of the axis is arbitrary.

    Goes through the quaternion whose largest component is taken first, which stays accurate at every angle.
    """
    flat = matrix.reshape(-1, 3, 3)
    m00, m11, m22 = flat[:, 0, 0], flat[:, 1, 1], flat[:, 2, 2]
    # Rows: 4q·(w, x, y, z) for q = w, x, y, z in turn; the row whose own component is largest is the accurate one.
    w = torch.stack(
        [
            1 + m00 + m11 + m22,
            flat[:, 2, 1] - flat[:, 1, 2],
            flat[:, 0, 2] - flat[:, 2, 0],
            flat[:, 1, 0] - flat[:, 0, 1],
        ],
        -1,
    )
    x = torch.stack([w[:, 1], 1 + m00 - m11 - m22, flat[:, 1, 0] + flat[:, 0, 1], flat[:, 2, 0] + flat[:, 0, 2]], -1)
    y = torch.stack([w[:, 2], x[:, 2], 1 + m11 - m00 - m22, flat[:, 2, 1] + flat[:, 1, 2]], -1)
    z = torch.stack([w[:, 3], x[:, 3], y[:, 3], 1 + m22 - m00 - m11], -1)
    rows = torch.stack([w, x, y, z], dim=1)
    largest = torch.stack([w[:, 0], x[:, 1], y[:, 2], z[:, 3]], dim=-1).argmax(dim=-1)
    quaternion = torch.nn.functional.normalize(rows[torch.arange(len(rows), device=rows.device), largest], dim=-1)
    quaternion = torch.where(quaternion[:, :1] < 0, -quaternion, quaternion)
    sine = quaternion[:, 1:].norm(dim=-1, keepdim=True)
    angle = 2.0 * torch.atan2(sine, quaternion[:, :1])
    factor = torch.where(sine > 1e-12, angle / sine.clamp(min=1e-12), 2.0)
    return (quaternion[:, 1:] * factor).reshape(*matrix.shape[:-2], 3)


def split_pose(
    head_pose: Float[Tensor, "*batch 6"],
) -> tuple[Float[Tensor, "*batch 3 3"], Float[Tensor, "*batch 3"]]:
    """Rotation and translation of a head pose."""
    return axis_angle_to_matrix(head_pose[..., :3]), head_pose[..., 3:]


def rays_into(
    origins: Float[Tensor, "num_rays 3"],
    directions: Float[Tensor, "num_rays 3"],
    rotation: Float[Tensor, "*#num_rays 3 3"],
    translation: Float[Tensor, "*#num_rays 3"],
) -> tuple[Float[Tensor, "num_rays 3"], Float[Tensor, "num_rays 3"]]:
    """Rays of an outer space seen from an inner one that (rotation, translation) maps into the outer: x ↦ Rᵀ (x − t).

    Rotation and translation are one for all rays ([3, 3], [3]) or one a ray.
    """
    shifted = origins - translation
    with full_precision(origins):
        if rotation.ndim == 2:
            return shifted @ rotation, directions @ rotation
        carried = torch.stack([shifted, directions], dim=1) @ rotation
    return carried[:, 0], carried[:, 1]


def head_rays(
    origins: Float[Tensor, "num_rays 3"],
    directions: Float[Tensor, "num_rays 3"],
    head_pose: Float[Tensor, "*#num_rays 6"],
) -> tuple[Float[Tensor, "num_rays 3"], Float[Tensor, "num_rays 3"]]:
    """Rays of person space in head space, for one head pose ([6]) or one a ray ([num_rays, 6])."""
    return rays_into(origins, directions, *split_pose(head_pose))
