"""Lip metrics on moved mouths and delayed envelopes."""

import numpy as np
import pytest

from dialogue_nerfstudio.metrics.lips import (
    MOUTH_48_67,
    landmark_distance,
    landmark_distance_normalised,
    mouth_points,
    sync_curve,
    sync_offset,
)


def test_distance_ignores_where_the_mouth_is():
    mouth = np.random.default_rng(0).normal(size=(10, 20, 2))
    assert landmark_distance(mouth + np.array([30.0, -5.0]), mouth) == pytest.approx(0.0, abs=1e-9)


def test_distance_by_hand():
    true = np.zeros((2, 20, 2))
    predicted = true.copy()
    predicted[:, :10, 1] = 4.0
    # Centred, ten points are 2 above and ten 2 below.
    assert landmark_distance(predicted, true) == pytest.approx(2.0)
    assert landmark_distance_normalised(predicted, true, np.array([40.0, 40.0])) == pytest.approx(0.05)
    assert landmark_distance_normalised(2 * predicted, 2 * true, np.array([80.0, 80.0])) == pytest.approx(0.05)


def test_mouth_points_are_twenty_different_ones():
    landmarks = np.arange(478 * 2, dtype=float).reshape(1, 478, 2)
    assert mouth_points(landmarks).shape == (1, 20, 2) and len(set(MOUTH_48_67)) == 20


@pytest.mark.parametrize("lag", [-6, 0, 3])
def test_offset_of_a_delayed_envelope(lag):
    envelope = np.convolve(np.random.default_rng(1).random(300), np.ones(3) / 3, "same")
    opening = np.roll(envelope, lag) + 0.01 * np.random.default_rng(2).random(300)
    offset = sync_offset(opening, envelope, 25.0)
    assert offset.seconds == pytest.approx(lag / 25) and offset.peak > 0.95


def test_offset_of_signals_that_never_change():
    assert sync_offset(np.ones(100), np.random.default_rng(0).random(100), 25.0).peak == 0.0


def test_offset_needs_enough_frames():
    with pytest.raises(ValueError, match="at least 30"):
        sync_offset(np.ones(20), np.ones(20), 25.0)


def test_only_heard_frames_count():
    rng = np.random.default_rng(1)
    envelope, heard = rng.random(300), np.arange(300) < 150
    opening = np.where(heard, np.roll(envelope, 4), rng.random(300))
    curve = sync_curve(opening, envelope, 25.0, heard=heard)
    assert curve.best.seconds == pytest.approx(4 / 25) and curve.best.peak > 0.95
    np.testing.assert_allclose(curve.lags, np.arange(-10, 11) / 25)
    assert sync_curve(opening, envelope, 25.0, heard=np.zeros(300, bool)).best.peak == 0.0
