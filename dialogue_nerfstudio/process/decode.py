"""Any video in, frames at a constant 25 a second out, without an intermediate file.

Conventions. Output frame k is what the video shows at the middle of its interval, (k + 0.5) / fps seconds after the
first picture: timestamps decide, so odd, variable and wrong nominal rates all come out in time with the sound, and a
damaged packet costs its own pictures only: the one before stays on screen. Frames are uint8 RGB `[H, W, 3]`, turned
upright where the file says how. Timestamps are ticks, whole numbers of the stream's time base.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Iterator, Optional, Tuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Float, Int, UInt8

from dialogue_nerfstudio.conversation.errors import DialogueError

FPS = 25.0
"""Frames a second of every conversation."""

MIN_FRAMES = 25
"""Fewest frames (at 25 a second) worth processing: a track needs that many poses, a split that many frames."""

MAX_DAMAGED_SECONDS = 1.0
"""Longest time that damaged packets may leave a picture standing: longer, a talking face frozen under running sound
would be learned."""


class Picture:
    """One decoded picture, converted only to what is asked of it.

    Args:
        frame: as the codec gives it.
        quarter_turns: counter-clockwise quarter turns that make it upright.
        shrinker: what shrinks all pictures of a video; setting one up takes as long as using it.
    """

    def __init__(self, frame: av.VideoFrame, quarter_turns: int, shrinker: VideoReformatter):
        self.frame, self.quarter_turns, self._shrinker = frame, quarter_turns, shrinker

    @cached_property
    def rgb(self) -> UInt8[np.ndarray, "height width 3"]:
        """All of it, upright."""
        return self._upright(self.frame.to_ndarray(format="rgb24"))

    def shrunk(self, scale: float) -> UInt8[np.ndarray, "small_height small_width 3"]:
        """All of it, upright and `scale` (at most 1) times as large, each pixel the mean of the area it covers."""
        width, height = (max(round(scale * side), 1) for side in (self.frame.width, self.frame.height))
        small = self._shrinker.reformat(self.frame, width, height, "rgb24", interpolation=Interpolation.AREA)
        return self._upright(small.to_ndarray())

    def _upright(self, pixels: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
        return np.ascontiguousarray(np.rot90(pixels, self.quarter_turns))


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
    """For each output frame, the number of the picture that it shows, in order of time."""
    ticks: Int[np.ndarray, " num_source"]
    """Timestamp of each picture, sorted; 0, 1, 2, … where the file has none."""
    seconds_a_tick: float
    fps: float
    source_fps: float
    """Mean rate of the file itself."""

    @property
    def num_frames(self) -> int:
        return len(self.pick)

    def part(self, start: int, stop: int) -> "SourceVideo":
        """The same video from output frame `start` to before `stop`."""
        return replace(self, pick=self.pick[start:stop])

    def frames(self, stop: Optional[int] = None, step: int = 1) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Output frames 0, step, 2·step, … below `stop`; memory holds one picture.

        Raises:
            DialogueError: nothing can be decoded, or for longer than MAX_DAMAGED_SECONDS.
        """
        return (picture.rgb for picture in self.pictures(stop, step))

    def pictures(self, stop: Optional[int] = None, step: int = 1) -> Iterator[Picture]:
        """The same before they are converted; a picture that stays on screen comes as the same object again.

        Raises:
            DialogueError: nothing can be decoded, or for longer than MAX_DAMAGED_SECONDS.
        """
        wanted = self.ticks[self.pick[:stop:step]].tolist()
        done, shown, shrinker = 0, None, VideoReformatter()
        with av.open(str(self.path)) as container:
            if wanted and wanted[0] > self.ticks[0] and self.seconds_a_tick:
                container.seek(wanted[0], stream=_video_stream(container))
            for tick, frame in self._decoded(container):
                picture = Picture(frame, self.quarter_turns, shrinker)
                # Targets before this picture that no picture met: theirs was damaged.
                while done < len(wanted) and wanted[done] < tick:
                    before = (tick, picture) if shown is None else shown
                    self._check_damage(wanted[done], before[0])
                    yield before[1]
                    done += 1
                shown = (tick, picture)
                while done < len(wanted) and wanted[done] == tick:
                    yield picture
                    done += 1
                if done == len(wanted):
                    return
        if shown is None:
            raise DialogueError(f"{self.path} holds no picture that can be decoded; convert it to H.264 and try again.")
        for tick in wanted[done:]:
            self._check_damage(tick, shown[0])
            yield shown[1]

    def _decoded(self, container: av.container.InputContainer) -> Iterator[Tuple[int, av.VideoFrame]]:
        """Ticks and pictures in order of time; packets that do not decode are left out."""
        stream = _video_stream(container)
        stream.thread_type = "AUTO"
        latest, count = None, 0
        for picture in _surviving(container, stream):
            if self.seconds_a_tick == 0.0:
                yield count, picture
                count += 1
            elif picture.pts is not None and (latest is None or picture.pts > latest):
                # Beside damage, pictures may come late; what was shown meanwhile cannot be taken back.
                latest = picture.pts
                yield picture.pts, picture

    def _check_damage(self, wanted: int, shown: int) -> None:
        seconds = (wanted - shown) * self.seconds_a_tick
        if abs(seconds) > MAX_DAMAGED_SECONDS:
            start = (min(wanted, shown) - self.ticks[0]) * self.seconds_a_tick
            raise DialogueError(
                f"{self.path} is damaged for more than {MAX_DAMAGED_SECONDS:g} s after {start:.1f} s: no picture there "
                "can be decoded; cut that part out, or get a whole copy."
            )


