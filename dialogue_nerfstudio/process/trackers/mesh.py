"""The default tracker: MediaPipe's face mesh with irises, whose models are in its wheel."""

from typing import Any, Callable, Dict, Iterable

import numpy as np

from dialogue_nerfstudio.process.landmarks import LandmarkTrack, track_landmarks


class MeshTracker:
    """See `FaceTracker`; needs nothing but mediapipe, which processing needs anyway."""

    name = "mediapipe"

    def __init__(self) -> None:
        self.lacks: Dict[str, str] = {}

    def require(self) -> None:
        pass

    def options(self) -> Dict[str, Any]:
        return {}

    def provenance(self) -> Dict[str, Any]:
        return {"name": self.name, "lacks": self.lacks}

    def track(
        self, frames: Iterable[np.ndarray], num_frames: int, progress: Callable[[float], None] = lambda fraction: None
    ) -> LandmarkTrack:
        return track_landmarks(frames, num_frames, progress)
