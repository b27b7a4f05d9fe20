"""Malformed AD-NeRF-family folders are refused with one clear sentence and exit code 2, and nothing is written into
them."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
from ad_nerf_data import tiny_ad_nerf_folder
from media import tone


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("family")
    return tiny_ad_nerf_folder(root / "obama", root / "scratch")


@pytest.fixture
def folder(intact, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(intact, tmp_path / "obama")


@pytest.fixture
def refused_folder(refused, folder, tmp_path, monkeypatch):
    """Process the folder, which must be refused and leave no conversation."""
    from dialogue_nerfstudio.process.ad_nerf import _Conversion

    # What is wrong is found before, or without, any face.
    monkeypatch.setattr(_Conversion, "choose_face", lambda self: "none")

    def run(*options: object, naming: list[str]) -> str:
        sentence = refused("process", folder, "--output", tmp_path / "out", *options, naming=naming)
        assert not (tmp_path / "out" / "conversation.json").exists()
        return sentence

    return run


def edit(folder: Path, split: str, change) -> None:
    path = folder / f"transforms_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("split", ["train", "val"])
def test_transforms_missing(refused_folder, folder, split):
    (folder / f"transforms_{split}.json").unlink()
    refused_folder(naming=[f"transforms_{split}.json", "obama"])


def test_both_transforms_missing(refused_folder, folder):
    for split in ("train", "val"):
        (folder / f"transforms_{split}.json").unlink()
    refused_folder(naming=["transforms_train.json"])


def test_transforms_that_are_no_json(refused_folder, folder):
    (folder / "transforms_train.json").write_text("{")
    refused_folder(naming=["transforms_train.json", "JSON"])


def test_no_frames(refused_folder, folder):
    edit(folder, "val", lambda content: content.update(frames=[]))
    refused_folder(naming=["transforms_val.json", "no frames"])


@pytest.mark.parametrize("name", ["focal_len", "cx", "cy"])
def test_camera_missing(refused_folder, folder, name):
    edit(folder, "train", lambda content: content.pop(name))
    refused_folder(naming=["transforms_train.json", name, "missing"])


def test_cameras_that_differ(refused_folder, folder):
    edit(folder, "val", lambda content: content.update(focal_len=1.0))
    refused_folder(naming=["focal_len"])


def test_a_pose_that_is_nan(refused_folder, folder):
    def spoil(content):
        content["frames"][5]["transform_matrix"][0][3] = float("nan")

    edit(folder, "train", spoil)
    refused_folder(naming=["transforms_train.json", "frame 5", "NaN"])


def test_a_pose_that_is_no_pose(refused_folder, folder):
    edit(folder, "train", lambda content: content["frames"][5].update(transform_matrix=[[1, 2], [3, 4]]))
    refused_folder(naming=["frame 5", "transform_matrix"])


def test_a_pose_that_is_not_rigid(refused_folder, folder):
    edit(folder, "train", lambda content: content["frames"][5].update(transform_matrix=(2 * np.eye(4)).tolist()))
    refused_folder(naming=["frame 5", "rigid"])


def test_a_frame_without_a_number(refused_folder, folder):
    edit(folder, "train", lambda content: content["frames"][2].pop("img_id"))
    refused_folder(naming=["entry 2", "img_id"])


def test_a_frame_in_both_splits(refused_folder, folder):
    trained = json.loads((folder / "transforms_train.json").read_text())["frames"][4]
    edit(folder, "val", lambda content: content["frames"].append(trained))
    refused_folder(naming=["transforms_val.json", "frame 4", "both"])


def test_pictures_and_sound_of_different_cuts(refused_folder, folder):
    edit(folder, "train", lambda content: content["frames"][3].update(aud_id=9))
    refused_folder(naming=["aud_id", "0 to 6"])


@pytest.mark.parametrize(("name", "suffix"), [("gt_imgs", ".jpg"), ("parsing", ".png")])
def test_a_picture_missing(refused_folder, folder, name, suffix):
    (folder / name / f"17{suffix}").unlink()
    refused_folder(naming=[name, f"17{suffix}"])


def test_no_pictures_at_all(refused_folder, folder):
    for name in ("gt_imgs", "ori_imgs"):
        shutil.rmtree(folder / name)
    refused_folder(naming=["ori_imgs", "no pictures"])


@pytest.mark.parametrize("name", ["gt_imgs/9.jpg", "parsing/9.png", "bc.jpg"])
def test_a_picture_that_is_none(refused_folder, folder, name):
    (folder / name).write_bytes(b"\xff\xd8 half of it")
    refused_folder(naming=[name, "not a readable picture"])


@pytest.mark.parametrize("name", ["gt_imgs/9.jpg", "parsing/9.png"])
def test_a_picture_of_another_size(refused_folder, folder, name):
    cv2.imwrite(str(folder / name), np.full((64, 64, 3), 255, np.uint8))
    refused_folder(naming=[name, "64x64", "32x32"])


def test_a_background_of_another_shape(refused_folder, folder):
    cv2.imwrite(str(folder / "bc.jpg"), np.zeros((16, 64, 3), np.uint8))
    refused_folder(naming=["bc.jpg", "64x16", "32x32"])


def test_a_parsing_of_other_colours(refused_folder, folder):
    cv2.imwrite(str(folder / "parsing" / "9.png"), np.full((32, 32, 3), 100, np.uint8))
    refused_folder(naming=["9.png", "100, 100, 100"])


def test_sound_that_is_too_short(refused_folder, folder):
    soundfile.write(folder / "aud.wav", tone(0.2), 16000)
    refused_folder(naming=["aud.wav", "0.2 s", "1.1 s more"])


def test_features_that_are_too_short(refused_folder, folder):
    np.save(folder / "aud_ds.npy", np.zeros((5, 16, 29)))
    refused_folder(naming=["aud_ds.npy", "5 rows", "32"])


def test_action_units_of_another_video(refused_folder, folder):
    (folder / "au.csv").write_text("frame, AU45_r\n1, 0.0\n")
    refused_folder(naming=["au.csv", "1 rows", "32"])


@pytest.mark.parametrize(
    ("change", "naming"),
    [
        # OpenCV's axes, y down and looking along +z.
        (lambda matrix: matrix @ np.diag([1.0, -1.0, -1.0, 1.0]), ["-z"]),
        # The tracker's own unit, without the tenth.
        (lambda matrix: np.concatenate([matrix[:, :3], matrix[:, 3:] * [[10], [10], [10], [1]]], axis=1), ["metres"]),
    ],
)
def test_poses_of_another_convention(refused, tmp_path, monkeypatch, change, naming):
    """The tracker sees the face where poses of another convention cannot put it."""
    from synthetic_face import synthetic_face

    from dialogue_nerfstudio.process import ad_nerf
    from dialogue_nerfstudio.process.trackers import mesh

    folder = tiny_ad_nerf_folder(tmp_path / "obama", tmp_path / "scratch")
    face = synthetic_face(num_frames=33, size=32)
    for split in ("train", "val"):

        def spoil(content):
            for frame in content["frames"]:
                frame["transform_matrix"] = change(np.array(frame["transform_matrix"])).tolist()

        edit(folder, split, spoil)
    monkeypatch.setattr(ad_nerf._Conversion, "choose_face", lambda self: "tracked")
    monkeypatch.setattr(mesh.MeshTracker, "track", lambda self, frames, count, progress: face.track())
    refused("process", folder, "--output", tmp_path / "out", naming=["obama", "the poses", "gt_imgs", *naming])


def test_training_on_a_malformed_folder(folder, capsys, tmp_path):
    """`ns-train --data FOLDER` says the same sentence."""
    import copy

    from dialogue_nerfstudio.nerf.config import dialogue_nerf

    (folder / "parsing" / "17.png").unlink()
    config = copy.deepcopy(dialogue_nerf.config.pipeline)
    config.datamanager.data = folder
    with pytest.raises(SystemExit) as stop:
        config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0, grad_scaler=None)
    message = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and message.startswith("Error: ") and "17.png" in message
