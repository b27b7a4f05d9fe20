"""What a face does besides turning: expression in the shared basis, the personal residual, blink, gaze and mouth
opening.

Conventions. `T` frames, `E` expressions, `G` identity modes. All are measured against the person's own neutral face N
(head space, metres) at known head
poses: landmark pixels ≈ π(R (N + B_exp F_exp) + t). *Frontal* positions `[T, 478, 2]` are landmarks carried back along
their rays to the depth their neutral
position has in head space, in metres: what a camera in front of the face, and moving with it, would see.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Optional

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import median_filter, percentile_filter

from dialogue_nerfstudio.conversation.expression_basis import (
    EYE_CORNERS,
    FACE_OVAL,
    LEFT_BROW,
    LEFT_EYE_LOWER,
    LEFT_EYE_UPPER,
    LEFT_IRIS,
    LOWER_LIP_BETWEEN,
    LOWER_LIP_INNER,
    LOWER_LIP_OUTER,
    RIGHT_BROW,
    RIGHT_EYE_LOWER,
    RIGHT_EYE_UPPER,
    RIGHT_IRIS,
    UPPER_LIP_BETWEEN,
    UPPER_LIP_INNER,
    UPPER_LIP_OUTER,
    ExpressionBasis,
    eye_centers,
    mean_face,
)
from dialogue_nerfstudio.conversation.least_squares import bounded_least_squares
from dialogue_nerfstudio.process.head_pose import HeadTrack, pieces, projection_jacobian, whittaker_smooth
from dialogue_nerfstudio.process.landmarks import LandmarkTrack, fill_gaps

EXPRESSION_NOISE = 0.004
"""Standard deviation (metres) with which one landmark tells about the expression. It is far above a landmark's own
noise because neighbouring landmarks err together and because no authored field is exactly a face's."""

EXPRESSION_SMOOTHING = 0.25
"""Weight of second differences; light, since lips close within three frames."""

EYEBALL_RADIUS = 0.0115
"""Metres from an eyeball's centre to the iris."""

IRIS_BEFORE_CORNERS = 0.006
"""Metres by which an iris that looks straight ahead lies before the middle between the corners of its lids. A mesh
network gives irises the depth of the lids or less; a head that turns then seems to take its gaze along, or to turn it
the other way."""

GAZE_LANDMARKS = (*EYE_CORNERS[0], *EYE_CORNERS[1], LEFT_IRIS[0], RIGHT_IRIS[0])
"""What gaze is read from."""

# Six points an eye in the order of the eye aspect ratio (Soukupová & Čech 2016): corner, two above, corner, two below.
EAR_POINTS = ((362, 385, 387, 263, 373, 380), (33, 160, 158, 133, 153, 144))

INNER_LIPS = ((13, 14), (82, 87), (312, 317))


@dataclass
class FaceMotion:
    """What this stage measures for one person."""

    geometry: Float[np.ndarray, " num_geometry"]
    """F_geo."""
    expression: Float[np.ndarray, "num_frames num_expressions"]
    """F_exp."""
    residual: Float[np.ndarray, "num_frames num_residuals"]
    """Scores in the personal PCA, in standard deviations of the first one."""
    residual_basis: Float[np.ndarray, "num_residuals 478 2"]
    """Frontal displacement (metres) of each score at 1."""
    blink: Float[np.ndarray, "num_frames 2"]
    gaze: Float[np.ndarray, "num_frames 2 2"]
    mouth_opening: Float[np.ndarray, " num_frames"]
    """Gap between the lips over the distance between the eyes."""
    fit_error: float
    """Root mean square of what basis and residual leave unexplained, millimetres, over the landmarks that count."""


@lru_cache(maxsize=1)
def landmark_weights() -> Float[np.ndarray, " 478"]:
    """How much each landmark tells about the expression: lips and brows most, the silhouette little, lids and irises
    nothing."""
    weights = np.full(478, 0.4)
    weights[mean_face()[:, 1] < -0.03] = 0.7
    weights[list(FACE_OVAL)] = 0.25
    weights[[152, 148, 377, 176, 400]] = 0.7
    lips = UPPER_LIP_OUTER + UPPER_LIP_INNER + UPPER_LIP_BETWEEN + LOWER_LIP_OUTER + LOWER_LIP_INNER + LOWER_LIP_BETWEEN
    weights[list(lips + LEFT_BROW + RIGHT_BROW)] = 1.0
    weights[list(LEFT_EYE_UPPER + RIGHT_EYE_UPPER + LEFT_IRIS + RIGHT_IRIS)] = 0.0
    weights[list(set(LEFT_EYE_LOWER[1:-1] + RIGHT_EYE_LOWER[1:-1]))] = 0.2
    return weights


