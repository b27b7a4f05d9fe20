"""Cameras of a co-located scene: from the front, over a shoulder, around it, or along a path from nerfstudio's viewer.

Conventions: scene space, metres, nerfstudio's camera axes (looks along −z, y up). A `View` is one picture's camera; a
field of view is vertical, radians; aspect is width / height. A video has T frames, and its moment u runs from 0 to 1.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from scipy.spatial.transform import Rotation, Slerp

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.nerf.view_range import YAW_MARGIN, ViewRange

if TYPE_CHECKING:
    from dialogue_nerfstudio.nerf.scene import Scene

FIELD_OF_VIEW = math.radians(28.0)
"""Vertical field of view of the cameras made here: that of the recordings' (focal length twice the height)."""
MARGIN = 1.12
"""Room around people in the picture."""
SMALLEST_DISTANCE = 0.7
"""Metres that a camera keeps from the middle of the scene."""
ORBIT_SECONDS = 8.0
"""Time of one swing to both sides."""
WIDEST_ORBIT = math.radians(40.0)
"""An orbit swings no further to a side, however much the recordings show."""


@dataclass(frozen=True, eq=False)
class View:
    """A camera in scene space."""

    camera_to_scene: Float[np.ndarray, "3 4"]
    field_of_view: float

    @property
    def position(self) -> Float[np.ndarray, "3"]:
        return self.camera_to_scene[:, 3]

    def camera(self, height: int, width: int) -> Cameras:
        """nerfstudio's camera of the same view, principal point in the middle."""
        focal = 0.5 * height / math.tan(0.5 * self.field_of_view)
        return Cameras(
            camera_to_worlds=torch.tensor(self.camera_to_scene, dtype=torch.float32)[None],
            fx=focal,
            fy=focal,
            cx=width / 2,
            cy=height / 2,
            width=width,
            height=height,
        )


def look_at(
    position: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"], field_of_view: float = FIELD_OF_VIEW
) -> View:
    """The upright view from a position to a target that is not right above or below it."""
    backward = (position - target) / np.linalg.norm(position - target)
    right = np.cross([0.0, 1.0, 0.0], backward)
    right = right / np.linalg.norm(right)
    rotation = np.stack([right, np.cross(backward, right), backward], axis=1)
    return View(np.concatenate([rotation, np.asarray(position)[:, None]], axis=1), field_of_view)


