"""Keeps generated head poses among those that an avatar's training saw, smoothly.

Conventions. Head poses are `[T, 6]`, axis-angle (radians) and translation (metres). A pose's *offset* from a person's
mean pose is the axis-angle of R̄⁻¹R and the difference of translations; whitened by the covariance of the recorded
offsets its length is the *radius*. The recorded poses lie within some largest radius, `outer`; up to `inner` a pose
stays as it is, and beyond it the radius r becomes inner + w tanh((r − inner) / w), w = outer − inner: the direction is
kept, value and slope are continuous, no pose gets beyond `outer`, and steps never grow.
"""

from dataclasses import dataclass
from typing import Tuple

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

INNER = 0.7
"""Share of the largest recorded radius within which poses are left alone: of normally distributed poses of six numbers
about 19 in 20."""

NOISE = np.array([np.radians(0.3)] * 3 + [0.0005] * 3)
"""Deviation of the tracker, radians and metres: who held still in some direction may still move this much in it."""

FEWEST_FRAMES = 25
"""Poses from which a covariance can be told."""


@dataclass(frozen=True)
class PoseLimits:
    """What one person's head was seen to do."""

    rotation: Float[np.ndarray, "3 3"]
    """R̄, the mean."""
    translation: Float[np.ndarray, "3"]
    whitening: Float[np.ndarray, "6 6"]
    """Offsets to numbers of unit covariance."""
    inner: float
    outer: float

    @classmethod
    def of(cls, head_pose: Float[np.ndarray, "T 6"]) -> "PoseLimits":
        """The limits of a recording.

        Raises:
            ValueError: it has fewer than FEWEST_FRAMES poses.
        """
        if len(head_pose) < FEWEST_FRAMES:
            raise ValueError(f"limits need {FEWEST_FRAMES} poses, not {len(head_pose)}")
        mean = Rotation.from_rotvec(head_pose[:, :3].astype(np.float64)).mean()
        translation = head_pose[:, 3:].mean(axis=0, dtype=np.float64)
        offsets = _offsets(head_pose, mean.as_matrix(), translation)
        covariance = offsets.T @ offsets / len(offsets) + np.diag(NOISE**2)
        whitening = np.linalg.inv(np.linalg.cholesky(covariance))
        outer = float(np.linalg.norm(offsets @ whitening.T, axis=1).max())
        return cls(mean.as_matrix(), translation, whitening, INNER * outer, outer)

    def radius(self, head_pose: Float[np.ndarray, "T 6"]) -> Float[np.ndarray, " T"]:
        """How far poses are from the mean, in standard deviations of the recording."""
        return np.linalg.norm(_offsets(head_pose, self.rotation, self.translation) @ self.whitening.T, axis=1)

    def limit(self, head_pose: Float[np.ndarray, "T 6"]) -> Tuple[Float[np.ndarray, "T 6"], Float[np.ndarray, " T"]]:
        """The poses within the limits, and the radius that each had before."""
        offsets = _offsets(head_pose, self.rotation, self.translation)
        radius = np.linalg.norm(offsets @ self.whitening.T, axis=1)
        width = self.outer - self.inner
        beyond = radius > self.inner
        allowed = np.where(beyond, self.inner + width * np.tanh((radius - self.inner) / width), radius)
        shrunk = offsets * (allowed / np.maximum(radius, 1e-12))[:, None]
        rotation = Rotation.from_matrix(self.rotation) * Rotation.from_rotvec(shrunk[:, :3])
        limited = np.concatenate([rotation.as_rotvec(), self.translation + shrunk[:, 3:]], axis=1)
        # What is inside stays as it is to the last bit.
        return np.where(beyond[:, None], limited, head_pose).astype(head_pose.dtype), radius


def _offsets(
    head_pose: Float[np.ndarray, "T 6"], rotation: Float[np.ndarray, "3 3"], translation: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "T 6"]:
    turned = Rotation.from_matrix(rotation.T) * Rotation.from_rotvec(head_pose[:, :3].astype(np.float64))
    return np.concatenate([turned.as_rotvec(), head_pose[:, 3:] - translation], axis=1)
