"""Which views and head poses training saw of each participant, how far one may go beyond them, and the warning if not.

Conventions: person space, metres and radians. A view is the direction from the person space's origin (the mean head)
to the camera, as yaw = atan2(x, z), positive where the picture's right is, and pitch = asin(y), positive above. The
view of a head is the same of the direction to the camera in head space, so that it changes with the head's pose too.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation import Camera

Extent = Tuple[float, float]
"""Lowest and highest of an angle, radians."""

YAW_MARGIN = math.radians(30.0)
"""How far beyond what training saw a view may turn sideways before the warning: see docs/bodies.md."""
PITCH_MARGIN = math.radians(20.0)
"""The same, up and down."""

ROUNDING = 1e-6
"""Angles by which a clamped camera may miss its mark."""


def view_angles(directions: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, " 2 *batch"]:
    """(yaw, pitch) of directions of any length."""
    length = np.linalg.norm(directions, axis=-1)
    yaw = np.arctan2(directions[..., 0], directions[..., 2])
    return np.stack([yaw, np.arcsin(np.clip(directions[..., 1] / np.maximum(length, 1e-9), -1.0, 1.0))])


@dataclass(frozen=True)
class ViewRange:
    """What the recording of one participant covered."""

    participant: str
    body_yaw: float
    """Yaw of the recording camera."""
    body_pitch: float
    """Pitch of the recording camera."""
    distance: float
    """Metres from the person space's origin to the recording camera."""
    head_yaw: Extent
    """Over the training frames, from where the camera saw the head."""
    head_pitch: Extent
    """The same, up and down."""

    @classmethod
    def of(
        cls,
        participant: str,
        camera: Camera,
        rotation: Float[np.ndarray, "frames 3 3"],
        translation: Float[np.ndarray, "frames 3"],
    ) -> "ViewRange":
        """The range of a recording, from its camera and the head's poses in the frames of training."""
        position = np.asarray(camera.camera_to_person, dtype=np.float64)[:, 3]
        yaw, pitch = view_angles(position)
        head_yaw, head_pitch = view_angles(_in_head(position, rotation, translation))
        return cls(
            participant=participant,
            body_yaw=float(yaw),
            body_pitch=float(pitch),
            distance=float(np.linalg.norm(position)),
            head_yaw=(float(head_yaw.min()), float(head_yaw.max())),
            head_pitch=(float(head_pitch.min()), float(head_pitch.max())),
        )

    def angles_from_recording(self, position: Float[np.ndarray, "3"]) -> Tuple[float, float]:
        """(yaw, pitch) of a camera at `position` relative to the recording one, radians, yaw in [−π, π]."""
        yaw, pitch = view_angles(np.asarray(position, dtype=np.float64))
        return math.remainder(float(yaw) - self.body_yaw, 2 * math.pi), float(pitch) - self.body_pitch

    def departure(
        self,
        position: Float[np.ndarray, "3"],
        rotation: Float[np.ndarray, "3 3"],
        translation: Float[np.ndarray, "3"],
    ) -> Optional[str]:
        """A sentence about how a view leaves the range, or None while it does not.

        Args:
            position: of the camera, in person space.
            rotation, translation: the head's pose.
        """
        yaw, pitch = self.angles_from_recording(position)
        if abs(yaw) > YAW_MARGIN + ROUNDING or abs(pitch) > PITCH_MARGIN + ROUNDING:
            sideways = f"{abs(math.degrees(yaw)):.0f}° {'right' if yaw > 0 else 'left'}"
            upright = f"{abs(math.degrees(pitch)):.0f}° {'above' if pitch > 0 else 'below'}"
            return (
                f"The camera is {sideways} of and {upright} the one that recorded {self.participant}; beyond "
                f"{math.degrees(YAW_MARGIN):.0f}° sideways or {math.degrees(PITCH_MARGIN):.0f}° up and down the body "
                "is a guess."
            )
        head_yaw, head_pitch = view_angles(_in_head(position, rotation[None], translation[None])[0])
        for angle, extent, margin, names in (
            (float(head_yaw), self.head_yaw, YAW_MARGIN, "yaw"),
            (float(head_pitch), self.head_pitch, PITCH_MARGIN, "pitch"),
        ):
            if not extent[0] - margin <= angle <= extent[1] + margin:
                seen = " to ".join(f"{math.degrees(limit):.0f}°" for limit in extent)
                return (
                    f"{self.participant}'s head is seen from a {names} of {math.degrees(angle):.0f}°; training saw "
                    f"{seen}, and more than {math.degrees(margin):.0f}° beyond that the head is a guess."
                )
        return None

    def clamp(self, camera_to_person: Float[np.ndarray, "3 4"]) -> Float[np.ndarray, "3 4"]:
        """The camera swung about the person space's origin to the nearest yaw and pitch within the margins."""
        camera_to_person = np.asarray(camera_to_person, dtype=np.float64)
        yaw, pitch = self.angles_from_recording(camera_to_person[:, 3])
        wanted_yaw, wanted_pitch = np.clip(yaw, -YAW_MARGIN, YAW_MARGIN), np.clip(pitch, -PITCH_MARGIN, PITCH_MARGIN)
        if (wanted_yaw, wanted_pitch) == (yaw, pitch):
            return camera_to_person
        return swung(camera_to_person, wanted_yaw - yaw, wanted_pitch - pitch)


