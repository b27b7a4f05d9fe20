from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from synthetic_face import rotation_difference, synthetic_face

from dialogue_nerfstudio.conversation.expression_basis import expression_basis, eye_centers
from dialogue_nerfstudio.process import clip_fit as cf
from dialogue_nerfstudio.process.head_pose import HeadTrack, track_head


def _start(person, seed=0):
    """Poses a few degrees and centimetres off."""
    rng = np.random.default_rng(seed)
    count = len(person.rotations)
    off = Rotation.from_rotvec(rng.normal(0, 0.04, (count, 3))).as_matrix()
    return off @ person.rotations, person.translations + rng.normal(0, 0.01, (count, 3))


def _fit(person, points, weights=None, config=None, **more):
    basis = expression_basis()
    weights = np.ones(points.shape[:2]) if weights is None else weights
    rotations, translations = _start(person)
    return cf.fit_clip(
        points, weights, basis.mean, basis, rotations, translations, person.focal, person.center, config, **more
    )


WEAK = cf.ClipFitConfig(noise=0.01, geometry_prior=100.0, tolerance=1e-6, iterations=40)


def test_jacobian_against_finite_differences():
    rng = np.random.default_rng(0)
    person, basis = synthetic_face(num_frames=3), expression_basis()
    problem = cf._Problem(
        person.points, np.ones((3, 478)), basis.mean, basis.geometry, basis.expression, 0.0, 1.5, 0.6, person.focal,
        person.center, cf.ClipFitConfig(noise=1.0),
    )  # fmt: skip
    state = cf._State(rng.normal(0, 0.5, 20), rng.uniform(0.2, 1.0, (3, 28)), person.rotations, person.translations)
    frame, mode, _ = cf.clip_jacobian(problem, state, slice(0, 3))

    def residual(frame_step, shared_step):
        return cf.clip_jacobian(problem, cf._stepped(problem, state, frame_step, shared_step), slice(0, 3))[2]

    h = 1e-6
    for index in (0, 1, 2, 3, 4, 5, 6, 15, 33):
        step = np.zeros((3, 34))
        step[:, index] = h
        numeric = -(residual(step, np.zeros(20)) - residual(-step, np.zeros(20))) / (2 * h)
        np.testing.assert_allclose(frame[..., index], numeric, rtol=1e-5, atol=1e-4)
    for index in (0, 7, 19):
        step = np.zeros(20)
        step[index] = h
        numeric = -(residual(np.zeros((3, 34)), step) - residual(np.zeros((3, 34)), -step)) / (2 * h)
        np.testing.assert_allclose(mode[..., index], numeric, rtol=1e-5, atol=1e-4)


