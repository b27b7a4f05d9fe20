"""A person with known shape, poses and expressions, and what a perfect face mesh would see of them."""

from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.expression_basis import expression_basis
from dialogue_nerfstudio.process.head_pose import project
from dialogue_nerfstudio.process.landmarks import LandmarkTrack


@dataclass
class SyntheticFace:
    """The truth."""

    shape: np.ndarray
    rotations: np.ndarray
    translations: np.ndarray
    expression: np.ndarray
    focal: float
    center: Tuple[float, float]
    size: int

    @property
    def points(self) -> np.ndarray:
        deformed = self.shape + np.einsum("te,end->tnd", self.expression, expression_basis().expression)
        return project(deformed, self.rotations, self.translations, self.focal, self.center)

    @property
    def depth(self) -> np.ndarray:
        """The mesh's own depth as MediaPipe gives it: pixels, flattened to 85 %, with an offset of its own."""
        deformed = self.shape + np.einsum("te,end->tnd", self.expression, expression_basis().expression)
        z = (deformed @ np.swapaxes(self.rotations, 1, 2))[..., 2]
        return 0.85 * (z - 0.05) * self.focal / -self.translations[:, None, 2]

    def track(self, noise: float = 0.0, seed: int = 0) -> LandmarkTrack:
        rng = np.random.default_rng(seed)
        points = self.points + noise * rng.standard_normal(self.points.shape)
        depth = self.depth + 3 * noise * rng.standard_normal(self.depth.shape)
        return LandmarkTrack(points.astype(np.float32), depth.astype(np.float32), np.ones(len(points), bool))


def synthetic_face(
    num_frames: int = 120, size: int = 256, seed: int = 0, expression: Optional[np.ndarray] = None, turn: float = 1.0
) -> SyntheticFace:
    """Somebody who looks about, nods, sways, and talks unless `expression` says otherwise."""
    rng = np.random.default_rng(seed)
    basis = expression_basis()
    shape = basis.mean + np.tensordot(rng.normal(0, 0.4, len(basis.geometry)), basis.geometry, axes=1)
    t = np.arange(num_frames) / 25.0
    angles = turn * np.stack(
        [0.12 * np.sin(2.1 * t + 0.3), 0.25 * np.sin(1.3 * t), 0.08 * np.sin(1.7 * t + 1.0)], axis=1
    )
    translations = np.stack(
        [0.02 * np.sin(0.9 * t) + 0.01, 0.01 * np.cos(1.1 * t), -0.78 + 0.02 * np.sin(0.7 * t)], axis=1
    )
    if expression is None:
        expression = np.zeros((num_frames, len(basis.expression)))
        expression[:, 0] = 0.4 * np.clip(np.sin(9.0 * t), 0, None)
        expression[:, basis.expression_names.index("lip_corner_up_left")] = 0.5 * np.clip(np.sin(2.0 * t), 0, None)
        expression[:, basis.expression_names.index("lip_corner_up_right")] = 0.5 * np.clip(np.sin(2.0 * t), 0, None)
    return SyntheticFace(
        shape,
        Rotation.from_rotvec(angles).as_matrix(),
        translations,
        expression,
        2.0 * size,
        (size / 2, size / 2),
        size,
    )


def rotation_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles between rotations, degrees."""
    return np.degrees((Rotation.from_matrix(a).inv() * Rotation.from_matrix(b)).magnitude())
