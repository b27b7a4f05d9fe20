"""A motion keeps its numbers through a file, and says which frame of which field is bad."""

import numpy as np
import pytest
from samples import make_motion

from dialogue_nerfstudio.conversation import DialogueError, Motion


@pytest.mark.parametrize("num_residuals", [0, 3])
def test_round_trip(tmp_path, num_residuals):
    motion = make_motion(num_residuals=num_residuals)
    motion.save(tmp_path / "motion.npz")
    loaded = Motion.load(tmp_path / "motion.npz")
    for name in ("head_pose", "expression", "blink", "gaze", "expression_residual"):
        assert np.array_equal(getattr(loaded, name), getattr(motion, name))
    assert (loaded.fps, loaded.expression_basis, loaded.expression_names, loaded.sources) == (
        motion.fps,
        motion.expression_basis,
        motion.expression_names,
        motion.sources,
    )


def test_nan_is_named_with_field_and_frame(tmp_path):
    motion = make_motion()
    motion.gaze[4, 1, 0] = np.nan
    motion.save(tmp_path / "motion.npz")
    with pytest.raises(DialogueError, match=r"motion\.npz: gaze is not a number at frame 4"):
        Motion.load(tmp_path / "motion.npz")


def test_wrong_shape_is_named():
    motion = make_motion()
    motion.blink = motion.blink[:-1]
    with pytest.raises(DialogueError, match="p0: blink has shape"):
        motion.validate("p0")


def test_missing_field_is_named(tmp_path):
    np.savez(tmp_path / "other.npz", head_pose=np.zeros((3, 6)))
    with pytest.raises(DialogueError, match=r"other\.npz is not a motion file: it lacks expression, blink"):
        Motion.load(tmp_path / "other.npz")


def test_bases_are_not_mixed():
    ours, theirs = make_motion(), make_motion()
    theirs.expression_basis = "bfm-2009"
    with pytest.raises(DialogueError, match="bfm-2009"):
        ours.check_same_basis(theirs, "video.mp4")


def test_take_repeats_and_reorders():
    motion = make_motion()
    assert np.array_equal(motion.take(np.array([3, 3, 0])).blink, motion.blink[[3, 3, 0]])
    assert motion.slice(2, 5).num_frames == 3
