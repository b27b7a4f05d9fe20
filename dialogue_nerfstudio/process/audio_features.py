"""Sound files in and out: any media file to one track of samples, tracks to a mix, samples to WAV.

Conventions. `audio` is a mono float32 waveform `[S]` in [-1, 1] whose sample 0 sounds when video frame 0 appears. What
is computed from sound is in `conversation.acoustics`.
"""

import wave
from pathlib import Path
from typing import Iterable, Iterator, Sequence

import av
import numpy as np
from jaxtyping import Float, Float32

from dialogue_nerfstudio.conversation.acoustics import SAMPLE_RATE, mel_spectrogram, prosody_features
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import atomic_path

__all__ = [
    "SAMPLE_RATE",
    "load_audio",
    "mel_spectrogram",
    "mix_tracks",
    "prosody_features",
    "save_wav",
]

SOUND_GAP = 0.1
"""Seconds between one block of sound and the next that are silence and not rounding: a tenth of a second is more than
any codec's block and delay."""


def load_audio(path: Path, sample_rate: int = SAMPLE_RATE) -> Float[np.ndarray, " num_samples"]:
    """Decode the first audio track of any media file to mono float32 at `sample_rate`; see `sound_blocks`."""
    return np.concatenate([block[0] for block in sound_blocks(path, sample_rate)])


def sound_blocks(
    path: Path, sample_rate: int = SAMPLE_RATE, channels: int = 1
) -> Iterator[Float32[np.ndarray, "channels num_samples"]]:
    """The first audio track of any media file, decoded block by block to float32 at `sample_rate`, mixed to 1 or 2
    channels; memory holds one block.

    Where the file also has a video track, sample 0 is the moment of the first video frame: a late track gets silence
    in front, an early one is trimmed.

    Raises:
        DialogueError: the file is missing, is not media, has no audio track, holds no sound, or breaks off in the
        middle of decoding.
    """
    path = Path(path)
    if not path.is_file():
        raise DialogueError(f"There is no file {path}: give the path of an audio or video file.")
    found = False
    try:
        with av.open(str(path)) as container:
            stream = _sound_stream(container, path)
            origin = _video_start(container)
            for block in _decode_track(container, stream, sample_rate, "mono" if channels == 1 else "stereo", origin):
                found = True
                yield block
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise DialogueError(
            f"The sound of {path} cannot be decoded ({error}): re-encode it, for example to WAV, and try again."
        ) from error
    if not found:
        raise DialogueError(f"The audio track of {path} is empty: give a file that holds sound.")


def sound_channels(path: Path) -> int:
    """How many channels the first audio track has.

    Raises:
        DialogueError: the file is missing, is not media, or has no audio track.
    """
    if not Path(path).is_file():
        raise DialogueError(f"There is no file {path}: give the path of an audio or video file.")
    try:
        with av.open(str(path)) as container:
            return _sound_stream(container, path).codec_context.layout.nb_channels
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise DialogueError(
            f"The sound of {path} cannot be decoded ({error}): re-encode it, for example to WAV, and try again."
        ) from error


def _sound_stream(container, path: Path):
    if not container.streams.audio:
        raise DialogueError(f"{path} has no audio track: give a file with sound, or the sound as a file of its own.")
    return container.streams.audio[0]


