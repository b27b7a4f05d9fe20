"""Head poses against a synthetic person whose shape and poses are known."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from synthetic_face import rotation_difference, synthetic_face

from dialogue_nerfstudio.conversation.expression_basis import eye_centers, mean_face
from dialogue_nerfstudio.process import head_pose
from dialogue_nerfstudio.process.landmarks import LandmarkTrack


@pytest.fixture(scope="module")
def person():
    return synthetic_face()


@pytest.fixture(scope="module")
def tracked(person):
    return head_pose.track_head(person.track(noise=0.3), person.size, person.size)


def _pitch_aligned(true: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Measured rotations in the true head space: what is frontal in pitch is a convention, one constant a person."""
    constant = (Rotation.from_matrix(measured).inv() * Rotation.from_matrix(true)).mean()
    return (Rotation.from_matrix(measured) * constant).as_matrix()


def test_rotations_are_recovered_within_half_a_degree(person, tracked):
    error = rotation_difference(person.rotations, _pitch_aligned(person.rotations, tracked.rotations))
    assert np.median(error) < 0.3
    assert error.max() < 0.9
    constant = (
        (Rotation.from_matrix(tracked.rotations).inv() * Rotation.from_matrix(person.rotations)).mean().as_rotvec()
    )
    assert np.degrees(np.abs(constant[1:])).max() < 0.5, "yaw and roll are fixed by the symmetry"
    assert np.degrees(abs(constant[0])) < 4.0, "pitch follows the mean face"


def test_positions_are_recovered_up_to_the_person_s_scale(person, tracked):
    true_eyes = eye_centers(person.shape)
    scale = 0.063 / np.linalg.norm(true_eyes[0] - true_eyes[1])
    middle = np.array([0.0, 0.02, 0.07])
    true = person.translations + person.rotations @ (true_eyes.mean(axis=0))
    measured = tracked.translations + tracked.rotations @ middle
    difference = measured - true * scale
    assert np.abs(difference[:, :2]).max() < 0.002
    assert np.abs(difference[:, 2] / true[:, 2]).max() < 0.03
    assert np.abs(difference[:, 2] - difference[:, 2].mean()).max() < 0.008


def test_shape_has_the_eyes_where_head_space_wants_them(tracked):
    eyes = eye_centers(tracked.shape)
    np.testing.assert_allclose(np.linalg.norm(eyes[0] - eyes[1]), 0.063, atol=1e-9)
    np.testing.assert_allclose(eyes.mean(axis=0)[1:], [0.02, 0.07], atol=1e-9)
    assert abs(eyes.mean(axis=0)[0]) < 0.002


def test_shape_is_nearer_the_truth_than_the_mean_face(person, tracked):
    def aligned_error(shape):
        scale, rotation, translation = head_pose.fit_similarity(shape[head_pose.rigid_landmarks()], rigid_truth)
        return np.sqrt((((scale * shape @ rotation.T + translation) - person.shape) ** 2).sum(axis=1).mean())

    rigid_truth = person.shape[head_pose.rigid_landmarks()]
    assert aligned_error(tracked.shape) < 0.6 * aligned_error(mean_face())


def test_reprojection_error_is_the_noise(tracked):
    assert np.sqrt(np.mean(tracked.reprojection_error**2)) < 1.5 * 0.3 * np.sqrt(2)


def test_bundle_adjustment_beats_the_mesh_s_own_depth(person):
    track = person.track(noise=0.3)
    rigid = head_pose.rigid_landmarks()
    solids = head_pose.own_depth_shapes(track, person.center)
    shape, *_ = head_pose.to_head_space(head_pose.procrustes_mean(solids, mean_face(), rigid), 0.063, rigid)
    start = head_pose.initial_poses(solids[:, rigid], shape[rigid], person.focal)
    points = track.points.astype(float)[:, rigid]

    def error(flat_shape):
        poses = head_pose.fit_poses(points, flat_shape, *start, person.focal, person.center)
        residual = points - head_pose.project(flat_shape, *poses, person.focal, person.center)
        return np.sqrt((residual**2).sum(-1).mean())

    keyframes = np.arange(0, 120, 3)
    adjusted, *_ = head_pose.bundle_adjust(
        points[keyframes], shape[rigid], start[0][keyframes], start[1][keyframes], person.focal, person.center
    )
    assert error(adjusted) < 0.7 * error(shape[rigid])


