"""Writes a Motion as it comes, block by block, so that hours of it never are in memory.

Rows are appended to raw files in a work folder; `finish` packs them into the motion.npz that `Motion.load` reads.
"""

import shutil
import zipfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Dict, Optional

import numpy as np

from dialogue_nerfstudio.conversation.files import atomic_path
from dialogue_nerfstudio.conversation.motion import Motion

COPY = 1 << 20
"""Bytes copied at once."""


class MotionWriter:
    """Appends motions of one person to a file. Use as a context manager, which removes the raw files.

    Args:
        work: a folder for them, made where it is missing.
    """

    def __init__(self, work: Path):
        self._work = Path(work)
        self._work.mkdir(parents=True, exist_ok=True)
        self._files: Dict[str, BinaryIO] = {}
        self._shapes: Dict[str, tuple] = {}
        self._first: Optional[Motion] = None
        self.num_frames = 0

    def append(self, motion: Motion) -> None:
        """The next frames; motions without any are welcome."""
        if self._first is None:
            self._first = motion
        for name in motion.array_names:
            rows = np.ascontiguousarray(getattr(motion, name), dtype=np.float32)
            if name not in self._files:
                self._files[name] = open(self._work / f"{name}.raw", "wb")  # noqa: SIM115 (closed by __exit__)
                self._shapes[name] = rows.shape[1:]
            self._files[name].write(rows.tobytes())
        self.num_frames += motion.num_frames

    def finish(self, path: Path) -> None:
        """Packs all of it into `path`, atomically, with what the first motion says of itself."""
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, stream in self._files.items():
                stream.flush()
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry, open(stream.name, "rb") as raw:
                    header = {"descr": "<f4", "fortran_order": False, "shape": (self.num_frames, *self._shapes[name])}
                    np.lib.format.write_array_header_1_0(entry, header)
                    shutil.copyfileobj(raw, entry, COPY)
            for name, value in self._first.labels().items():
                with archive.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, value, allow_pickle=False)

    def __enter__(self) -> "MotionWriter":
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        for stream in self._files.values():
            stream.close()
        shutil.rmtree(self._work, ignore_errors=True)
