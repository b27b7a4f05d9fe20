"""Any video in, frames at a constant 25 a second out, without an intermediate file.

Conventions. Output frame k is what the video shows at the middle of its interval, (k + 0.5) / fps seconds after the
first picture: timestamps decide, so odd, variable and wrong nominal rates all come out in time with the sound. Frames
are uint8 RGB `[H, W, 3]`, turned upright where the file says how.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

import av
import numpy as np
from jaxtyping import Float, Int, UInt8

from dialogue_nerfstudio.conversation.errors import DialogueError

FPS = 25.0
"""Frames a second of every conversation."""

MIN_FRAMES = 25
"""Fewest frames (at 25 a second) worth processing: a track needs that many poses, a split that many frames."""


@dataclass(frozen=True)
class SourceVideo:
    """A video file as the stages see it: upright, at a constant frame rate."""

    path: Path
    width: int
    height: int
    """Pixels, after turning upright."""
    quarter_turns: int
    """Counter-clockwise quarter turns that make the decoded picture upright."""
    pick: Int[np.ndarray, " num_frames"]
    """For each output frame, the number of the decoded picture that it shows."""
    fps: float
    source_fps: float
    """Mean rate of the file itself."""

    @property
    def num_frames(self) -> int:
        return len(self.pick)

    def frames(self, stop: Optional[int] = None, step: int = 1) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Output frames 0, step, 2·step, … below `stop`; memory holds one picture.

        Raises:
            DialogueError: the file is damaged on the way.
        """
        wanted = iter(self.pick[:stop:step])
        target = next(wanted, None)
        last = None
        with av.open(str(self.path)) as container:
            stream = _video_stream(container)
            stream.thread_type = "AUTO"
            decoder = (frame for frame in container.decode(stream) if frame.pts is not None)
            for index, frame in _decoding(decoder, self.path):
                if target is None:
                    return
                if index < target:
                    last = frame
                    continue
                last = self._upright(frame)
                while target is not None and target <= index:
                    yield last
                    target = next(wanted, None)
        # A packet counted by `probe` may decode to nothing at the very end; the last picture then stands.
        if target is not None and last is None:
            raise DialogueError(f"{self.path} holds no picture that can be decoded; convert it to H.264 and try again.")
        if last is not None and not isinstance(last, np.ndarray):
            last = self._upright(last)
        while target is not None:
            yield last
            target = next(wanted, None)

    def _upright(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "height width 3"]:
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), self.quarter_turns))


def _decoding(decoder: Iterator[av.VideoFrame], path: Path) -> Iterator[tuple]:
    try:
        yield from enumerate(decoder)
    except av.FFmpegError as error:
        raise DialogueError(
            f"{path} is damaged and cannot be decoded to its end ({error}); convert it and try again."
        ) from error


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    return next(s for s in container.streams.video if not _is_cover(s))


def _is_cover(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & stream.disposition.__class__.attached_pic)


def probe(path: Path, fps: float = FPS) -> SourceVideo:
    """Reads a file's timestamps (not its pictures) and plans its resampling.

    Raises:
        DialogueError: there is no file, it is no video, it has no audio track, or it is shorter than MIN_FRAMES.
    """
    path = Path(path)
    if not path.is_file():
        raise DialogueError(f"There is no file {path}: give the path of a video.")
    try:
        with av.open(str(path)) as container:
            if not any(not _is_cover(stream) for stream in container.streams.video):
                raise DialogueError(f"{path} has no pictures: give a video of the people, not only their sound.")
            if not container.streams.audio:
                raise DialogueError(f"{path} has no audio track: give a video with sound.")
            stream = _video_stream(container)
            context, time_base = stream.codec_context, stream.time_base
            nominal = float(stream.average_rate or fps)
            packets = [p for p in container.demux(stream) if p.size]
            times = np.array([float(p.pts * time_base) for p in packets if p.pts is not None])
            last_duration = float((packets[-1].duration or 0) * time_base) if packets else 0.0
            container.seek(0)
            first = next(container.decode(stream), None)
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise DialogueError(f"{path} is not a video that can be read ({error}).") from error
    if first is None:
        raise DialogueError(f"{path} holds no picture that can be decoded; convert it to H.264 and try again.")
    if len(times) != len(packets):
        # Streams without timestamps (raw H.264, some AVI) have only their nominal rate.
        times, last_duration = np.arange(len(packets)) / nominal, 1.0 / nominal
    times = np.sort(times)
    pick = resample_by_time(times, fps, last_duration or 1.0 / nominal)
    if len(pick) < MIN_FRAMES:
        raise DialogueError(
            f"{path} has {len(times)} frame(s), {len(pick)} at {fps:g} a second: give a video of at least {MIN_FRAMES} "
            "frames (better, half a minute)."
        )
    turns = round(getattr(first, "rotation", 0) / 90) % 4
    width, height = (context.height, context.width) if turns % 2 else (context.width, context.height)
    span = times[-1] - times[0]
    source_fps = (len(times) - 1) / span if span > 0 else nominal
    return SourceVideo(path, width, height, turns, pick, fps, source_fps)


def resample_by_time(
    times: Float[np.ndarray, " num_source"], fps: float, last_duration: float
) -> Int[np.ndarray, " num_frames"]:
    """Which source picture is on screen at each output frame's middle.

    Args:
        times: presentation times of the source pictures (seconds), sorted.
        fps: output rate.
        last_duration: how long the last picture stays (seconds).
    """
    duration = times[-1] - times[0] + last_duration
    middles = (np.arange(max(round(duration * fps), 1)) + 0.5) / fps
    # Containers round times to their tick (often 1 ms), which must not push a middle across a picture's edge.
    return np.clip(np.searchsorted(times - times[0], middles + 1e-4, side="right") - 1, 0, len(times) - 1)