def swing(yaw: float, pitch: float) -> Float[np.ndarray, "3 3"]:
    """The rotation, without roll, that carries +z to the direction of that yaw and pitch."""
    return Rotation.from_euler("YX", [yaw, -pitch]).as_matrix()


def swung(camera_to_person: Float[np.ndarray, "3 4"], yaw: float, pitch: float = 0.0) -> Float[np.ndarray, "3 4"]:
    """A camera swung about the person space's origin by yaw and pitch (radians) from where it stands."""
    camera_to_person = np.asarray(camera_to_person, dtype=np.float64)
    now_yaw, now_pitch = (float(angle) for angle in view_angles(camera_to_person[:, 3]))
    return swing(now_yaw + yaw, now_pitch + pitch) @ (swing(now_yaw, now_pitch).T @ camera_to_person)


def _in_head(
    position: Float[np.ndarray, "3"], rotation: Float[np.ndarray, "n 3 3"], translation: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n 3"]:
    """A point of person space in head space, for each pose."""
    return np.einsum("nji,nj->ni", rotation, position - translation)


class SeenViews:
    """The ranges of all participants, stored with the model; says once for each participant when a view leaves its own.

    Args:
        ranges: one a participant.
    """

    def __init__(self, ranges: Sequence[ViewRange]):
        self._ranges = list(ranges)
        self._warned: List[bool] = [False] * len(self._ranges)

    def __getitem__(self, participant: int) -> ViewRange:
        return self._ranges[participant]

    def check(
        self,
        participant: int,
        position: Float[np.ndarray, "3"],
        rotation: Float[np.ndarray, "3 3"],
        translation: Float[np.ndarray, "3"],
        announce: bool = True,
    ) -> Optional[str]:
        """`ViewRange.departure`, printed as a warning the first time that this participant's view departs.

        Args:
            announce: whether to print at all; not where a panel shows the sentence.
        """
        sentence = self._ranges[participant].departure(position, rotation, translation)
        if announce and sentence is not None and not self._warned[participant]:
            self._warned[participant] = True
            CONSOLE.print(f"[bold yellow]Warning:[/bold yellow] {sentence}", highlight=False)
        return sentence

    def state(self) -> List[Dict[str, Any]]:
        """What a checkpoint stores."""
        return [asdict(view_range) for view_range in self._ranges]

    def load_state(self, state: Sequence[Dict[str, Any]]) -> None:
        """Takes over the ranges of a checkpoint, whose training may have seen other frames than this dataset holds."""
        self._ranges = [
            replace(own, **{name: tuple(v) if isinstance(v, (list, tuple)) else v for name, v in stored.items()})
            for own, stored in zip(self._ranges, state, strict=True)
        ]
