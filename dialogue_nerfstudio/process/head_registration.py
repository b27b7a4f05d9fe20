"""Head poses made finer by the pictures: skin that moves with the skull, registered in every frame to its mean look.

Conventions as in `process.head_pose`: T frames, P points on the surface of the person's neutral face, head space in
metres, camera space along −z, pixels with v downwards. Brightness is in grey levels, 0 … 255.

Landmarks err alike for many frames on end, by about a pixel at 512 × 512, so that smoothing cannot mend it, and a
renderer that learns from all frames is blurred by as much. Pictures tell more: the brightness that a frame shows where
the tracked pose puts a point of the face changes with the pose as the picture's slope says (Lucas & Kanade 1981; for
textured heads La Cascia, Sclaroff & Athitsos 2000). Of two simulated people, whose poses are known, rotations were
1.3° and 2.6° off before and 0.7° and 1.1° after, and the skin strayed from the skull by half as much.
"""

from dataclasses import dataclass, replace
from typing import Callable, Iterable, Optional, Tuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.expression_basis import (
    LEFT_EYE_LOWER,
    LEFT_EYE_UPPER,
    RIGHT_EYE_LOWER,
    RIGHT_EYE_UPPER,
    UPPER_LIP_OUTER,
    face_triangles,
)
from dialogue_nerfstudio.process.head_pose import (
    HeadTrack,
    cross_matrices,
    project,
    projection_jacobian,
    rotation_jitter,
    whittaker_smooth,
)
from dialogue_nerfstudio.process.landmarks import fill_gaps

EYE_CONTOURS = (LEFT_EYE_UPPER + LEFT_EYE_LOWER, RIGHT_EYE_UPPER + RIGHT_EYE_LOWER)

BLUR = 0.0013
"""Standard deviation (metres on the face) of the smoothing before slopes are taken, so that they hold as far as poses
err."""

LEAST_BLUR = 0.7
"""The same in pixels, for faces so small that their pixels are coarser."""

FACING = 0.35
"""Cosine between the line of sight and a surface that still counts, of the face seen from in front."""

AROUND_EYES = 0.004
"""Metres that the box of an eye's landmarks is widened by: what lies inside blinks."""

ABOVE_LIPS = 0.006
"""Metres above the upper lip at which what speaks ends."""

BRIGHTNESS_NOISE = 12.0
"""Standard deviation of a point's brightness: shading that turns with the head, wrinkles, compression."""

INDEPENDENT_POINTS = 400
"""How many independent points all of them together are worth."""

ANGLE_ERROR, ACROSS_ERROR, DEPTH_ERROR = 0.03, 0.002, 0.004
"""Standard deviations of the tracked pose's error: radians, and metres across and along the line of sight."""

OUTLIER = 20.0
"""Grey levels beyond which a point counts for less: a highlight, hair, a hand."""

ROUNDS = 2
"""Turns of registering to the mean and taking the mean of what is registered."""

CORRECTION_SMOOTHING = 0.5
"""Weight of the corrections' squared second differences; light, since it is only there for single frames' noise, which
trembles."""


@dataclass
class Appearance:
    """What every frame shows where the tracked pose puts the surface."""

    brightness: Float32[np.ndarray, "num_frames p"]
    slope: Float32[np.ndarray, "num_frames p 2"]
    """Change of brightness a pixel to the right and down."""


def surface_points(
    shape: Float[np.ndarray, "478 3"],
) -> Tuple[Float[np.ndarray, "p 3"], Float[np.ndarray, " p"]]:
    """Points on the skin that moves with the skull, two a triangle of the mesh, and the area that each stands for,
    mean 1: above the lips, away from the eyes, and where a camera in front sees it well."""
    corners = shape[face_triangles()]
    inner = np.array([[1 / 3, 1 / 3, 1 / 3], [0.2, 0.6, 0.2]])
    points = np.einsum("bk,nkd->nbd", inner, corners).reshape(-1, 3)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(normals, axis=1)
    facing = np.abs(normals[:, 2]) / np.maximum(area, 1e-12)
    kept = (points[:, 1] > shape[list(UPPER_LIP_OUTER), 1].max() + ABOVE_LIPS) & (
        np.repeat(facing, len(inner)) > FACING
    )
    for contour in EYE_CONTOURS:
        eye = shape[list(contour), :2]
        low, high = eye.min(axis=0) - AROUND_EYES, eye.max(axis=0) + AROUND_EYES
        kept &= ~((points[:, :2] > low) & (points[:, :2] < high)).all(axis=1)
    weights = np.repeat(area, len(inner))[kept]
    return points[kept], weights / weights.mean()


def blurred_around(
    frame: UInt8[np.ndarray, "height width"], places: Float[np.ndarray, "p 2"], blur: float
) -> Tuple[Float32[np.ndarray, "rows columns"], Float32[np.ndarray, "2 p"]]:
    """The part of a frame that surrounds the places, smoothed by `blur` pixels, and (u, v) of the places in it."""
    margin = int(np.ceil(3 * blur)) + 2
    low = np.clip(np.floor(places.min(axis=0)).astype(int) - margin, 0, [frame.shape[1] - 1, frame.shape[0] - 1])
    high = np.maximum(np.ceil(places.max(axis=0)).astype(int) + margin + 1, low + 1)
    part = frame[low[1] : high[1], low[0] : high[0]]
    return cv2.GaussianBlur(part.astype(np.float32), (0, 0), blur), (places - low).astype(np.float32).T