def weights_of_measured(measured: Bool[np.ndarray, " 478"]) -> Float[np.ndarray, " 478"]:
    """`landmark_weights` of those that a tracker saw; as few as they are, they count for as much together: points far
    apart err independently."""
    weights = np.where(measured, landmark_weights(), 0.0)
    return weights * (landmark_weights().sum() / weights.sum())


def fit_geometry(
    shape: Float[np.ndarray, "478 3"], basis: ExpressionBasis, prior: float = 1.5
) -> Float[np.ndarray, " num_geometry"]:
    """F_geo of a neutral shape: least squares with coefficients of standard deviation `prior` and 2 mm a landmark."""
    design = basis.geometry.reshape(len(basis.geometry), -1).T / 0.002
    target = (shape - basis.mean).reshape(-1) / 0.002
    # 478 neighbouring landmarks are worth about 60 independent ones.
    design, target = design * np.sqrt(60 / 478), target * np.sqrt(60 / 478)
    return np.linalg.solve(design.T @ design + np.eye(design.shape[1]) / prior**2, design.T @ target)


def frontal_positions(
    points: Float[np.ndarray, "num_frames 478 2"], head: HeadTrack
) -> Float[np.ndarray, "num_frames 478 2"]:
    """Landmarks carried back along their rays to their neutral depth in head space (metres)."""
    x = (points[..., 0] - head.center[0]) / head.focal
    y = (head.center[1] - points[..., 1]) / head.focal
    rays = np.stack([x, y, -np.ones_like(x)], axis=-1) @ head.rotations
    origins = -(head.translations[:, None] @ head.rotations)
    distance = (head.shape[:, 2] - origins[..., 2]) / rays[..., 2]
    return origins[..., :2] + distance[..., None] * rays[..., :2]


def fit_expression(
    points: Float[np.ndarray, "num_frames 478 2"],
    head: HeadTrack,
    basis: ExpressionBasis,
    chunk: int = 200,
    weights: Optional[Float[np.ndarray, " 478"]] = None,
) -> Float[np.ndarray, "num_frames num_expressions"]:
    """F_exp of every frame by itself: regularised least squares in the image, linear in the displacement, bounded to
    what the basis allows; `weights` of the landmarks are `landmark_weights` if not given."""
    weights = landmark_weights() if weights is None else weights
    fields = np.moveaxis(basis.expression, 0, -1)
    result = np.empty((len(points), len(basis.expression)))
    for start in range(0, len(points), chunk):
        part = slice(start, start + chunk)
        rotations, translations = head.rotations[part], head.translations[part]
        posed = head.shape @ np.swapaxes(rotations, 1, 2) + translations[:, None]
        # Dividing by the pixels a metre has at the face's distance makes all noise a length.
        per_metre = head.focal / -posed[..., 2].mean(axis=1)
        jacobian = projection_jacobian(posed, head.focal) @ rotations[:, None] / per_metre[:, None, None, None]
        design = (jacobian @ fields).reshape(len(posed), 478 * 2, -1)
        predicted = np.stack(
            [
                head.center[0] - head.focal * posed[..., 0] / posed[..., 2],
                head.center[1] + head.focal * posed[..., 1] / posed[..., 2],
            ],
            axis=-1,
        )
        residual = ((points[part] - predicted) / per_metre[:, None, None]).reshape(len(posed), 478 * 2, 1)
        weighted = np.swapaxes(design * np.repeat(weights, 2)[:, None], 1, 2) / EXPRESSION_NOISE**2
        hessian = weighted @ design + np.eye(design.shape[2]) / basis.prior**2
        result[part] = bounded_least_squares(hessian, (weighted @ residual)[..., 0], basis.lower, basis.upper)
    return result


