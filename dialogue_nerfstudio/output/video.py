"""Write a rendered conversation as one H.264 + AAC mp4 that states, in its own metadata, that it is synthetic.

Convention: frames are uint8 [H, W, 3] RGB at a constant `fps`; audio is float32 [S] mono in [-1, 1] at `sample_rate`
Hz, starting with the first frame. Everything streams: one frame and its slice of sound are in memory at a time.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Optional, Union

import av
import numpy as np
from jaxtyping import Float, UInt8

from dialogue_nerfstudio import __version__
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import atomic_path
from dialogue_nerfstudio.output.layout import check_picture

GENERATOR = "dialogue-nerfstudio"

AUDIO_RATE = 48000
"""Rate of the sound in the file, Hz: at 48 kHz an AAC frame (1024 samples) lasts 21 ms, less than a video frame, so the
tracks can end together; at the 16 kHz of a conversation it would last 64 ms."""

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for media made by a trained model: what provenance readers outside this project look for."""

ReadSound = Callable[[int, int], np.ndarray]
"""Reads the samples start … stop − 1; fewer where the sound ends."""

BT709 = 1
"""Code of ITU-R BT.709 in H.273, for primaries, transfer and matrix alike."""


@dataclass(frozen=True)
class VideoSummary:
    """What was written."""

    num_frames: int
    """video frames"""
    fps: float
    """frames per second"""
    width: int
    """pixels, even"""
    height: int
    """pixels, even"""
    audio_seconds: float
    """length of the sound track; 0 without one"""

    @property
    def seconds(self) -> float:
        """Length of the video."""
        return self.num_frames / self.fps


def synthetic_statement(provenance: Optional[dict[str, Any]] = None) -> dict[str, Any]:
    """The machine-readable statement every video of this project carries: that it is synthetic, by what, and
    `provenance` (JSON-serialisable: method, checkpoint step, sources …), which cannot take the first three back."""
    statement = {
        "synthetic": True,
        "generator": f"{GENERATOR} {__version__}",
        "digital_source_type": DIGITAL_SOURCE_TYPE,
    }
    return {**statement, **(provenance or {}), **statement}


