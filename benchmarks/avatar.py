"""Trains avatars and measures it: iterations/s, seconds to a quality on held-out frames, memory, against baselines.

    python benchmarks/avatar.py data/anchor --drive expression --iterations 1000

Seconds count from the second training step on, without the evaluations in between; loading and compiling come before.
The baselines, in the same run, are training with the torch kernel of the hash grid and training without culling any
sample. The first computes the same steps, so that the ratio of step times is the ratio of the times to any quality; the
second takes other samples, and its ratio is one of step times only.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

import torch
import tyro
from common import (
    TrainingLoop,
    conversation_or_sample,
    device,
    held_out_psnr,
    interleaved_seconds,
    peak_memory,
    synchronise,
)
from measuring import report

from dialogue_nerfstudio.cli.training import measure_held_out, train_avatars
from dialogue_nerfstudio.nerf.load import load_pipeline_for_rendering
from dialogue_nerfstudio.nerf.trainer import DialogueTrainerConfig


@dataclass
class AvatarBenchmark:
    """Measure the training of avatars."""

    conversation: tyro.conf.Positional[Optional[Path]] = None
    """A conversation folder; a simulated one if not given."""
    drive: Literal["role", "audio", "expression"] = "role"
    """What moves faces."""
    iterations: int = 3000
    """Training steps; the learning rate decays over them."""
    resolution: Optional[int] = None
    """Pixels; the default of the device if not given."""
    target: float = 32.0
    """dB of mean full-frame PSNR on held-out frames whose time is to be found."""
    evaluate_every: int = 50
    """Steps between evaluations, from `evaluate_from` on, until the target is reached; their time does not count."""
    evaluate_from: int = 400
    """First step after which to evaluate."""
    eval_frames: Optional[int] = 24
    """Held-out frames of an evaluation, evenly spread; all if None. The last one is always of all."""
    baseline_steps: int = 12
    """Steps that each baseline is timed over; 0 leaves them out."""
    threads: Optional[int] = None
    """torch and numba threads; all cores if not given."""
    processes: int = 1
    """Processes that share a step of the training (CPU only); the baselines' steps are one process's."""
    rays: Optional[int] = None
    """Rays of a step; the configuration's if not given."""
    seed: int = 0
    """Of everything random."""
    keep: Optional[Path] = None
    """Folder to keep the trained avatars in."""
    sample_seconds: float = 12.0
    """Length of the simulated conversation."""


class Stopwatch:
    """Follows a training: its time without evaluations, and the first evaluation that reaches the target."""

    def __init__(self, options: AvatarBenchmark) -> None:
        self._options = options
        self._mark: Optional[float] = None
        self.seconds = 0.0
        self.steps = 0
        self.reached: Optional[dict[str, Any]] = None
        self.curve: list[dict[str, float]] = []

    def __call__(self, pipeline: Any, step: int) -> None:
        """After every step; `step` counts from 1."""
        options = self._options
        synchronise()
        now = time.perf_counter()
        if self._mark is not None:
            self.seconds += now - self._mark
            self.steps += 1
        due = step >= options.evaluate_from and (step - options.evaluate_from) % options.evaluate_every == 0
        if due and self.reached is None:
            psnr = held_out_psnr(pipeline, options.eval_frames)
            if psnr >= options.target:
                # A selection of frames may flatter: the target counts when all of them together reach it.
                psnr = held_out_psnr(pipeline)
            self.curve.append({"step": step, "seconds": self.seconds, "psnr": psnr})
            if psnr >= options.target:
                self.reached = self.curve[-1]
        self._mark = time.perf_counter()


def set_rays(config: DialogueTrainerConfig, options: AvatarBenchmark) -> None:
    """Rays of a step, where they are asked for."""
    if options.rays is not None:
        config.pipeline.datamanager.train_num_rays_per_batch = options.rays


