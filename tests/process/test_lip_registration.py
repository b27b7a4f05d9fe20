"""Mouths whose opening and width are known: pictures bring erring signals closer to them."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from dialogue_nerfstudio.conversation.expression_basis import expression_basis, mean_face
from dialogue_nerfstudio.process import lip_registration as lips
from dialogue_nerfstudio.process.expression import FaceMotion
from dialogue_nerfstudio.process.head_pose import HeadTrack, project

FRAMES, SIZE, FOCAL, DISTANCE = 260, 192, 384.0, 0.62
NAMES = expression_basis().expression_names
OPEN, WIDE, BROW = (NAMES.index(name) for name in ("jaw_open", "lip_corner_out_left", "brow_raise_left"))
HIDDEN, COVERED = 40, 90
VISIBLE = np.arange(FRAMES) != HIDDEN


def truth():
    """Coefficients [T, E]: a mouth that opens and widens, and a brow."""
    time, coefficients = np.arange(FRAMES) / 25, np.zeros((FRAMES, len(NAMES)))
    coefficients[:, OPEN] = 0.4 + 0.2 * np.sin(9 * time) + 0.15 * np.sin(23 * time + 1)
    coefficients[:, WIDE] = 0.5 + 0.3 * np.sin(5 * time + 2) * np.cos(14 * time)
    coefficients[:, BROW] = 0.5 + 0.4 * np.sin(7 * time)
    return coefficients


def head_track():
    time = np.arange(FRAMES)[:, None] / 25
    translations = 0.004 * np.sin(time * [2.0, 3.0, 1.0]) + [0.0, 0.02, -DISTANCE]
    rotations = np.repeat(np.eye(3)[None], FRAMES, axis=0)
    return HeadTrack(mean_face(), rotations, translations, np.zeros(FRAMES), FOCAL, (SIZE / 2, SIZE / 2), 0.0)


def mouth_pictures(head, coefficients):
    """A dark opening with a row of teeth and a red rim, on skin, drawn where the head is; noise on top."""
    rng, fine, frames = np.random.default_rng(0), 4, []
    middle = lips.patch_points(head.shape)[..., :2].reshape(-1, 2).mean(axis=0)
    at = np.array([[*middle, head.shape[list(lips.LIPS), 2].mean()]])
    for index in range(FRAMES):
        place = project(at, head.rotations[index], head.translations[index], FOCAL, head.center)[0] * fine
        pixels = fine * FOCAL / DISTANCE
        half = (
            pixels * (0.018 + 0.008 * coefficients[index, WIDE]),
            pixels * (0.001 + 0.016 * coefficients[index, OPEN]),
        )
        canvas = np.full((SIZE * fine, SIZE * fine), 170, np.uint8)
        center = tuple(int(v) for v in place)
        cv2.ellipse(canvas, center, (int(half[0] + 12), int(half[1] + 14)), 0, 0, 360, 110, -1)
        cv2.ellipse(canvas, center, (int(half[0]), int(half[1])), 0, 0, 360, 30, -1)
        cv2.ellipse(canvas, center, (int(0.8 * half[0]), int(0.5 * half[1])), 0, 180, 360, 220, -1)
        picture = cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA) + 2 * rng.normal(size=(SIZE, SIZE))
        frames.append(np.clip(picture, 0, 255).astype(np.uint8))
    frames[HIDDEN] = rng.integers(0, 255, (SIZE, SIZE)).astype(np.uint8)
    return frames


def face_of(expression):
    rng = np.random.default_rng(2)
    return FaceMotion(
        geometry=np.zeros(4),
        expression=expression,
        residual=0.05 * rng.normal(size=(FRAMES, 2)),
        residual_basis=np.zeros((2, 478, 2)),
        blink=np.zeros((FRAMES, 2)),
        gaze=np.zeros((FRAMES, 2, 2)),
        mouth_opening=np.zeros(FRAMES),
        fit_error=0.0,
    )


@pytest.fixture(scope="module")
def recording():
    """(pictures, head, what landmarks say: a quarter of a deviation off)."""
    head, coefficients = head_track(), truth()
    rng, tracked = np.random.default_rng(1), coefficients.copy()
    for column in (OPEN, WIDE, BROW):
        tracked[:, column] += 0.25 * tracked[:, column].std() * rng.normal(size=FRAMES)
    tracked = np.clip(tracked, expression_basis().lower, expression_basis().upper)
    return mouth_pictures(head, coefficients), head, face_of(tracked)


def error(face, column, frames=VISIBLE):
    """How far a coefficient is off, as a line of it tells the truth best."""
    known, found = truth()[frames, column], face.expression[frames, column]
    return (known - np.polyval(np.polyfit(found, known, 1), found)).std()


def test_expressions_come_closer_to_the_truth(recording):
    frames, head, tracked = recording
    found = lips.register_lips(iter(frames), head, tracked, expression_basis(), VISIBLE)
    assert error(found, OPEN) < 0.6 * error(tracked, OPEN)
    assert error(found, WIDE) < 0.97 * error(tracked, WIDE)


def test_what_is_not_the_mouth_stays(recording):
    frames, head, tracked = recording
    found = lips.register_lips(iter(frames), head, tracked, expression_basis(), VISIBLE)
    others = np.setdiff1d(np.arange(len(NAMES)), lips.mouth_coefficients(expression_basis()))
    assert BROW in others and OPEN not in others
    assert np.array_equal(found.expression[:, others], tracked.expression[:, others])
    assert np.allclose(found.expression[HIDDEN], tracked.expression[HIDDEN])
    assert np.allclose(found.residual[HIDDEN], tracked.residual[HIDDEN])
    for name in ("geometry", "blink", "gaze", "mouth_opening", "residual_basis"):
        assert getattr(found, name) is getattr(tracked, name)


def test_frames_that_were_not_learned_from_follow(recording, monkeypatch):
    frames, head, tracked = recording
    monkeypatch.setattr(lips, "NUM_LEARNED", 200)
    found = lips.register_lips(iter(frames), head, tracked, expression_basis(), VISIBLE)
    seen = np.flatnonzero(VISIBLE)
    learned = seen[np.unique(np.linspace(0, len(seen) - 1, 200).round().astype(int))]
    others = np.setdiff1d(seen, learned)
    assert error(found, OPEN, others) < 0.7 * error(tracked, OPEN, others)


def test_light_is_no_expression(recording):
    frames, head, tracked = recording
    rng = np.random.default_rng(3)
    lit = [
        np.clip(frame * gain + offset, 0, 255).astype(np.uint8)
        for frame, gain, offset in zip(
            frames, 1 + 0.08 * rng.normal(size=FRAMES), 6 * rng.normal(size=FRAMES), strict=True
        )
    ]
    found = lips.register_lips(iter(lit), head, tracked, expression_basis(), VISIBLE)
    assert error(found, OPEN) < 0.6 * error(tracked, OPEN)


def test_a_hand_before_the_mouth_moves_nothing_far(recording):
    frames, head, tracked = recording
    plain = lips.register_lips(iter(frames), head, tracked, expression_basis(), VISIBLE)
    covered = list(frames)
    covered[COVERED] = np.full_like(frames[0], 60)
    covered[COVERED][:, ::7] = 250
    found = lips.register_lips(iter(covered), head, tracked, expression_basis(), VISIBLE)
    deviation = tracked.expression[:, OPEN].std()
    assert abs(found.expression[COVERED, OPEN] - tracked.expression[COVERED, OPEN]) < 0.5 * deviation
    others = VISIBLE & (np.arange(FRAMES) != COVERED)
    assert error(found, OPEN, others) < 1.25 * error(plain, OPEN, others)


def test_coefficients_stay_in_their_bounds(recording):
    frames, head, tracked = recording
    basis = expression_basis()
    low = replace(tracked, expression=np.clip(tracked.expression - 0.2, basis.lower, basis.upper))
    found = lips.register_lips(iter(frames), head, low, basis, VISIBLE)
    assert (found.expression >= basis.lower).all() and (found.expression <= basis.upper).all()


def test_nothing_is_learned_from_a_moment_or_a_still_face(recording):
    frames, head, tracked = recording
    moment = np.arange(FRAMES) < lips.LEAST_LEARNED - 1
    assert lips.register_lips(iter(frames), head, tracked, expression_basis(), moment) is tracked
    still = replace(tracked, expression=np.zeros_like(tracked.expression), residual=np.zeros_like(tracked.residual))
    assert lips.register_lips(iter(frames), head, still, expression_basis(), VISIBLE) is still


def test_a_picture_without_anything_moves_nothing(recording):
    _, head, tracked = recording
    grey = [np.full((SIZE, SIZE), 90, np.uint8)] * FRAMES
    found = lips.register_lips(iter(grey), head, tracked, expression_basis(), VISIBLE)
    assert np.allclose(found.expression, tracked.expression, atol=1e-6)
