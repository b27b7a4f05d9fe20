"""Landmarks follow the basis, lids meet in a blink, and coefficients come back within their bounds."""

import numpy as np
import pytest
import torch

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.conversation.expression_basis import MESH_OF_68, expression_basis, mean_face
from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES
from dialogue_nerfstudio.motion.face_landmarks import (
    EYE_POINTS,
    LIDS,
    MOUTH_POINTS,
    FaceLandmarks,
    check_basis,
)


def test_landmarks_are_those_of_the_mesh():
    rng = np.random.default_rng(0)
    expression = rng.uniform(0, 1, (3, len(EXPRESSION_NAMES)))
    basis = expression_basis()
    mesh = basis.shape(np.zeros((3, len(basis.geometry))), expression)[:, list(MESH_OF_68)]
    found = FaceLandmarks()(torch.from_numpy(expression).float(), torch.zeros(3, 2))
    np.testing.assert_allclose(found, 1e3 * (mesh - mean_face()[list(MESH_OF_68)]), atol=1e-3)


def test_lids_meet_when_closed_and_only_they_move():
    closed = FaceLandmarks()(torch.zeros(1, len(EXPRESSION_NAMES)), torch.tensor([[1.0, 0.0]]))[0].numpy()
    face = 1e3 * mean_face()[list(MESH_OF_68)] + closed
    for above, below in LIDS[0]:
        np.testing.assert_allclose(face[above], face[below], atol=1e-3)
    still = sorted(set(range(68)) - {point for pair in LIDS[0] for point in pair})
    assert np.abs(closed[still]).max() == 0.0


def test_every_point_belongs_to_the_mouth_or_to_the_eyes():
    assert sorted(MOUTH_POINTS + EYE_POINTS) == list(range(68))


def test_coefficients_come_back():
    rng = np.random.default_rng(1)
    # A few movements at once, as faces make them; a cheek moves none of the 68 points enough to be told.
    expression = rng.uniform(0, 1, (40, len(EXPRESSION_NAMES))) * (rng.random((40, len(EXPRESSION_NAMES))) < 0.3)
    expression[:, [index for index, name in enumerate(EXPRESSION_NAMES) if name.startswith("cheek")]] = 0.0
    blink = rng.uniform(0, 1, (40, 2))
    landmarks = FaceLandmarks()
    faces = landmarks(torch.from_numpy(expression).float(), torch.from_numpy(blink).float())
    found, lids = landmarks.coefficients(faces)
    assert np.abs(found - expression).mean() < 0.01 and np.abs(lids - blink).max() < 0.05
    far, closed = landmarks.coefficients(10 * faces)
    assert far.min() >= 0 and far.max() <= expression_basis().upper and closed.min() >= 0 and closed.max() <= 1


def test_another_basis_is_refused_with_the_way_out():
    with pytest.raises(DialogueError, match="ns-dialogue refit"):
        check_basis("flame", tuple(f"flame_{index}" for index in range(50)))