def _outline(scene: "Scene") -> Float[np.ndarray, "n 3"]:
    """Corners of everybody's boxes above the ground."""
    points = []
    for placement, body in zip(scene.placements, scene.bodies, strict=True):
        for box in body.boxes:
            corners = [torch.stack([box[i, 0], box[j, 1], box[k, 2]]) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
            points.append(placement.to_scene(torch.stack(corners)))
    outline = torch.cat(points).numpy().astype(np.float64)
    outline[:, 1] = np.maximum(outline[:, 1], scene.backdrop.height)
    return outline


def front(scene: "Scene", aspect: float, field_of_view: float = FIELD_OF_VIEW, yaw: float = 0.0) -> View:
    """Everybody in the picture, seen level from the scene's front, or from `yaw` (rad) beside it: + is the right."""
    outline = _outline(scene)
    middle = 0.5 * (outline.min(axis=0) + outline.max(axis=0))
    toward = np.array([math.sin(yaw), 0.0, math.cos(yaw)])
    right = np.array([math.cos(yaw), 0.0, -math.sin(yaw)])
    offsets = outline - middle
    # Each corner must lie within the picture's half angles, seen from a distance d: |across| ≤ (d − along) tan.
    along, across, up = offsets @ toward, np.abs(offsets @ right), np.abs(offsets[:, 1])
    tangent = math.tan(0.5 * field_of_view)
    needed = np.maximum(across / (tangent * aspect), up / tangent) * MARGIN + along
    return look_at(middle + max(SMALLEST_DISTANCE, float(needed.max())) * toward, middle, field_of_view)


def over_shoulder(scene: "Scene") -> View:
    """From behind the first person's shoulder to the second's face.

    Raises:
        DialogueError: there is only one person.
    """
    if len(scene.rows) < 2:
        raise DialogueError("--camera over-shoulder looks from one person to another: two participants are needed.")
    first, second = (placement.translation.numpy().astype(np.float64) for placement in scene.placements[:2])
    ahead = (second - first) / np.linalg.norm(second - first)
    aside = np.cross(ahead, [0.0, 1.0, 0.0])
    face = scene.placements[1].rotation[:, 2].numpy().astype(np.float64)
    # The shoulder from which the other's face is seen more from the front.
    side = 1.0 if aside @ face >= -1e-6 else -1.0
    position = first - 0.42 * ahead + side * 0.36 * aside + np.array([0.0, 0.1, 0.0])
    target = second + np.array([0.0, -0.05, 0.0]) - side * 0.12 * aside
    return look_at(position, target)


def orbit(scene: "Scene", aspect: float, num_frames: int, fps: float, swing: float) -> List[View]:
    """A swing of the front view to both sides by up to `swing` (rad), `ORBIT_SECONDS` long, as often as the video has
    time for; a shorter video swings once."""
    seconds = num_frames / fps
    swings = max(1, round(seconds / ORBIT_SECONDS))
    # One distance for the whole swing, so that the camera moves on a circle.
    ends = [front(scene, aspect, yaw=yaw) for yaw in np.linspace(-swing, swing, 9)]
    middle = 0.5 * (_outline(scene).min(axis=0) + _outline(scene).max(axis=0))
    distance = max(float(np.linalg.norm(view.position - middle)) for view in ends)
    views = []
    for frame in range(num_frames):
        yaw = swing * math.sin(2.0 * math.pi * swings * frame / num_frames)
        views.append(look_at(middle + distance * np.array([math.sin(yaw), 0.0, math.cos(yaw)]), middle))
    return views


def widest_swing(scene: "Scene", aspect: float, ranges: Sequence[ViewRange]) -> float:
    """The largest swing (rad) of an orbit that leaves nobody's known range of views; 5° if the front view does already.

    Args:
        ranges: of everybody in the scene, in its order.
    """
    best = math.radians(5.0)
    for swing in np.radians(np.arange(5.0, math.degrees(WIDEST_ORBIT) + 0.1, 1.0)):
        for end in (-swing, swing):
            position = torch.tensor(front(scene, aspect, yaw=end).position, dtype=torch.float32)
            for placement, view_range in zip(scene.placements, ranges, strict=True):
                yaw, _ = view_range.angles_from_recording(placement.to_person(position).numpy())
                if abs(yaw) > YAW_MARGIN:
                    return best
        best = float(swing)
    return best


# Camera paths ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CameraPath:
    """A camera path as nerfstudio's viewer exports it."""

    views: List[View]
    moments: Float[np.ndarray, " views"]
    """When each view is, ascending: u of the video, or seconds where the path has no `render_time`."""
    in_seconds: bool
    height: int
    width: int

    def at(self, num_frames: int, fps: float) -> List[View]:
        """The views of a video's frames: positions and focal lengths linear in time, rotations on the great arc.

        With `render_time`, frame f of T is seen as the path says for u = f / (T − 1), as stock `ns-render camera-path`
        shows it; without, for f / fps seconds. Before its first and after its last view a path stands still.
        """
        if len(self.views) == 1:
            return self.views * num_frames
        frames = np.arange(num_frames)
        wanted = frames / fps if self.in_seconds else frames / max(1, num_frames - 1)
        wanted = np.clip(wanted, self.moments[0], self.moments[-1])
        poses = np.stack([view.camera_to_scene for view in self.views])
        rotations = Slerp(self.moments, Rotation.from_matrix(poses[:, :, :3]))(wanted).as_matrix()
        positions = np.stack([np.interp(wanted, self.moments, poses[:, axis, 3]) for axis in range(3)], axis=1)
        focal = np.interp(wanted, self.moments, [1.0 / math.tan(0.5 * view.field_of_view) for view in self.views])
        return [
            View(np.concatenate([rotation, position[:, None]], axis=1), 2.0 * math.atan(1.0 / length))
            for rotation, position, length in zip(rotations, positions, focal, strict=True)
        ]


def read_camera_path(path: Path) -> CameraPath:
    """A camera path file.

    Raises:
        DialogueError: it is missing or damaged, has no frames or no times, is not of a perspective camera, or a frame
            is no camera.
    """
    if not path.is_file():
        raise DialogueError(f"--camera {path}: there is no such file; choose front, over-shoulder, orbit, or a path.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DialogueError(f"--camera {path} is not JSON ({error}); export it from the viewer again.") from error
    if not isinstance(content, dict) or not isinstance(content.get("camera_path"), list):
        raise DialogueError(f"--camera {path} is no camera path: it has no 'camera_path'; export one from the viewer.")
    kind = str(content.get("camera_type", "perspective")).lower()
    if kind != "perspective":
        raise DialogueError(f"--camera {path} is of a {kind} camera; only perspective ones can be rendered.")
    frames: List[Dict[str, Any]] = content["camera_path"]
    if not frames:
        raise DialogueError(f"--camera {path} has no frames; add keyframes in the viewer and export it again.")
    views = [_path_view(frame, f"--camera {path}, frame {index}") for index, frame in enumerate(frames)]
    moments, in_seconds = _path_moments(content, frames, path)
    order = np.argsort(moments, kind="stable")
    # Of views at one moment the last stands, as a player that reaches it would show it.
    kept = [
        index
        for place, index in enumerate(order)
        if place + 1 == len(order) or moments[order[place + 1]] > moments[index]
    ]
    height, width = content.get("render_height"), content.get("render_width")
    if not all(isinstance(size, (int, float)) and size >= 2 for size in (height, width)):
        raise DialogueError(f"--camera {path} does not say how large its pictures are (render_height, render_width).")
    return CameraPath([views[index] for index in kept], moments[kept], in_seconds, int(height), int(width))


def _path_view(frame: Any, where: str) -> View:
    try:
        matrix = np.array(frame["camera_to_world"], dtype=np.float64).reshape(4, 4)[:3]
        angle = math.radians(float(frame["fov"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DialogueError(f"{where} needs a camera_to_world of 16 numbers and a fov in degrees.") from error
    if not np.isfinite(matrix).all() or not 0.0 < angle < math.pi:
        raise DialogueError(f"{where} has a camera_to_world or fov that no camera has.")
    left, _, right = np.linalg.svd(matrix[:, :3])
    rotation = left @ right
    if np.abs(rotation - matrix[:, :3]).max() > 1e-2 or np.linalg.det(rotation) < 0:
        raise DialogueError(f"{where} has a camera_to_world that is no rotation and position.")
    return View(np.concatenate([rotation, matrix[:, 3:]], axis=1), angle)


def _path_moments(content: Dict[str, Any], frames: List[Dict[str, Any]], path: Path) -> Tuple[np.ndarray, bool]:
    times = [frame.get("render_time") for frame in frames]
    if all(_is_number(time) for time in times):
        # The viewer's splines overshoot.
        return np.clip(np.array(times, dtype=np.float64), 0.0, 1.0), False
    if any(time is not None for time in times):
        index = next(index for index, time in enumerate(times) if not _is_number(time))
        raise DialogueError(f"--camera {path}: frame {index} has no render_time, but others have one.")
    seconds: Optional[float] = content.get("seconds")
    if not _is_number(seconds) or seconds <= 0:
        raise DialogueError(
            f"--camera {path} has no times: give every frame a render_time (0 to 1), or the path its length in seconds."
        )
    return np.linspace(0.0, float(seconds), len(frames)), True


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
