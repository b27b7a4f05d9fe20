"""Steps shared by processes: the undivided batch's losses and gradients, the same run twice, and clean ends."""

import copy
import multiprocessing
import os
import signal
import sys

import pytest
import torch
from short_training import train

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.encodings import hash_grid
from dialogue_nerfstudio.nerf import shared_step
from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline
from dialogue_nerfstudio.nerf.shared_step import BatchShare, choose_processes
from dialogue_nerfstudio.rendering.occupancy import OccupancyGrid

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes share steps on Linux only")


@pytest.fixture
def without_chance(monkeypatch):
    """Whatever training draws is the middle: the same for a ray in every process, however many there are."""
    real = torch.rand

    def middle(*size, **options):
        options.pop("generator", None)
        return torch.full_like(real(*size, **options), 0.5)

    monkeypatch.setattr(torch, "rand", middle)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(torch, "randint", lambda *a, **o: torch.zeros(a[-1], dtype=torch.int64))


def make(config, processes, seed=0):
    config = copy.deepcopy(config)
    config.processes = processes
    torch.manual_seed(seed)
    return DialoguePipeline(config, device="cpu", test_mode="val")


@pytest.fixture
def shared(small_config):
    """Makes pipelines whose processes are ended after the test."""
    made = []

    def build(processes=2, change=lambda config: None):
        change(small_config)
        made.append(make(small_config, processes))
        return made[-1]

    yield build
    for pipeline in made:
        pipeline.end_processes()
    assert not multiprocessing.active_children()


def first_step(pipeline, step=0):
    """(losses, gradients) of a step."""
    pipeline.train()
    _, losses, metrics = pipeline.get_train_loss_dict(step)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in pipeline.model.named_parameters() if p.grad is not None}
    return {name: float(loss.detach()) for name, loss in losses.items()}, gradients, metrics


def virtual(config):
    # In every step.
    config.model.geometry.virtual_interval = 1


def lips(config):
    config.datamanager.lip_stage_share, config.datamanager.lip_patch_size = 1.0, 8
    config.model.frame_appearance = True
    config.model.geometry.virtual_coefficient = 0.0


@pytest.mark.parametrize("change, processes", [(virtual, 2), (virtual, 3), (lips, 2)])
def test_gradients_are_those_of_the_undivided_batch(shared, without_chance, change, processes):
    alone, together = shared(1, change), shared(processes, change)
    together.model.load_state_dict(alone.model.state_dict())
    for pipeline in (alone, together):
        pipeline.datamanager.total_steps = 10
        for field in (pipeline.model.head_field, pipeline.model.torso_field):
            for grid in field.grid.grids:
                grid.table.data.copy_(torch.linspace(-1.0, 1.0, grid.table.numel()).view_as(grid.table))
    # The lip stage shows patches in odd steps.
    losses, gradients, metrics = first_step(alone, 1)
    shared_losses, shared_gradients, shared_metrics = first_step(together, 1)
    assert len(multiprocessing.active_children()) == processes - 1
    assert ("lip_patches" in losses) == (change is lips) and ("virtual" in losses) == (change is virtual)
    assert shared_losses == pytest.approx(losses, rel=1e-4, abs=1e-8)
    assert shared_metrics.keys() == metrics.keys()
    assert shared_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            shared_gradients[name], gradient, rtol=2e-3, atol=1e-5 * float(gradient.abs().max()) + 1e-9, msg=name
        )


def test_a_run_repeats_itself_and_learns(shared):
    runs = []
    for _ in range(2):
        pipeline = shared(2)
        torch.manual_seed(3)
        losses = train(pipeline, 20)
        state = pipeline.model.state_dict()
        runs.append((losses, {name: value.clone() for name, value in state.items() if torch.is_tensor(value)}))
        pipeline.end_processes()
    (losses, first), (again, second) = runs
    assert losses == again and sum(losses[-5:]) < 0.9 * sum(losses[:5])
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_checkpoints_are_as_ever(shared, tmp_path):
    alone, together = shared(1), shared(2)
    first_step(together)
    files = []
    for pipeline in (alone, together):
        files.append(tmp_path / f"{pipeline.config.processes}.ckpt")
        torch.save(pipeline.state_dict(), files[-1])
    assert files[1].stat().st_size == pytest.approx(files[0].stat().st_size, rel=0.02)
    alone.load_strictly(torch.load(files[1], weights_only=True), 1)
    for name, value in together.model.named_parameters():
        assert torch.equal(value, alone.model.get_parameter(name)), name


def test_light_that_another_process_saw_is_remembered(shared, monkeypatch):
    pipeline, here = shared(2), os.getpid()
    mark_visible = OccupancyGrid.mark_visible

    def mark(self, *arguments):
        if os.getpid() != here:
            mark_visible(self, *arguments)

    monkeypatch.setattr(OccupancyGrid, "mark_visible", mark)
    for grid in pipeline.model.head_occupancy:
        grid.reset_visibility(reached=False)
    first_step(pipeline)
    assert max(float(grid.visibility.max()) for grid in pipeline.model.head_occupancy) == 1.0


