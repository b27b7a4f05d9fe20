"""Motion models in nerfstudio's trainer: losses fall, runs resume exactly, checkpoints load completely or not."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from motion_stand_in import InventedWindows
from nerfstudio.utils import eval_utils, writer

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.motion.gp_vae import GpVaeConfig
from dialogue_nerfstudio.motion.gp_vae_generator import GpVaeGenerator
from dialogue_nerfstudio.motion.pose_tcn import PoseTcnConfig
from dialogue_nerfstudio.motion.tcn import TcnConfig
from dialogue_nerfstudio.motion.training.config import METHODS, motion_method
from dialogue_nerfstudio.motion.training.datamanager import MotionDataManager
from dialogue_nerfstudio.motion.training.load import load_generator, load_motion_model, read_motion_config
from dialogue_nerfstudio.motion.training.pipeline import MotionPipeline
from dialogue_nerfstudio.motion.training.trainer import CpuProcesses, MotionMachineConfig

SMALL = PoseTcnConfig(tcn=TcnConfig(channels=8, levels=2, dropout=0.1), context=30, target=30)


@pytest.fixture(autouse=True)
def invented_data(monkeypatch, tmp_path):
    """Training reads invented windows, and a run's folders are under the test's."""

    def opened(self, split, needs_mel):
        if self.config.data is None:
            raise DialogueError("there is no data to train on; give --data FOLDER of conversations.")
        return InventedWindows(self.window, needs_mel, seed=0 if split == "train" else 1)

    monkeypatch.setattr(MotionDataManager, "_open", opened)
    monkeypatch.chdir(tmp_path)
    # nerfstudio keeps the writers of every run of a process.
    monkeypatch.setattr(writer, "EVENT_WRITERS", [])


def small_run(name: str, steps: int, **changes):
    """A run's config."""
    config = motion_method("dialogue-pose-tcn", copy.deepcopy(SMALL), steps=steps, windows_per_batch=4)
    config.machine = MotionMachineConfig(device_type="cpu")
    config.pipeline.datamanager.data = Path("invented")
    config.optimizers["networks"]["scheduler"].max_steps = 30
    config.timestamp = name
    for key, value in changes.items():
        setattr(config, key, value)
    config.save_config()
    return config


def train(config):
    """What ns-train does."""
    from nerfstudio.scripts.train import train_loop

    train_loop(0, 1, config)
    return config.get_base_dir() / "config.yml"


@pytest.fixture(scope="module")
def motion_folder(tmp_path_factory) -> Path:
    """Eight simulated conversations of ten seconds between four people."""
    from dialogue_nerfstudio.conversation.simulate.motion_hours import MotionHoursConfig, simulate_motion_hours

    folder = tmp_path_factory.mktemp("data") / "talks"
    simulate_motion_hours(MotionHoursConfig(hours=80 / 3600, num_people=4), folder, workers=1)
    return folder


def nerfstudio(script: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess:
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
            "NERFSTUDIO_METHOD_CONFIGS": "dialogue-pose-tcn="
            "dialogue_nerfstudio.motion.training.config:dialogue_pose_tcn",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=900,
    )


def trained_alone(config, steps: int) -> torch.nn.Module:
    """What two processes should come to: steps along the mean of the gradients that each has on windows of its own."""
    torch.manual_seed(config.machine.seed)
    first, second = (MotionPipeline(config.pipeline, "cpu", local_rank=rank) for rank in range(2))
    (parameters,) = first.get_param_groups().values()
    group = config.optimizers["networks"]
    optimiser = group["optimizer"].setup(params=parameters)
    scheduler = replace(group["scheduler"], max_steps=steps).setup().get_scheduler(optimiser, 0.0)
    for step in range(steps):
        second.model.load_state_dict(first.model.state_dict())
        for pipeline in (first, second):
            pipeline.train()
            pipeline.zero_grad()
            sum(pipeline.get_train_loss_dict(step)[1].values()).backward()
        for mine, other in zip(parameters, second.model.parameters(), strict=True):
            mine.grad = (mine.grad + other.grad) / 2
        torch.nn.utils.clip_grad_norm_(parameters, group["optimizer"].max_norm)
        optimiser.step()
        scheduler.step()
    return first.model


