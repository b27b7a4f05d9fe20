"""Motion: what moves a person over time, written by every tracker and generator and read by every renderer.

Shapes: T frames, E named expression coefficients, K personal residual components. Head space is rigid and moves with
`head_pose`; person space is fixed (metres, x right in the image and so towards the person's left, y up, z towards the
camera, origin at the mean head position of the recording).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple

import numpy as np
from jaxtyping import Float

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import read_npz, write_npz

EXPRESSION_BASIS = "dialogue-28"
"""Name of the project's own expression basis."""

EXPRESSION_NAMES: Tuple[str, ...] = (
    "jaw_open",
    "jaw_left",
    "jaw_right",
    "jaw_forward",
    "mouth_left",
    "mouth_right",
    "lip_corner_out_left",
    "lip_corner_out_right",
    "lip_corner_up_left",
    "lip_corner_up_right",
    "lip_corner_down_left",
    "lip_corner_down_right",
    "pucker",
    "funnel",
    "upper_lip_raise",
    "lower_lip_drop",
    "lip_press",
    "lip_roll_in",
    "brow_raise_left",
    "brow_raise_right",
    "brow_inner_raise",
    "brow_furrow_left",
    "brow_furrow_right",
    "squint_left",
    "squint_right",
    "cheek_raise_left",
    "cheek_raise_right",
    "nose_wrinkle",
)
"""The named fields of B_exp, in the order of `Motion.expression`; left and right are the person's."""

MOUTH_NAMES = EXPRESSION_NAMES[: EXPRESSION_NAMES.index("lip_roll_in") + 1]
"""The coefficients of jaw and lips: what speech moves."""

SWAY_SIZE = 6
"""Numbers of `Motion.sway`."""

_ARRAYS = ("head_pose", "expression", "blink", "gaze", "expression_residual")