def _decode_track(
    container, stream, sample_rate: int, layout: str, origin: float | None
) -> Iterator[Float32[np.ndarray, "channels num_samples"]]:
    """The samples of one track from the time `origin` (s) on, from its own beginning if None.

    Timestamps decide where sound lies: what is missing (a damaged packet, a pause of the recorder) is silence, so that
    the rest stays in time.

    Raises:
        av.FFmpegError: not a single packet can be decoded.
    """

    def make_resampler() -> av.AudioResampler:
        return av.AudioResampler(format="fltp", layout=layout, rate=sample_rate)

    resampler, channels = make_resampler(), 1 if layout == "mono" else 2
    first_time, length, early = None, 0, 0
    # A damaged timestamp may lie hours away; the container knows how long it is.
    longest = np.inf if container.duration is None else container.duration / av.time_base + 1.0

    def silence(count: int) -> Iterator[np.ndarray]:
        for start in range(0, count, sample_rate):
            yield np.zeros((channels, min(sample_rate, count - start)), np.float32)

    def from_origin(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Counts what comes, and leaves out what is before the origin."""
        nonlocal length, early
        for block in blocks:
            length += block.shape[1]
            dropped = min(early, block.shape[1])
            early -= dropped
            if dropped < block.shape[1]:
                yield block[:, dropped:]

    for frame in _surviving_sound(container, stream):
        time = frame.time
        if first_time is None:
            first_time = time or 0.0
            delay = 0 if origin is None else round((first_time - origin) * sample_rate)
            yield from silence(delay)
            early = max(0, -delay)
        elif time is not None and time - first_time < longest:
            due = round((time - first_time) * sample_rate)
            # The resampler holds back some samples; rounding and it stay far below this.
            if due - length > SOUND_GAP * sample_rate:
                yield from from_origin(block.to_ndarray() for block in resampler.resample(None))
                resampler = make_resampler()
                yield from from_origin(silence(max(due - length, 0)))
        yield from from_origin(block.to_ndarray() for block in resampler.resample(frame))
    if first_time is not None:
        yield from from_origin(block.to_ndarray() for block in resampler.resample(None))


def _surviving_sound(container, stream):
    """The frames of a track without those whose packets are damaged; the last damage is raised if nothing is left."""
    packets, found, damage = container.demux(stream), False, None
    while True:
        try:
            packet = next(packets, None)
            frames = packet.decode() if packet is not None else []
        except av.FFmpegError as error:
            damage = error
            continue
        if packet is None:
            break
        found = found or bool(frames)
        yield from frames
    if not found and damage is not None:
        raise damage


def _video_start(container) -> float | None:
    """Time (s) of the first video frame, or None without a video track (a still cover picture is none)."""
    for stream in container.streams.video:
        if stream.disposition & stream.disposition.__class__.attached_pic:
            continue
        return float((stream.start_time or 0) * stream.time_base)
    return None


def sound_end(path: Path) -> float | None:
    """Seconds from the first picture (without pictures, from the first sound) to the end of the first audio track, by
    its packets' timestamps: nothing is decoded. None where they say nothing.

    Raises:
        DialogueError: the file is missing, is not media, or has no audio track.
    """
    path = Path(path)
    if not path.is_file():
        raise DialogueError(f"There is no file {path}: give the path of an audio or video file.")
    try:
        with av.open(str(path)) as container:
            stream = _sound_stream(container, path)
            spans = [
                (float(packet.pts * packet.time_base), float((packet.pts + (packet.duration or 0)) * packet.time_base))
                for packet in container.demux(stream)
                if packet.size and packet.pts is not None
            ]
            video_start = _video_start(container)
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise DialogueError(f"The sound of {path} cannot be read ({error}): re-encode it, and try again.") from error
    if not spans:
        return None
    return max(end for _, end in spans) - (min(start for start, _ in spans) if video_start is None else video_start)


def mix_tracks(tracks: Sequence[Float[np.ndarray, " num_samples"]], length: int) -> Float[np.ndarray, " num_samples"]:
    """The sum of tracks of `length` samples, made quieter where it would clip; one alone is left as it is, none is
    silence."""
    mix = np.sum(tracks, axis=0, dtype=np.float32) if len(tracks) else np.zeros(length, np.float32)
    return mix / max(1.0, float(np.abs(mix).max())) if len(tracks) > 1 else mix


def save_wav(path: Path, samples: Float[np.ndarray, " num_samples"], rate: int = SAMPLE_RATE) -> None:
    """Write mono sound as 16-bit PCM, atomically; values beyond [-1, 1] are clipped.

    Raises:
        DialogueError: the samples are not one channel of finite numbers.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise DialogueError(
            f"The sound for {path} must be one channel of finite samples; "
            f"this array has the shape {samples.shape} or holds NaN or infinity."
        )
    pcm = np.round(np.clip(samples, -1.0, 1.0) * 32767.0).astype("<i2")
    with atomic_path(Path(path)) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.tobytes())