def appearance(
    frames: Iterable[UInt8[np.ndarray, "height width"]],
    points: Float[np.ndarray, "p 3"],
    head: HeadTrack,
    progress: Optional[Callable[[float], None]] = None,
) -> Appearance:
    """What the frames show at the points, read one after the other."""
    num_frames = len(head.rotations)
    blur = max(BLUR * head.focal / float(-np.median(head.translations[:, 2])), LEAST_BLUR)
    # Not as lists that are joined, which holds all of it twice: in a long video nothing grows as these do.
    brightness = np.empty((num_frames, len(points)), np.float32)
    slope = np.empty((num_frames, len(points), 2), np.float32)
    for index, frame in enumerate(frames):
        places = project(points, head.rotations[index], head.translations[index], head.focal, head.center) - 0.5
        grey, (u, v) = blurred_around(frame, places, blur)
        # A Scharr filter over 32 is the slope a pixel.
        sides = [cv2.Scharr(grey, cv2.CV_32F, 1, 0, scale=1 / 32), cv2.Scharr(grey, cv2.CV_32F, 0, 1, scale=1 / 32)]
        values = cv2.remap(
            cv2.merge([grey, *sides]), u[None], v[None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )[0]
        brightness[index], slope[index] = values[:, 0], values[:, 1:]
        if progress is not None and index % 25 == 0:
            progress(index / num_frames)
    return Appearance(brightness, slope)


def normalised(
    brightness: Float[np.ndarray, " p"], weights: Float[np.ndarray, " p"]
) -> Tuple[Float[np.ndarray, " p"], float, float]:
    """(what a frame shows with weighted mean 0 and deviation 1, that deviation, that mean: grey levels)."""
    middle = float(np.average(brightness, weights=weights))
    spread = float(np.sqrt(np.average((brightness - middle) ** 2, weights=weights)))
    return (brightness - middle) / max(spread, 1e-6), spread, middle


def corrections(
    seen: Appearance,
    points: Float[np.ndarray, "p 3"],
    weights: Float[np.ndarray, " p"],
    head: HeadTrack,
    visible: Bool[np.ndarray, " num_frames"],
) -> Float[np.ndarray, "num_frames 6"]:
    """(ω, v) of every frame, about zero on average: the pose is exp(ω) R, t + v, in camera axes, radians and metres.

    Each frame is the mean of all with a gain and an offset of its own, moved: a linear problem a frame, with the
    tracked pose as its prior. Frames in which no face was seen take their neighbours' correction.
    """
    num_points = len(points)
    frames = np.flatnonzero(visible)
    prior = np.array([ANGLE_ERROR] * 3 + [ACROSS_ERROR] * 2 + [DEPTH_ERROR])
    confidence = INDEPENDENT_POINTS / num_points / BRIGHTNESS_NOISE**2
    found = np.zeros((len(seen.brightness), 6))
    # Frames are as bright, and as contrasted, as each other before they are averaged.
    total, light = np.zeros(num_points), {}
    for index in frames:
        values, *light[index] = normalised(seen.brightness[index], weights)
        total += values
    for _ in range(ROUNDS):
        mean, total = total / len(frames), np.zeros(num_points)
        for index in frames:
            turned = points @ head.rotations[index].T
            jacobian = projection_jacobian(turned + head.translations[index], head.focal)
            jacobian = np.concatenate([-jacobian @ cross_matrices(turned), jacobian], axis=-1)
            by_pose = np.einsum("pk,pkd->pd", seen.slope[index], jacobian)
            # brightness + by_pose · correction = gain · mean + offset
            design = np.concatenate([by_pose * prior, -mean[:, None], -np.ones((num_points, 1))], axis=1)
            target = -seen.brightness[index].astype(np.float64)
            left = target - design @ np.array([*(found[index] / prior), *light[index]])
            trust = weights * confidence / np.maximum(1.0, np.abs(left) / OUTLIER)
            hessian = (design * trust[:, None]).T @ design + np.diag([1.0] * 6 + [1e-9] * 2)
            found[index] = np.linalg.solve(hessian, (design * trust[:, None]).T @ target)[:6] * prior
            values, *light[index] = normalised(seen.brightness[index] + by_pose @ found[index], weights)
            total += values
    smooth = whittaker_smooth(found - found[frames].mean(axis=0), visible.astype(np.float64), CORRECTION_SMOOTHING)
    return fill_gaps(smooth, visible)


def register_head(
    frames: Iterable[UInt8[np.ndarray, "height width"]],
    head: HeadTrack,
    visible: Bool[np.ndarray, " num_frames"],
    progress: Optional[Callable[[float], None]] = None,
) -> HeadTrack:
    """The track with its poses registered. Its shape, its camera and `reprojection_error`, which says how well
    landmarks fit the pose that they gave, stay; so do those poses, as `landmark_poses`.

    Args:
        frames: the brightness of all of them, in order.
        head: poses to within a pixel or two.
        visible: frames in which the face was seen.
    """
    points, weights = surface_points(head.shape)
    found = corrections(appearance(frames, points, head, progress), points, weights, head, visible)
    rotations = Rotation.from_rotvec(found[:, :3]).as_matrix() @ head.rotations
    return replace(
        head,
        rotations=rotations,
        translations=head.translations + found[:, 3:],
        jitter=rotation_jitter(rotations[visible]),
        landmark_poses=(head.rotations, head.translations),
    )
