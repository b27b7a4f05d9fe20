"""Tracking metrics on errors that are put in by hand."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.metrics.tracking import (
    blink_events,
    blink_score,
    blinks_per_second,
    event_score,
    gaze_error_degrees,
    position_difference,
    role_accuracy,
    rotation_difference,
    rotation_error_degrees,
    translation_error,
)


def rotations(seed: int, scale: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (50, 3))


def test_rotation_error_of_a_known_turn():
    true = rotations(0)
    turn = Rotation.from_euler("y", 7.0, degrees=True)
    predicted = (Rotation.from_rotvec(true) * turn).as_rotvec()
    np.testing.assert_allclose(rotation_error_degrees(predicted, true), 7.0, atol=1e-6)
    np.testing.assert_allclose(rotation_error_degrees(predicted, true, remove_offset=True), 0.0, atol=1e-5)
    assert rotation_error_degrees(true, true).max() < 1e-6


def test_removing_the_offset_keeps_the_rest():
    true = rotations(1)
    wobble = Rotation.from_rotvec(np.radians([0.0, 2.0, 0.0]) * np.where(np.arange(50) % 2, 1, -1)[:, None])
    turn = Rotation.from_euler("x", 10.0, degrees=True)
    predicted = (Rotation.from_rotvec(true) * wobble * turn).as_rotvec()
    np.testing.assert_allclose(rotation_error_degrees(predicted, true, remove_offset=True), 2.0, atol=1e-3)


def test_rotation_error_does_not_depend_on_the_way_round():
    near, far = np.array([[0.0, 0.0, np.pi - 0.01]]), np.array([[0.0, 0.0, -np.pi + 0.01]])
    np.testing.assert_allclose(rotation_error_degrees(near, far), np.degrees(0.02), atol=1e-6)


def test_translation_error():
    true = rotations(2)
    predicted = true + np.array([0.03, 0.0, 0.04])
    np.testing.assert_allclose(translation_error(predicted, true), 0.05, atol=1e-9)
    np.testing.assert_allclose(translation_error(predicted, true, remove_offset=True), 0.0, atol=1e-9)
    assert position_difference(predicted, true) == pytest.approx(0.07 / 3)
    assert rotation_difference(true, true) == 0.0


def blinking(times: list[float], seconds: float = 10.0, fps: float = 25.0, height: float = 1.0) -> np.ndarray:
    time = np.arange(int(seconds * fps)) / fps
    signal = sum((height * np.exp(-(((time - t) / 0.08) ** 2)) for t in times), np.zeros_like(time))
    return np.stack([signal, signal], 1)


def test_blink_events_are_found_where_they_are():
    np.testing.assert_allclose(blink_events(blinking([1.0, 4.0, 8.5]), 25.0), [1.0, 4.0, 8.5], atol=0.03)
    assert len(blink_events(blinking([2.0], height=0.3), 25.0)) == 0
    assert blinks_per_second(blinking([1.0, 4.0]), 25.0) == pytest.approx(0.2)


def test_blinks_at_the_ends_count_and_closed_eyes_do_not():
    blink = np.zeros((100, 2))
    blink[:3] = 1.0
    blink[-2:] = 1.0
    blink[30:70] = 1.0
    np.testing.assert_allclose(blink_events(blink, 25.0), [1.5 / 25, 99 / 25])


def test_event_score_by_hand():
    score = event_score(np.array([1.0, 4.1, 6.0]), np.array([1.1, 4.0, 8.0, 9.0]))
    assert (score.matched, score.predicted, score.true) == (2, 3, 4)
    assert score.precision == pytest.approx(2 / 3) and score.recall == 0.5 and score.f1 == pytest.approx(4 / 7)


def test_an_event_is_matched_once():
    assert event_score(np.array([1.0, 1.05]), np.array([1.02])).matched == 1
    # Greedy by distance would match 1.1 to 1.05 and leave both others alone.
    assert event_score(np.array([1.1, 0.9]), np.array([1.05, 1.25])).matched == 2


def test_no_events():
    none = np.zeros(0)
    assert event_score(none, none).f1 == 1.0
    assert event_score(none, np.array([1.0])).f1 == event_score(np.array([1.0]), none).f1 == 0.0


def test_blink_score_of_a_shifted_signal():
    true = blinking([1.0, 3.0, 5.0, 7.0])
    assert blink_score(np.roll(true, 2, axis=0), true, 25.0).f1 == 1.0
    assert blink_score(np.roll(true, 20, axis=0), true, 25.0).f1 == 0.0


def test_role_accuracy_by_hand():
    true = np.array([[1, 0], [1, 0], [0, 1], [0, 0]], bool)
    predicted = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], bool)
    assert role_accuracy(predicted, true) == {"per_frame": 0.5, "per_role": 5 / 8}


def test_gaze_error_of_a_known_turn():
    true = np.random.default_rng(3).normal(0, 0.1, (20, 2, 2))
    true[:, :, 1] = 0.0
    predicted = true.copy()
    predicted[:, :, 0] += np.deg2rad(5.0)
    predicted[4] += 1.0
    seen = np.arange(20) != 4
    np.testing.assert_allclose(gaze_error_degrees(predicted, true, seen), 5.0, atol=1e-4)
    np.testing.assert_allclose(gaze_error_degrees(predicted, true, seen, remove_offset=True), 0.0, atol=1e-4)
    assert len(gaze_error_degrees(predicted, true, seen)) == 19
