import pickle

import numpy as np
import pytest
from face_model_files import (
    MODES,
    flame_arrays,
    true_model,
    write_bfm2017,
    write_bfm_front,
    write_bfm_original,
    write_flame,
    write_ict,
)

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.expression_basis import ExpressionBasis, expression_basis, eye_centers
from dialogue_nerfstudio.process.expression import landmark_weights
from dialogue_nerfstudio.process.face_models import basis_of, detect_kind, face_basis, load_face_model


@pytest.fixture(scope="module")
def truth():
    return true_model()


def _check_modes(basis: ExpressionBasis, rows: list) -> None:
    """The model's modes are the shared basis' own, on a mesh of another topology, unit and place."""
    shared = expression_basis()
    weights = landmark_weights()
    # A basis has 63 mm between the eyes, the true face not quite: its modes are scaled with it.
    for row, name in zip(rows, MODES, strict=True):
        wanted = shared.expression[shared.expression_names.index(name)]
        scale = (basis.expression[row] * wanted).sum() / (wanted**2).sum()
        assert 0.85 < scale < 1.15
        missed = ((basis.expression[row] - scale * wanted) ** 2).sum(axis=1)
        relative = np.sqrt((missed @ weights) / (((scale * wanted) ** 2).sum(axis=1) @ weights))
        assert relative < 0.2, (name, relative)
    eyes = eye_centers(basis.mean)
    np.testing.assert_allclose(np.linalg.norm(eyes[0] - eyes[1]), 0.063, rtol=1e-4)


@pytest.mark.parametrize("known", [True, False])
def test_bfm_front(truth, tmp_path, known):
    path = write_bfm_front(tmp_path, truth)
    model = load_face_model(path)
    assert model.kind == "bfm2009" and len(model.known) > 20
    if not known:
        model.known = {}
    basis, where = basis_of(model)
    _check_modes(basis, [0, 1, 2, 3, 4])
    assert basis.lower < 0 < basis.upper and basis.geometry.shape == (6, 478, 3)
    found = where.take(model.vertices)[:468]
    error = np.linalg.norm(found - truth.vertices[truth.landmark_vertices], axis=1)  # millimetres
    assert np.mean(error) < (1.0 if known else 2.0) and np.median(error) < (0.5 if known else 1.5)
    # Lips that touch are told apart: the landmarks of one lip are nowhere near the other's movement.
    upper, lower = basis.expression[0, 13, 1], basis.expression[0, 14, 1]
    assert lower < -0.015 and upper > -0.004


def test_original_bfm_2009(truth, tmp_path):
    basis = face_basis(None, write_bfm_original(tmp_path, truth))
    assert basis.name.startswith("bfm2009-5-")
    _check_modes(basis, [0, 1, 2, 3, 4])


def test_original_bfm_2009_without_its_expressions(truth, tmp_path):
    folder = write_bfm_original(tmp_path, truth)
    (folder / "std_exp.txt").unlink()
    with pytest.raises(DialogueError, match=r"has no expressions; they need std_exp\.txt"):
        face_basis("bfm2009", folder)
    np.savetxt(folder / "std_exp.txt", np.ones(2))
    with pytest.raises(DialogueError, match="2 numbers for 5 modes"):
        face_basis("bfm2009", folder)
    (folder / "Exp_Pca.bin").write_bytes(b"\x05\x00\x00\x00 too short")
    with pytest.raises(DialogueError, match="does not hold 5 modes"):
        face_basis("bfm2009", folder)


@pytest.mark.parametrize("named", [True, False])
def test_bfm_2017(truth, tmp_path, named):
    basis = face_basis("bfm2017", write_bfm2017(tmp_path, truth, named))
    _check_modes(basis, [0, 1, 2, 3, 4])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_flame(tmp_path, suffix):
    truth = true_model(unit=1.0)
    path = write_flame(tmp_path, truth, suffix)
    (tmp_path / "points.txt").write_text(" ".join(str(v) for v in truth.ibug()))
    basis = face_basis(None, path, tmp_path / "points.txt")
    assert basis.expression_names[:2] == ("jaw_open", "jaw_side")
    _check_modes(basis, [2, 3, 4, 5, 6])
    # A tenth of a radian about the jaw's joint: the chin goes down, the forehead stays.
    assert basis.expression[0, 152, 1] < -0.003 and np.abs(basis.expression[0, 10]).max() < 1e-6


def test_flame_with_published_landmarks_beside_it(tmp_path):
    truth = true_model(unit=1.0)
    path = write_flame(tmp_path, truth)
    faces = np.array([np.flatnonzero((truth.triangles == v).any(axis=1))[0] for v in truth.landmark_vertices])
    weights = (truth.triangles[faces] == truth.landmark_vertices[:, None]).astype(float)
    np.savez(
        tmp_path / "mediapipe_landmark_embedding.npz",
        landmark_indices=np.arange(468),
        lmk_face_idx=faces,
        lmk_b_coords=weights,
    )
    model = load_face_model(path)
    assert len(model.known) == 468
    found = basis_of(model)[1].take(model.vertices)[:468]
    np.testing.assert_allclose(found, truth.vertices[truth.landmark_vertices], atol=1e-9)


def test_ict(truth, tmp_path):
    basis = face_basis(None, write_ict(tmp_path, truth))
    # In the order of the files' names; lids are no expression, and a tongue moves no landmark.
    assert basis.expression_names == ("browOuterUp_L", "jawOpen", "mouthPucker", "mouthSmile_L", "mouthSmile_R")
    assert (basis.lower, basis.upper) == (0.0, 1.5)
    _check_modes(basis, [1, 3, 4, 0, 2])