def test_a_head_that_hardly_moves_still_has_a_plausible_shape():
    still = synthetic_face(turn=0.02)
    tracked = head_pose.track_head(still.track(noise=0.3), still.size, still.size)
    assert np.abs(tracked.shape - mean_face()).max() < 0.03
    error = rotation_difference(still.rotations, _pitch_aligned(still.rotations, tracked.rotations))
    assert np.median(error) < 0.5


def test_one_broken_frame_does_not_move_its_neighbours(person):
    track = person.track(noise=0.3)
    visible = track.visible.copy()
    visible[50] = False
    points = track.points.copy()
    points[50] += 40.0
    broken = head_pose.track_head(LandmarkTrack(points, track.depth, visible), person.size, person.size)
    error = rotation_difference(person.rotations, _pitch_aligned(person.rotations, broken.rotations))
    assert error[48:53].max() < 1.0


def test_person_space_has_its_origin_at_the_mean_head_and_the_camera_in_front(person, tracked):
    visible = np.ones(len(tracked.translations), bool)
    origin = tracked.person_origin(visible)
    pose = tracked.head_pose(origin)
    np.testing.assert_allclose(pose[:, 3:].mean(axis=0), 0.0, atol=1e-12)
    camera = tracked.camera(origin, person.size, person.size)
    np.testing.assert_array_equal(camera.camera_to_person[:, :3], np.eye(3))
    assert 0.6 < camera.camera_to_person[2, 3] < 1.0
    # A head-space point carried through person space and the camera lands on its landmark.
    nose = Rotation.from_rotvec(pose[10, :3]).apply(tracked.shape[1]) + pose[10, 3:]
    x, y, z = nose - camera.camera_to_person[:, 3]
    pixel = [camera.cx - camera.focal * x / z, camera.cy + camera.focal * y / z]
    np.testing.assert_allclose(pixel, person.points[10, 1], atol=3.0)


def test_projection_jacobian_is_the_derivative():
    points = np.array([[0.03, -0.05, -0.8], [0.1, 0.02, -0.6]])
    identity, zero = np.eye(3), np.zeros(3)
    analytic = head_pose.projection_jacobian(points, 500.0)
    for axis in range(3):
        step = 1e-6 * np.eye(3)[axis]
        numeric = (
            head_pose.project(points + step, identity, zero, 500.0, (128.0, 128.0))
            - head_pose.project(points - step, identity, zero, 500.0, (128.0, 128.0))
        ) / 2e-6
        np.testing.assert_allclose(analytic[..., axis], numeric, rtol=1e-5, atol=1e-5)


def test_right_in_the_picture_is_plus_x_and_up_is_plus_y():
    pixels = head_pose.project(
        np.array([[0.1, 0.0, 0.0], [0.0, 0.1, 0.0]]), np.eye(3), np.array([0.0, 0.0, -1.0]), 100.0, (50.0, 50.0)
    )
    np.testing.assert_allclose(pixels, [[60.0, 50.0], [50.0, 40.0]])


def test_fit_similarity_recovers_a_similarity():
    rng = np.random.default_rng(1)
    source = rng.standard_normal((4, 20, 3))
    rotation = Rotation.random(4, random_state=2).as_matrix()
    scale, translation = np.array([0.5, 1.0, 2.0, 3.0]), rng.standard_normal((4, 3))
    target = scale[:, None, None] * source @ np.swapaxes(rotation, 1, 2) + translation[:, None]
    found_scale, found_rotation, found_translation = head_pose.fit_similarity(source, target)
    np.testing.assert_allclose(found_scale, scale)
    np.testing.assert_allclose(found_rotation, rotation, atol=1e-12)
    np.testing.assert_allclose(found_translation, translation, atol=1e-12)


def test_symmetry_undoes_yaw_and_roll():
    turned = mean_face() @ Rotation.from_euler("YZ", [0.15, -0.1]).as_matrix().T * 3.0 + [0.2, 0.1, -0.4]
    shape, *_ = head_pose.to_head_space(turned, 0.063, head_pose.rigid_landmarks())
    np.testing.assert_allclose(shape, mean_face(), atol=2e-4)


