"""How a training step's time and memory grow with samples, levels, avatars and the length of the recording.

    python benchmarks/scaling.py data/chat

One thing changes at a time; the baseline of each series is its middle or first entry, printed as a ratio of 1. Steps of
a series take turns; medians are reported. Peak memory is of a process of its own for each entry. Longer recordings and
more people are made by repeating what the conversation has. Length should change neither time nor memory: pixels are
read from memory-mapped files, and a step touches the frames it draws.
"""

import tempfile
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
    enlarged,
    in_own_process,
    interleaved_seconds,
    peak_memory,
)
from measuring import report

from dialogue_nerfstudio.conversation import load_conversation
from dialogue_nerfstudio.nerf.trainer import DialogueTrainerConfig

Series = Literal["samples", "levels", "avatars", "frames"]


@dataclass
class ScalingBenchmark:
    """Measure how training scales."""

    conversation: tyro.conf.Positional[Optional[Path]] = None
    """A conversation folder; a simulated one if not given."""
    series: tuple[Series, ...] = ("samples", "levels", "avatars", "frames")
    """What to vary."""
    samples: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Times the default number of samples a ray."""
    levels: tuple[int, ...] = (4, 8, 12)
    """Levels of the hash grids."""
    avatars: tuple[int, ...] = (1, 2, 4)
    """People."""
    frames: tuple[int, ...] = (1, 4, 16)
    """Times the length of the recording."""
    steps: int = 30
    """Timed steps of each."""
    warm_up: int = 60
    """Steps before that, while the occupancy grids form."""
    memory: bool = True
    """Also measure peak memory, each entry in a process of its own."""
    threads: Optional[int] = None
    """torch and numba threads; all cores if not given."""
    sample_seconds: float = 12.0
    """Length of the simulated conversation."""


def change_for(series: str, value: float) -> Callable[[DialogueTrainerConfig], None]:
    """The change of the configuration that an entry stands for."""

    def change(config: DialogueTrainerConfig) -> None:
        model = config.pipeline.model
        model.drive = "expression"
        if series == "samples":
            model.head_samples = max(2, round(model.head_samples * value))
            model.torso_samples = max(2, round(model.torso_samples * value))
        if series == "levels":
            model.head.grid.num_levels = model.torso.grid.num_levels = int(value)

    return change


def folder_for(series: str, value: float, source: Path, scratch: Path) -> Path:
    """The conversation that an entry stands for, made where it is not `source` itself."""
    if series not in ("avatars", "frames"):
        return source
    folder = scratch / f"{series}_{value:g}"
    if not folder.exists():
        if series == "avatars":
            enlarged(source, folder, people=int(value))
        else:
            enlarged(source, folder, times=int(value))
    return folder


def peak_of(data: Path, series: str, value: float, steps: int) -> dict[str, float]:
    """Peak memory of a process that trains for a few steps."""
    loop = TrainingLoop(data, change=change_for(series, value))
    for _ in range(steps):
        loop.step()
    return peak_memory()


def measure(options: ScalingBenchmark) -> dict[str, Any]:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    source = conversation_or_sample(options.conversation, options.sample_seconds)
    figures: dict[str, Any] = {
        "conversation": source,
        "frames": load_conversation(source).num_frames,
        "device": device(),
        "threads": torch.get_num_threads(),
    }
    for series in options.series:
        values = getattr(options, series)
        base = 1.0 if series == "samples" else 8 if series == "levels" else values[0]
        base = base if base in values else values[0]
        with tempfile.TemporaryDirectory() as scratch:
            folders = {value: folder_for(series, value, source, Path(scratch)) for value in values}
            loops = {value: TrainingLoop(folders[value], change=change_for(series, value)) for value in values}
            for loop in loops.values():
                for _ in range(options.warm_up):
                    loop.step()
            seconds = interleaved_seconds({str(value): loop.step for value, loop in loops.items()}, options.steps)
            # The frame store has been written by now, so that only training is measured.
            peaks = {
                value: in_own_process(peak_of, folders[value], series, value, options.warm_up) if options.memory else {}
                for value in values
            }
            del loops
        entries = []
        for value in values:
            entry = {
                "value": value,
                "step_milliseconds": 1e3 * seconds[str(value)],
                "time_ratio": seconds[str(value)] / seconds[str(base)],
            }
            for name, peak in peaks[value].items():
                entry |= {f"peak_mib_{name}": peak, f"memory_ratio_{name}": peak / peaks[base][name]}
            entries.append(entry)
        figures[series] = entries
    return figures


def main(options: ScalingBenchmark) -> None:
    figures = measure(options)
    rows = [
        (
            series,
            entry["value"],
            entry["step_milliseconds"],
            entry["time_ratio"],
            entry.get("peak_mib_gpu", entry.get("peak_mib_resident", "")),
            entry.get("memory_ratio_gpu", entry.get("memory_ratio_resident", "")),
        )
        for series in options.series
        for entry in figures[series]
    ]
    report(figures, ("varied", "value", "ms a step", "ratio", "peak MiB", "ratio"), rows)


if __name__ == "__main__":
    main(tyro.cli(ScalingBenchmark))
