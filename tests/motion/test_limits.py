"""Poses stay within what was recorded, smoothly, and those well inside stay as they are."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.motion.limits import FEWEST_FRAMES, PoseLimits

SPREAD = np.array([0.1, 0.2, 0.05, 0.01, 0.005, 0.02])


def recorded(count: int = 2000, seed: int = 0) -> np.ndarray:
    """A person who mostly looks to the right and turns and leans together."""
    offsets = np.random.default_rng(seed).normal(size=(count, 6)) * SPREAD
    offsets[:, 3] += 0.05 * offsets[:, 1]
    rotation = Rotation.from_rotvec([0.0, -0.4, 0.0]) * Rotation.from_rotvec(offsets[:, :3])
    return np.concatenate([rotation.as_rotvec(), [0.01, 0.02, 0.03] + offsets[:, 3:]], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def limits():
    return PoseLimits.of(recorded())


def test_the_recording_itself_is_hardly_touched(limits):
    poses = recorded()
    limited, radius = limits.limit(poses)
    assert radius.max() == pytest.approx(limits.outer)
    np.testing.assert_array_equal(limited[radius <= limits.inner], poses[radius <= limits.inner])
    assert (radius > limits.inner).mean() < 0.1
    # In whitened numbers six independent ones: the mean squared radius is 6.
    assert np.mean(radius**2) == pytest.approx(6.0, rel=0.05)


def test_no_pose_gets_outside_however_far_it_was(limits):
    rng = np.random.default_rng(1)
    far = recorded(500, seed=2) + rng.normal(size=(500, 6)) * SPREAD * rng.uniform(0, 12, (500, 1))
    limited, radius = limits.limit(far)
    assert radius.max() > 3 * limits.outer
    assert limits.radius(limited).max() <= limits.outer * (1 + 1e-5)
    order = np.argsort(radius)
    assert (np.diff(limits.radius(limited)[order]) > -1e-5).all(), "who goes further stays further out"


def test_a_pose_that_leaves_slows_down_without_a_jump_or_a_kink(limits):
    turn = np.linspace(0.0, 1.2, 2401)
    poses = np.zeros((len(turn), 6))
    poses[:, :3] = (Rotation.from_rotvec([0, -0.4, 0]) * Rotation.from_rotvec(turn[:, None] * [0, 1.0, 0])).as_rotvec()
    poses[:, 3:] = [0.01, 0.02, 0.03]
    limited, _ = limits.limit(poses)
    radius = limits.radius(limited)
    # The turn begins beside the mean, and passes by it first.
    steps = np.diff(radius)[600:]
    assert steps.min() >= -1e-9, "it never turns back"
    assert steps.max() <= np.diff(limits.radius(poses))[600:].max() * (1 + 1e-6)
    assert np.abs(np.diff(steps)).max() < 0.02 * steps.max(), "the slope is continuous"


def test_large_rotations_are_limited_the_short_way(limits):
    behind = recorded(50, seed=3)
    behind[:, :3] = (Rotation.from_rotvec(behind[:, :3]) * Rotation.from_rotvec([0, 3.0, 0])).as_rotvec()
    limited, _ = limits.limit(behind)
    assert limits.radius(limited).max() <= limits.outer * (1 + 1e-5)


def test_who_never_moved_is_held_to_the_trackers_noise():
    still = np.tile([0.1, 0.0, 0.0, 0.0, 0.0, 0.01], (100, 1))
    still += 1e-4 * np.random.default_rng(0).normal(size=still.shape)
    limits = PoseLimits.of(still)
    moved, _ = limits.limit(still + np.array([0.3, 0, 0, 0, 0, 0]))
    assert np.isfinite(moved).all() and np.abs(moved - still).max() < 0.02


def test_too_few_poses_have_no_limits():
    with pytest.raises(ValueError, match=str(FEWEST_FRAMES)):
        PoseLimits.of(recorded(FEWEST_FRAMES - 1))
