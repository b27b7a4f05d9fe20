"""Head poses are recovered from pictures of a textured head whose true poses are known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.expression_basis import LEFT_IRIS, LOWER_LIP_OUTER, mean_face
from dialogue_nerfstudio.process.head_pose import HeadTrack, project
from dialogue_nerfstudio.process.head_registration import register_head, surface_points

FRAMES, SIZE, FOCAL, DISTANCE = 40, 160, 400.0, 0.62
HIDDEN = 17


def depth(x, y):
    """The surface of the head, z over x and y: a rounded face without a nose."""
    return 0.075 - 5.0 * x**2 - 4.0 * y**2


def texture(x, y):
    waves = np.sin(900 * x + 1.0) * np.cos(700 * y) + np.sin(420 * x - 610 * y) + np.cos(300 * x + 350 * y + 2.0)
    return 128 + 30 * waves


def render(rotation, translation):
    """A picture of the surface: every pixel's ray is followed to where it meets it."""
    v, u = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    rays = np.stack([(u - SIZE / 2) / FOCAL, (SIZE / 2 - v) / FOCAL, -np.ones_like(u)], axis=-1) @ rotation
    origin = -translation @ rotation
    along = (0.07 - origin[2]) / rays[..., 2]
    for _ in range(12):
        x, y = origin[0] + along * rays[..., 0], origin[1] + along * rays[..., 1]
        along = (depth(x, y) - origin[2]) / rays[..., 2]
    picture = texture(x, y)
    picture[(np.abs(x) > 0.12) | (np.abs(y) > 0.12)] = 60
    return picture


def waves(rng, size):
    """Slow movements of that size, zero on average."""
    time = np.arange(FRAMES) / 25
    values = sum(np.sin(2 * np.pi * (f * time[:, None] + rng.random(3))) for f in (0.7, 1.3, 2.1))
    return size * (values - values.mean(axis=0))


@pytest.fixture(scope="module")
def recording():
    """(frames, true track): pictures are brighter and darker now and then, noisy, and one shows no face."""
    rng = np.random.default_rng(0)
    shape = mean_face().copy()
    shape[:, 2] = depth(shape[:, 0], shape[:, 1])
    rotations = Rotation.from_rotvec(waves(rng, 0.06)).as_matrix()
    translations = waves(rng, 0.006) + np.array([0.0, 0.0, -DISTANCE])
    frames = []
    for index in range(FRAMES):
        picture = render(rotations[index], translations[index]) * (1 + 0.1 * np.sin(index)) + 8 * np.cos(2 * index)
        picture = np.clip(picture + 2 * rng.normal(size=picture.shape), 0, 255)
        frames.append(picture.astype(np.uint8))
    frames[HIDDEN] = rng.integers(0, 255, (SIZE, SIZE)).astype(np.uint8)
    truth = HeadTrack(shape, rotations, translations, np.zeros(FRAMES), FOCAL, (SIZE / 2, SIZE / 2), 0.0)
    return frames, truth


VISIBLE = np.arange(FRAMES) != HIDDEN


def erring(truth):
    """The track as a tracker that errs slowly would have it, about half a pixel and a third of a degree."""
    rng = np.random.default_rng(1)
    return replace(
        truth,
        rotations=Rotation.from_rotvec(waves(rng, 0.004)).as_matrix() @ truth.rotations,
        translations=truth.translations + waves(rng, 0.0006),
    )


def errors(track, truth):
    """(degrees, pixels at the nose): how far poses stray from the truth, beyond what they do all the time."""
    turned = Rotation.from_matrix(np.swapaxes(truth.rotations, 1, 2) @ track.rotations)
    turned = (turned.mean().inv() * turned).as_rotvec(degrees=True)
    nose = np.array([[0.0, 0.0, 0.075]])
    tracks = [project(nose, t.rotations, t.translations, FOCAL, t.center)[:, 0] for t in (track, truth)]
    moved = tracks[0] - tracks[1]
    moved = moved - moved[VISIBLE].mean(axis=0)
    return tuple(np.sqrt((values**2).sum(axis=1)[VISIBLE].mean()) for values in (turned, moved))


def test_poses_come_closer_to_the_truth(recording):
    frames, truth = recording
    tracked = erring(truth)
    degrees, pixels = errors(tracked, truth)
    better = register_head(iter(frames), tracked, VISIBLE)
    degrees_left, pixels_left = errors(better, truth)
    assert degrees > 0.3 and pixels > 0.4
    assert degrees_left < 0.4 * degrees
    assert pixels_left < 0.25 * pixels
    assert np.array_equal(better.shape, tracked.shape)


def test_true_poses_stay(recording):
    frames, truth = recording
    degrees, pixels = errors(register_head(iter(frames), truth, VISIBLE), truth)
    assert degrees < 0.12
    assert pixels < 0.08


def test_a_frame_without_a_face_goes_along_with_its_neighbours(recording):
    frames, truth = recording
    tracked = erring(truth)
    better = register_head(iter(frames), tracked, VISIBLE)
    moved = better.translations - tracked.translations
    assert np.allclose(moved[HIDDEN], 0.5 * (moved[HIDDEN - 1] + moved[HIDDEN + 1]))
    # And what it shows is no part of the mean.
    frames = list(frames)
    frames[HIDDEN] = np.zeros_like(frames[HIDDEN])
    assert np.allclose(register_head(iter(frames), tracked, VISIBLE).translations, better.translations)


def test_what_speaks_and_blinks_does_not_count():
    shape = mean_face()
    points, weights = surface_points(shape)
    assert len(points) == len(weights) > 300
    assert weights.mean() == pytest.approx(1.0)
    assert points[:, 1].min() > shape[list(LOWER_LIP_OUTER), 1].max()
    to_iris = np.linalg.norm(points[:, :2] - shape[LEFT_IRIS[0], :2], axis=1)
    assert to_iris.min() > 0.005