def personal_residual(
    left_over: Float[np.ndarray, "num_frames 478 2"],
    num_components: int,
    weights: Optional[Float[np.ndarray, " 478"]] = None,
) -> tuple[Float[np.ndarray, "num_frames k"], Float[np.ndarray, "k 478 2"]]:
    """Weighted PCA of what the shared basis leaves: scores in standard deviations of the first component, and what one
    of them means in metres."""
    weights = np.sqrt(landmark_weights() if weights is None else weights)[:, None]
    mean, num_frames = left_over.mean(axis=0), len(left_over)

    def flat(part: slice) -> np.ndarray:
        return ((left_over[part] - mean) * weights).reshape(-1, weights.size * 2)

    covariance = sum((rows := flat(part)).T @ rows for part in pieces(num_frames)) / num_frames
    values, vectors = np.linalg.eigh(covariance)
    count = min(num_components, num_frames - 1, int((values > 1e-12).sum()))
    directions = vectors[:, ::-1][:, :count]
    scores = np.concatenate([flat(part) @ directions for part in pieces(num_frames)])
    scale = max(float(scores[:, 0].std()), 1e-9) if count else 1.0
    back = np.where(weights > 0, 1.0 / np.maximum(weights, 1e-6), 0.0)
    return scores / scale, (directions.T * scale).reshape(count, 478, 2) * back


def eye_aspect_ratio(points: Float[np.ndarray, "num_frames 478 2"]) -> Float[np.ndarray, "num_frames 2"]:
    """(‖p2−p6‖ + ‖p3−p5‖) / 2‖p1−p4‖ of the left and the right eye (Soukupová & Čech 2016)."""

    def distance(a: int, b: int) -> np.ndarray:
        return np.linalg.norm(points[:, a] - points[:, b], axis=-1)

    ratios = [(distance(p2, p6) + distance(p3, p5)) / (2 * distance(p1, p4)) for p1, p2, p3, p4, p5, p6 in EAR_POINTS]
    return np.stack(ratios, axis=1)


def blink_from_ratio(ratio: Float[np.ndarray, "num_frames 2"], fps: float) -> Float[np.ndarray, "num_frames 2"]:
    """Lid closure 0 … 1 from the eye aspect ratio.

    An eye is open at the 75th percentile of the four seconds around (which follows slow changes, such as looking down)
    and closed at the least the clip shows, held between 15 % and 50 % of open: a clip without a blink does not turn
    noise into blinks, and one with weak blinks still shows them. A median over three frames removes single outliers,
    such as a lid mistaken for the rim of glasses; a blink lasts four frames or more.
    """

    blink = np.empty_like(ratio)
    window = max(round(4 * fps) | 1, 3)
    for eye in range(2):
        values = median_filter(ratio[:, eye], size=3, mode="nearest")
        typical = np.percentile(values, 75)
        open_level = np.clip(percentile_filter(values, 75, size=window, mode="nearest"), 0.75 * typical, 1.2 * typical)
        closed = np.clip(np.percentile(values, 0.5), 0.15 * typical, 0.50 * typical)
        # The first tenth of the way is the lids' ordinary unrest, and more where the landmarks are noisy.
        noise = 1.4826 * np.median(np.abs(np.diff(ratio[:, eye], n=2))) / np.sqrt(6) if len(values) > 2 else 0.0
        unrest = np.clip(2.0 * noise / (open_level - closed), 0.1, 0.4)
        blink[:, eye] = ((open_level - values) / (open_level - closed) - unrest) / (1.0 - unrest)
    return np.clip(blink, 0.0, 1.0)


def eyes_in_depth(shape: Float[np.ndarray, "478 3"]) -> Float[np.ndarray, "478 3"]:
    """A face whose irises lie IRIS_BEFORE_CORNERS before the corners of their lids."""
    placed = shape.copy()
    for corners, iris in zip(EYE_CORNERS, (LEFT_IRIS, RIGHT_IRIS), strict=True):
        placed[list(iris), 2] = shape[list(corners), 2].mean() + IRIS_BEFORE_CORNERS
    return placed


