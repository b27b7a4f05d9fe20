"""The authored basis: shapes, symmetry, independence, and that each field does what its name says."""

import numpy as np
import pytest

from dialogue_nerfstudio.conversation import EXPRESSION_BASIS, EXPRESSION_NAMES
from dialogue_nerfstudio.conversation import expression_basis as eb


@pytest.fixture(scope="module")
def basis():
    return eb.expression_basis()


def _field(basis, name):
    return basis.expression[EXPRESSION_NAMES.index(name)]


def test_shapes_and_names(basis):
    assert basis.name == EXPRESSION_BASIS
    assert basis.expression_names == EXPRESSION_NAMES
    assert basis.expression.shape == (28, 478, 3)
    assert basis.geometry.shape == (len(basis.geometry_names), 478, 3)
    assert 12 <= len(basis.geometry_names) <= 20
    assert np.isfinite(basis.expression).all() and np.isfinite(basis.geometry).all()


def test_mean_face_lies_in_head_space(basis):
    eyes = eb.eye_centers(basis.mean)
    np.testing.assert_allclose(eyes.mean(axis=0), [0.0, 0.02, 0.07], atol=1e-6)
    np.testing.assert_allclose(eyes[0] - eyes[1], [0.063, 0.0, 0.0], atol=1e-6)
    assert basis.mean[4, 2] == basis.mean[:468, 2].max(), "the nose points along +z"
    assert basis.mean[10, 1] > basis.mean[152, 1], "the forehead is above the chin"


def test_mirror_pairs_are_an_involution_and_the_mean_is_symmetric(basis):
    pairs = eb.mirror_pairs()
    np.testing.assert_array_equal(pairs[pairs], np.arange(478))
    assert pairs[33] == 263 and pairs[61] == 291 and pairs[468] == 473
    np.testing.assert_allclose(eb.mirror(basis.mean), basis.mean, atol=1e-6)


@pytest.mark.parametrize("name", EXPRESSION_NAMES)
def test_each_field_moves_between_one_and_thirtyfive_millimetres(basis, name):
    largest = np.linalg.norm(_field(basis, name), axis=1).max()
    assert 0.001 < largest < 0.035


@pytest.mark.parametrize("name", [n for n in EXPRESSION_NAMES if n.endswith("_left")])
def test_right_is_the_mirror_image_of_left(basis, name):
    right = _field(basis, name.removesuffix("_left") + "_right")
    np.testing.assert_allclose(eb.mirror(_field(basis, name)), right, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in EXPRESSION_NAMES if not n.endswith(("_left", "_right"))] + ["geometry"])
def test_fields_of_both_sides_are_symmetric(basis, name):
    field = basis.geometry if name == "geometry" else _field(basis, name)
    np.testing.assert_allclose(eb.mirror(field), field, atol=1e-6)


def test_fields_are_linearly_independent(basis):
    for fields in (basis.expression, basis.geometry):
        flat = fields.reshape(len(fields), -1)
        assert np.linalg.cond(flat / np.linalg.norm(flat, axis=1, keepdims=True)) < 200


def test_fields_are_smooth_over_the_mesh(basis):
    """Neighbours on the skin move alike."""
    triangles = eb.face_triangles()
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    # Triangles also close the mouth, from lip to lip, and the eyes, from lid to lid.
    upper = {*eb.UPPER_LIP_INNER, *eb.UPPER_LIP_BETWEEN, *eb.LEFT_EYE_UPPER[1:-1], *eb.RIGHT_EYE_UPPER[1:-1]}
    lower = {*eb.LOWER_LIP_INNER, *eb.LOWER_LIP_BETWEEN, *eb.LEFT_EYE_LOWER[1:-1], *eb.RIGHT_EYE_LOWER[1:-1]}
    across = [(a in upper) != (b in upper) and (a in lower) != (b in lower) for a, b in edges]
    edges = edges[~np.array(across)]
    for field in basis.expression:
        step = np.linalg.norm(field[edges[:, 0]] - field[edges[:, 1]], axis=1)
        assert step.max() < 0.95 * np.linalg.norm(field, axis=1).max()


@pytest.mark.parametrize(
    ("name", "landmark", "direction"),
    [
        ("jaw_open", 152, (0, -1, 0)),
        ("jaw_open", 14, (0, -1, 0)),
        ("jaw_left", 152, (1, 0, 0)),
        ("jaw_right", 152, (-1, 0, 0)),
        ("jaw_forward", 152, (0, 0, 1)),
        ("mouth_left", 13, (1, 0, 0)),
        ("lip_corner_out_left", 291, (1, 0, 0)),
        ("lip_corner_out_right", 61, (-1, 0, 0)),
        ("lip_corner_up_left", 291, (0, 1, 0)),
        ("lip_corner_down_right", 61, (0, -1, 0)),
        ("pucker", 291, (-1, 0, 0)),
        ("pucker", 0, (0, 0, 1)),
        ("funnel", 0, (0, 0, 1)),
        ("upper_lip_raise", 13, (0, 1, 0)),
        ("lower_lip_drop", 14, (0, -1, 0)),
        ("lip_press", 17, (0, 1, 0)),
        ("lip_roll_in", 0, (0, -1, 0)),
        ("lip_roll_in", 17, (0, 1, 0)),
        ("brow_raise_left", 334, (0, 1, 0)),
        ("brow_raise_right", 105, (0, 1, 0)),
        ("brow_inner_raise", 55, (0, 1, 0)),
        ("brow_furrow_left", 285, (-1, -1, 0)),
        ("brow_furrow_right", 55, (1, -1, 0)),
        ("squint_left", 374, (0, 1, 0)),
        ("cheek_raise_left", 425, (0, 1, 0)),
        ("nose_wrinkle", 358, (0, 1, 0)),
    ],
)
def test_fields_move_what_their_name_says(basis, name, landmark, direction):
    assert _field(basis, name)[landmark] @ np.array(direction, float) > 0.001


def test_jaw_open_parts_the_lips_and_leaves_the_skull(basis):
    field = _field(basis, "jaw_open")
    gap = (basis.mean + field)[13, 1] - (basis.mean + field)[14, 1]
    assert 0.015 < gap < 0.035
    skull = basis.mean[:, 1] > 0.0
    assert np.linalg.norm(field[skull], axis=1).max() < 0.001


def test_the_lips_meet_no_other_fields(basis):
    for name in EXPRESSION_NAMES:
        if name.startswith(("brow", "squint", "cheek")):
            assert np.linalg.norm(_field(basis, name)[[13, 14, 61, 291]], axis=1).max() < 0.001, name


def test_shape_is_equation_one(basis):
    geometry, expression = np.zeros((2, len(basis.geometry))), np.zeros((2, 28))
    geometry[0, 3], expression[1, 0] = 2.0, 0.5
    shapes = basis.shape(geometry, expression)
    np.testing.assert_allclose(shapes[0], basis.mean + 2.0 * basis.geometry[3])
    np.testing.assert_allclose(shapes[1], basis.mean + 0.5 * basis.expression[0])


def test_hash_changes_with_the_numbers(basis):
    from dataclasses import replace

    changed = basis.expression.copy()
    changed[3, 100, 1] += 1e-5
    assert replace(basis, expression=changed).hash != basis.hash
    assert replace(basis).hash == basis.hash
