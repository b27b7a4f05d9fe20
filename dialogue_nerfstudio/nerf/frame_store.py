"""Frame store: a person's frames and labels at the training resolution, in memory-mapped files.

Random pixels of random frames can be read without decoding video and without holding the recording in memory. The files
are a cache: they are keyed by the source files and the size, appear only when complete, and may be deleted any time.
"""

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Callable, Iterator, Optional, Tuple

import cv2
import numpy as np
from jaxtyping import UInt8

from dialogue_nerfstudio.conversation import Conversation
from dialogue_nerfstudio.conversation.files import atomic_path

FORMAT_VERSION = 1


def default_cache_folder() -> Path:
    """$XDG_CACHE_HOME/dialogue-nerfstudio, or ~/.cache/dialogue-nerfstudio."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dialogue-nerfstudio"


def resize_frame(frame: UInt8[np.ndarray, "h w *c"], height: int, width: int) -> UInt8[np.ndarray, "height width *c"]:
    """Colours averaged over the area of each new pixel, so that a small frame has no aliasing."""
    if frame.shape[:2] == (height, width):
        return frame
    smaller = height * width < frame.shape[0] * frame.shape[1]
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def resize_labels(labels: UInt8[np.ndarray, "h w"], height: int, width: int) -> UInt8[np.ndarray, "height width"]:
    """The label at the centre of each new pixel; labels cannot be averaged."""
    if labels.shape == (height, width):
        return labels
    rows = np.floor((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
    columns = np.floor((np.arange(width) + 0.5) * labels.shape[1] / width).astype(int)
    return labels[np.ix_(rows, columns)]


class FrameStore:
    """uint8 frames [T, height, width, 3] and labels [T, height, width] of one participant.

    Args:
        conversation: where they come from.
        participant_id: whose.
        height, width: pixels.
        cache_folder: where the files go; None for the user's cache folder.

    Raises:
        DialogueError: a video is missing, damaged or too short, or the disk is full.
    """

    def __init__(
        self,
        conversation: Conversation,
        participant_id: str,
        height: int,
        width: int,
        cache_folder: Optional[Path] = None,
    ):
        self._conversation, self._participant_id = conversation, participant_id
        self._shape = (conversation.num_frames, height, width)
        self._cache_folder = Path(cache_folder or default_cache_folder())

    @property
    def shape(self) -> Tuple[int, int, int]:
        """(frames, height, width)."""
        return self._shape

    @cached_property
    def frames(self) -> UInt8[np.ndarray, "num_frames height width 3"]:
        """The pictures; the video is decoded the first time that anybody asks, on this machine, for this size."""
        return self._open("frames.npy", (*self._shape, 3), self._resized_frames)

    @cached_property
    def labels(self) -> UInt8[np.ndarray, "num_frames height width"]:
        """The label maps."""
        return self._open("labels.npy", self._shape, self._resized_labels)

    def _key(self) -> str:
        sources = []
        for name in ("video.mp4", "labels.mkv"):
            path = self._conversation.participant_path(self._participant_id, name).resolve()
            status = path.stat() if path.exists() else None
            sources.append([str(path), status and status.st_size, status and status.st_mtime_ns])
        return hashlib.sha256(json.dumps([FORMAT_VERSION, sources, self._shape]).encode()).hexdigest()[:24]

    def _open(
        self, name: str, shape: Tuple[int, ...], rows: Callable[[], Iterator[UInt8[np.ndarray, "h w *c"]]]
    ) -> np.memmap:
        path = self._cache_folder / "frames" / self._key() / name
        if not path.is_file():
            with atomic_path(path) as temporary:
                array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
                for index, row in enumerate(rows()):
                    array[index] = row
                array.flush()
        return np.load(path, mmap_mode="r")

    def _resized_frames(self) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        with self._conversation.frames(self._participant_id) as reader:
            for frame in reader.iterate():
                yield resize_frame(frame, *self._shape[1:])

    def _resized_labels(self) -> Iterator[UInt8[np.ndarray, "height width"]]:
        with self._conversation.labels(self._participant_id) as reader:
            for labels in reader.iterate():
                yield resize_labels(labels, *self._shape[1:])
