"""MediaPipe's Face Landmarker task, brought by path: the same 478 points, and blendshapes under their ARKit names."""

from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Optional

import numpy as np

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.process.face_mesh import NUM_LANDMARKS, TaskLandmarker
from dialogue_nerfstudio.process.landmarks import LandmarkTrack
from dialogue_nerfstudio.process.stages import source_fingerprint

TASK_URL = "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/latest/face_landmarker.task"


class LandmarkerTracker:
    """See `FaceTracker`.

    Args:
        task: the .task file.
    """

    name = "landmarker"

    def __init__(self, task: Optional[Path]):
        self.task = None if task is None else Path(task)
        self.lacks: Dict[str, str] = {}

    def require(self) -> None:
        if self.task is None:
            raise DialogueError(
                f"The tracker landmarker needs MediaPipe's task file: fetch {TASK_URL} and give it with "
                "--landmarker-task PATH."
            )
        if not self.task.is_file():
            raise DialogueError(
                f"There is no file {self.task}: give --landmarker-task the path of face_landmarker.task ({TASK_URL})."
            )
        TaskLandmarker(self.task).close()

    def options(self) -> Dict[str, Any]:
        return {"tracker": self.name, "task": source_fingerprint([self.task] if self.task else [])}

    def provenance(self) -> Dict[str, Any]:
        return {"name": self.name, "lacks": self.lacks, "task": None if self.task is None else self.task.name}

    def track(
        self, frames: Iterable[np.ndarray], num_frames: int, progress: Callable[[float], None] = lambda fraction: None
    ) -> LandmarkTrack:
        points = np.full((num_frames, NUM_LANDMARKS, 2), np.nan, np.float32)
        depth = np.full((num_frames, NUM_LANDMARKS), np.nan, np.float32)
        blendshapes: Dict[str, np.ndarray] = {}
        with TaskLandmarker(self.task) as landmarker:
            for index, frame in enumerate(frames):
                found = landmarker(frame)
                if found is not None:
                    points[index], depth[index], scores = found
                    for name, score in scores.items():
                        blendshapes.setdefault(name, np.full(num_frames, np.nan, np.float32))[index] = score
                progress((index + 1) / num_frames)
        return LandmarkTrack(
            points,
            depth,
            np.isfinite(points).all(axis=(1, 2)),
            blendshapes=np.stack(list(blendshapes.values()), axis=1) if blendshapes else None,
            blendshape_names=tuple(blendshapes) if blendshapes else (),
        )
