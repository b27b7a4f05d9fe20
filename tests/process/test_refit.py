from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from synthetic_face import synthetic_face
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.conversation import load_conversation
from dialogue_nerfstudio.conversation.conversation import Camera, save_conversation
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.expression_basis import ExpressionBasis, expression_basis
from dialogue_nerfstudio.conversation.files import read_npz, write_npz
from dialogue_nerfstudio.conversation.motion import Motion
from dialogue_nerfstudio.process.refit import head_track, refit_conversation, refit_displacements


def mixed_basis(seed: int = 0) -> ExpressionBasis:
    """Another basis of the same movements: signed mixtures of the shared fields, as principal components are."""
    shared = expression_basis()
    rng = np.random.default_rng(seed)
    mixture = np.linalg.qr(rng.normal(size=(28, 28)))[0]
    return replace(
        shared,
        name="mixed-28",
        expression=np.tensordot(mixture, shared.expression, axes=1),
        expression_names=tuple(f"mixture_{index}" for index in range(28)),
        lower=-3.0,
        upper=3.0,
        prior=1.0,
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A conversation with landmarks: what a perfect tracker sees of somebody whose motion is known."""
    root = write_tiny_conversation(tmp_path_factory.mktemp("recorded") / "chat", num_people=1, num_frames=50)
    person = synthetic_face(num_frames=50, seed=2)
    conversation = load_conversation(root)
    poses = np.concatenate(
        [Rotation.from_matrix(person.rotations).as_rotvec(), person.translations + np.array([0, 0, 0.8])], axis=1
    )
    participant = replace(
        conversation.participants[0],
        camera=Camera(256, 256, 512.0, 128, 128, np.concatenate([np.eye(3), [[0], [0], [0.8]]], axis=1)),
        motion=replace(
            conversation.participants[0].motion,
            head_pose=poses.astype(np.float32),
            expression=person.expression.astype(np.float32),
        ),
    )
    save_conversation(replace(conversation, participants=[participant]), root)
    folder = root / "participants" / "p0"
    tracking = read_npz(folder / "tracking.npz")
    write_npz(folder / "tracking.npz", **{**tracking, "landmarks": person.points.astype(np.float32)})
    write_npz(folder / "face.npz", neutral=person.shape.astype(np.float32), mouth_opening=np.zeros(50, np.float32))
    return root, person


def _state(root):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}


def test_head_track_comes_back(recorded):
    root, person = recorded
    head = head_track(load_conversation(root).participants[0], person.shape)
    np.testing.assert_allclose(head.rotations, person.rotations, atol=1e-6)
    np.testing.assert_allclose(head.translations, person.translations, atol=1e-6)


def test_from_landmarks_to_another_basis_and_back(recorded, tmp_path):
    root, person = recorded
    before, basis = _state(root), mixed_basis()
    results = refit_conversation(root, tmp_path / "mixed", basis)
    assert _state(root) == before
    assert [(r.participant, r.source, r.unit) for r in results] == [("p0", "landmarks", "px")]
    # Only the prior and the smoothing keep the fit from the landmarks.
    assert results[0].before.max() < 1e-2 and np.sqrt(np.mean(results[0].after ** 2)) < 0.5
    new = load_conversation(tmp_path / "mixed")
    motion = new.participants[0].motion
    assert motion.expression_basis == "mixed-28" and motion.expression_names[3] == "mixture_3"
    assert new.provenance["expression_basis_hash"] == basis.hash
    moved = np.tensordot(motion.expression, basis.expression, axes=1)[:, 14, 1]
    true = np.tensordot(person.expression, expression_basis().expression, axes=1)[:, 14, 1]
    assert np.corrcoef(moved, true)[0, 1] > 0.97
    # What is not about the basis is the same file, not a copy.
    video = "participants/p0/video.mp4"
    assert (tmp_path / "mixed" / video).samefile(root / video)
    face = read_npz(tmp_path / "mixed" / "participants" / "p0" / "face.npz")
    assert str(face["expression_basis"]) == "mixed-28" and face["refit_error"].shape == (50,)
    assert len(face["geometry"]) == len(basis.geometry)

    back = refit_conversation(tmp_path / "mixed", tmp_path / "back", expression_basis())
    assert not np.isnan(back[0].before).any()
    motion = load_conversation(tmp_path / "back").participants[0].motion
    np.testing.assert_allclose(motion.expression[:, 0], person.expression[:, 0], atol=0.12)
    assert not (tmp_path / "back" / "face_model.npz").exists()


def test_without_landmarks_displacements_are_taken_over(recorded, tmp_path):
    root, _ = recorded
    (root / "participants" / "p0" / "tracking.npz").rename(tmp_path / "kept.npz")
    try:
        results = refit_conversation(root, tmp_path / "mixed", mixed_basis())
    finally:
        (tmp_path / "kept.npz").rename(root / "participants" / "p0" / "tracking.npz")
    assert (results[0].source, results[0].unit) == ("displacements", "mm")
    assert results[0].after.max() < 0.2 < results[0].before.max()
    # Numbers whose basis is not stored cannot be carried over.
    (tmp_path / "mixed" / "face_model.npz").unlink()
    with pytest.raises(DialogueError, match="'mixed-28', which is not stored with them, and there are no landmarks"):
        refit_conversation(tmp_path / "mixed", tmp_path / "other", expression_basis())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixed"]


def test_displacements_in_a_basis_that_spans_the_old_one():
    shared, mixed = expression_basis(), mixed_basis()
    rng = np.random.default_rng(0)
    expression = rng.uniform(0, 1, (6, 28))
    found, moved, missed = refit_displacements(expression, shared, mixed)
    mixture = np.linalg.lstsq(shared.expression.reshape(28, -1).T, mixed.expression.reshape(28, -1).T, rcond=None)[0].T
    np.testing.assert_allclose(found @ mixture, expression, atol=0.2)
    assert (missed < 0.02 * moved).all()
    # In a basis of fewer movements, what they cannot do is said.
    few = replace(mixed, expression=shared.expression[:1], expression_names=("jaw_open",))
    _, moved, missed = refit_displacements(np.eye(28)[[0, 18]], shared, few)
    assert missed[0] < 1e-2 * moved[0] and missed[1] > 0.95 * moved[1]


def test_refused(recorded, tmp_path):
    root, _ = recorded
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    with pytest.raises(DialogueError, match="exists already"):
        refit_conversation(root, tmp_path / "taken", mixed_basis())
    with pytest.raises(DialogueError, match="is inside of"):
        refit_conversation(root, root / "new", mixed_basis())
    with pytest.raises(DialogueError, match="is not a folder"):
        refit_conversation(tmp_path / "none", tmp_path / "new", mixed_basis())
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_motions_of_two_bases_do_not_mix(recorded, tmp_path):
    root, _ = recorded
    refit_conversation(root, tmp_path / "mixed", mixed_basis())
    ours: Motion = load_conversation(root).participants[0].motion
    theirs = load_conversation(tmp_path / "mixed").participants[0].motion
    with pytest.raises(DialogueError, match=r"'mixed-28', these avatars use 'dialogue-28'"):
        ours.check_same_basis(theirs, "another recording")
