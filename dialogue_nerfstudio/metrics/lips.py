"""Lips against truth (landmark distance) and against the sound (sync offset without weights).

Conventions. Mouth points are pixels `[T, 20, 2]` in the order of the 68-point scheme's 48-67; openings and envelopes
`[T]` per frame.
"""

from dataclasses import dataclass
from typing import Optional

import numpy as np
from jaxtyping import Bool, Float

# Points 48-67 (outer lips, then inner) of the 68-point scheme in MediaPipe's face mesh.
MOUTH_48_67 = (61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87)


def mouth_points(landmarks: Float[np.ndarray, "num_frames 478 2"]) -> Float[np.ndarray, "num_frames 20 2"]:
    """The mouth points 48-67 of MediaPipe's mesh."""
    return landmarks[:, list(MOUTH_48_67)]


def landmark_distance(
    predicted: Float[np.ndarray, "num_frames 20 2"], true: Float[np.ndarray, "num_frames 20 2"]
) -> float:
    """LMD `talking-head`: mean L2 distance (pixels of the stated resolution) of mouth points 48-67, each frame's set
    centred on its own mean."""
    centred = [points - points.mean(1, keepdims=True) for points in (predicted, true)]
    return float(np.linalg.norm(centred[0] - centred[1], axis=-1).mean())


def landmark_distance_normalised(
    predicted: Float[np.ndarray, "num_frames 20 2"],
    true: Float[np.ndarray, "num_frames 20 2"],
    inter_ocular: Float[np.ndarray, " num_frames"],
) -> float:
    """LMD `talking-head` with each frame divided by its inter-ocular distance (px), so that the resolution drops
    out."""
    return landmark_distance(predicted / inter_ocular[:, None, None], true / inter_ocular[:, None, None])


@dataclass(frozen=True)
class SyncOffset:
    """Where lips and sound fit best."""

    seconds: float
    """Positive: the lips move after the sound."""
    peak: float
    """Pearson correlation at that lag."""


@dataclass(frozen=True)
class SyncCurve:
    """How well lips and sound fit at every lag."""

    lags: Float[np.ndarray, " num_lags"]
    """Seconds; positive: the lips move after the sound."""
    correlation: Float[np.ndarray, " num_lags"]
    """Pearson correlation at each lag; 0 where a signal never changes."""

    @property
    def best(self) -> SyncOffset:
        if not self.correlation.any():
            return SyncOffset(0.0, 0.0)
        best = int(self.correlation.argmax())
        return SyncOffset(float(self.lags[best]), float(self.correlation[best]))


def sync_curve(
    opening: Float[np.ndarray, " num_frames"],
    envelope: Float[np.ndarray, " num_frames"],
    fps: float,
    longest: float = 0.4,
    heard: Optional[Bool[np.ndarray, " num_frames"]] = None,
) -> SyncCurve:
    """Pearson correlation of opening[t + lag] with envelope[t] over the frames both have, for lags up to `longest`
    seconds, whole frames.

    With `heard`, only its frames t of the envelope count: those in which this person alone speaks.

    Raises:
        ValueError: the signals are shorter than three times the longest lag.
    """
    reach = round(longest * fps)
    if len(opening) != len(envelope) or len(opening) < 3 * max(reach, 1):
        raise ValueError(f"sync offset needs two signals of the same length, at least {3 * max(reach, 1)} frames")
    heard = np.ones(len(envelope), bool) if heard is None else heard
    lags = np.arange(-reach, reach + 1)
    frames = np.flatnonzero(heard)
    correlation = []
    for lag in lags:
        both = frames[(frames + lag >= 0) & (frames + lag < len(opening))]
        correlation.append(_pearson(opening[both + lag], envelope[both]) if len(both) else 0.0)
    return SyncCurve(lags / fps, np.array(correlation))


def sync_offset(
    opening: Float[np.ndarray, " num_frames"],
    envelope: Float[np.ndarray, " num_frames"],
    fps: float,
    longest: float = 0.4,
) -> SyncOffset:
    """Lag and peak of the cross-correlation between mouth opening and the sound's envelope (ours; it is not SyncNet's
    offset).

    See `sync_curve`. The envelope explains little of a mouth (r = 0.12-0.37 on real recordings): a low peak says
    nothing. Where either signal never changes the result is lag 0, peak 0.

    Raises:
        ValueError: the signals are shorter than three times the longest lag.
    """
    return sync_curve(opening, envelope, fps, longest).best


def _pearson(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    first, second = first - first.mean(), second - second.mean()
    scale = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / scale) if scale > 1e-12 else 0.0
