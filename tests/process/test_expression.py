"""Expression, residual, blink and gaze against synthetic faces whose coefficients are known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from synthetic_face import synthetic_face

from dialogue_nerfstudio.conversation.expression_basis import EYE_CORNERS, LEFT_IRIS, RIGHT_IRIS, expression_basis
from dialogue_nerfstudio.process import expression as ex
from dialogue_nerfstudio.process.head_pose import HeadTrack


def _true_head(person) -> HeadTrack:
    return HeadTrack(
        person.shape,
        person.rotations,
        person.translations,
        np.zeros(len(person.rotations)),
        person.focal,
        person.center,
        0.0,
    )


def _talking(num_frames: int = 75) -> np.ndarray:
    names = expression_basis().expression_names
    t = np.arange(num_frames) / 25.0
    coefficients = np.zeros((num_frames, len(names)))
    coefficients[:, names.index("jaw_open")] = 0.4 + 0.4 * np.sin(6 * t)
    coefficients[:, names.index("lip_corner_up_left")] = 0.4 - 0.4 * np.cos(3 * t)
    coefficients[:, names.index("brow_raise_right")] = 0.3 + 0.3 * np.sin(2 * t)
    return coefficients


def test_coefficients_are_recovered():
    person = synthetic_face(75, expression=_talking())
    found = ex.fit_expression(person.points, _true_head(person), expression_basis())
    error = np.abs(found - person.expression)
    active = person.expression.max(axis=0) > 0
    assert error[:, active].mean() < 0.06
    assert error[:, ~active].mean() < 0.02
    for column in np.flatnonzero(active):
        assert np.corrcoef(found[:, column], person.expression[:, column])[0, 1] > 0.98


def test_a_resting_face_has_no_expression():
    person = synthetic_face(30, expression=np.zeros((30, 28)))
    found = ex.fit_expression(person.points, _true_head(person), expression_basis())
    assert np.abs(found).max() < 1e-6


def test_coefficients_stay_in_their_bounds():
    person = synthetic_face(20, expression=np.full((20, 28), 0.0) + 3.0 * (np.arange(28) == 0))
    found = ex.fit_expression(person.points, _true_head(person), expression_basis())
    assert found.min() >= 0.0 and found.max() <= expression_basis().upper


def test_chunks_make_no_difference():
    person = synthetic_face(30)
    head = _true_head(person)
    whole = ex.fit_expression(person.points, head, expression_basis())
    # `chunk` must not change which problem each frame is.
    np.testing.assert_allclose(ex.fit_expression(person.points, head, expression_basis(), chunk=7), whole, atol=2e-3)


def test_geometry_is_recovered():
    basis = expression_basis()
    true = np.random.default_rng(3).normal(0, 0.5, len(basis.geometry))
    found = ex.fit_geometry(basis.mean + np.tensordot(true, basis.geometry, axes=1), basis)
    np.testing.assert_allclose(found, true, atol=0.15)


def test_frontal_positions_undo_the_pose():
    person = synthetic_face(20, expression=np.zeros((20, 28)))
    frontal = ex.frontal_positions(person.points, _true_head(person))
    np.testing.assert_allclose(frontal, np.broadcast_to(person.shape[:, :2], frontal.shape), atol=1e-9)


def test_residual_explains_what_the_basis_does_not():
    rng = np.random.default_rng(0)
    direction = rng.standard_normal((2, 478, 2)) * 1e-3
    scores = rng.standard_normal((100, 2)) * [2.0, 1.0]
    left_over = np.einsum("tk,knd->tnd", scores, direction)
    found, basis = ex.personal_residual(left_over, 2)
    weights = ex.landmark_weights() > 0
    rebuilt = np.einsum("tk,knd->tnd", found, basis)
    np.testing.assert_allclose(rebuilt[:, weights], (left_over - left_over.mean(0))[:, weights], atol=1e-9)
    assert found[:, 0].std() == pytest.approx(1.0)


def test_residual_of_a_short_clip_has_fewer_components():
    assert ex.personal_residual(np.random.default_rng(0).standard_normal((4, 478, 2)), 8)[0].shape == (4, 3)


def _ratio_with_blinks(depth: float = 0.2, noise: float = 0.005) -> np.ndarray:
    ratio = 0.3 + noise * np.random.default_rng(0).standard_normal((250, 2))
    for start in (50, 120, 200):
        ratio[start : start + 5] -= depth * np.array([0.5, 0.9, 1.0, 0.9, 0.5])[:, None]
    return ratio


@pytest.mark.parametrize("depth", [0.12, 0.2, 0.26])
def test_weak_and_strong_blinks_are_found(depth):
    blink = ex.blink_from_ratio(_ratio_with_blinks(depth), 25.0)
    closed = blink.mean(axis=1) > 0.5
    starts = np.flatnonzero(np.diff(closed.astype(int)) == 1) + 1
    np.testing.assert_allclose(starts, [51, 121, 201], atol=1)
    assert np.median(blink) < 0.05


def test_a_clip_without_blinks_has_none():
    ratio = 0.3 + 0.01 * np.random.default_rng(0).standard_normal((250, 2))
    assert ex.blink_from_ratio(ratio, 25.0).max() < 0.4


def test_a_single_bad_frame_is_no_blink():
    ratio = _ratio_with_blinks()
    ratio[80] = 0.1
    assert ex.blink_from_ratio(ratio, 25.0)[80].max() < 0.3


def test_slowly_lowered_lids_are_not_closed():
    ratio = _ratio_with_blinks()
    ratio[125:190] *= 0.85
    assert ex.blink_from_ratio(ratio, 25.0)[150:170].max() < 0.3


def test_eye_aspect_ratio_is_the_person_s_left_first():
    points = np.broadcast_to(expression_basis().mean[:, :2], (1, 478, 2)).copy()
    points[:, [385, 387]] = points[:, [380, 373]]
    left, right = ex.eye_aspect_ratio(points)[0]
    assert left < 0.05 < right


def _eyes(frontal: np.ndarray) -> np.ndarray:
    return frontal[:, list(ex.GAZE_LANDMARKS)]


def test_a_gaze_that_stays_in_the_head_stays_there_when_the_head_turns():
    """Irises lie before the lids' corners: parallax must not be taken for a gaze, whatever depth the mesh gives
    them."""
    person = synthetic_face(80, expression=np.zeros((80, 28)), turn=1.5)
    person.shape = ex.eyes_in_depth(person.shape)
    track, head = person.track(), _true_head(person)
    head.shape = head.shape.copy()
    head.shape[list(LEFT_IRIS + RIGHT_IRIS), 2] -= 0.01
    gaze = ex.measure_face(track, head, expression_basis(), 25.0).gaze
    assert np.degrees(gaze.std(axis=0)).max() < 0.5, "turns of 21 degrees"


def test_expression_is_told_at_the_landmarks_poses_and_gaze_at_the_head_s():
    person = synthetic_face(60)
    own = _true_head(person)
    turned = Rotation.from_rotvec([0.0, 0.1, 0.0]).as_matrix() @ own.rotations
    registered = replace(own, rotations=turned, landmark_poses=(own.rotations, own.translations))
    faces = [ex.measure_face(person.track(), head, expression_basis(), 25.0) for head in (own, registered)]
    np.testing.assert_array_equal(faces[0].expression, faces[1].expression)
    np.testing.assert_array_equal(faces[0].blink, faces[1].blink)
    assert np.abs(faces[0].gaze - faces[1].gaze).max() > 0.02


@pytest.mark.parametrize(("yaw", "pitch"), [(0.2, 0.0), (-0.2, 0.1), (0.0, -0.15)])
def test_gaze_is_recovered(yaw, pitch):
    frontal = np.broadcast_to(expression_basis().mean[:, :2], (60, 478, 2)).copy()
    for iris, corners in ((LEFT_IRIS, EYE_CORNERS[0]), (RIGHT_IRIS, EYE_CORNERS[1])):
        middle = frontal[0, list(corners)].mean(axis=0)
        frontal[:, list(iris)] = middle
        frontal[40:, list(iris)] = middle + ex.EYEBALL_RADIUS * np.sin([yaw, pitch])
    gaze = ex.gaze_from_irises(_eyes(frontal), np.zeros((60, 2)))
    np.testing.assert_allclose(gaze[:40], 0.0, atol=0.01)
    np.testing.assert_allclose(gaze[40:, :, 0], yaw, atol=0.02)
    np.testing.assert_allclose(gaze[40:, :, 1], pitch, atol=0.02)


def test_gaze_is_bridged_while_lids_are_closed():
    frontal = np.broadcast_to(expression_basis().mean[:, :2], (60, 478, 2)).copy()
    frontal[30:33, list(LEFT_IRIS + RIGHT_IRIS)] -= 0.01
    blink = np.zeros((60, 2))
    blink[30:33] = 1.0
    assert np.abs(ex.gaze_from_irises(_eyes(frontal), blink)[30:33]).max() < 0.01


def test_mouth_opening_is_the_gap_over_the_eyes_distance():
    frontal = np.broadcast_to(expression_basis().mean[:, :2], (2, 478, 2)).copy()
    for above, below in ex.INNER_LIPS:
        frontal[0, below] = frontal[0, above]
        frontal[1, below] = frontal[1, above] - [0.0, 0.0126]
    np.testing.assert_allclose(ex.mouth_opening(frontal), [0.0, 0.2], atol=1e-6)


def test_everything_together_is_finite_and_of_the_right_shape():
    person = synthetic_face(60)
    face = ex.measure_face(person.track(0.3), _true_head(person), expression_basis(), 25.0, num_residuals=4)
    assert face.expression.shape == (60, 28) and face.residual.shape == (60, 4)
    assert face.blink.shape == (60, 2) and face.gaze.shape == (60, 2, 2)
    for array in (face.expression, face.residual, face.blink, face.gaze, face.mouth_opening, face.residual_basis):
        assert np.isfinite(array).all()
    assert face.fit_error < 0.7, "the noise itself is 0.65 mm"


def test_eyes_converge_to_the_camera_s_distance():
    frontal = np.repeat(expression_basis().mean[None, :, :2], 30, axis=0)
    far, near = (ex.gaze_from_irises(_eyes(frontal), np.zeros((30, 2)), distance) for distance in (np.inf, 0.63))
    np.testing.assert_allclose(near[..., 0] - far[..., 0], np.tile([-1.0, 1.0], (30, 1)) * np.arctan(0.05), atol=2e-3)
    assert (near[..., 1] == far[..., 1]).all()
