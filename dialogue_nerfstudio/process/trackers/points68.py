"""From the 68 landmarks of the iBUG mark-up to the 478 of the shared mesh, through the shared face basis.

Conventions as in `head_pose` (pixels, metres, camera along −z) and `expression_basis`. The person's identity F_geo, and
pose (R, t) and expression F_exp of each frame, are fitted in turns to the points that were seen:

    points ≈ π(R (S̄ + B_geo F_geo + B_exp F_exp) + t)                                        (DialogueNeRF eq. 1)

What is left over at the seen points is carried to their neighbours on the mesh by a Gaussian process, so that each seen
point lies exactly where it was seen and lids and lips, whose finer movements are not in the basis, follow.
"""

from typing import Tuple

import numpy as np
from jaxtyping import Float, Float32, Int

from dialogue_nerfstudio.conversation.expression_basis import (
    MESH_OF_68,
    ExpressionBasis,
    expression_basis,
    mean_face,
)
from dialogue_nerfstudio.process.expression import fit_expression, weights_of_measured
from dialogue_nerfstudio.process.head_pose import (
    LANDMARK_NOISE,
    SPARSE_RIGID,
    HeadTrack,
    fit_poses,
    project,
    projection_jacobian,
)
from dialogue_nerfstudio.process.landmarks import LandmarkTrack

ROUNDS = 4
"""Turns of pose, expression and identity."""

IDENTITY_FRAMES = 200
"""Most frames that identity is fitted to."""

IDENTITY_PRIOR = 1.0
"""Standard deviation of an identity coefficient."""

REACH = 0.015
"""How far (metres on the mean face) a leftover reaches: about the width of a cheek's pad."""

JAW_WEIGHT = 0.2
"""Weight of the jaw's points for identity: they follow the visible outline, which slides over the skin."""


def measured_by_68() -> np.ndarray:
    """Which of the 478 are seen, `[478]` bool."""
    measured = np.zeros(len(mean_face()), bool)
    measured[list(MESH_OF_68)] = True
    return measured


def carry_matrix() -> Float[np.ndarray, "478 68"]:
    """Leftovers of all landmarks from those of the seen ones: the mean of a Gaussian process on the mean face, exact at
    the seen points."""
    face = mean_face()
    seen = face[list(MESH_OF_68)]

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * ((a[:, None] - b[None]) ** 2).sum(axis=-1) / REACH**2)

    # A trace of noise keeps the lips' neighbouring points solvable.
    return np.linalg.solve(kernel(seen, seen) + 1e-3 * np.eye(len(seen)), kernel(seen, face)).T


def scaled_orthographic_poses(
    points: Float[np.ndarray, "num_frames n 2"],
    shape: Float[np.ndarray, "n 3"],
    focal: float,
    center: Tuple[float, float],
) -> Tuple[Float[np.ndarray, "num_frames 3 3"], Float[np.ndarray, "num_frames 3"]]:
    """First guess of the poses: the affine camera that fits best, made a rotation (DeMenthon & Davis 1995, without
    iterations)."""
    middle = shape.mean(axis=0)
    upward = np.stack([points[..., 0] - center[0], center[1] - points[..., 1]], axis=-1)
    mean = upward.mean(axis=1)
    rows = np.swapaxes(np.linalg.pinv(shape - middle) @ (upward - mean[:, None]), 1, 2)
    scale = np.maximum(np.linalg.norm(rows, axis=2).mean(axis=1), 1e-6)
    full = np.concatenate([rows, np.cross(rows[:, 0], rows[:, 1])[:, None] / scale[:, None, None]], axis=1)
    u, _, vt = np.linalg.svd(full)
    sign = np.stack([np.ones(len(u)), np.ones(len(u)), np.sign(np.linalg.det(u @ vt))], axis=1)
    rotations = (u * sign[:, None]) @ vt
    distance = focal / scale
    translations = np.concatenate([mean / scale[:, None], -distance[:, None]], axis=1) - rotations @ middle
    return rotations, translations