def even_size(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """The frame with its last row and column repeated where needed: yuv420p stores colour for 2 × 2 pixels."""
    height, width = frame.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return frame
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


class _SoundTrack:
    """Feeds mono sound to an AAC stream up to a given sample, silence after its end."""

    def __init__(self, container: av.container.OutputContainer, read: ReadSound, sample_rate: int) -> None:
        self.container, self.read, self.sample_rate = container, read, sample_rate
        self.stream = container.add_stream("aac", rate=AUDIO_RATE, layout="mono")
        self.stream.bit_rate = 128_000
        self.resampler = av.AudioResampler(format="fltp", layout="mono", rate=AUDIO_RATE, frame_size=1024)
        self.position = 0

    def advance(self, end: int) -> None:
        """Encode samples `position` … `end` of the track, padding with silence."""
        if end <= self.position:
            return
        samples = self.read(self.position, end)
        samples = np.pad(samples, (0, end - self.position - len(samples)))
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = self.sample_rate, self.position, Fraction(1, self.sample_rate)
        self.position = end
        self._encode(frame)

    def finish(self) -> None:
        """Flush the resampler and the encoder."""
        self._encode(None)
        self.container.mux(self.stream.encode(None))

    def _encode(self, frame: Optional[av.AudioFrame]) -> None:
        for piece in self.resampler.resample(frame):
            self.container.mux(self.stream.encode(piece))


def _add_video_stream(container: av.container.OutputContainer, fps: Fraction, width: int, height: int, crf: int):
    stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": "medium"})
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / fps
    context.color_primaries = context.color_trc = context.colorspace = BT709
    context.color_range = 1
    return stream


def write_conversation_video(
    path: Path,
    frames: Iterable[UInt8[np.ndarray, "_ _ 3"]],
    fps: float,
    audio: Optional[Union[Float[np.ndarray, " S"], ReadSound]] = None,
    sample_rate: int = 16000,
    provenance: Optional[dict[str, Any]] = None,
    crf: int = 16,
) -> VideoSummary:
    """Encode frames and sound into an mp4 (H.264 yuv420p BT.709, AAC mono 48 kHz, moov first), atomically.

    The sound is cut, or padded with silence, to the length of the video. The statement of `synthetic_statement` is
    stored as the container's comment; `read_provenance` reads it back.

    Args:
        path: the mp4 to write; appears only when complete.
        frames: uint8 RGB, all of one size, consumed once; odd sizes are padded by one pixel.
        fps: frames per second.
        audio: mono in [-1, 1] at `sample_rate` Hz, all of it or a function that reads it; None for a silent video.
        provenance: more to state (method, checkpoint step, sources); JSON-serialisable.
        crf: x264's constant rate factor; lower is better and larger.

    Raises:
        DialogueError: if the suffix is not .mp4, there is no frame, frames differ in size, the sound holds NaN, or the
            disk is full.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise DialogueError(f"The output must be an .mp4 file, but {path} is not; change its name.")
    read = audio
    if isinstance(audio, np.ndarray):
        audio = np.asarray(audio, dtype=np.float32)
        if audio.ndim != 1:
            raise DialogueError(f"The sound must be mono [samples], but its shape is {list(audio.shape)}; mix it down.")
        if not np.isfinite(audio).all():
            raise DialogueError(f"The sound holds a NaN or infinity at sample {int(np.argmin(np.isfinite(audio)))}.")

        def read(start: int, stop: int) -> np.ndarray:
            return audio[start:stop]

    rate = Fraction(fps).limit_denominator(1001)
    statement = synthetic_statement(provenance)
    num_frames, size, source_size = 0, (0, 0), None
    with (
        atomic_path(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        container.metadata["title"] = f"Synthetic conversation ({statement['generator']})"
        container.metadata["comment"] = json.dumps(statement, sort_keys=True)
        stream, sound = None, None
        for frame in frames:
            check_picture(frame, f"frame {num_frames}")
            if stream is None:
                source_size = frame.shape
                height, width = even_size(frame).shape[:2]
                size = (width, height)
                stream = _add_video_stream(container, rate, width, height, crf)
                if read is not None:
                    sound = _SoundTrack(container, read, sample_rate)
            if frame.shape != source_size:
                raise DialogueError(
                    f"Frame {num_frames} of the output is {frame.shape[1]}x{frame.shape[0]}, but the first was "
                    f"{source_size[1]}x{source_size[0]}; render all frames at one size."
                )
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even_size(frame)), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            picture.pts, picture.time_base = num_frames, 1 / rate
            container.mux(stream.encode(picture))
            num_frames += 1
            if sound is not None:
                sound.advance(int(num_frames / rate * sample_rate))
        if stream is None:
            raise DialogueError(f"There is no frame to write to {path}; choose a range with at least one frame.")
        container.mux(stream.encode(None))
        if sound is not None:
            sound.finish()
    return VideoSummary(
        num_frames=num_frames,
        fps=float(rate),
        width=size[0],
        height=size[1],
        audio_seconds=sound.position / sample_rate if sound is not None else 0.0,
    )


def read_provenance(path: Path) -> Optional[dict[str, Any]]:
    """The statement a video carries about itself, or None if it carries none of this project's.

    Raises:
        DialogueError: if there is no such file or it cannot be opened as a video.
    """
    if not Path(path).is_file():
        raise DialogueError(f"There is no file {path}.")
    try:
        with av.open(str(path)) as container:
            comment = container.metadata.get("comment", "")
    except av.error.FFmpegError as error:
        raise DialogueError(f"{path} is not a video that can be opened ({error.strerror}).") from error
    try:
        statement = json.loads(comment)
    except json.JSONDecodeError:
        return None
    return statement if isinstance(statement, dict) and "synthetic" in statement else None
