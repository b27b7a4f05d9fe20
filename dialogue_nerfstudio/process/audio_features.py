"""Sound in, one row of audio features per video frame out.

Conventions. `audio` is a mono float32 waveform `[S]` in [-1, 1] whose sample 0 sounds when video frame 0 appears.
Video frame t is shown during [t / fps, (t + 1) / fps) and its *centre* is (t + 0.5) / fps seconds. Every extractor
returns exactly `num_frames` rows: sound that ends early is followed by silence, sound that goes on is not looked at.
"""

import wave
from pathlib import Path
from typing import Sequence

import av
import librosa
import numpy as np
from jaxtyping import Float

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import atomic_path

SAMPLE_RATE = 16_000
"""The one sample rate (Hz) of sound inside this package."""

SOUND_GAP = 0.1
"""Seconds between one block of sound and the next that are silence and not rounding: a tenth of a second is more than
any codec's block and delay."""

MEL_FFT = 800
MEL_HOP = 200
MEL_BANDS = 80
MEL_LOWEST, MEL_HIGHEST = 55.0, 7600.0
MEL_PREEMPHASIS = 0.97
MEL_BLOCK = 8000
"""Steps analysed at once, 100 s: what keeps memory flat over hours of sound."""
MEL_STEPS = 16
"""Steps of MEL_HOP samples in one frame's window: 16 x 12.5 ms = 200 ms (DialogueNeRF 4.1, Wav2Lip)."""


def load_audio(path: Path, sample_rate: int = SAMPLE_RATE) -> Float[np.ndarray, " num_samples"]:
    """Decode the first audio track of any media file to mono float32 at `sample_rate`.

    Where the file also has a video track, sample 0 is the moment of the first video frame: a late track gets silence
    in front, an early one is trimmed.

    Raises:
        DialogueError: the file is missing, is not media, has no audio track, holds no sound, or breaks off in the
        middle of decoding.
    """
    path = Path(path)
    if not path.is_file():
        raise DialogueError(f"There is no file {path}: give the path of an audio or video file.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise DialogueError(
                    f"{path} has no audio track: give a file with sound, or the sound as a file of its own."
                )
            samples, first_time = _decode_track(container, container.streams.audio[0], sample_rate)
            video_start = _video_start(container)
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise DialogueError(
            f"The sound of {path} cannot be decoded ({error}): re-encode it, for example to WAV, and try again."
        ) from error
    if samples.size == 0:
        raise DialogueError(f"The audio track of {path} is empty: give a file that holds sound.")
    if video_start is not None:
        samples = _shift(samples, round((first_time - video_start) * sample_rate))
    return samples


def _decode_track(container, stream, sample_rate: int) -> tuple[Float[np.ndarray, " num_samples"], float]:
    """All samples of one track and the time (s) of the first.

    Timestamps decide where sound lies: what is missing (a damaged packet, a pause of the recorder) is silence, so that
    the rest stays in time.

    Raises:
        av.FFmpegError: not a single packet can be decoded.
    """
    resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate)
    blocks: list[np.ndarray] = []
    first_time, length = None, 0
    # A damaged timestamp may lie hours away; the container knows how long it is.
    longest = np.inf if container.duration is None else container.duration / av.time_base + 1.0
    for frame in _surviving_sound(container, stream):
        time = frame.time
        if first_time is None:
            first_time = time or 0.0
        elif time is not None and time - first_time < longest:
            gap = round((time - first_time) * sample_rate) - length
            # The resampler holds back some samples; rounding and it stay far below this.
            if gap > SOUND_GAP * sample_rate:
                blocks.extend(block.to_ndarray()[0] for block in resampler.resample(None))
                resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate)
                held = sum(map(len, blocks))
                blocks.append(np.zeros(max(round((time - first_time) * sample_rate) - held, 0), np.float32))
                length = sum(map(len, blocks))
        decoded = [block.to_ndarray()[0] for block in resampler.resample(frame)]
        blocks.extend(decoded)
        length += sum(map(len, decoded))
    if first_time is None:
        return np.zeros(0, np.float32), 0.0
    blocks.extend(block.to_ndarray()[0] for block in resampler.resample(None))
    return np.concatenate(blocks).astype(np.float32), first_time


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
            if not container.streams.audio:
                raise DialogueError(
                    f"{path} has no audio track: give a file with sound, or the sound as a file of its own."
                )
            stream = container.streams.audio[0]
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


def _shift(samples: Float[np.ndarray, " num_samples"], delay: int) -> Float[np.ndarray, " num_shifted"]:
    """Delay by `delay` samples of silence; a negative delay drops that many."""
    return np.concatenate([np.zeros(delay, np.float32), samples]) if delay >= 0 else samples[-delay:]


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


