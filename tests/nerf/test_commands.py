"""Stock nerfstudio commands on our method."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SMALL = [
    "--max-num-iterations",
    "2",
    "--vis",
    "tensorboard",
    "--pipeline.model.head.grid.kernel",
    "torch",
    "--pipeline.model.torso.grid.kernel",
    "torch",
    "--pipeline.datamanager.train-num-rays-per-batch",
    "64",
    "--pipeline.model.head.grid.log2-hashmap-size",
    "10",
    "--pipeline.model.torso.grid.log2-hashmap-size",
    "10",
    "--pipeline.model.occupancy.resolution",
    "8",
    "--timestamp",
    "run",
]


def nerfstudio(script: str, *arguments: object, folder: Path, cache: Path) -> subprocess.CompletedProcess:
    """`ns-<script> arguments`, without relying on what is on the PATH."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"from nerfstudio.scripts.{script} import entrypoint; entrypoint()",
            *map(str, arguments),
        ],
        cwd=folder,
        env={
            **os.environ,
            "XDG_CACHE_HOME": str(cache),
            "NERFSTUDIO_METHOD_CONFIGS": "dialogue-nerf=dialogue_nerfstudio.nerf.config:dialogue_nerf",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def trained(tiny, cache, tmp_path_factory):
    """A folder in which `ns-train` ran for two steps, and its config.yml."""
    folder = tmp_path_factory.mktemp("run")
    done = nerfstudio("train", "dialogue-nerf", "--data", tiny, *SMALL, folder=folder, cache=cache)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder, folder / "outputs" / "conversation" / "dialogue-nerf" / "run" / "config.yml"


@pytest.fixture
def inside(trained, cache, monkeypatch):
    """The test runs in that folder; starting a process for every command would take most of the suite's time."""
    folder, config = trained
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return folder, config


def test_train_then_eval(inside):
    from nerfstudio.scripts.eval import ComputePSNR

    folder, config = inside
    assert [path.name for path in (config.parent / "nerfstudio_models").iterdir()] == ["step-000000001.ckpt"]
    ComputePSNR(load_config=config, output_path=folder / "eval.json").main()
    results = json.loads((folder / "eval.json").read_text())["results"]
    assert {"psnr", "ssim", "psnr_head", "psnr_mouth"} <= set(results)
    assert all(np.isfinite(value) for value in results.values())


def test_render_dataset(inside):
    from nerfstudio.scripts.render import DatasetRender

    folder, config = inside
    names = ["rgb", "gt-rgb", "depth"]
    DatasetRender(load_config=config, output_path=folder / "frames", rendered_output_names=names).main()
    assert len(list((folder / "frames").rglob("*.jpg"))) == 3 * 2 * 5


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="nerfstudio's camera-path renderer needs the ffmpeg program")
def test_render_camera_path(inside):
    from nerfstudio.scripts.render import RenderCameraPath

    folder, config = inside
    matrix = np.eye(4)
    matrix[:3, 3] = [0.0, -0.05, 1.0]
    keyframe = {"camera_to_world": matrix.ravel().tolist(), "fov": 28.0, "aspect": 1.0}
    path = {
        "camera_type": "perspective",
        "render_height": 16,
        "render_width": 16,
        "seconds": 1,
        "fps": 3,
        "camera_path": [{**keyframe, "render_time": time} for time in (0.0, 0.5, 1.02)],
        "crop": None,
        "is_cycle": False,
    }
    (folder / "path.json").write_text(json.dumps(path))
    RenderCameraPath(
        load_config=config, camera_path_filename=folder / "path.json", output_path=folder / "path.mp4"
    ).main()
    assert (folder / "path.mp4").stat().st_size > 0


def test_data_that_is_missing_ends_training_with_one_sentence_and_code_2(tmp_path, cache, capsys):
    from dialogue_nerfstudio.nerf.config import dialogue_nerf

    config = copy.deepcopy(dialogue_nerf.config.pipeline)
    config.datamanager.data = tmp_path / "nowhere"
    with pytest.raises(SystemExit) as stop:
        config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0, grad_scaler=None)
    message = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and message.startswith("Error: ") and "nowhere" in message


def test_another_kernels_checkpoint_ends_evaluation_with_one_sentence_and_code_2(inside, tmp_path, monkeypatch, capsys):
    from nerfstudio.scripts.eval import ComputePSNR

    folder, config = inside
    shutil.copytree(folder / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    state["pipeline"]["_model._extra_state"]["kernel"] = "cutlass"
    torch.save(state, checkpoint)
    with pytest.raises(SystemExit) as stop:
        ComputePSNR(load_config=config, output_path=tmp_path / "eval.json").main()
    assert stop.value.code == 2 and "hash-grid kernel 'cutlass'" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "eval.json").exists()


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint(inside, tiny, monkeypatch):
    from nerfstudio.scripts import train
    from nerfstudio.utils import writer

    # nerfstudio keeps the writers of every run of a process.
    monkeypatch.setattr(writer, "EVENT_WRITERS", [])
    _, config = inside
    resume = ("--load-dir", config.parent / "nerfstudio_models", "--timestamp", "resumed")
    command = ["ns-train", "dialogue-nerf", "--data", tiny, *SMALL[:-2], *resume]
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    train.entrypoint()
    resumed = config.parents[1] / "resumed" / "nerfstudio_models"
    assert [path.name for path in resumed.iterdir()] == ["step-000000003.ckpt"]


def test_load_for_rendering(inside):
    from dialogue_nerfstudio.nerf.load import load_pipeline_for_rendering

    _, config_path = inside
    config, pipeline = load_pipeline_for_rendering(config_path)
    assert config.load_step == 1 and not pipeline.model.training
    camera = pipeline.datamanager.eval_dataset.cameras[0:1]
    assert pipeline.model.render_frame(camera, 0, 0)["rgb"].shape == (32, 32, 3)


def test_load_says_what_is_wrong(trained, tmp_path, monkeypatch):
    from dialogue_nerfstudio.conversation import DialogueError
    from dialogue_nerfstudio.nerf.load import load_pipeline_for_rendering, read_checkpoint, read_config

    _, config_path = trained
    with pytest.raises(DialogueError, match="does not exist"):
        load_pipeline_for_rendering(tmp_path / "config.yml")
    (tmp_path / "config.yml").write_text("a: [")
    with pytest.raises(DialogueError, match="not a readable config"):
        read_config(tmp_path / "config.yml")
    (tmp_path / "config.yml").write_text("a: 1")
    with pytest.raises(DialogueError, match="not a config of the method"):
        read_config(tmp_path / "config.yml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DialogueError, match="no checkpoint in"):
        load_pipeline_for_rendering(config_path)
    damaged = tmp_path / "step-000000001.ckpt"
    damaged.write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(DialogueError, match="not a readable checkpoint"):
        read_checkpoint(damaged)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, capsys):
    import errno

    from dialogue_nerfstudio.nerf import trainer

    class Stub:
        checkpoint_dir = tmp_path
        pipeline = torch.nn.Linear(1, 1)
        optimizers = type("Optimizers", (), {"optimizers": {}, "schedulers": {}})()
        grad_scaler = torch.amp.GradScaler("cpu", enabled=False)
        config = type("Config", (), {"save_only_latest_checkpoint": True})()
        local_rank = 0

    trainer.DialogueTrainer.save_checkpoint(Stub(), 5)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000005.ckpt"]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer, "_save", full)
    with pytest.raises(SystemExit) as stop:
        trainer.DialogueTrainer.save_checkpoint(Stub(), 9)
    assert stop.value.code == 2 and "disk is full" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000005.ckpt"]
