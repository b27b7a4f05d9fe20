"""The face mesh of one person's crop, frame by frame, with short losses bridged and long ones refused.

Conventions. `T` frames; landmarks are pixels of the crop (x right, y down, continuous: the first pixel's centre is
0.5), `depth` is the mesh's own depth in pixels, larger nearer to the camera, with an offset of its own in every frame.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Tuple

import numpy as np
from jaxtyping import Bool, Float, Float32

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import read_npz, write_npz
from dialogue_nerfstudio.process.face_mesh import NUM_LANDMARKS, FaceMesher


@dataclass
class LandmarkTrack:
    """The mesh of one person over time; frames that are not visible are interpolated."""

    points: Float32[np.ndarray, "num_frames 478 2"]
    depth: Float32[np.ndarray, "num_frames 478"]
    visible: Bool[np.ndarray, " num_frames"]
    measured: Bool[np.ndarray, " 478"] = field(default_factory=lambda: np.ones(NUM_LANDMARKS, bool))
    """Landmarks that the tracker saw; the others follow from them by a model of faces."""
    blendshapes: Optional[Float32[np.ndarray, "num_frames num_blendshapes"]] = None
    """Coefficients 0 … 1 of the tracker's own blendshapes; None where it has none."""
    blendshape_names: Tuple[str, ...] = ()
    """Their ARKit names."""

    @property
    def num_frames(self) -> int:
        return len(self.visible)

    @property
    def has_irises(self) -> bool:
        return bool(self.measured[468:].all())

    def save(self, path: Path) -> None:
        """Writes the track as .npz, atomically."""
        write_npz(
            path,
            points=self.points,
            depth=self.depth,
            visible=self.visible,
            measured=self.measured,
            **self.blendshape_arrays(),
        )

    def blendshape_arrays(self) -> Dict[str, np.ndarray]:
        """`blendshapes` and `blendshape_names` as files hold them; nothing where the tracker has none."""
        if self.blendshapes is None:
            return {}
        return {"blendshapes": self.blendshapes, "blendshape_names": np.array(self.blendshape_names)}

    @classmethod
    def load(cls, path: Path) -> "LandmarkTrack":
        """Raises DialogueError where there is no such file."""
        arrays = read_npz(path)
        names = tuple(str(name) for name in arrays.pop("blendshape_names", ()))
        return cls(**arrays, blendshape_names=names)


def track_landmarks(
    frames: Iterable[np.ndarray], num_frames: int, progress: Callable[[float], None] = lambda fraction: None
) -> LandmarkTrack:
    """Runs the face mesh over a crop; lost frames hold NaN and are not visible."""
    points = np.full((num_frames, NUM_LANDMARKS, 2), np.nan, np.float32)
    depth = np.full((num_frames, NUM_LANDMARKS), np.nan, np.float32)
    with FaceMesher() as mesher:
        for index, frame in enumerate(frames):
            found = mesher(frame)
            if found is not None:
                points[index], depth[index] = found
            progress((index + 1) / num_frames)
    return LandmarkTrack(points, depth, np.isfinite(points).all(axis=(1, 2)))


def lost_runs(visible: Bool[np.ndarray, " num_frames"]) -> List[Tuple[int, int]]:
    """The runs [start, stop) of frames without a face."""
    edges = np.diff(np.concatenate([[False], ~visible, [False]]).astype(np.int8))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def require_face(
    visible: Bool[np.ndarray, " num_frames"], fps: float, max_lost_seconds: float, where: str, participant: str
) -> None:
    """Refuses a track with a loss too long to bridge.

    Raises:
        DialogueError: naming the file, the participant and the frames.
    """
    if not visible.any():
        raise DialogueError(
            f"{where}: the face mesh never found the face of participant {participant}: "
            "give a larger or a sharper view of that face."
        )
    longest = max(lost_runs(visible), key=lambda run: run[1] - run[0], default=(0, 0))
    if (longest[1] - longest[0]) / fps > max_lost_seconds:
        raise DialogueError(
            f"{where}: the face of participant {participant} is lost from frame {longest[0]} to {longest[1] - 1} "
            f"({longest[0] / fps:.1f}–{longest[1] / fps:.1f} s): cut that part out, or allow it with max_lost_seconds "
            f"above {max_lost_seconds:g}."
        )


def fill_gaps(
    values: Float[np.ndarray, "num_frames *dims"],  # noqa: F821
    visible: Bool[np.ndarray, " num_frames"],
) -> Float[np.ndarray, "num_frames *dims"]:  # noqa: F821
    """Replaces frames that are not visible by interpolation between their neighbours (at either end, the nearest)."""
    if visible.all():
        return values
    known = np.flatnonzero(visible)
    frames = np.arange(len(values))
    upper = np.clip(np.searchsorted(known, frames), 0, len(known) - 1)
    lower = np.clip(np.searchsorted(known, frames, side="right") - 1, 0, len(known) - 1)
    before, after = known[lower], known[upper]
    weight = np.where(after > before, (frames - before) / np.maximum(after - before, 1), 0.0)
    weight = weight.reshape(-1, *[1] * (values.ndim - 1)).astype(values.dtype)
    return (1 - weight) * values[before] + weight * values[after]


def bridged(track: LandmarkTrack) -> LandmarkTrack:
    """The track with its gaps filled; `visible` still says which frames were seen."""
    return replace(
        track,
        points=fill_gaps(track.points, track.visible),
        depth=fill_gaps(track.depth, track.visible),
        blendshapes=None if track.blendshapes is None else fill_gaps(track.blendshapes, track.visible),
    )