def newest(config_path: Path) -> dict:
    (checkpoint,) = (config_path.parent / "nerfstudio_models").iterdir()
    return torch.load(checkpoint, weights_only=True)


def test_losses_fall_and_figures_are_evaluated(tmp_path):
    config_path = train(small_run("run", 30, steps_per_eval_batch=10, steps_per_eval_all_images=10))
    events = list(config_path.parent.glob("events.out.tfevents.*"))
    assert events and events[0].stat().st_size > 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(config_path.parent)).Reload()
    losses = [event.value for event in log.Scalars("Train Loss")]
    assert losses[-1] < 0.95 * losses[0]
    assert "Eval Loss" in log.Tags()["scalars"]
    assert any("share_of_ceiling" in tag for tag in log.Tags()["scalars"])


def test_ns_eval(tmp_path, monkeypatch):
    from nerfstudio.scripts.eval import ComputePSNR

    config_path = train(small_run("run", 2))
    monkeypatch.setitem(eval_utils.all_methods, "dialogue-pose-tcn", METHODS["dialogue-pose-tcn"].config)
    ComputePSNR(load_config=config_path, output_path=tmp_path / "eval.json").main()
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert {"pitch_correlation", "pitch_ceiling", "rotation_error", "rotation_error_std"} <= set(results)


def test_a_run_that_resumes_ends_where_one_that_was_never_stopped_does():
    whole = newest(train(small_run("whole", 8)))
    first = train(small_run("first", 5))
    second = newest(train(small_run("second", 3, load_dir=first.parent / "nerfstudio_models")))
    assert second["step"] == whole["step"] == 7
    for key, value in whole["pipeline"].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(second["pipeline"][key], value, rtol=0, atol=0)
    for name, state in whole["optimizers"]["networks"]["state"].items():
        torch.testing.assert_close(
            second["optimizers"]["networks"]["state"][name]["exp_avg"], state["exp_avg"], rtol=0, atol=0
        )


def test_epochs_say_how_many_steps(capsys):
    data = InventedWindows(SMALL.window)
    state = newest(train(small_run("run", 1000, epochs=0.5)))
    steps = round(0.5 * round(len(data) / 4))
    assert state["step"] == steps - 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"0.5 epochs of this data are {steps} steps" in said and "--epochs None" in said


def test_a_trained_model_generates_without_its_data(monkeypatch):
    config_path = train(small_run("run", 2))
    monkeypatch.setattr(MotionDataManager, "_open", lambda *_: pytest.fail("data was read"))
    config, generator = load_generator(config_path, "cpu")
    assert config.load_step == 1 and generator.provides == ("head_pose",)
    state = newest(config_path)["pipeline"]
    for name, value in generator.model.state_dict().items():
        torch.testing.assert_close(state[f"_model.{name}"], value, rtol=0, atol=0)