def test_elimination_solves_the_whole_system():
    """The Schur step is the solution of the dense arrow system, also where coefficients are held."""
    rng = np.random.default_rng(0)
    frames, size, modes = 4, 9, 3
    root = rng.normal(size=(frames * size + modes, 80))
    whole = root @ root.T
    whole_frames = np.zeros_like(whole)
    for t in range(frames):
        rows = slice(t * size, (t + 1) * size)
        whole_frames[rows, rows] = whole[rows, rows]
        whole_frames[rows, -modes:] = 0.1 * whole[rows, -modes:]
        whole_frames[-modes:, rows] = whole_frames[rows, -modes:].T
    whole_frames[-modes:, -modes:] = whole[-modes:, -modes:]
    gradient = rng.normal(size=len(whole))
    held = np.zeros((frames, size), bool)
    held[1, 7] = held[2, 8] = True
    free = np.concatenate([~held.reshape(-1), np.ones(modes, bool)])
    expected = np.zeros(len(whole))
    expected[free] = np.linalg.solve(whole_frames[np.ix_(free, free)], gradient[free])
    blocks = np.stack([whole_frames[t * size : (t + 1) * size, t * size : (t + 1) * size] for t in range(frames)])
    cross = whole_frames[:-modes, -modes:].reshape(frames, size, modes)
    step, shared = cf._schur(
        blocks, cross, whole_frames[-modes:, -modes:], gradient[:-modes].reshape(frames, size), gradient[-modes:],
        held, 0.0,
    )  # fmt: skip
    np.testing.assert_allclose(step.reshape(-1), expected[:-modes], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(shared, expected[-modes:], rtol=1e-6, atol=1e-9)


def test_truth_is_recovered_from_perfect_landmarks():
    person, basis = synthetic_face(num_frames=16, seed=1), expression_basis()
    fit = _fit(person, person.points, config=WEAK)
    assert fit.residuals.max() < 0.02
    assert rotation_difference(fit.rotations, person.rotations).max() < 0.05
    shape = basis.mean + np.tensordot(fit.geometry, basis.geometry, axes=1)
    # A face of another size at another distance, with movements of that size, looks the same, and so does one that lies
    # elsewhere in head space: size and place are not compared.
    ratio = np.linalg.norm(np.diff(eye_centers(person.shape), axis=0)) / np.linalg.norm(
        np.diff(eye_centers(shape), axis=0)
    )
    shape, true = (points - points.mean(axis=0) for points in (shape * ratio, person.shape))
    np.testing.assert_allclose(shape, true, atol=0.001)
    np.testing.assert_allclose(fit.expression * ratio, person.expression, atol=0.02)
    # Every step lowers the cost.
    assert (np.diff(fit.costs) < 0).all()


def test_noise_and_outliers():
    person = synthetic_face(num_frames=30, seed=3)
    rng = np.random.default_rng(0)
    points = person.points + 0.5 * rng.standard_normal(person.points.shape)
    wild = rng.random(points.shape[:2]) < 0.05
    points[wild] += rng.normal(0, 20, (wild.sum(), 2))
    fit = _fit(person, points)
    assert rotation_difference(fit.rotations, person.rotations).mean() < 0.5
    assert np.abs(fit.expression - person.expression).mean() < 0.04
    # Without robust weights the wild landmarks would win.
    plain = _fit(person, points, config=cf.ClipFitConfig(huber=1e6))
    assert np.abs(plain.expression - person.expression).mean() > np.abs(fit.expression - person.expression).mean()
    # Landmarks without weight do not count at all.
    masked = _fit(person, points, weights=(~wild).astype(float))
    assert rotation_difference(masked.rotations, person.rotations).mean() < 0.4


def test_residuals_name_the_bad_frame():
    person = synthetic_face(num_frames=20, seed=3)
    points = person.points + 0.1 * np.random.default_rng(0).standard_normal(person.points.shape)
    points[7, ::2] += 6.0
    fit = _fit(person, points)
    assert fit.residuals.argmax() == 7 and fit.residuals[7] > 3 * np.median(fit.residuals)


def test_bounds_and_priors():
    person = synthetic_face(num_frames=10, expression=np.full((10, 28), -0.5))
    fit = _fit(person, person.points)
    assert fit.expression.min() >= 0.0
    free = _fit(person, person.points, config=WEAK)
    held = _fit(person, person.points, config=replace(WEAK, geometry_prior=1e-7))
    assert np.abs(held.geometry).max() < 1e-2 < np.abs(free.geometry).max()
    # With no information at all the prior decides: neutral, at the start.
    nothing = _fit(person, person.points, weights=np.zeros((10, 478)))
    np.testing.assert_allclose(nothing.expression, 0.0, atol=1e-9)
    np.testing.assert_allclose(nothing.rotations, _start(person)[0], atol=1e-9)


def test_chunks_and_fixed_identity():
    person = synthetic_face(num_frames=17, seed=2)
    whole, parts = _fit(person, person.points), _fit(person, person.points, config=cf.ClipFitConfig(chunk=5))
    np.testing.assert_allclose(parts.expression, whole.expression, atol=1e-6)
    basis = expression_basis()
    alone = _fit(person, person.points, geometry=basis.geometry[:0])
    assert alone.geometry.shape == (0,)


@pytest.mark.parametrize("identity_frames", [600, 30])
def test_refined_heads_are_closer_to_the_truth(identity_frames, monkeypatch):
    monkeypatch.setattr(cf, "IDENTITY_FRAMES", identity_frames)
    better = 0
    for seed in (3, 4):
        person = synthetic_face(num_frames=120, seed=seed)
        track = person.track(0.4, seed)
        head = track_head(track, person.size, person.size)
        found = cf.refine_head(track, head)
        assert isinstance(found, HeadTrack) and found.reprojection_error.shape == (120,)
        np.testing.assert_allclose(np.linalg.norm(np.diff(eye_centers(found.shape), axis=0)), 0.063, rtol=1e-4)

        def error(head, person=person):
            """Head space is turned by a constant from the truth's: only what changes counts."""
            rotations = Rotation.from_matrix(head.rotations)
            constant = (rotations.inv() * Rotation.from_matrix(person.rotations)).mean()
            return rotation_difference((rotations * constant).as_matrix(), person.rotations).mean()

        better += error(found) < 0.9 * error(head)
    assert better == 2