def mel_spectrogram(audio: Float[np.ndarray, " num_samples"]) -> Float[np.ndarray, "num_steps 80"]:
    """Log-mel spectrogram of 16 kHz sound with Wav2Lip's analysis settings; step k is centred on k x 12.5 ms.

    Pre-emphasis 0.97, 50 ms Hann windows, magnitudes in 80 bands of 55-7600 Hz, decibels relative to 20 dB, clipped to
    [-100, 0] dB and mapped linearly to [-1, 1]. Wav2Lip's own input is 4 times this. Silence is exactly -1.
    """
    emphasised = librosa.effects.preemphasis(np.asarray(audio, np.float32), coef=MEL_PREEMPHASIS)
    emphasised = np.pad(emphasised, MEL_FFT // 2)
    num_steps = 1 + len(audio) // MEL_HOP
    mel = np.empty((num_steps, MEL_BANDS), np.float32)
    for first in range(0, num_steps, MEL_BLOCK):
        last = min(first + MEL_BLOCK, num_steps)
        bands = librosa.feature.melspectrogram(
            y=emphasised[first * MEL_HOP : (last - 1) * MEL_HOP + MEL_FFT],
            sr=SAMPLE_RATE,
            n_fft=MEL_FFT,
            hop_length=MEL_HOP,
            n_mels=MEL_BANDS,
            fmin=MEL_LOWEST,
            fmax=MEL_HIGHEST,
            power=1.0,
            center=False,
        )
        decibels = 20.0 * np.log10(np.maximum(bands.T, 1e-5)) - 20.0
        mel[first:last] = np.clip((decibels + 100.0) / 50.0 - 1.0, -1.0, 1.0)
    return mel


def mel_features(
    audio: Float[np.ndarray, " num_samples"], sample_rate: int, num_frames: int, fps: float = 25.0
) -> Float[np.ndarray, "num_frames 16 80"]:
    """The 200 ms of log-mel spectrogram around the centre of each video frame (DialogueNeRF 4.1, "each 200 ms audio
    clip").

    The window's middle (between steps 7 and 8) is the step boundary nearest to (t + 0.5) / fps, so it is at most 6.25
    ms off. Sound before the start and after the end is silence (-1).
    """
    audio = at_16k(audio, sample_rate)
    needed = int(np.ceil(num_frames / fps * SAMPLE_RATE))
    mel = mel_spectrogram(exactly(audio, needed))
    padding = MEL_STEPS
    mel = np.pad(mel, ((padding, padding + MEL_STEPS), (0, 0)), constant_values=-1.0)
    centre = (np.arange(num_frames) + 0.5) / fps * (SAMPLE_RATE / MEL_HOP)
    first = np.round(centre - (MEL_STEPS - 1) / 2).astype(int) + padding
    return mel[first[:, None] + np.arange(MEL_STEPS)]


def prosody_features(
    audio: Float[np.ndarray, " num_samples"], sample_rate: int, num_frames: int, fps: float = 25.0
) -> Float[np.ndarray, "num_frames 2"]:
    """Zero-crossing rate (crossings per sample, 0-1) and root mean square of the sound during each frame, [t / fps, (t
    + 1) / fps) (DialogueNeRF 4.1)."""
    audio = at_16k(audio, sample_rate)
    length = round(SAMPLE_RATE / fps)
    starts = np.round(np.arange(num_frames) * SAMPLE_RATE / fps).astype(int)
    audio = exactly(audio, int(np.ceil(num_frames * SAMPLE_RATE / fps)) + length)
    frames = audio[starts[:, None] + np.arange(length)]
    crossings = librosa.zero_crossings(frames, pad=False, axis=-1).mean(-1)
    rms = np.sqrt(np.mean(np.square(frames), axis=-1))
    return np.stack([crossings, rms], axis=-1).astype(np.float32)


def at_16k(audio: Float[np.ndarray, " num_samples"], sample_rate: int) -> Float[np.ndarray, " num_resampled"]:
    """The sound at this package's sample rate."""
    audio = np.asarray(audio, np.float32)
    return audio if sample_rate == SAMPLE_RATE else librosa.resample(audio, orig_sr=sample_rate, target_sr=SAMPLE_RATE)


def exactly(audio: Float[np.ndarray, " num_samples"], length: int) -> Float[np.ndarray, " length"]:
    """Trim, or pad with silence, to `length` samples."""
    return audio[:length] if len(audio) >= length else np.pad(audio, (0, length - len(audio)))
