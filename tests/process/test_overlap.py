"""Two voices at once: the windows that teach it, and what is learnt, on embeddings whose mixtures are known."""

import numpy as np

from dialogue_nerfstudio.process.overlap import (
    OverlapConfig,
    pure_windows,
    state_scores,
    states_of,
    teaching_windows,
)


def voices(seed: int = 0, count: int = 40) -> list[np.ndarray]:
    """Windows of two voices whose power lies in different bands."""
    rng = np.random.default_rng(seed)
    low, high = np.zeros(40), np.zeros(40)
    low[:25], high[15:] = 1.0, 1.0
    return [rng.uniform(0.5, 1.5, (count, 50, 40)).astype(np.float32) * shape for shape in (low, high)]


def embed(windows: np.ndarray) -> np.ndarray:
    """A stand-in for the network: the mean loudness of the bands, as a unit vector."""
    mean = np.log1p(windows.mean(1))
    return (mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float32)


def test_states_are_voices_and_pairs():
    assert states_of(2) == [(0,), (1,), (0, 1)]
    assert states_of(3) == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]


def test_pure_windows_are_inside_a_turn_without_gaps():
    times = np.concatenate([np.arange(0, 2, 0.1), np.arange(3, 5, 0.1)])
    labels = np.concatenate([np.zeros(30, int), np.ones(10, int)])
    pure = pure_windows(times, labels, 0.1, 0.3)
    assert pure[5] and pure[15] and not pure[19], "the last before a gap has nothing after it"
    assert not pure[20] and pure[24] and not pure[28:33].any() and pure[35]


def test_teaching_windows_hold_what_they_say_in_their_middle():
    low, high = voices()
    made, truth = teaching_windows([low, high], OverlapConfig(samples=50))
    assert set(truth) == {0, 1, 2} and made.shape[1:] == (50, 40)
    middle = made[:, 25]
    np.testing.assert_array_equal(middle[:, :15].mean(1) > 0, (truth == 0) | (truth == 2))
    np.testing.assert_array_equal(middle[:, 25:].mean(1) > 0, (truth == 1) | (truth == 2))
    again, _ = teaching_windows([low, high], OverlapConfig(samples=50))
    np.testing.assert_array_equal(made, again)


def test_mixtures_are_told_from_single_voices():
    low, high = voices()
    new_low, new_high = voices(seed=1)
    windows = np.concatenate([low, high, new_low[:20] + new_high[:20]])
    labels = np.concatenate([np.zeros(40, int), np.ones(40, int), np.tile([0, 1], 10)])
    pure = np.arange(100) < 80
    scores = state_scores(embed(windows), windows.__getitem__, pure, labels, embed, OverlapConfig(pair_bonus=0.0))
    assert (scores.argmax(1) == np.repeat([0, 1, 2], [40, 40, 20])).mean() > 0.97
    assert scores.min() >= -6.0
    raised = state_scores(embed(windows), windows.__getitem__, pure, labels, embed, OverlapConfig(pair_bonus=1.5))
    np.testing.assert_allclose(raised[:, 2] - scores[:, 2], 1.5, atol=1e-6)


def test_too_little_of_a_voice_teaches_nothing():
    low, high = voices(count=12)
    windows, labels = np.concatenate([low, high]), np.repeat([0, 1], 12)
    pure = np.concatenate([np.ones(12, bool), np.arange(12) < 5])
    assert state_scores(embed(windows), windows.__getitem__, pure, labels, embed, OverlapConfig()) is None
    assert state_scores(embed(low), low.__getitem__, pure[:12], labels[:12], embed, OverlapConfig()) is None
