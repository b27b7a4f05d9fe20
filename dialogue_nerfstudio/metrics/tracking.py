"""How far tracked motion is from true motion: head rotation and translation, blink events, roles.

Conventions. Rotations are axis-angle vectors `[T, 3]` in radians, head to person; translations `[T, 3]` in metres;
blinks `[T, 2]`, 0 open to 1 closed; roles boolean `[T, P]`. Two trackers may hold a head's neutral orientation and
centre to be slightly different ones, which no picture can decide: errors are therefore given as they are and with that
constant offset removed.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation


def rotation_error_degrees(
    predicted: Float[np.ndarray, "num_frames 3"], true: Float[np.ndarray, "num_frames 3"], remove_offset: bool = False
) -> Float[np.ndarray, " num_frames"]:
    """Geodesic angle (degrees) between predicted and true rotation at each frame.

    With `remove_offset`, predicted R'_t = R_t C is first multiplied by C^-1 from the right, where C, a constant
    rotation of the head's own axes, is the chordal mean of R_t^-1 R'_t.
    """
    difference = Rotation.from_rotvec(true).inv() * Rotation.from_rotvec(predicted)
    if remove_offset:
        difference = difference * difference.mean().inv()
    return np.degrees(difference.magnitude())


def translation_error(
    predicted: Float[np.ndarray, "num_frames 3"], true: Float[np.ndarray, "num_frames 3"], remove_offset: bool = False
) -> Float[np.ndarray, " num_frames"]:
    """Distance (m) between predicted and true translation at each frame; with `remove_offset`, after moving both means
    to the same place."""
    difference = predicted - true
    if remove_offset:
        difference = difference - difference.mean(0)
    return np.linalg.norm(difference, axis=-1)


def rotation_difference(predicted: Float[np.ndarray, "num_frames 3"], true: Float[np.ndarray, "num_frames 3"]) -> float:
    """D-Rot (MakeItTalk): mean absolute difference of the rotation's numbers, here axis-angle in radians, divided by
    nothing."""
    return float(np.abs(predicted - true).mean())


def position_difference(predicted: Float[np.ndarray, "num_frames 3"], true: Float[np.ndarray, "num_frames 3"]) -> float:
    """D-Pos (MakeItTalk): mean absolute difference of the translation's numbers, metres, divided by nothing."""
    return float(np.abs(predicted - true).mean())


@dataclass(frozen=True)
class EventScore:
    """How well predicted events match true ones."""

    precision: float
    recall: float
    f1: float
    matched: int
    predicted: int
    true: int


def blink_events(
    blink: Float[np.ndarray, "num_frames 2"], fps: float, threshold: float = 0.4, longest: float = 1.0
) -> Float[np.ndarray, " num_events"]:
    """Times (s) of blinks: centres of the runs in which the mean of both eyes reaches `threshold`; runs longer than
    `longest` seconds are closed eyes, not blinks."""
    closed = np.concatenate([[False], blink.mean(1) >= threshold, [False]])
    starts, stops = np.flatnonzero(~closed[:-1] & closed[1:]), np.flatnonzero(closed[:-1] & ~closed[1:])
    brief = stops - starts <= longest * fps
    return (starts[brief] + stops[brief]) / 2 / fps


def blinks_per_second(blink: Float[np.ndarray, "num_frames 2"], fps: float, threshold: float = 0.4) -> float:
    """Blink events over the duration."""
    return len(blink_events(blink, fps, threshold)) / (len(blink) / fps)


def event_score(
    predicted: Float[np.ndarray, " num_predicted"], true: Float[np.ndarray, " num_true"], tolerance: float = 0.2
) -> EventScore:
    """Precision, recall and F1 of events in time (s), matched one to one where they are at most `tolerance` seconds
    apart (as many pairs as possible).

    Without events on both sides everything is 1; without events on one side, F1 is 0.
    """
    if len(predicted) == 0 and len(true) == 0:
        return EventScore(1.0, 1.0, 1.0, 0, 0, 0)
    near = np.abs(predicted[:, None] - true[None, :]) <= tolerance + 1e-9
    rows, columns = linear_sum_assignment(-near.astype(float))
    matched = int(near[rows, columns].sum())
    precision = matched / len(predicted) if len(predicted) else 0.0
    recall = matched / len(true) if len(true) else 0.0
    return EventScore(precision, recall, 2 * matched / (len(predicted) + len(true)), matched, len(predicted), len(true))


def blink_score(
    predicted: Float[np.ndarray, "num_frames 2"],
    true: Float[np.ndarray, "num_frames 2"],
    fps: float,
    threshold: float = 0.4,
    tolerance: float = 0.2,
) -> EventScore:
    """Event score of the blinks in two signals of the same frames."""
    return event_score(blink_events(predicted, fps, threshold), blink_events(true, fps, threshold), tolerance)


def role_accuracy(
    predicted: Bool[np.ndarray, "num_frames num_participants"], true: Bool[np.ndarray, "num_frames num_participants"]
) -> dict[str, float]:
    """Share of right roles: `per_frame`, a frame counts when everybody's role in it is right; `per_role`, every
    participant's frame counts for itself."""
    right = predicted == true
    return {"per_frame": float(right.all(1).mean()), "per_role": float(right.mean())}


def gaze_error_degrees(
    predicted: Float[np.ndarray, "num_frames 2 2"],
    true: Float[np.ndarray, "num_frames 2 2"],
    open_eyes: Bool[np.ndarray, " num_frames"],
    remove_offset: bool = False,
) -> Float[np.ndarray, " num_open"]:
    """Angle (degrees) between predicted and true line of sight, mean of both eyes, in the frames in which they are
    open.

    Args:
        predicted, true: yaw and pitch (radians) of each eye in the head.
        open_eyes: the frames to look at: nobody sees where a closed eye looks.
        remove_offset: first take the median difference of yaw and of pitch away, which no picture can tell from another
            idea of the eye's axis.
    """
    if remove_offset and open_eyes.any():
        predicted = predicted - np.median((predicted - true)[open_eyes], axis=(0, 1))
    found, wanted = _sight(predicted[open_eyes]), _sight(true[open_eyes])
    # The arc cosine alone loses small angles.
    angles = np.arctan2(np.linalg.norm(np.cross(found, wanted), axis=-1), (found * wanted).sum(-1))
    return np.degrees(angles).mean(1)


def _sight(gaze: Float[np.ndarray, "*dims 2"]) -> Float[np.ndarray, "*dims 3"]:
    """Unit vectors of yaw and pitch."""
    yaw, pitch = gaze[..., 0].astype(np.float64), gaze[..., 1].astype(np.float64)
    return np.stack([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], axis=-1)
