"""Windows of spectrogram are those of a conversation's own feature, and parts join to what they were cut from."""

import numpy as np

from dialogue_nerfstudio.conversation.acoustics import mel_features, mel_spectrogram
from dialogue_nerfstudio.motion.generator import join_parts
from dialogue_nerfstudio.motion.signals import MotionSignals, mel_windows


def _sound(seconds: float) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(round(16_000 * seconds))).astype(np.float32)


def test_windows_equal_the_feature_mel():
    audio = _sound(2.0)
    expected = mel_features(audio, 16_000, 50)
    windows = mel_windows(mel_spectrogram(audio), range(50))
    np.testing.assert_allclose(windows, expected, atol=1e-6)


def test_frames_cut_everything_alike():
    audio = _sound(4.0)
    mel = mel_spectrogram(audio)[None]
    signals = MotionSignals(("p0",), np.zeros((1, 100, 2), np.float32), mel, np.ones((1, 100), bool))
    part = signals.frames(50, 75)
    assert part.num_frames == 25 and part.prosody.shape[1] == 25
    # 50 frames are 160 steps exactly, so inside windows are the same ones.
    np.testing.assert_array_equal(mel_windows(part.mel, range(3, 22)), mel_windows(mel, range(53, 72)))


def test_join_parts_keeps_order_and_fields():
    first = {"p0": {"blink": np.zeros((2, 2), np.float32)}}
    second = {"p0": {"blink": np.ones((3, 2), np.float32)}}
    joined = join_parts([first, {}, second])
    assert joined["p0"]["blink"][:, 0].tolist() == [0, 0, 1, 1, 1]
