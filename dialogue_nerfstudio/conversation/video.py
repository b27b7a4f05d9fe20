"""Lazy, frame-exact reading and atomic writing of the constant-rate videos and label maps of a conversation.

PyAV is imported where a video is opened: the numerics, which import this package for its errors, run without it.
"""

from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np
from jaxtyping import Int, UInt8

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import atomic_path

BACKGROUND, TORSO, NECK, HEAD = 0, 1, 2, 3
"""Values of a label map."""

KEYFRAME_INTERVAL = 25
"""Frames from one keyframe to the next: what a random access decodes at most."""

GREY_PER_LUMA, BLACK_LUMA = 255 / 219, 16
"""Brightness 0 … 255 over limited-range luma, and the luma that is black."""


def spread_frames(num_frames: int, count: int) -> Int[np.ndarray, " k"]:
    """Up to `count` frames spread over a clip; of one so long that it has three quarters as many keyframes, only these,
    which are read without those before them."""
    frames = np.unique(np.linspace(0, num_frames - 1, min(count, num_frames)).round().astype(int))
    if num_frames < 0.75 * count * KEYFRAME_INTERVAL:
        return frames
    return np.unique(frames // KEYFRAME_INTERVAL * KEYFRAME_INTERVAL)


class FrameReader:
    """Random and sequential access to the frames of a constant-rate video; one frame is in memory at a time.

    Args:
        path: a video written by `VideoWriter` (its frame times are multiples of 1 / fps).

    Raises:
        DialogueError: the file is missing or is not a video.
    """

    pixel_format = "rgb24"
    farthest_forward = KEYFRAME_INTERVAL
    """How many frames ahead are reached sooner by decoding on than by a seek: those of one keyframe interval."""

    def __init__(self, path: Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise DialogueError(f"{self.path} does not exist; process the video again to make it.")
        import av

        try:
            self._container = av.open(str(self.path))
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, IndexError) as error:
            raise DialogueError(f"{self.path} is not a readable video ({error}).") from error
        self._stream.thread_type = "AUTO"
        self.width: int = self._stream.codec_context.width
        self.height: int = self._stream.codec_context.height
        self.fps = float(self._stream.average_rate)
        self._length = self._stream.frames or self._count_packets()
        self._decoder: Optional[Iterator[Any]] = None
        self._next = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "height width *channels"]:
        """Frame `index`.

        Raises:
            IndexError: there is no such frame.
            DialogueError: the file ends or is damaged before it.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"frame {index} of {self.path}, which has {self._length}")
        if self._decoder is None or not 0 <= index - self._next < self.farthest_forward:
            self._seek(index)
        for position, frame in self._positions():
            self._next = position + 1
            if position == index:
                return self._pixels(frame)
            if position > index:
                break
        raise DialogueError(f"{self.path}: frame {index} could not be decoded; process the video again.")

    def iterate(
        self, start: int = 0, stop: Optional[int] = None
    ) -> Iterator[UInt8[np.ndarray, "height width *channels"]]:
        """The frames start … stop − 1, in order."""
        for index in range(start, self._length if stop is None else min(stop, self._length)):
            yield self[index]

    def close(self) -> None:
        self._decoder = None
        self._container.close()

    def __enter__(self) -> "FrameReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pixels(self, frame: Any) -> UInt8[np.ndarray, "height width *channels"]:
        return frame.to_ndarray(format=self.pixel_format)

    def _seek(self, index: int) -> None:
        self._container.seek(self._timestamp(index), stream=self._stream, backward=True)
        self._decoder = self._container.decode(self._stream)
        self._next = index

    def _timestamp(self, index: int) -> int:
        ticks = Fraction(index) / (Fraction(self._stream.average_rate) * Fraction(self._stream.time_base))
        return (self._stream.start_time or 0) + int(ticks)

    def _positions(self) -> Iterator[tuple]:
        import av

        start = self._stream.start_time or 0
        try:
            for frame in self._decoder:
                yield round((frame.pts - start) * float(self._stream.time_base) * self.fps), frame
        except av.FFmpegError as error:
            raise DialogueError(f"{self.path} is damaged after frame {self._next - 1} ({error}).") from error

    def _count_packets(self) -> int:
        count = sum(packet.pts is not None for packet in self._container.demux(self._stream))
        self._container.seek(0, stream=self._stream)
        return count


class GreyReader(FrameReader):
    """The same for the brightness alone: uint8 [height, width], 0 … 255.

    It is read as the codec holds it, which takes half the time of a coloured picture that is then made grey.
    """

    def _pixels(self, frame: Any) -> UInt8[np.ndarray, "height width"]:
        if frame.format.name != VideoWriter.encoder_format:
            return frame.to_ndarray(format="gray")
        import cv2

        plane = frame.planes[0]
        luma = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
        # A weighted sum rounds and saturates in a third of the time of a look-up.
        return cv2.addWeighted(luma, GREY_PER_LUMA, luma, 0.0, -GREY_PER_LUMA * BLACK_LUMA)


class LabelReader(FrameReader):
    """The same for label maps: uint8 [height, width] of BACKGROUND, TORSO, NECK and HEAD."""

    pixel_format = "gray"
    farthest_forward = 3
    """All maps are keyframes; a seek takes as long as decoding three of them."""


class VideoWriter:
    """Writes frames one by one to a constant-rate video that appears at `path` only when it is complete.

    Args:
        path: the file to make, .mp4 or .mkv.
        fps: frames per second.
        width, height: pixels; libx264 in yuv420p needs them even.
        crf: libx264's quality, lower is better; 10 is visually lossless.
        preset: libx264's effort: "superfast" takes a third of the time of "fast" for files half as large again.
        tune: what libx264 aims at besides; "fastdecode" halves the time of reading.

    Raises:
        DialogueError: odd sizes, a full disk.
    """

    codec = "libx264"
    encoder_format = "yuv420p"
    array_format = "rgb24"

    def __init__(
        self,
        path: Path,
        fps: float,
        width: int,
        height: int,
        crf: int = 10,
        preset: str = "fast",
        tune: Optional[str] = None,
    ):
        if width % 2 or height % 2:
            raise DialogueError(f"{path}: a video's width and height must be even, not {width}x{height}.")
        self.path, self.fps, self.width, self.height = Path(path), fps, width, height
        self.num_frames = 0
        # No keyframes at cuts: they lie at the multiples of their interval, where readers look for them.
        self._options = {"crf": str(crf), "preset": preset, "g": str(KEYFRAME_INTERVAL), "sc_threshold": "0"}
        if tune is not None:
            self._options["tune"] = tune
        self._context = None

    def __enter__(self) -> "VideoWriter":
        self._context = self._open()
        self._context.__enter__()
        return self

    def __exit__(self, *exception: object) -> Optional[bool]:
        return self._context.__exit__(*exception)

    @contextmanager
    def _open(self) -> Iterator[None]:
        import av

        with atomic_path(self.path) as temporary, av.open(str(temporary), "w") as container:
            self._container = container
            self._stream = container.add_stream(self.codec, rate=Fraction(self.fps).limit_denominator(1001))
            self._stream.width, self._stream.height = self.width, self.height
            self._stream.pix_fmt = self.encoder_format
            self._stream.options = self._options
            yield
            container.mux(self._stream.encode(None))

    def write(self, frame: UInt8[np.ndarray, "height width *channels"]) -> None:
        """Appends one frame."""
        import av

        self.write_encodable(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=self.array_format))

    def write_encodable(self, picture: Any) -> None:
        """Appends one `av.VideoFrame`, as it is if it has the encoder's format and size."""
        picture.pts = self.num_frames
        picture.time_base = 1 / self._stream.codec_context.framerate
        self._container.mux(self._stream.encode(picture))
        self.num_frames += 1


class LabelWriter(VideoWriter):
    """The same for label maps, lossless: FFV1 in Matroska, every frame a keyframe.

    FFV1 was chosen by measurement: the sample's 256² label maps take 0.6 kB a frame, 0.8 to 0.9 kB as one compressed
    array, which besides could not be read from any frame on without loading the rest. Its Golomb-Rice coder with the
    small context model codes runs: a real clip's 512² maps take 1.1 kB a frame instead of 1.7 kB with range coding, are
    written in half the time and read in a fifth.
    """

    codec = "ffv1"
    encoder_format = "gray"
    array_format = "gray"

    def __init__(self, path: Path, fps: float, width: int, height: int):
        super().__init__(path, fps, width, height)
        self._options = {"level": "3", "g": "1", "context": "0", "coder": "0"}
