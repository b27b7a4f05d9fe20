"""The trackers by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Optional

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.process.trackers.fan import FanTracker
from dialogue_nerfstudio.process.trackers.landmarker import LandmarkerTracker
from dialogue_nerfstudio.process.trackers.mesh import MeshTracker
from dialogue_nerfstudio.process.trackers.tracker import FaceTracker


@dataclass
class TrackerConfig:
    """Which face tracker, and what it needs from the user."""

    name: str = "mediapipe"
    """mediapipe: 478 points with irises, its models are in its wheel; landmarker: the same points and ARKit
    blendshapes, from a task file; face-alignment: 68 points, no gaze."""
    landmarker_task: Optional[Path] = None
    """MediaPipe's face_landmarker.task, for the tracker landmarker."""
    face_alignment_weights: Optional[Path] = None
    """2DFAN4 state dict for the tracker face-alignment; None takes its own cache, downloading once."""


TRACKERS: Dict[str, Callable[[TrackerConfig], FaceTracker]] = {
    "mediapipe": lambda config: MeshTracker(),
    "landmarker": lambda config: LandmarkerTracker(config.landmarker_task),
    "face-alignment": lambda config: FanTracker(config.face_alignment_weights),
}


def make_tracker(config: TrackerConfig) -> FaceTracker:
    """The tracker that was asked for; call its `require` before the first stage.

    Raises:
        DialogueError: there is none of that name, or a file was given that another tracker reads.
    """
    if config.name not in TRACKERS:
        raise DialogueError(f"There is no tracker {config.name}: choose one of {', '.join(TRACKERS)}.")
    for option, path, reader in (
        ("--landmarker-task", config.landmarker_task, "landmarker"),
        ("--face-alignment-weights", config.face_alignment_weights, "face-alignment"),
    ):
        if path is not None and config.name != reader:
            raise DialogueError(f"{option} is read by --tracker {reader}, not {config.name}: name that tracker.")
    return TRACKERS[config.name](config)