def test_prepared_basis_comes_back(truth, tmp_path):
    basis = face_basis(None, write_bfm_front(tmp_path, truth))
    basis.save(tmp_path / "basis.npz")
    again = face_basis("bfm2009", tmp_path / "basis.npz")
    assert again.name == basis.name and again.hash == basis.hash and again.name.startswith("bfm2009-5-")
    with pytest.raises(DialogueError, match="not one of flame"):
        face_basis("flame", tmp_path / "basis.npz")
    other = face_basis(None, write_bfm_front(tmp_path, true_model(seed=2)))
    assert other.name != basis.name


def test_pickles_are_refused_and_can_be_converted(tmp_path):
    truth = true_model(unit=1.0)
    path = write_flame(tmp_path, truth, ".pkl")
    with pytest.raises(DialogueError, match=r"is a pickle.*ns-dialogue face-model .*flame2023\.pkl"):
        face_basis("flame", path)
    model = load_face_model(path, read_pickle=True)
    np.testing.assert_array_equal(model.vertices, truth.vertices)
    np.testing.assert_allclose(model.expression[2:7], truth.expression, atol=1e-7)
    path.rename(tmp_path / "renamed.npz")
    with pytest.raises(DialogueError, match=r"not a readable \.npz"):
        face_basis("flame", tmp_path / "renamed.npz")
    objects = {name: np.array(array, object) if name == "f" else array for name, array in flame_arrays(truth).items()}
    np.savez(tmp_path / "objects.npz", **objects)
    with pytest.raises(DialogueError, match="pickled Python objects"):
        face_basis("flame", tmp_path / "objects.npz")


def test_adnerf_face_model_is_converted(truth, tmp_path):
    info = {
        "mu_shape": truth.vertices.reshape(-1),
        "mu_exp": np.zeros(truth.vertices.size),
        "b_shape": truth.geometry.reshape(6, -1),
        "sig_shape": np.ones(6),
        "b_exp": truth.expression.reshape(5, -1) / 2,
        "sig_exp": np.full(5, 2.0),
    }
    np.save(tmp_path / "3DMM_info.npy", info)
    np.save(tmp_path / "topology_info.npy", {"tris": truth.triangles})
    with pytest.raises(DialogueError, match="is a pickle"):
        face_basis(None, tmp_path)
    model = load_face_model(tmp_path, read_pickle=True)
    np.testing.assert_allclose(model.expression, truth.expression, rtol=1e-5, atol=1e-4)


def test_wrong_files(truth, tmp_path):
    with pytest.raises(DialogueError, match="There is no"):
        face_basis(None, tmp_path / "nothing.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(DialogueError, match="is not a BFM 2017 file"):
        face_basis(None, tmp_path / "text.h5")
    (tmp_path / "text.mat").write_text("hello")
    with pytest.raises(DialogueError, match="not a readable MATLAB file"):
        face_basis(None, tmp_path / "text.mat")
    (tmp_path / "video.mp4").write_text("hello")
    with pytest.raises(DialogueError, match="no face model that is known"):
        face_basis(None, tmp_path / "video.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DialogueError, match="holds no face model"):
        face_basis(None, tmp_path / "empty")
    with pytest.raises(DialogueError, match="needs --face-model-path"):
        face_basis("flame", None)
    path = write_bfm_front(tmp_path, truth)
    with pytest.raises(DialogueError, match="looks like bfm2009, not ict"):
        face_basis("ict", path)
    with pytest.raises(DialogueError, match="needs no file"):
        face_basis("shared", path)
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    with pytest.raises(DialogueError, match="has no 'v_template'"):
        face_basis(None, tmp_path / "other.npz")
    (tmp_path / "generic_neutral_mesh.obj").write_text("v 1 2 x\n")
    with pytest.raises(DialogueError, match=r"not a readable \.obj"):
        face_basis("ict", tmp_path)
    (tmp_path / "a.safetensors").write_bytes(pickle.dumps({}))
    with pytest.raises(DialogueError, match=r"not a readable \.safetensors"):
        face_basis("flame", tmp_path / "a.safetensors")


def test_numbers_that_are_none(truth, tmp_path):
    spoiled = true_model()
    spoiled.expression[2, 7] = np.nan
    with pytest.raises(DialogueError, match="expression is not a number at mode 2"):
        face_basis(None, write_bfm_front(tmp_path, spoiled))
    spoiled = true_model()
    spoiled.vertices[3] = np.inf
    with pytest.raises(DialogueError, match="mean face is not a number at vertex 3"):
        face_basis(None, write_bfm2017(tmp_path, spoiled))


def test_landmark_files(truth, tmp_path):
    path = write_bfm_front(tmp_path, truth)
    (tmp_path / "few.txt").write_text("1 2 3")
    with pytest.raises(DialogueError, match="holds 3 vertex numbers"):
        face_basis(None, path, tmp_path / "few.txt")
    (tmp_path / "words.json").write_text("[1, ")
    with pytest.raises(DialogueError, match="no list of 68"):
        face_basis(None, path, tmp_path / "words.json")
    (tmp_path / "large.txt").write_text(" ".join(["99999"] * 68))
    with pytest.raises(DialogueError, match="does not have"):
        face_basis(None, path, tmp_path / "large.txt")


def test_kinds_are_found(truth, tmp_path):
    assert detect_kind(write_bfm_front(tmp_path, truth)) == "bfm2009"
    assert detect_kind(tmp_path) == "bfm2009"
    (tmp_path / "ict" / "FaceXModel").mkdir(parents=True)
    write_ict(tmp_path / "ict" / "FaceXModel", truth)
    assert detect_kind(tmp_path / "ict") == "ict"
