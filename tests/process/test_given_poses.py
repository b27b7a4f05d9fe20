"""Another tracker's head space is found back from its poses and the landmarks."""

import numpy as np
import pytest
from ad_nerf_data import OTHER_SPACE
from synthetic_face import rotation_difference, synthetic_face

from dialogue_nerfstudio.process.given_poses import head_from_given_poses
from dialogue_nerfstudio.process.head_pose import project


@pytest.mark.parametrize("noise", [0.0, 0.7])
@pytest.mark.parametrize("turn", [1.0, 0.3])
def test_poses_of_another_head_space_become_ours(turn, noise):
    face = synthetic_face(num_frames=80, turn=turn)
    scale, rotation, shift = OTHER_SPACE
    rotations = face.rotations @ rotation.T
    translations = scale * face.translations - rotations @ shift
    head, fit = head_from_given_poses(
        face.track(noise), face.size, face.size, rotations, translations, face.focal, face.center
    )
    assert fit.scale == pytest.approx(scale, rel=0.03)
    np.testing.assert_allclose(fit.shift, shift, atol=0.01)
    assert rotation_difference(fit.rotation, rotation) < 2.5
    # One constant turn is free: what counts as upright follows the mean face.
    assert rotation_difference(head.rotations, face.rotations).max() < 2.5
    relative = np.swapaxes(head.rotations, 1, 2) @ rotations
    np.testing.assert_allclose(relative, np.broadcast_to(relative[0], relative.shape), atol=1e-9)
    assert np.abs(head.translations - face.translations).mean() < 0.003
    assert np.abs(head.shape - face.shape).mean() < 0.003
    seen = project(head.shape, head.rotations, head.translations, head.focal, head.center)
    still = face.expression.max(axis=1) < 0.02
    true = project(face.shape, face.rotations, face.translations, face.focal, face.center)
    assert np.abs(seen - true)[still].mean() < 0.5
    assert np.median(head.reprojection_error) < 0.2 + 1.5 * noise
