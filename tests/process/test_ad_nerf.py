"""Folders of the AD-NeRF family become conversations of one: known points land where they were, nothing is lost."""

import importlib.util
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ad_nerf_data import simulated_ad_nerf_folder, tiny_ad_nerf_folder
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation import EXPRESSION_BASIS, DialogueError, load_conversation
from dialogue_nerfstudio.conversation.simulate import SimulationConfig
from dialogue_nerfstudio.conversation.video import HEAD, TORSO
from dialogue_nerfstudio.process import ad_nerf
from dialogue_nerfstudio.process.ad_nerf import process_ad_nerf
from dialogue_nerfstudio.process.ad_nerf_folder import (
    closure_from_action_units,
    conversation_folder,
    is_ad_nerf_folder,
    read_ad_nerf_folder,
)
from dialogue_nerfstudio.process.pipeline import ProcessConfig
from dialogue_nerfstudio.process.recordings import one_recording


@pytest.fixture
def without_tracker(monkeypatch):
    """As on a Python for which mediapipe has no wheel."""
    find = importlib.util.find_spec
    monkeypatch.setattr(ad_nerf.importlib.util, "find_spec", lambda name: None if name == "mediapipe" else find(name))


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    """33 pictures of 32 × 32; do not write to it."""
    root = tmp_path_factory.mktemp("ad_nerf")
    return tiny_ad_nerf_folder(root / "obama", root / "scratch")


def pixels(camera, motion, point) -> Float[np.ndarray, "frames 2"]:
    """Where a point of head space is seen."""
    rotation = Rotation.from_rotvec(motion.head_pose[:, :3].astype(float)).as_matrix()
    person = rotation @ np.asarray(point) + motion.head_pose[:, 3:]
    local = (person - camera.camera_to_person[:, 3]) @ camera.camera_to_person[:, :3]
    x, y = camera.cx - camera.focal * local[:, 0] / local[:, 2], camera.cy + camera.focal * local[:, 1] / local[:, 2]
    return np.stack([x, y], axis=1)


def test_files_are_read_as_the_family_writes_them(tiny_folder):
    assert is_ad_nerf_folder(tiny_folder) and not is_ad_nerf_folder(tiny_folder / "parsing")
    folder = read_ad_nerf_folder(tiny_folder)
    assert (folder.num_frames, folder.width, folder.height, folder.first) == (33, 32, 32, 0)
    assert folder.train_frames.tolist() == list(range(30)) and folder.eval_frames.tolist() == [30, 31, 32]
    labels = folder.labels(4)
    assert {0, TORSO, HEAD} == set(np.unique(labels)) and labels[15, 16] == HEAD and labels[31, 16] == TORSO
    assert folder.pictures.name == "gt_imgs"


def test_a_folder_without_a_tracker_keeps_poses_and_blinks(tiny_folder, tmp_path, without_tracker):
    original = load_conversation(tiny_folder.parent / "scratch")
    person = original.participants[0]
    converted = process_ad_nerf(tiny_folder, tmp_path / "out")
    loaded = load_conversation(tmp_path / "out")
    (mine,) = loaded.participants
    for point in ([0.0, 0.0, 0.1], [0.06, -0.05, 0.0], [0.0, 0.1, -0.05]):
        np.testing.assert_allclose(
            pixels(mine.camera, mine.motion, point), pixels(person.camera, person.motion, point), atol=1e-3
        )
    np.testing.assert_allclose(mine.motion.blink, person.motion.blink, atol=1e-3)
    assert mine.motion.expression_basis == EXPRESSION_BASIS and not mine.motion.expression.any()
    assert np.abs(mine.motion.head_pose[:, 3:].mean(axis=0)).max() < 1e-6
    assert loaded.train_frames.tolist() == list(range(30)) and len(loaded.eval_frames) == 3
    np.testing.assert_allclose(loaded.feature("aud_ds"), np.load(tiny_folder / "aud_ds.npy"))
    assert loaded.feature("mel").shape == (33, 16, 80)
    with loaded.frames("p0") as frames, original.frames("p0") as before:
        assert np.abs(frames[20].astype(int) - before[20].astype(int)).mean() < 4.0
    with loaded.labels("p0") as labels, original.labels("p0") as before:
        np.testing.assert_array_equal(labels[20], before[20])
    summary = json.loads((tmp_path / "out" / "process.json").read_text())
    assert any("mediapipe is not installed" in note for note in summary["notes"])
    assert converted.num_frames == 33 and summary["participants"]["p0"]["reprojection_rmse_px"] is None


def test_the_face_models_coefficients_stand_in_for_a_tracker(tiny_folder, tmp_path, without_tracker):
    shutil.copytree(tiny_folder, tmp_path / "folder")
    (tmp_path / "folder" / "aud.wav").unlink()
    with pytest.raises(DialogueError, match=r"neither aud\.wav nor track_params\.pt"):
        process_ad_nerf(tmp_path / "folder", tmp_path / "out")
    expression = torch.randn(33, 79, generator=torch.Generator().manual_seed(0))
    torch.save({"exp": expression, "euler": torch.zeros(33, 3)}, tmp_path / "folder" / "track_params.pt")
    motion = process_ad_nerf(tmp_path / "folder", tmp_path / "out").participants[0].motion
    np.testing.assert_allclose(motion.expression, expression.numpy(), rtol=1e-6)
    assert motion.expression_basis == "face-model-79"
    silent = load_conversation(tmp_path / "out")
    assert not silent.speaking.any() and not silent.audio()[0].any()


