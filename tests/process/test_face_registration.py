import numpy as np
import pytest
from face_model_files import true_model
from scipy.spatial import ConvexHull

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.process import face_registration as fr


def test_closest_point_of_a_triangle_against_brute_force():
    rng = np.random.default_rng(0)
    points, corners = rng.normal(size=(40, 3)), rng.normal(size=(40, 3, 3))
    found = fr.closest_in_triangles(points, corners)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert (found > -1e-12).all()
    grid = np.array([(i, j, 120 - i - j) for i in range(121) for j in range(121 - i)]) / 120
    brute = np.linalg.norm(points[:, None] - grid @ corners, axis=2).min(axis=1)
    distance = np.linalg.norm(points - np.einsum("nk,nkd->nd", found, corners), axis=1)
    assert (distance <= brute + 1e-12).all()
    np.testing.assert_allclose(distance, brute, atol=0.03)


@pytest.mark.parametrize("unit", [1.0, 1e5])
def test_unit_and_place_do_not_matter(unit):
    truth = true_model(seed=3, unit=unit, amount=0.2)
    where = fr.register(truth.vertices, truth.triangles, "a model")
    found = where.take(truth.vertices)[:468]
    error = np.linalg.norm(found - truth.vertices[truth.landmark_vertices], axis=1) / unit
    assert np.median(error) < 0.0015 and where.distance < 0.001
    # The similarity leads to head space.
    placed = where.scale * found @ where.rotation.T + where.translation
    assert np.median(np.linalg.norm(placed - fr.mean_face()[:468], axis=1)) < 0.005


def test_eyeballs_and_teeth_are_left_alone():
    truth = true_model(seed=1, unit=1.0)
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(200, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    hull = ConvexHull(ball).simplices
    eyes = [truth.vertices[truth.landmark_vertices[[33, 133]]].mean(axis=0) + 0.012 * ball]
    eyes += [truth.vertices[truth.landmark_vertices[[263, 362]]].mean(axis=0) + 0.012 * ball]
    count = len(truth.vertices)
    vertices = np.concatenate([truth.vertices, *eyes])
    triangles = np.concatenate([truth.triangles, hull + count, hull + count + 200])
    known = {33: (np.array([truth.landmark_vertices[33]] * 3), np.array([1.0, 0, 0]))}
    for places in ({}, known):
        where = fr.register(vertices, triangles, "a model", places)
        assert where.corners.max() < count


@pytest.mark.parametrize("scale", [(0.1, 0.1, 0.1), (0.07, 0.11, 0.09)])
def test_an_egg_is_no_face(scale):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(1500, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    triangles = ConvexHull(points).simplices
    a, b, c = (points[triangles[:, k]] for k in range(3))
    inwards = (np.cross(b - a, c - a) * a).sum(axis=1) < 0
    triangles[inwards] = triangles[inwards][:, ::-1]
    with pytest.raises(DialogueError, match="does not look like a face"):
        fr.register(points * scale, triangles, "an egg")


def test_a_face_that_looks_away_is_refused():
    truth = true_model(unit=1.0)
    turned = truth.vertices * [-1.0, 1.0, -1.0]
    with pytest.raises(DialogueError, match="does not look like a face with y up"):
        fr.register(turned, truth.triangles, "a model")


def test_damaged_meshes():
    truth = true_model()
    with pytest.raises(DialogueError, match="no face model"):
        fr.register(truth.vertices[:50], truth.triangles, "a model")
    with pytest.raises(DialogueError, match="vertices that do not exist"):
        fr.register(truth.vertices, truth.triangles + 5, "a model")
    bad = truth.vertices.copy()
    bad[11] = np.nan
    with pytest.raises(DialogueError, match="vertex 11 of the mean face"):
        fr.register(bad, truth.triangles, "a model")
    known = {4: (np.array([10**6] * 3), np.array([1.0, 0, 0]))}
    with pytest.raises(DialogueError, match="does not have"):
        fr.register(truth.vertices, truth.triangles, "a model", known)
