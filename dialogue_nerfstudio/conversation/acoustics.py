"""Pure audio maths: sound as an array in, log-mel spectrogram, MFCC and prosody out.

Conventions. `audio` is a mono float32 waveform `[S]` in [-1, 1] whose sample 0 sounds when video frame 0 appears. Video
frame t is shown during [t / fps, (t + 1) / fps) and its *centre* is (t + 0.5) / fps seconds. What is per frame has
exactly `num_frames` rows: sound that ends early is followed by silence, sound that goes on is not looked at.

Of librosa only the mel filters are loaded with this module: its spectra and zero crossings compile code and import
scikit-learn, one to three seconds of every command, for what are a few lines of NumPy.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32
from scipy.fft import dct

SAMPLE_RATE = 16_000
"""The one sample rate (Hz) of sound inside this package."""

MEL_FFT = 800
MEL_HOP = 200
MEL_BANDS = 80
MEL_LOWEST, MEL_HIGHEST = 55.0, 7600.0
MEL_PREEMPHASIS = 0.97
MFCC_COEFFICIENTS = 13
MEL_BLOCK = 8000
"""Steps analysed at once, 100 s: what keeps memory flat over hours of sound."""
PROSODY_BLOCK = 2500
"""Frames analysed at once, 100 s at 25 fps, likewise."""
SILENT_CROSSING = 1e-10
"""Samples up to this count as zero when crossings of zero are counted."""
MEL_STEPS = 16
"""Steps of MEL_HOP samples in one frame's window: 16 x 12.5 ms = 200 ms (DialogueNeRF 4.1, Wav2Lip)."""


def mel_spectrogram(audio: Float[np.ndarray, " num_samples"]) -> Float[np.ndarray, "num_steps 80"]:
    """Log-mel spectrogram of 16 kHz sound with Wav2Lip's analysis settings; step k is centred on k x 12.5 ms.

    Pre-emphasis 0.97, 50 ms Hann windows, magnitudes in 80 bands of 55-7600 Hz, decibels relative to 20 dB, clipped to
    [-100, 0] dB and mapped linearly to [-1, 1]. Wav2Lip's own input is 4 times this. Silence is exactly -1.
    """
    emphasised = np.pad(_emphasised(np.asarray(audio, np.float32)), MEL_FFT // 2)
    num_steps = 1 + len(audio) // MEL_HOP
    mel = np.empty((num_steps, MEL_BANDS), np.float32)
    for first in range(0, num_steps, MEL_BLOCK):
        last = min(first + MEL_BLOCK, num_steps)
        samples = emphasised[first * MEL_HOP : (last - 1) * MEL_HOP + MEL_FFT]
        bands = magnitudes(samples, MEL_FFT, MEL_HOP) @ mel_filters(MEL_FFT, MEL_BANDS, MEL_LOWEST, MEL_HIGHEST)
        decibels = 20.0 * np.log10(np.maximum(bands, 1e-5)) - 20.0
        mel[first:last] = np.clip((decibels + 100.0) / 50.0 - 1.0, -1.0, 1.0)
    return mel


def _emphasised(audio: Float32[np.ndarray, " num_samples"]) -> Float32[np.ndarray, " num_samples"]:
    """Sound minus MEL_PREEMPHASIS times the sample before; the first has the line through the first two added, as in
    librosa."""
    if len(audio) < 2:
        return audio
    emphasised = np.empty_like(audio)
    emphasised[1:] = audio[1:] - np.float32(MEL_PREEMPHASIS) * audio[:-1]
    emphasised[0] = audio[0] + (2 * audio[0] - audio[1])
    return emphasised


def magnitudes(
    audio: Float32[np.ndarray, " num_samples"], size: int, hop: int
) -> Float32[np.ndarray, "num_steps num_frequencies"]:
    """Magnitudes of the spectra of Hann windows of `size` samples, `hop` apart, the first beginning with the sound."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    frames = np.lib.stride_tricks.sliding_window_view(audio, size)[::hop]
    spectra = np.empty((len(frames), size // 2 + 1), np.float32)
    # Spectra are computed in double precision: a thousand at a time, so that they do not fill the memory.
    for first in range(0, len(frames), 1000):
        spectra[first : first + 1000] = np.abs(np.fft.rfft(window * frames[first : first + 1000]))
    return spectra


@lru_cache(maxsize=4)
def mel_filters(
    size: int, bands: int, lowest: float = 0.0, highest: float = SAMPLE_RATE / 2
) -> Float32[np.ndarray, "num_frequencies bands"]:
    """Slaney's triangular filters, each of unit area, for the spectra of windows of `size` samples of 16 kHz sound."""
    from librosa import filters

    return np.ascontiguousarray(filters.mel(sr=SAMPLE_RATE, n_fft=size, n_mels=bands, fmin=lowest, fmax=highest).T)


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


def mfcc_features(
    audio: Float[np.ndarray, " num_samples"], sample_rate: int, num_frames: int, fps: float = 25.0
) -> Float[np.ndarray, "num_frames 16 13"]:
    """Mel-frequency cepstral coefficients of the same 200 ms: the first 13 of each step's orthonormal cosine transform
    over its log-mel bands (the audio feature that DFA-NeRF's Table 5 begins with)."""
    mel = mel_features(audio, sample_rate, num_frames, fps)
    return dct(mel, type=2, norm="ortho", axis=-1)[..., :MFCC_COEFFICIENTS].astype(np.float32)


def prosody_features(
    audio: Float[np.ndarray, " num_samples"], sample_rate: int, num_frames: int, fps: float = 25.0
) -> Float[np.ndarray, "num_frames 2"]:
    """Zero-crossing rate (crossings per sample, 0-1) and root mean square of the sound during each frame, [t / fps, (t
    + 1) / fps) (DialogueNeRF 4.1)."""
    audio = at_16k(audio, sample_rate)
    length = round(SAMPLE_RATE / fps)
    starts = np.round(np.arange(num_frames) * SAMPLE_RATE / fps).astype(int)
    audio = exactly(audio, int(np.ceil(num_frames * SAMPLE_RATE / fps)) + length)
    features = np.empty((num_frames, 2), np.float32)
    for first in range(0, num_frames, PROSODY_BLOCK):
        block = slice(first, first + PROSODY_BLOCK)
        frames = audio[starts[block, None] + np.arange(length)]
        negative = frames < -SILENT_CROSSING
        features[block, 0] = (negative[:, 1:] != negative[:, :-1]).sum(axis=-1) / length
        features[block, 1] = np.sqrt(np.mean(np.square(frames), axis=-1))
    return features


def at_16k(audio: Float[np.ndarray, " num_samples"], sample_rate: int) -> Float[np.ndarray, " num_resampled"]:
    """The sound at this package's sample rate."""
    audio = np.asarray(audio, np.float32)
    if sample_rate == SAMPLE_RATE:
        return audio
    import librosa

    return librosa.resample(audio, orig_sr=sample_rate, target_sr=SAMPLE_RATE)


def exactly(audio: Float[np.ndarray, " num_samples"], length: int) -> Float[np.ndarray, " length"]:
    """Trim, or pad with silence, to `length` samples."""
    return audio[:length] if len(audio) >= length else np.pad(audio, (0, length - len(audio)))