def _surviving(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The frames of a stream, without those whose packets are damaged."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            frames = packet.decode() if packet is not None else []
        except av.FFmpegError:
            continue
        if packet is None:
            return
        yield from frames


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    return next(s for s in container.streams.video if not _is_cover(s))


def _is_cover(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & stream.disposition.__class__.attached_pic)


def probe(path: Path, fps: float = FPS, needs_sound: bool = True) -> SourceVideo:
    """Reads a file's timestamps (not its pictures) and plans its resampling.

    Args:
        path: the video.
        fps: output rate.
        needs_sound: whether a video without an audio track is refused.

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
            if needs_sound and not container.streams.audio:
                raise DialogueError(
                    f"{path} has no audio track: give a video with sound, its sound with --audio, or --without-sound."
                )
            stream = _video_stream(container)
            context, time_base = stream.codec_context, stream.time_base
            nominal = float(stream.average_rate or fps)
            packets = [p for p in container.demux(stream) if p.size]
            ticks = np.array([p.pts for p in packets if p.pts is not None], dtype=np.int64)
            last_duration = float((packets[-1].duration or 0) * time_base) if packets else 0.0
            # A damaged timestamp may lie hours away; the container knows how long it is.
            longest = None if container.duration is None else container.duration / av.time_base / float(time_base)
            container.seek(0)
            first = next(_surviving(container, stream), None)
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise DialogueError(f"{path} is not a video that can be read ({error}).") from error
    if first is None:
        raise DialogueError(f"{path} holds no picture that can be decoded; convert it to H.264 and try again.")
    tick = float(time_base)
    if len(ticks) != len(packets):
        # Streams without timestamps (raw H.264, some AVI) have only their nominal rate.
        ticks, tick = np.arange(len(packets)), 0.0
        times, last_duration = ticks / nominal, 1.0 / nominal
    else:
        ticks = np.unique(ticks)
        if longest is not None:
            ticks = ticks[ticks <= ticks[0] + longest + 1.0 / tick]
        times = ticks * tick
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
    return SourceVideo(path, width, height, turns, pick, ticks, tick, fps, source_fps)


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