def test_load_says_what_is_wrong(tmp_path):
    config_path = train(small_run("run", 1))
    with pytest.raises(DialogueError, match="does not exist"):
        load_generator(tmp_path / "config.yml")
    (tmp_path / "config.yml").write_text("a: 1")
    with pytest.raises(DialogueError, match="not a config of a motion method"):
        read_motion_config(tmp_path / "config.yml")
    from dialogue_nerfstudio.nerf.config import method

    other = method(False)
    other.save_config()
    with pytest.raises(DialogueError, match="but of dialogue-nerf"):
        read_motion_config(other.get_base_dir() / "config.yml")
    (checkpoint,) = (config_path.parent / "nerfstudio_models").iterdir()
    state = torch.load(checkpoint, weights_only=True)
    extra = state["pipeline"].pop("_extra_state")
    torch.save(state, checkpoint)
    with pytest.raises(DialogueError, match="not written by a motion model"):
        load_generator(config_path)
    for key, value, message in (("format", 99, "upgrade"), ("model", "OtherConfig", "is of OtherConfig")):
        state["pipeline"]["_extra_state"] = {**extra, key: value}
        torch.save(state, checkpoint)
        with pytest.raises(DialogueError, match=message):
            load_motion_model(config_path)
    state["pipeline"] = {**state["pipeline"], "_extra_state": extra}
    del state["pipeline"]["_model.amplitude.bias"]
    torch.save(state, checkpoint)
    with pytest.raises(DialogueError, match=r"does not fit this configuration.*amplitude\.bias"):
        load_motion_model(config_path)
    checkpoint.write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(DialogueError, match="not a readable checkpoint"):
        load_motion_model(config_path)
    checkpoint.unlink()
    with pytest.raises(DialogueError, match="no checkpoint in"):
        load_motion_model(config_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"vis": "viewer"}, "no picture to show"), ({"data": None}, "no data to train on")],
)
def test_what_cannot_train_ends_with_one_sentence_and_code_2(changes, message, capsys):
    config = small_run("run", 1)
    config.vis = changes.get("vis", config.vis)
    if "data" in changes:
        config.pipeline.datamanager.data = changes["data"]
    with pytest.raises(SystemExit) as stop:
        train(config)
    assert stop.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_devices_of_a_cpu_are_processes():
    machine = MotionMachineConfig(device_type="cpu", num_devices=2)
    assert (machine.num_devices, machine.cpu_processes) == (1, 2)
    assert isinstance(small_run("run", 1, machine=machine).setup(local_rank=0, world_size=1), CpuProcesses)
    assert MotionMachineConfig(device_type="cuda", num_devices=2).num_devices == 2


@pytest.mark.parametrize("name", list(METHODS))
def test_configs_are_read_back(name):
    config = copy.deepcopy(METHODS[name].config)
    config.save_config()
    assert read_motion_config(config.get_base_dir() / "config.yml") == config


def test_gp_vae_trains_both_stages_and_generates_from_its_checkpoint(tmp_path):
    model = GpVaeConfig(
        window_frames=50, beginning_frames=15, width=8, latent_size=4, layers=1, cross_modal_layers=1, latent_steps=2
    )
    config = motion_method("dialogue-gp-vae", model, steps=4, windows_per_batch=4)
    config.machine = MotionMachineConfig(device_type="cpu")
    config.pipeline.datamanager.data = Path("invented")
    config.save_config()
    config_path = train(config)
    read, generator = load_generator(config_path, "cpu")
    assert read.pipeline.model == model and read.load_step == 3
    assert isinstance(generator, GpVaeGenerator) and generator.model.blinks.frames > 0


@pytest.mark.slow
def test_two_processes_take_the_steps_that_one_would_with_both_their_windows(tmp_path, motion_folder, monkeypatch):
    """ns-train with two processes of a CPU, as a user would run it, and an evaluation of what they trained."""
    from nerfstudio.scripts.eval import ComputePSNR

    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    small = ["channels 4", "levels 2"]
    arguments = [
        *("dialogue-pose-tcn", "--data", motion_folder, "--timestamp", "run", "--max-num-iterations", "3"),
        *("--machine.num-devices", "2", "--machine.device-type", "cpu"),
        *(part for option in small for part in f"--pipeline.model.tcn.{option}".split()),
        *("--pipeline.model.context", "30", "--pipeline.model.target", "30"),
        *("--pipeline.datamanager.windows-per-batch", "3"),
    ]
    done = nerfstudio("train", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    config_path = tmp_path / "outputs" / motion_folder.name / "dialogue-pose-tcn" / "run" / "config.yml"
    _, model = load_motion_model(config_path, "cpu")
    expected = trained_alone(read_motion_config(config_path), steps=3)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.data, dict(expected.named_parameters())[name].data, rtol=1e-4, atol=1e-6)
    monkeypatch.setitem(eval_utils.all_methods, "dialogue-pose-tcn", METHODS["dialogue-pose-tcn"].config)
    ComputePSNR(load_config=config_path, output_path=tmp_path / "eval.json").main()
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert {"pitch_correlation", "share_of_ceiling"} <= set(results)