def test_no_code_in_a_stored_pickle_is_run(tiny_folder, tmp_path, without_tracker):
    class Mark:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "MARK",))

    shutil.copytree(tiny_folder, tmp_path / "folder")
    torch.save({"exp": Mark()}, tmp_path / "folder" / "track_params.pt")
    with pytest.raises(DialogueError, match=r"track_params\.pt cannot be read as plain tensors"):
        process_ad_nerf(tmp_path / "folder", tmp_path / "out")
    (tmp_path / "folder" / "track_params.pt").unlink()
    np.save(tmp_path / "folder" / "aud_hu.npy", np.array([Mark()], dtype=object), allow_pickle=True)
    with pytest.raises(DialogueError, match=r"aud_hu\.npy is not a readable array"):
        process_ad_nerf(tmp_path / "folder", tmp_path / "out")
    assert not (tmp_path / "MARK").exists()


def test_frames_left_out_are_bridged_and_in_no_split(tmp_path, without_tracker):
    folder = tiny_ad_nerf_folder(tmp_path / "f", tmp_path / "scratch", first=25, skipped=(6, 7))
    conversation = process_ad_nerf(folder, tmp_path / "out")
    true = load_conversation(tmp_path / "scratch").participants[0]
    (person,) = conversation.participants
    assert conversation.num_frames == 33 and len(conversation.train_frames) + len(conversation.eval_frames) == 31
    assert not {6, 7} & {*conversation.train_frames.tolist(), *conversation.eval_frames.tolist()}
    error = pixels(person.camera, person.motion, [0, 0, 0.1]) - pixels(true.camera, true.motion, [0, 0, 0.1])
    assert np.abs(error).max() < 1.0 and np.abs(np.delete(error, [6, 7], axis=0)).max() < 1e-3
    np.testing.assert_allclose(conversation.feature("aud_ds"), np.load(folder / "aud_ds.npy")[25:])
    # The sound begins with the first picture's time, not with the file's.
    heard, original = conversation.audio()[0], load_conversation(tmp_path / "scratch").audio()[0]
    assert np.corrcoef(heard, original)[0, 1] > 0.999


def test_a_second_run_does_nothing_and_a_changed_folder_is_converted_again(tiny_folder, tmp_path, without_tracker):
    shutil.copytree(tiny_folder, tmp_path / "folder")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "folder").rglob("*")}
    output = conversation_folder(tmp_path / "folder", tmp_path / "cache")
    assert output.is_relative_to(tmp_path / "cache")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "folder").rglob("*")} == before
    stamp = (output / "participants" / "p0" / "video.mp4").stat().st_mtime_ns
    assert conversation_folder(tmp_path / "folder", tmp_path / "cache") == output
    assert (output / "participants" / "p0" / "video.mp4").stat().st_mtime_ns == stamp
    picture = np.full((32, 32, 3), 77, np.uint8)
    cv2.imwrite(str(tmp_path / "folder" / "gt_imgs" / "3.jpg"), picture)
    conversation_folder(tmp_path / "folder", tmp_path / "cache")
    with load_conversation(output).frames("p0") as frames:
        assert np.abs(frames[3].astype(int) - 77).max() < 6
    assert conversation_folder(output, tmp_path / "cache") == output


def test_options_about_what_the_folder_knows_are_refused(tiny_folder, tmp_path):
    for option, value in (("num_people", 2), ("size", 256), ("focal", 500.0), ("eval_fraction", 0.3)):
        with pytest.raises(DialogueError, match=f"--{option.replace('_', '-')} {value}"):
            process_ad_nerf(tiny_folder, tmp_path / "out", ProcessConfig(**{option: value}))
    with pytest.raises(DialogueError, match="process it alone"):
        one_recording([tiny_folder, tmp_path / "chat.mp4"])
    with pytest.raises(DialogueError, match="only read"):
        process_ad_nerf(tiny_folder, tiny_folder / "out")
    assert not (tmp_path / "out").exists() and not (tiny_folder / "out").exists()


def test_action_units(tmp_path):
    table = tmp_path / "au.csv"
    table.write_text("frame, AU45_r, AU45_c\n1, 0.0, 0\n2, 1.0, 1\n3, 4.0, 1\n")
    np.testing.assert_allclose(closure_from_action_units(table, 1, 2), [[0.5, 0.5], [1.0, 1.0]])
    with pytest.raises(DialogueError, match="3 rows, but frames up to img_id 3"):
        closure_from_action_units(table, 1, 3)
    table.write_text("frame, AU12_r\n1, 0.0\n")
    with pytest.raises(DialogueError, match="no column AU45_r"):
        closure_from_action_units(table, 0, 1)


@pytest.mark.slow
def test_a_simulated_person_in_another_head_space(tmp_path):
    """Poses written in a face model's head space come back in ours, because the face was found on the pictures."""
    pytest.importorskip("mediapipe", reason="finding faces needs mediapipe")
    config = SimulationConfig(seconds=2.0, size=128, num_people=1, seed=3)
    folder, camera, motion = simulated_ad_nerf_folder(tmp_path / "folder", config)
    (person,) = process_ad_nerf(folder, tmp_path / "out").participants
    for point in ([0.0, 0.02, 0.07], [0.05, 0.05, 0.03], [0.0, -0.06, 0.07], [-0.06, 0.0, 0.0]):
        error = pixels(person.camera, person.motion, point) - pixels(camera, motion, point)
        assert np.linalg.norm(error, axis=1).mean() < 2.0 and error.std(axis=0).max() < 0.5
    jaw = person.motion.expression[:, 0]
    assert np.corrcoef(jaw, motion.expression[:, 0])[0, 1] > 0.6
    mean = motion.head_pose[:, 3:] - motion.head_pose[:, 3:].mean(axis=0)
    assert np.abs(person.motion.head_pose[:, 3:] - mean).max() < 0.004
