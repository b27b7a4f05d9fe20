"""Where a video is cut: a face can be followed, and a background be still, within one shot only.

Conventions. Shots are ranges [start, stop) of output frames (see `decode`), in order, without gaps.
"""

from itertools import pairwise
from typing import Callable, List, Sequence, Set, Tuple

import cv2

from dialogue_nerfstudio.process.decode import Picture, SourceVideo

MIN_SHOT = 10
"""Fewest frames between two cuts: less than half a second is a flash or a dissolve."""

DETECTION_WIDTH = 256
"""Pixels of the longer side when looking for cuts: a cut changes all of the picture, so small is as good."""


def find_cuts(
    source: SourceVideo,
    progress: Callable[[float], None] = lambda fraction: None,
    also: Callable[[int, Picture], None] = lambda index, picture: None,
) -> List[int]:
    """The frames with which new shots begin: content far from the frame before, compared with the frames around
    (PySceneDetect's adaptive detector, which lets fast movement pass).

    Args:
        source: the video.
        progress: told the part done.
        also: given every frame's number and picture, for whoever else looks at all of them: decoding takes longest.

    Raises:
        DialogueError: the source is damaged.
    """
    from scenedetect import AdaptiveDetector, FrameTimecode

    detector = AdaptiveDetector(min_scene_len=MIN_SHOT)
    found: Set[int] = set()
    scale = min(DETECTION_WIDTH / max(source.width, source.height), 1.0)
    time = FrameTimecode(0, source.fps)
    for index, picture in enumerate(source.pictures()):
        also(index, picture)
        small = picture.shrunk(scale)
        time = FrameTimecode(index, source.fps)
        found.update(cut.frame_num for cut in detector.process_frame(time, cv2.cvtColor(small, cv2.COLOR_RGB2BGR)))
        progress((index + 1) / source.num_frames)
    found.update(cut.frame_num for cut in detector.post_process(time))
    return sorted(found)


def shots_between(cuts: Sequence[Sequence[int]], num_frames: int) -> List[Tuple[int, int]]:
    """The shots of synchronous videos: wherever one of them is cut, a new one begins for all."""
    edges = [0, *sorted({cut for each in cuts for cut in each if 0 < cut < num_frames}), num_frames]
    return list(pairwise(edges))


def describe_shots(shots: Sequence[Tuple[int, int]], fps: float) -> str:
    """Their numbers and times, for the user."""
    return ", ".join(f"{n}: {start / fps:.1f}-{stop / fps:.1f} s" for n, (start, stop) in enumerate(shots, start=1))
