"""What every face tracker does, and how it says what it cannot."""

from typing import Any, Callable, Dict, Iterable, Protocol, runtime_checkable

import numpy as np

from dialogue_nerfstudio.process.landmarks import LandmarkTrack


@runtime_checkable
class FaceTracker(Protocol):
    """Landmarks of the one face in a crop, over a clip.

    Whatever a network finds is given on the 478 points of the shared mesh (pixels of the crop, see `landmarks`), so
    that everything after it is the same for all; `LandmarkTrack.measured` says which of the points it saw.
    """

    name: str
    """As `--tracker` calls it."""
    lacks: Dict[str, str]
    """What it cannot measure, and what stands in its place."""

    def require(self) -> None:
        """Loads or looks for what it needs, before any long stage runs.

        Raises:
            DialogueError: a package or a file is missing or of the wrong kind: one sentence with the way to get it.
        """

    def options(self) -> Dict[str, Any]:
        """What its landmarks depend on besides the pictures, as JSON holds it; landmarks are tracked again when it
        changes."""

    def provenance(self) -> Dict[str, Any]:
        """What conversation.json and process.json keep about it."""

    def track(
        self, frames: Iterable[np.ndarray], num_frames: int, progress: Callable[[float], None] = lambda fraction: None
    ) -> LandmarkTrack:
        """Runs it over a crop's pictures (uint8 RGB `[H, W, 3]`); lost frames hold NaN and are not visible.

        May be called from several threads at once, one a person.
        """


def lacks_sentence(tracker: FaceTracker) -> str:
    """What the user should know about what the tracker cannot give; empty where it gives everything."""
    if not tracker.lacks:
        return ""
    lacking = "; ".join(f"no {name} ({instead})" for name, instead in tracker.lacks.items())
    return f"The tracker {tracker.name} gives {lacking}. --tracker mediapipe measures them."