def fit_identity(
    points: Float[np.ndarray, "num_frames 68 2"],
    expression: Float[np.ndarray, "num_frames num_expressions"],
    rotations: Float[np.ndarray, "num_frames 3 3"],
    translations: Float[np.ndarray, "num_frames 3"],
    identity: Float[np.ndarray, " num_geometry"],
    basis: ExpressionBasis,
    focal: float,
    center: Tuple[float, float],
) -> Float[np.ndarray, " num_geometry"]:
    """One Gauss–Newton step of F_geo at known poses and expressions."""
    chosen = list(MESH_OF_68)
    weights = np.where(np.arange(68) < 17, JAW_WEIGHT, 1.0) / LANDMARK_NOISE**2
    shape = basis.mean[chosen] + np.tensordot(identity, basis.geometry[:, chosen], axes=1)
    shapes = shape + np.einsum("te,end->tnd", expression, basis.expression[:, chosen])
    posed = shapes @ np.swapaxes(rotations, 1, 2) + translations[:, None]
    jacobian = projection_jacobian(posed, focal) @ rotations[:, None]
    design = np.einsum("tncd,gnd->tncg", jacobian, basis.geometry[:, chosen])
    residual = points - project(shapes, rotations, translations, focal, center)
    # Frames of one clip repeat each other's errors: they are worth about twenty.
    share = min(1.0, 20.0 / len(points))
    hessian = share * np.einsum("tncg,n,tnch->gh", design, weights, design, optimize=True)
    gradient = share * np.einsum("tncg,n,tnc->g", design, weights, residual, optimize=True)
    hessian += np.eye(len(identity)) / IDENTITY_PRIOR**2
    return identity + np.linalg.solve(hessian, gradient - identity / IDENTITY_PRIOR**2)


def lift_68(points: Float32[np.ndarray, "num_frames 68 2"], width: int, height: int) -> LandmarkTrack:
    """The mesh behind 68 points a frame.

    Args:
        points: pixels of the crop; NaN where a frame is lost.
        width, height: of the crop, pixels; the focal length is taken as twice the width, which the result hardly
            depends on.
    """
    visible = np.isfinite(points).all(axis=(1, 2))
    num_landmarks = len(mean_face())
    lifted = np.full((len(points), num_landmarks, 2), np.nan, np.float32)
    depth = np.full((len(points), num_landmarks), np.nan, np.float32)
    measured = measured_by_68()
    if not visible.any():
        return LandmarkTrack(lifted, depth, visible, measured)
    basis, chosen = expression_basis(), list(MESH_OF_68)
    seen = points[visible].astype(np.float64)
    focal, center = 2.0 * width, (width / 2.0, height / 2.0)
    rigid: Int[np.ndarray, " n"] = np.array([MESH_OF_68.index(index) for index in SPARSE_RIGID])
    on_mesh = np.zeros((len(seen), num_landmarks, 2))
    on_mesh[:, chosen] = seen
    weights = weights_of_measured(measured)
    some = np.unique(np.linspace(0, len(seen) - 1, IDENTITY_FRAMES).round().astype(int))

    identity, shape = np.zeros(len(basis.geometry)), basis.mean
    rotations, translations = scaled_orthographic_poses(seen, shape[chosen], focal, center)
    for _ in range(ROUNDS):
        rotations, translations = fit_poses(
            seen[:, rigid], shape[list(SPARSE_RIGID)], rotations, translations, focal, center
        )
        head = HeadTrack(shape, rotations, translations, np.zeros(len(seen)), focal, center, 0.0)
        expression = fit_expression(on_mesh, head, basis, weights=weights)
        identity = fit_identity(
            seen[some], expression[some], rotations[some], translations[some], identity, basis, focal, center
        )
        shape = basis.mean + np.tensordot(identity, basis.geometry, axes=1)
    shapes = shape + np.einsum("te,end->tnd", expression, basis.expression)
    model = project(shapes, rotations, translations, focal, center)
    lifted[visible] = model + carry_matrix() @ (seen - model[:, chosen])
    z = (shapes @ np.swapaxes(rotations, 1, 2))[..., 2]
    depth[visible] = z * (focal / -translations[:, None, 2])
    return LandmarkTrack(lifted, depth, visible, measured)