def test_to_head_space_returns_the_map_it_used():
    turned = mean_face() @ Rotation.from_euler("XYZ", [0.1, 0.15, -0.1]).as_matrix().T * 3.0 + [0.2, 0.1, -0.4]
    shape, scale, rotation, translation = head_pose.to_head_space(turned, 0.063, head_pose.rigid_landmarks())
    np.testing.assert_allclose(scale * turned @ rotation.T + translation, shape, atol=1e-12)


def test_smoothing_keeps_a_line_and_bridges_what_has_no_weight():
    line = np.linspace(0, 1, 30)[:, None] * [1.0, -2.0]
    weights = np.ones(30)
    weights[10:15] = 0
    broken = line.copy()
    broken[10:15] = 100.0
    np.testing.assert_allclose(head_pose.whittaker_smooth(broken, weights, 1.0), line, atol=1e-5)


def test_smoothing_takes_noise_away():
    noise = np.random.default_rng(0).standard_normal((400, 1))
    assert head_pose.whittaker_smooth(noise, np.ones(400), 1.0).std() < 0.7 * noise.std()


def test_jitter_is_the_standard_deviation_of_white_noise_and_ignores_motion():
    rng = np.random.default_rng(0)
    smooth = np.stack([0.2 * np.sin(np.arange(2000) / 40), np.zeros(2000), np.zeros(2000)], axis=1)
    noise = np.radians(0.5) * rng.standard_normal((2000, 3))
    assert head_pose.rotation_jitter(Rotation.from_rotvec(smooth).as_matrix()) < 0.02
    assert head_pose.rotation_jitter(Rotation.from_rotvec(smooth + noise).as_matrix()) == pytest.approx(0.5, rel=0.1)


def test_keyframes_are_spread_out():
    yaw = np.concatenate([np.zeros(90), np.linspace(0, 0.5, 10)])
    rotations = Rotation.from_rotvec(yaw[:, None] * [0.0, 1.0, 0.0]).as_matrix()
    chosen = head_pose.choose_keyframes(rotations, np.arange(100), 10)
    assert len(np.unique(chosen)) == 10
    assert (chosen >= 90).sum() >= 8


def test_what_the_mouth_does_to_the_nose_is_no_nod():
    person = synthetic_face(150, size=256, seed=8)
    track = person.track(noise=0.2)
    rigid = head_pose.rigid_landmarks()
    jaw = person.expression[:, 0]
    # A network that lowers nose and forehead by up to 2 px when the jaw opens: read as a nod of about two degrees.
    drift = np.zeros((478, 2), np.float32)
    drift[rigid, 1] = 2.0 + 60.0 * (person.shape[rigid, 2] - person.shape[rigid, 2].mean())
    track.points += (jaw[:, None, None] / 0.4 * drift).astype(np.float32)
    corrected = head_pose.without_mouth_drift(track.points.astype(float), rigid, track.visible)
    moved = corrected[:, rigid] - person.points[:, rigid]
    before = track.points[:, rigid] - person.points[:, rigid]
    assert (moved - moved.mean(axis=0)).std() < 0.4 * (before - before.mean(axis=0)).std()
    others = np.setdiff1d(np.arange(478), rigid)
    assert (corrected[:, others] == track.points[:, others]).all(), "the mouth itself is left as it is"


def test_a_still_mouth_corrects_nothing():
    person = synthetic_face(60, size=256, seed=9, expression=np.zeros((60, 28)))
    track = person.track(noise=0.2)
    rigid = head_pose.rigid_landmarks()
    corrected = head_pose.without_mouth_drift(track.points.astype(float), rigid, track.visible)
    assert np.abs(corrected - track.points).max() < 0.4


def test_what_brows_pull_along_is_not_rigid():
    rigid = set(head_pose.rigid_landmarks().tolist())
    assert not rigid & {442, 443, 444, 222, 223, 224}, "skin between brow and lid"
    assert {6, 197, 5, 4, 10, 127, 356} <= rigid
