"""A person's own face, fitted to head poses that somebody else's tracker measured.

Conventions as in `head_pose`. Another tracker has its own head space, turned, shifted and scaled against ours by one
similarity for the whole clip, x_theirs = s Q x_ours + d; poses (R, t) below are theirs, head to camera. With them,

    x_camera,theirs = R (s Q x + d) + t = s (R Q x + (R d + t) / s),

so the pose of our head space is (R Q, (R d + t) / s), in metres: dividing a camera space by s changes no pixel.
"""

from dataclasses import dataclass
from typing import Tuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.expression_basis import mean_face
from dialogue_nerfstudio.process.head_pose import (
    LANDMARK_NOISE,
    NUM_SHAPE_FRAMES,
    HeadTrack,
    fit_poses,
    initial_poses,
    neutral_weights,
    own_depth_shapes,
    procrustes_mean,
    project,
    rigid_landmarks,
    rotation_jitter,
    to_head_space,
    triangulate_neutral,
    typical_depth,
)
from dialogue_nerfstudio.process.landmarks import LandmarkTrack

SCALE_DEVIATION = 0.05
"""How far (as a factor) another tracker's unit may plausibly be from a metre: face models have real people's sizes. It
decides where the head hardly turns, and then a nearer, smaller head looks the same."""

INDEPENDENT_LANDMARKS = 400
"""As many independent landmarks as all frames together are worth, because neighbours in space and time err together."""


@dataclass
class HeadSpaceFit:
    """Where our head space lies in theirs."""

    scale: float
    """s: their units a metre."""
    rotation: Float[np.ndarray, "3 3"]
    """Q."""
    shift: Float[np.ndarray, "3"]
    """d, in their units."""

    def poses(
        self, rotations: Float[np.ndarray, "num_frames 3 3"], translations: Float[np.ndarray, "num_frames 3"]
    ) -> Tuple[Float[np.ndarray, "num_frames 3 3"], Float[np.ndarray, "num_frames 3"]]:
        """Their poses as poses of our head space, metres."""
        return rotations @ self.rotation, (rotations @ self.shift + translations) / self.scale


def fit_head_space(
    points: Float[np.ndarray, "num_frames n 2"],
    shape: Float[np.ndarray, "n 3"],
    own_rotations: Float[np.ndarray, "num_frames 3 3"],
    own_translations: Float[np.ndarray, "num_frames 3"],
    rotations: Float[np.ndarray, "num_frames 3 3"],
    translations: Float[np.ndarray, "num_frames 3"],
    focal: float,
    center: Tuple[float, float],
) -> HeadSpaceFit:
    """The similarity with which their poses put a shape where it is seen.

    Args:
        points: landmarks, pixels.
        shape: their places in our head space, metres.
        own_rotations, own_translations: a first guess of our poses, from the same landmarks.
        rotations, translations: their poses.
    """
    turn = Rotation.from_matrix(np.swapaxes(rotations, 1, 2) @ own_rotations).mean()
    shift = np.median(np.einsum("tji,tj->ti", rotations, own_translations - translations), axis=0)

    def similarity(parameters: np.ndarray) -> HeadSpaceFit:
        change = Rotation.from_rotvec(parameters[1:4])
        return HeadSpaceFit(float(np.exp(parameters[0])), (change * turn).as_matrix(), parameters[4:])

    information = np.sqrt(INDEPENDENT_LANDMARKS / points[..., 0].size) / LANDMARK_NOISE

    def residuals(parameters: np.ndarray) -> np.ndarray:
        seen = project(shape, *similarity(parameters).poses(rotations, translations), focal, center)
        return np.append(((points - seen) * information).ravel(), parameters[0] / SCALE_DEVIATION)

    found = least_squares(residuals, np.concatenate([np.zeros(4), shift]), method="trf", x_scale="jac")
    return similarity(found.x)


def head_from_given_poses(
    track: LandmarkTrack,
    width: int,
    height: int,
    rotations: Float[np.ndarray, "num_frames 3 3"],
    translations: Float[np.ndarray, "num_frames 3"],
    focal: float,
    center: Tuple[float, float],
    ipd: float = 0.063,
) -> Tuple[HeadTrack, HeadSpaceFit]:
    """Shape and poses in our head space; the poses follow the given ones exactly, frame by frame.

    Args:
        track: landmarks without gaps (`bridged`).
        width, height: of the pictures, pixels.
        rotations, translations: the given poses, head to camera, in any unit near a metre.
        focal, center: the given camera.
        ipd: distance between the eyes, metres, which sets the scale.

    Returns:
        (head, fit): the track, and where its head space lies in that of the given poses.
    """
    rigid = rigid_landmarks()
    seen = np.flatnonzero(track.visible)
    some = seen[np.unique(np.linspace(0, len(seen) - 1, NUM_SHAPE_FRAMES).round().astype(int))]
    few = some[:: max(1, len(some) // 100)]
    points = track.points.astype(np.float64)
    # Whatever focal length was given, the shape is found as for a tracked video; its relief is the mean face's.
    middle = (width / 2.0, height / 2.0)
    solids = own_depth_shapes(LandmarkTrack(track.points[some], track.depth[some], track.visible[some]), middle)
    mean = procrustes_mean(solids, mean_face(), rigid)
    shape = typical_depth(to_head_space(mean, ipd, rigid)[0], rigid)
    rough = initial_poses(solids[np.searchsorted(some, few)][:, rigid], shape[rigid], focal)
    rough = fit_poses(points[few][:, rigid], shape[rigid], *rough, focal, center)
    fit = fit_head_space(points[few][:, rigid], shape[rigid], *rough, rotations[few], translations[few], focal, center)
    turned, moved = fit.poses(rotations, translations)
    neutral = triangulate_neutral(
        points[some], neutral_weights(track)[some], shape, turned[some], moved[some], focal, center
    )
    neutral, scale, turn, shift = to_head_space(neutral, ipd, rigid)
    # x_new = k P x + e, so x = Pᵀ (x_new − e) / k goes into x_theirs = s Q x + d.
    fit = HeadSpaceFit(
        scale=fit.scale / scale,
        rotation=fit.rotation @ turn.T,
        shift=fit.shift - fit.scale / scale * fit.rotation @ turn.T @ shift,
    )
    turned, moved = fit.poses(rotations, translations)
    error = points[:, rigid] - project(neutral[rigid], turned, moved, focal, center)
    error = np.sqrt((error**2).sum(axis=-1).mean(axis=-1))
    return HeadTrack(neutral, turned, moved, error, focal, center, rotation_jitter(turned[seen])), fit
