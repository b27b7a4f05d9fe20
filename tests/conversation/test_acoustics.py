"""What is computed from sound, against sounds whose pitch, moment and energy are known."""

import librosa
import numpy as np
import pytest

from dialogue_nerfstudio.conversation import acoustics
from dialogue_nerfstudio.conversation.acoustics import SAMPLE_RATE, mel_features, mel_spectrogram, prosody_features


def tone(frequency: float, seconds: float, rate: int = SAMPLE_RATE, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("frequency", [220.0, 1000.0, 3000.0, 6000.0])
def test_tone_is_strongest_in_its_mel_band(frequency):
    centres = librosa.mel_frequencies(82, fmin=55.0, fmax=7600.0)[1:-1]
    mel = mel_features(tone(frequency, 1.0), SAMPLE_RATE, 25)
    band = mel[12].mean(0).argmax()
    assert abs(band - np.abs(centres - frequency).argmin()) <= 1


def test_long_sound_is_analysed_in_blocks_that_leave_no_trace(monkeypatch):
    audio = np.random.default_rng(3).normal(0, 0.1, 3 * SAMPLE_RATE + 77).astype(np.float32)
    whole = mel_spectrogram(audio)
    monkeypatch.setattr(acoustics, "MEL_BLOCK", 50)
    np.testing.assert_allclose(mel_spectrogram(audio), whole, atol=1e-6)
    assert len(whole) == 1 + len(audio) // 200
    prosody = prosody_features(audio, SAMPLE_RATE, 75)
    monkeypatch.setattr(acoustics, "PROSODY_BLOCK", 7)
    np.testing.assert_array_equal(prosody_features(audio, SAMPLE_RATE, 75), prosody)


def test_silence_is_the_lowest_value_and_range_is_kept():
    assert (mel_features(np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE, 25) == -1.0).all()
    loud = mel_features(np.random.default_rng(0).uniform(-1, 1, SAMPLE_RATE).astype(np.float32), SAMPLE_RATE, 25)
    assert loud.max() <= 1.0 and loud[10].mean() > 0.0


@pytest.mark.parametrize("frame", [0, 3, 20, 49])
def test_click_is_in_the_middle_of_its_frames_window(frame):
    audio = np.zeros(2 * SAMPLE_RATE, np.float32)
    audio[round((frame + 0.5) / 25 * SAMPLE_RATE)] = 1.0
    energy = mel_features(audio, SAMPLE_RATE, 50)[frame].mean(-1)
    heard = np.flatnonzero(energy > -0.99)
    # A click is heard by the four analysis windows of 50 ms around it: their middle is the click, to within a step.
    assert abs(heard.mean() - 7.5) <= 1.0
    far = mel_features(audio, SAMPLE_RATE, 50)[(frame + 25) % 50]
    assert (far == -1.0).all()


def test_windows_of_neighbouring_frames_overlap_consistently():
    audio = np.random.default_rng(1).normal(0, 0.1, 2 * SAMPLE_RATE).astype(np.float32)
    mel = mel_features(audio, SAMPLE_RATE, 50)
    full = mel_spectrogram(audio)
    # 5 frames are exactly 16 steps.
    np.testing.assert_array_equal(mel[10, :], mel_features(audio, SAMPLE_RATE, 50)[10])
    first = [int(np.abs(full - row).sum(-1).argmin()) for row in mel[10:16, 0]]
    assert first[5] - first[0] == 16
    for t, step in zip(range(10, 16), first, strict=True):
        middle = (step + 7.5) * 200 / SAMPLE_RATE
        assert abs(middle - (t + 0.5) / 25) <= 0.00625 + 1e-9


def test_another_sample_rate_gives_the_same_picture():
    at_16k = mel_features(tone(500.0, 1.0), SAMPLE_RATE, 25)
    at_48k = mel_features(tone(500.0, 1.0, rate=48_000), 48_000, 25)
    band = at_16k[12].mean(0).argmax()
    assert at_48k[12].mean(0).argmax() == band
    assert abs(at_48k[12, :, band] - at_16k[12, :, band]).max() < 0.05


def test_prosody_of_a_sine():
    features = prosody_features(tone(1000.0, 1.0, amplitude=0.8), SAMPLE_RATE, 25)
    np.testing.assert_allclose(features[:, 0], 2 * 1000.0 / SAMPLE_RATE, atol=2 / 640)
    np.testing.assert_allclose(features[:, 1], 0.8 / np.sqrt(2), rtol=1e-3)


def test_prosody_is_librosas_at_hop_640():
    audio = np.random.default_rng(2).normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
    features = prosody_features(audio, SAMPLE_RATE, 25)
    rms = librosa.feature.rms(y=audio, frame_length=640, hop_length=640, center=False)[0]
    crossings = librosa.feature.zero_crossing_rate(audio, frame_length=640, hop_length=640, center=False)[0]
    np.testing.assert_allclose(features[:, 1], rms, rtol=1e-5)
    np.testing.assert_allclose(features[:, 0], crossings, atol=1 / 640)


def test_prosody_loudness_is_in_the_frame_that_sounds():
    audio = np.zeros(SAMPLE_RATE, np.float32)
    audio[640 * 7 : 640 * 8] = tone(400.0, 0.04)
    assert np.flatnonzero(prosody_features(audio, SAMPLE_RATE, 25)[:, 1]).tolist() == [7]


@pytest.mark.parametrize(
    ("size", "hop", "bands", "lowest", "highest"), [(800, 200, 80, 55.0, 7600.0), (400, 160, 40, 0, 8000)]
)
def test_spectra_are_librosas(size, hop, bands, lowest, highest):
    audio = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    expected = librosa.feature.melspectrogram(
        y=audio, sr=16000, n_fft=size, hop_length=hop, n_mels=bands, fmin=lowest, fmax=highest, power=1.0, center=False
    )
    found = acoustics.magnitudes(audio, size, hop) @ acoustics.mel_filters(size, bands, lowest, highest)
    np.testing.assert_allclose(found, expected.T, rtol=1e-5)
    emphasised = librosa.effects.preemphasis(audio, coef=acoustics.MEL_PREEMPHASIS)
    np.testing.assert_allclose(acoustics._emphasised(audio), emphasised, rtol=1e-5, atol=1e-6)
