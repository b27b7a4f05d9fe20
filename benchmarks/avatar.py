"""Trains one conversation's avatars and prints, as JSON, quality on held-out frames, speed and memory.

    python benchmarks/avatar.py data/anchor --drive expression --iterations 2000
"""

import json
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

import torch
import tyro

from dialogue_nerfstudio.cli.training import measure_held_out, train_avatars
from dialogue_nerfstudio.nerf.load import load_pipeline_for_rendering


@dataclass
class AvatarBenchmark:
    """Measure training and rendering of avatars."""

    conversation: tyro.conf.Positional[Path]
    """A conversation folder."""
    drive: Literal["role", "audio", "expression"] = "role"
    """What moves faces."""
    iterations: int = 3000
    """Training steps; the learning rate decays over them."""
    resolution: Optional[int] = None
    """Pixels; the default of the device if not given."""
    render_frames: int = 40
    """Frames rendered to time rendering."""
    seed: int = 0
    """Of everything random."""
    keep: Optional[Path] = None
    """Folder to keep the trained avatars in."""


def frames_per_second(pipeline, count: int) -> float:
    """Whole frames of the first participant, through the same call as `ns-render`; the median over `count`."""
    loader = pipeline.datamanager.fixed_indices_eval_dataloader
    cameras = [loader.get_camera(index % len(loader))[0] for index in range(count)]
    seconds = []
    for camera in cameras:
        start = time.perf_counter()
        pipeline.model.get_outputs_for_camera(camera)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1.0 / statistics.median(seconds)


def main(options: AvatarBenchmark) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        steps = []

        def note(_: str, done: float, __: float) -> None:
            steps.append((done, time.perf_counter()))

        config_path = train_avatars(
            options.conversation,
            options.keep or Path(scratch),
            options.iterations,
            options.seed,
            options.resolution,
            note,
            options.drive,
        )
        # From the first finished step on: what comes before is loading and compiling.
        (first, begun), (last, ended) = steps[0], steps[-1]
        training_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        _, pipeline = load_pipeline_for_rendering(config_path)
        figures = {
            "conversation": str(options.conversation),
            "drive": options.drive,
            "device": str(pipeline.device),
            "threads": torch.get_num_threads(),
            "iterations": options.iterations,
            "training_seconds": ended - begun,
            "iterations_per_second": (last - first) / (ended - begun),
            "peak_resident_gib_while_training": training_memory,
            "frames_per_second": frames_per_second(pipeline, options.render_frames),
            "participants": measure_held_out(pipeline),
        }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main(tyro.cli(AvatarBenchmark))