def gaze_from_irises(
    landmarks: Float[np.ndarray, "num_frames 6 2"],
    blink: Float[np.ndarray, "num_frames 2"],
    distance: float = np.inf,
) -> Float[np.ndarray, "num_frames 2 2"]:
    """(yaw, pitch) of the left and right eye in radians, from each iris's place between the corners.

    Three assumptions, since neither eyeball centre nor camera side is known: the eyes are mirror images (each one's own
    sideways offset is removed, their common one is not), the median gaze is level with the head, and what is looked at
    is as far away as the camera: the eyes converge to it. Frames with closed lids are bridged.

    Args:
        landmarks: GAZE_LANDMARKS as seen from in front of the face, metres.
        blink: closure of the lids.
        distance: from the eyes to the camera, metres.
    """
    corners, irises = landmarks[:, :4].reshape(-1, 2, 2, 2), landmarks[:, 4:]
    centers = corners.mean(axis=2)
    # Both axes run to the person's left: from the nose in the left eye, to it in the right one.
    axes = corners[:, :, 1] - corners[:, :, 0]
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    offset = irises - centers
    along = (offset * axes).sum(axis=-1)
    across = offset[..., 1] * axes[..., 0] - offset[..., 0] * axes[..., 1]
    gaze = np.empty((*blink.shape, 2))
    opened = blink < 0.5
    opened_frames = opened.all(axis=1) if opened.all(axis=1).any() else np.ones(len(blink), bool)
    typical = np.median(along[opened_frames], axis=0)
    along = along - (typical - typical.mean())
    across = across - np.median(across[opened_frames], axis=0)
    gaze[..., 0] = np.arcsin(np.clip(along / EYEBALL_RADIUS, -0.8, 0.8))
    gaze[..., 1] = np.arcsin(np.clip(across / EYEBALL_RADIUS, -0.8, 0.8))
    converged = np.arctan(np.median(np.linalg.norm(centers[:, 0] - centers[:, 1], axis=-1)) / (2.0 * distance))
    gaze[..., 0] += np.array([-converged, converged])
    for eye in range(2):
        if opened[:, eye].any():
            gaze[:, eye] = fill_gaps(gaze[:, eye], opened[:, eye])
    return gaze


def mouth_opening(frontal: Float[np.ndarray, "num_frames 478 2"]) -> Float[np.ndarray, " num_frames"]:
    """Mean gap between the inner lips over the distance between the eyes."""
    gaps = [np.linalg.norm(frontal[:, above] - frontal[:, below], axis=-1) for above, below in INNER_LIPS]
    eyes = eye_centers(frontal)
    return np.mean(gaps, axis=0) / np.linalg.norm(eyes[:, 0] - eyes[:, 1], axis=-1)


def measure_face(
    track: LandmarkTrack,
    head: HeadTrack,
    basis: ExpressionBasis,
    fps: float,
    num_residuals: int = 8,
    visible: Optional[Bool[np.ndarray, " num_frames"]] = None,
) -> FaceMotion:
    """Everything this stage measures, from landmarks without gaps and the head's poses.

    Expression is told at the poses that fit the landmarks: what all of them do together is no expression. Irises are
    seen and not guessed, so gaze is told at the head's own poses.

    Where the tracker sees no irises, gaze is zero: straight ahead.
    """
    points, exact, head = track.points, head, head.by_landmarks()
    eyes = replace(exact, shape=eyes_in_depth(head.shape), landmark_poses=None)
    weights = weights_of_measured(track.measured)
    seen = (track.visible if visible is None else visible).astype(np.float64)
    expression = whittaker_smooth(fit_expression(points, head, basis, weights=weights), seen, EXPRESSION_SMOOTHING)
    expression = np.clip(expression, basis.lower, basis.upper)
    frontal, left_over = np.empty(points.shape, np.float32), np.empty(points.shape, np.float32)
    looking = np.empty((len(points), len(GAZE_LANDMARKS), 2))
    for part in pieces(len(points)):
        posed = replace(head, rotations=head.rotations[part], translations=head.translations[part])
        frontal[part] = frontal_positions(points[part].astype(np.float64), posed)
        posed = replace(eyes, rotations=eyes.rotations[part], translations=eyes.translations[part])
        looking[part] = frontal_positions(points[part].astype(np.float64), posed)[:, list(GAZE_LANDMARKS)]
        explained = np.einsum("te,end->tnd", expression[part], basis.expression[..., :2])
        left_over[part] = frontal[part] - head.shape[:, :2] - explained
    residual, residual_basis = personal_residual(left_over, num_residuals, weights)
    left_over -= left_over.mean(axis=0)
    squares = 0.0
    for part in pieces(len(points)):
        unexplained = left_over[part] - np.einsum("tk,knd->tnd", residual[part], residual_basis)
        squares += float((weights[:, None] * unexplained**2).sum())
    fit_error = 1e3 * np.sqrt(squares / len(points) / weights.sum())
    blink = blink_from_ratio(eye_aspect_ratio(frontal), fps)
    distance = float(np.median(np.linalg.norm(head.translations, axis=1)) - eye_centers(head.shape)[:, 2].mean())
    return FaceMotion(
        geometry=fit_geometry(head.shape, basis),
        expression=expression,
        residual=whittaker_smooth(residual, seen, EXPRESSION_SMOOTHING),
        residual_basis=residual_basis,
        blink=blink,
        gaze=gaze_from_irises(looking, blink, distance) if track.has_irises else np.zeros((len(points), 2, 2)),
        mouth_opening=mouth_opening(frontal),
        fit_error=float(fit_error),
    )