@dataclass
class Motion:
    """Head pose, expression, blink and gaze of one person, frame by frame."""

    head_pose: Float[np.ndarray, "num_frames 6"]
    """Axis-angle (radians) and translation (metres): x_person = R x_head + t."""
    expression: Float[np.ndarray, "num_frames num_expressions"]
    """Coefficients in the shared basis, F_exp of DialogueNeRF eq. 1; 0 is neutral, 1 the full movement."""
    blink: Float[np.ndarray, "num_frames 2"]
    """Lid closure of the person's left and right eye, 0 open to 1 closed."""
    gaze: Float[np.ndarray, "num_frames 2 2"]
    """(left, right) × (yaw, pitch), radians in head space; yaw > 0 towards the person's left, pitch > 0 up."""
    expression_residual: Float[np.ndarray, "num_frames num_residuals"]
    """What the shared basis cannot explain, in a personal PCA; renderers may use it, generators do not."""
    sway: Optional[Float[np.ndarray, "num_frames 6"]] = None
    """How the shoulders move beyond what the head's pose explains: towards the person's left and up (metres at the
    body), and roll (radians, counter-clockwise as the camera sees it); how much wider, taller and sheared they are
    (shares). None: not at all, or not known."""
    fps: float = 25.0
    expression_basis: str = EXPRESSION_BASIS
    expression_names: Tuple[str, ...] = EXPRESSION_NAMES
    sources: Dict[str, str] = field(default_factory=dict)
    """Where each field came from, e.g. {"head_pose": "tracked"}."""

    @property
    def num_frames(self) -> int:
        return len(self.head_pose)

    @property
    def array_names(self) -> Tuple[str, ...]:
        """The fields that have a row for each frame."""
        return _ARRAYS if self.sway is None else (*_ARRAYS, "sway")

    def validate(self, where: str) -> None:
        """Checks shapes and that every number is finite.

        Args:
            where: what to call this motion in the message, e.g. "motion.npz of participant p0".

        Raises:
            DialogueError: naming the field and the first bad frame.
        """
        expected = {
            "head_pose": (6,),
            "expression": (len(self.expression_names),),
            "blink": (2,),
            "gaze": (2, 2),
            "expression_residual": self.expression_residual.shape[1:2],
            "sway": (SWAY_SIZE,),
        }
        for name in self.array_names:
            array = getattr(self, name)
            if array.shape != (self.num_frames, *expected[name]):
                raise DialogueError(
                    f"{where}: {name} has shape {array.shape}, expected {(self.num_frames, *expected[name])}; "
                    "process the video again or mend the file that wrote it."
                )
            finite = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
            if not finite.all():
                frame = int(np.argmin(finite))
                raise DialogueError(
                    f"{where}: {name} is not a number at frame {frame}; process the video again or mend the file."
                )

    def slice(self, start: int, stop: int) -> "Motion":
        """The frames start … stop − 1."""
        return self.take(np.arange(self.num_frames)[start:stop])

    def take(self, frames: np.ndarray) -> "Motion":
        """The named frames, in their order; a frame may come more than once."""
        arrays = {name: getattr(self, name)[frames] for name in self.array_names}
        return Motion(
            **arrays,
            fps=self.fps,
            expression_basis=self.expression_basis,
            expression_names=self.expression_names,
            sources=dict(self.sources),
        )

    def check_same_basis(self, other: "Motion", where: str) -> None:
        """Refuses to mix expression coefficients that mean different things.

        Raises:
            DialogueError: the bases differ.
        """
        if (self.expression_basis, self.expression_names) != (other.expression_basis, other.expression_names):
            raise DialogueError(
                f"{where}: its expressions are in the basis '{other.expression_basis}', these avatars use "
                f"'{self.expression_basis}'; carry it over with `ns-dialogue refit`."
            )

    def save(self, path: Path) -> None:
        """Writes the motion as .npz, atomically."""
        write_npz(path, **{name: getattr(self, name).astype(np.float32) for name in self.array_names}, **self.labels())

    def labels(self) -> Dict[str, np.ndarray]:
        """What a motion file says beside the rows of its frames."""
        return {
            "fps": np.array(self.fps),
            "expression_basis": np.array(self.expression_basis),
            "expression_names": np.array(self.expression_names),
            "source_names": np.array(list(self.sources.keys()), dtype=np.str_),
            "source_values": np.array(list(self.sources.values()), dtype=np.str_),
        }

    @classmethod
    def load(cls, path: Path) -> "Motion":
        """Reads and validates a motion.

        Raises:
            DialogueError: the file is missing, damaged, lacks a field, or holds a bad number.
        """
        arrays = read_npz(path)
        missing = [name for name in (*_ARRAYS, "fps", "expression_basis", "expression_names") if name not in arrays]
        if missing:
            raise DialogueError(f"{path} is not a motion file: it lacks {', '.join(missing)}.")
        motion = cls(
            **{name: arrays[name].astype(np.float32) for name in _ARRAYS},
            sway=_whole_sway(arrays.get("sway")),
            fps=float(arrays["fps"]),
            expression_basis=str(arrays["expression_basis"]),
            expression_names=tuple(str(name) for name in arrays["expression_names"]),
            sources={
                str(name): str(source)
                for name, source in zip(arrays.get("source_names", ()), arrays.get("source_values", ()), strict=True)
            },
        )
        motion.validate(str(path))
        return motion


def join_motions(motions: Sequence[Motion]) -> Motion:
    """Motions of one person one after the other; what the first says of itself holds for all."""
    return replace(
        motions[0],
        **{name: np.concatenate([getattr(motion, name) for motion in motions]) for name in motions[0].array_names},
    )


def _whole_sway(sway: Optional[np.ndarray]) -> Optional[np.ndarray]:
    """Sway as it is now: recordings from before widths were measured have the rigid three numbers alone."""
    if sway is None or sway.ndim != 2 or sway.shape[1] != 3:
        return sway if sway is None else sway.astype(np.float32)
    return np.pad(sway.astype(np.float32), ((0, 0), (0, SWAY_SIZE - 3)))
