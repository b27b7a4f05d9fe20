"""Sway is recovered from pictures whose torso moves by known amounts."""

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.conversation import Camera
from dialogue_nerfstudio.conversation.video import HEAD, TORSO, GreyReader, LabelReader, LabelWriter, VideoWriter
from dialogue_nerfstudio.process.sway import STEP, between, beyond_head, measure_sway

FRAMES, SIZE, DISTANCE, FOCAL = 60, 192, 0.8, 400.0


@pytest.fixture(scope="module")
def movement():
    """Head poses, and the torso's own motion: metres right, up, radians counter-clockwise, shares wider, taller,
    sheared."""
    rng = np.random.default_rng(0)
    time = np.arange(FRAMES) / 25
    angles = 0.15 * np.sin(2 * np.pi * np.outer(time, [0.9, 0.6, 0.4]) + rng.random(3))
    places = 0.01 * np.sin(2 * np.pi * np.outer(time, [0.5, 0.8, 0.3]) + rng.random(3))
    head_pose = np.concatenate([Rotation.from_euler("YXZ", angles).as_rotvec(), places], axis=1)
    size = np.array([0.002, 0.003, 0.012, 0.015, 0.02, 0.01])
    own = size * np.sin(2 * np.pi * np.outer(time, [1.7, 2.1, 1.3, 1.1, 1.9, 1.5]))
    return head_pose, beyond_head(own, head_pose), angles, places


@pytest.fixture(scope="module")
def recording(movement, tmp_path_factory):
    """A video of a textured torso that follows the head linearly and sways by itself; one frame shows an arm."""
    _, sway, angles, places = movement
    folder = tmp_path_factory.mktemp("sway")
    rng = np.random.default_rng(1)
    cloth = cv2.GaussianBlur(rng.random((SIZE, SIZE, 3)).astype(np.float32), (0, 0), 3)
    cloth = np.uint8(255 * np.clip(0.5 + 4 * (cloth - 0.5), 0, 1))
    top, pixels = SIZE // 2, FOCAL / DISTANCE
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[top:, 16:-16], labels[20:top, 60:-60] = TORSO, HEAD
    centre = np.array([SIZE / 2, 0.75 * SIZE])
    with (
        VideoWriter(folder / "video.mp4", 25, SIZE, SIZE) as video,
        LabelWriter(folder / "labels.mkv", 25, SIZE, SIZE) as maps,
    ):
        for frame in range(FRAMES):
            right, up, turn, wider, taller, sheared = sway[frame]
            right, up = right + 0.02 * angles[frame, 0], up + 0.5 * places[frame, 1]
            # In the picture the vertical axis points down.
            linear = np.array([[1.0 + wider, turn - sheared], [-turn - sheared, 1.0 + taller]])
            matrix = np.column_stack([linear, centre - linear @ centre + pixels * np.array([right, -up])])
            picture = cv2.warpAffine(cloth, matrix, (SIZE, SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
            picture[:top] = 90
            if frame == 30:
                picture[top:] = rng.integers(255, size=3)
            video.write(picture)
            maps.write(labels)
    return folder


def camera() -> Camera:
    pose = np.eye(4)[:3]
    pose[2, 3] = DISTANCE
    return Camera(SIZE, SIZE, FOCAL, SIZE / 2, SIZE / 2, pose)


def test_sway_is_what_the_head_does_not_explain(recording, movement):
    head_pose, sway, *_ = movement
    with GreyReader(recording / "video.mp4") as frames, LabelReader(recording / "labels.mkv") as labels:
        found = measure_sway(frames, labels, camera(), head_pose)
    kept = np.delete(np.arange(FRAMES), [29, 30, 31])
    error, size = (np.sqrt(np.square(values[kept]).mean(axis=0)) for values in (found - sway, sway))
    # Sizes are seen less exactly than places.
    assert (error < np.array([0.2, 0.2, 0.2, 0.3, 0.3, 0.3]) * size).all(), error / size
    for column in range(6):
        assert np.corrcoef(found[kept, column], sway[kept, column])[0, 1] > (0.98 if column < 3 else 0.96)
    # The arm's frame lies between its neighbours.
    assert (np.abs(found[30] - sway[30]) < 0.5 * np.abs(sway).max(axis=0)).all()


def test_no_torso_no_sway(recording, movement, tmp_path):
    with LabelWriter(tmp_path / "labels.mkv", 25, SIZE, SIZE) as maps:
        for _ in range(FRAMES):
            maps.write(np.zeros((SIZE, SIZE), np.uint8))
    with GreyReader(recording / "video.mp4") as frames, LabelReader(tmp_path / "labels.mkv") as labels:
        assert (measure_sway(frames, labels, camera(), movement[0]) == 0).all()


def test_what_follows_the_head_is_no_sway(movement):
    head_pose, _, angles, _ = movement
    assert np.abs(beyond_head(0.05 * angles, head_pose)).max() < 0.1 * 0.05 * np.abs(angles).max()


def test_frames_between_the_measured_ones_lie_on_a_smooth_curve():
    time = np.arange(41)
    truth = np.stack([np.sin(0.3 * time), np.cos(0.2 * time), *np.zeros((4, 41))], axis=1)
    measured = np.arange(0, 41, STEP)
    found = between(measured, truth[measured], 41)
    lines = np.stack([np.interp(time, measured, column) for column in truth[measured].T], axis=1)
    assert np.allclose(found[measured], truth[measured])
    assert np.abs(found - truth).max() < 0.2 * np.abs(lines - truth).max()


def test_long_gaps_are_bridged_by_straight_lines_and_ends_go_on():
    measured = np.array([4, 6, 8, 20, 22])
    values = np.repeat(np.array([0.0, 1.0, 0.0, 6.0, -3.0])[:, None], 6, axis=1)
    found = between(measured, values, 30)
    assert np.allclose(found[8:21], np.linspace(0.0, 6.0, 13)[:, None])
    assert np.allclose(found[:5], 0.0) and np.allclose(found[22:], -3.0)


def test_one_measured_frame_holds_for_all():
    assert np.allclose(between(np.array([3]), np.full((1, 6), 2.0), 7), 2.0)