def test_what_goes_wrong_elsewhere_ends_training(shared):
    pipeline = shared(2)
    first_step(pipeline)
    process = pipeline._shared_steps._processes[0]
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(SystemExit) as error:
        first_step(pipeline, 1)
    assert error.value.code == 2 and not multiprocessing.active_children()
    # And the next step is this process's alone.
    first_step(pipeline, 2)


@pytest.mark.parametrize("kind, raised", [(DialogueError, SystemExit), (ZeroDivisionError, RuntimeError)])
def test_an_error_there_is_an_error_here(shared, monkeypatch, capsys, kind, raised):
    pipeline, here = shared(2), os.getpid()
    weighted_losses = DialoguePipeline.weighted_losses

    def failing(self, step):
        if os.getpid() != here:
            raise kind("something is wrong over there")
        return weighted_losses(self, step)

    monkeypatch.setattr(DialoguePipeline, "weighted_losses", failing)
    with pytest.raises(raised) as error:
        first_step(pipeline)
    assert "something is wrong over there" in str(error.value) + capsys.readouterr().err
    assert not multiprocessing.active_children()


def test_an_interrupted_step_leaves_nothing_behind(shared, monkeypatch):
    pipeline, here = shared(2), os.getpid()
    first_step(pipeline)
    get_loss_dict = type(pipeline.model).get_loss_dict

    def interrupted(self, *arguments):
        if os.getpid() == here:
            raise KeyboardInterrupt
        return get_loss_dict(self, *arguments)

    monkeypatch.setattr(type(pipeline.model), "get_loss_dict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        first_step(pipeline, 1)
    assert not multiprocessing.active_children()


def test_shares_are_runs_of_every_participant_and_whole_patches(small_config):
    small_config.datamanager.participants_per_batch = 2
    datamanager = make(small_config, 1).datamanager
    bundle, batch = datamanager.next_train(0)
    shares = [BatchShare(index, 3).cut(bundle, batch) for index in range(3)]
    rays = [torch.cat([part.metadata["participant"], part.metadata["frame"], part.directions], 1) for part, _ in shares]
    whole = torch.cat([bundle.metadata["participant"], bundle.metadata["frame"], bundle.directions], 1)
    assert sorted(map(tuple, torch.cat(rays).tolist())) == sorted(map(tuple, whole.tolist()))
    assert all({0, 1} == set(part[:, 0].int().tolist()) for part in rays)
    for (part, values), rows in zip(shares, rays, strict=True):
        assert len(values["image"]) == len(part) == len(rows)
    assert [BatchShare(index, 3).portion(256) for index in range(3)] == [85, 85, 86]

    side = 8
    patches = {"image": torch.arange(256.0), "patch_size": torch.tensor(side)}
    parts = [BatchShare(index, 3).cut(bundle, patches)[1]["image"] for index in range(3)]
    assert [len(part) % side**2 for part in parts] == [0, 0, 0] and sum(map(len, parts)) == 256
    assert all(bool((part.view(-1, side**2).diff(dim=1) == 1).all()) for part in parts)


def test_how_many_processes(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert choose_processes(None, "cpu", 1, 1024) == 2
    assert choose_processes(None, "cpu", 1, 500) == 1
    assert choose_processes(None, "cuda", 1, 16384) == 1
    assert choose_processes(3, "cpu", 1, 64) == 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert choose_processes(None, "cpu", 1, 1024) == 1
    with pytest.raises(DialogueError, match="needs Linux"):
        choose_processes(2, "cuda", 1, 16384)
    with pytest.raises(DialogueError, match="at least one"):
        choose_processes(0, "cpu", 1, 1024)


def test_a_step_leaves_all_cores_to_what_follows(shared):
    """Adam, occupancy grids, pictures, and another training in the same process."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first_step(shared(2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_processes_work_where_torch_had_many_threads(shared, monkeypatch):
    """OpenMP's threads do not survive a fork: a process that counted on them would wait for ever."""
    monkeypatch.setattr(shared_step, "ANSWER_SECONDS", 30.0)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        pipeline = shared()
        # Large enough for torch to start its threads.
        torch.ones(1 << 20).exp()
        pipeline.train()
        train(pipeline, 2)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_only_one_process_says_which_kernel_runs(shared, capfd):
    hash_grid._announce.cache_clear()
    train(shared(), 1)
    assert capfd.readouterr().err.count("hash grid:") == 1


def test_mixed_precision_reaches_every_process(shared, monkeypatch):
    pipeline, here = shared(2), os.getpid()
    weighted_losses = DialoguePipeline.weighted_losses

    def checking(self, step):
        if os.getpid() != here and not torch.is_autocast_enabled("cpu"):
            raise DialogueError("full precision over there")
        return weighted_losses(self, step)

    monkeypatch.setattr(DialoguePipeline, "weighted_losses", checking)
    with torch.autocast("cpu"):
        _, losses, _ = pipeline.get_train_loss_dict(0)
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in pipeline.model.parameters() if p.grad is not None)
