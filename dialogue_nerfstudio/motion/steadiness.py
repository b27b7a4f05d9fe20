"""Figures of generated head motion as it comes: drift, freezing, how lively it is, and how often it had to be limited.

Conventions. Head poses `[T, 6]` at 25 fps; windows of one second, one after the other, of which means and deviations
are kept: three hours are 11,000 rows. Deviations of rotation are those of the axis-angle's numbers about the mean.
"""

from dataclasses import asdict, dataclass
from typing import Any, Dict, List

import numpy as np
from jaxtyping import Float

from dialogue_nerfstudio.motion.limits import PoseLimits

FROZEN = 0.05
"""A second is frozen if no number of the pose deviates by more than this share of what it does in the reference."""


@dataclass(frozen=True)
class Steadiness:
    """How one person's head moved."""

    seconds: float
    drift_degrees_per_10s: float
    """Slope of a line through the means of the seconds, of rotation; random walks have some in any short piece."""
    drift_mm_per_10s: float
    """The same of translation."""
    share_limited: float
    """Of the frames: those that were further out than `PoseLimits.inner`."""
    share_beyond: float
    """Of the frames: those that would have been further out than anything recorded."""
    largest_radius: float
    """After limiting, over the recorded largest: at most 1."""
    frozen_share: float
    """Of the seconds."""
    rotation_deviation_of_reference: float
    """Deviation of rotation over the reference's: 1 is as lively."""
    translation_deviation_of_reference: float

    def as_json(self) -> Dict[str, Any]:
        """Numbers by name."""
        return {name: float(value) for name, value in asdict(self).items()}


class SteadinessMeter:
    """Takes poses in pieces of any length."""

    def __init__(self, reference: Float[np.ndarray, "R 6"], limits: PoseLimits, fps: float):
        self._limits, self._fps = limits, fps
        self._window = max(2, round(fps))
        self._scale = reference.std(axis=0, dtype=np.float64)
        self._rest = np.zeros((0, 6))
        self._means: List[np.ndarray] = []
        self._deviations: List[np.ndarray] = []
        self._count, self._limited, self._beyond, self._largest = 0, 0, 0, 0.0
        self._sum, self._squares, self._origin = np.zeros(6), np.zeros(6), reference.mean(axis=0, dtype=np.float64)

    def take(self, poses: Float[np.ndarray, "n 6"], radius_before: Float[np.ndarray, " n"]) -> None:
        """Counts poses in: as they were given out, and how far out they were before limiting."""
        if len(poses) == 0:
            return
        self._count += len(poses)
        self._limited += int((radius_before > self._limits.inner).sum())
        self._beyond += int((radius_before > self._limits.outer).sum())
        self._largest = max(self._largest, float(self._limits.radius(poses).max()) / self._limits.outer)
        offsets = poses - self._origin
        self._sum += offsets.sum(axis=0)
        self._squares += np.square(offsets).sum(axis=0)
        self._rest = np.concatenate([self._rest, poses])
        while len(self._rest) >= self._window:
            second, self._rest = self._rest[: self._window], self._rest[self._window :]
            self._means.append(second.mean(axis=0))
            self._deviations.append(second.std(axis=0))

    def figures(self) -> Steadiness:
        """Of everything so far.

        Raises:
            ValueError: there was nothing.
        """
        if self._count == 0:
            raise ValueError("no poses were counted")
        means, slope = np.array(self._means), np.zeros(6)
        if len(means) >= 2:
            slope = np.polyfit(np.arange(len(means)) * self._window / self._fps, means, 1)[0]
        frozen = [bool((deviation <= FROZEN * self._scale).all()) for deviation in self._deviations]
        variance = self._squares / self._count - (self._sum / self._count) ** 2
        deviation = np.sqrt(np.maximum(variance, 0.0))

        def against_reference(part: slice) -> float:
            scale = float(np.linalg.norm(self._scale[part]))
            return float(np.linalg.norm(deviation[part])) / scale if scale > 0 else 0.0

        return Steadiness(
            seconds=self._count / self._fps,
            drift_degrees_per_10s=float(np.degrees(np.linalg.norm(slope[:3]))) * 10.0,
            drift_mm_per_10s=float(np.linalg.norm(slope[3:])) * 1e4,
            share_limited=self._limited / self._count,
            share_beyond=self._beyond / self._count,
            largest_radius=self._largest,
            frozen_share=float(np.mean(frozen)) if frozen else 0.0,
            rotation_deviation_of_reference=against_reference(slice(0, 3)),
            translation_deviation_of_reference=against_reference(slice(3, 6)),
        )