def baseline_steps(options: AvatarBenchmark, data: Path) -> dict[str, float]:
    """Median seconds of a step of this configuration, with the torch kernel, and without culling."""
    loops: dict[str, TrainingLoop] = {}

    def configured(kernel: str, cull: bool) -> Callable[[DialogueTrainerConfig], None]:
        def change(config: DialogueTrainerConfig) -> None:
            config.pipeline.datamanager.dataparser.resolution = options.resolution or (
                config.pipeline.datamanager.dataparser.resolution
            )
            model = config.pipeline.model
            model.drive = options.drive
            set_rays(config, options)
            model.head.grid.kernel = model.torso.grid.kernel = kernel
            if not cull:
                model.occupancy.updates_to_forget, model.occupancy.density_threshold = 0, -1.0

        return change

    for name, kernel, cull in (("ours", "auto", True), ("torch_kernel", "torch", True), ("no_culling", "auto", False)):
        loops[name] = TrainingLoop(data, 1000, configured(kernel, cull))
        if not cull:
            model = loops[name].pipeline.model
            for participant in range(len(model.participant_ids)):
                # Not even the visual hull.
                everything = torch.ones_like(model.head_hull[participant])
                model.carve(participant, everything, everything)
                model.head_occupancy[participant].occupied.fill_(True)
                model.torso_occupancy[participant].occupied.fill_(True)
    # Culling needs some updates of the occupancy grids before it is what training sees most of the time.
    for loop in loops.values():
        for _ in range(min(200, 5 * options.baseline_steps)):
            loop.step()
    return interleaved_seconds({name: loop.step for name, loop in loops.items()}, options.baseline_steps)


def measure(options: AvatarBenchmark) -> dict[str, Any]:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    data = conversation_or_sample(options.conversation, options.sample_seconds)
    watch = Stopwatch(options)

    def configure(config: DialogueTrainerConfig) -> None:
        config.pipeline.processes = options.processes
        set_rays(config, options)

    with tempfile.TemporaryDirectory() as scratch:
        config_path = train_avatars(
            data,
            options.keep or Path(scratch),
            options.iterations,
            options.seed,
            options.resolution,
            drive=options.drive,
            configure=configure,
            watch=watch,
        )
        memory = peak_memory()
        config, pipeline = load_pipeline_for_rendering(config_path)
        figures: dict[str, Any] = {
            "conversation": data,
            "drive": options.drive,
            "device": device(),
            "threads": torch.get_num_threads(),
            "processes": config.pipeline.processes,
            "rays": config.pipeline.datamanager.train_num_rays_per_batch,
            "iterations": options.iterations,
            "training_seconds": watch.seconds,
            "iterations_per_second": watch.steps / watch.seconds,
            "target_db": options.target,
            "target_reached": watch.reached,
            "curve": watch.curve,
            "peak_mib_while_training": memory,
            "participants": measure_held_out(pipeline),
        }
    if options.baseline_steps:
        seconds = baseline_steps(options, data)
        figures["step_milliseconds"] = {name: 1e3 * value for name, value in seconds.items()}
        figures["speedup_over"] = {name: value / seconds["ours"] for name, value in seconds.items() if name != "ours"}
    return figures


def main(options: AvatarBenchmark) -> None:
    figures = measure(options)
    reached = figures["target_reached"]
    rows: list[tuple[str, Any]] = [
        ("iterations/s", figures["iterations_per_second"]),
        (
            f"to {options.target:g} dB",
            f"{reached['seconds']:.1f} s, {reached['step']} steps" if reached else "not reached",
        ),
        *(
            (f"{name}: PSNR after {options.iterations} steps", row["psnr"])
            for name, row in figures["participants"].items()
        ),
        *((f"peak MiB, {name}", value) for name, value in figures["peak_mib_while_training"].items()),
        *((f"times faster than {name}", value) for name, value in figures.get("speedup_over", {}).items()),
    ]
    report(figures, ("figure", "value"), rows)


if __name__ == "__main__":
    main(tyro.cli(AvatarBenchmark))
