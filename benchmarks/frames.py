"""Frames/s of trained avatars at several sizes, one avatar and two side by side, against evaluating every sample.

    python benchmarks/frames.py --load-config outputs/chat/dialogue-nerf/run/config.yml

Without a configuration, avatars of a conversation, or of a simulated one, are first trained for `iterations` steps:
enough for surfaces to be where they will be. A frame goes through the same call as `ns-render` and `ns-dialogue
render`. The baseline renders the same frames with every culling off: all cells of the occupancy grids occupied, no
early termination, every sample coloured, in torch. Medians are reported.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    in_own_process,
    interleaved_seconds,
    peak_memory,
)
from measuring import report

from dialogue_nerfstudio.nerf.load import load_pipeline_for_rendering
from dialogue_nerfstudio.nerf.model import DialogueModel
from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline
from dialogue_nerfstudio.nerf.trainer import DialogueTrainerConfig


@dataclass
class FramesBenchmark:
    """Measure the rendering of avatars."""

    conversation: tyro.conf.Positional[Optional[Path]] = None
    """A conversation folder to train on; a simulated one if not given."""
    load_config: Optional[Path] = None
    """The config.yml of trained avatars, instead of a conversation."""
    sizes: tuple[int, ...] = (128, 256, 512)
    """Heights of the pictures, pixels."""
    iterations: int = 300
    """Training steps where nothing trained is given."""
    drive: Literal["role", "audio", "expression"] = "expression"
    """What moves faces, in that training."""
    repeats: int = 12
    """Timed frames of each."""
    baseline_repeats: int = 3
    """Timed frames of the baseline, which is slow."""
    memory: bool = True
    """Also measure the peak memory of each size, each in a process of its own."""
    threads: Optional[int] = None
    """torch and numba threads; all cores if not given."""
    sample_seconds: float = 12.0
    """Length of the simulated conversation."""


def trained(options: FramesBenchmark) -> DialoguePipeline:
    """The pipeline to render with, and in evaluation mode."""
    if options.load_config is not None:
        return load_pipeline_for_rendering(options.load_config)[1]

    def change(config: DialogueTrainerConfig) -> None:
        config.pipeline.model.drive = options.drive

    loop = TrainingLoop(
        conversation_or_sample(options.conversation, options.sample_seconds), options.iterations, change
    )
    for _ in range(options.iterations):
        loop.step()
    return loop.pipeline.eval()


def renderer(pipeline: DialoguePipeline, size: int, avatars: int) -> Callable[[], None]:
    """Renders, at each call, the next frame of the first avatars, from where each was recorded, `size` pixels high."""
    model, people = pipeline.model, pipeline.model.participant_ids
    shown = [index % len(people) for index in range(avatars)]
    loader = pipeline.datamanager.fixed_indices_eval_dataloader
    first_of = {participant: loader.input_dataset.participants.index(participant) for participant in sorted(set(shown))}
    cameras = {participant: loader.get_camera(index)[0] for participant, index in first_of.items()}
    for camera in cameras.values():
        camera.rescale_output_resolution(size / float(camera.height.reshape(-1)[0]))
    frames = iter_forever(pipeline.datamanager.dataparser.conversation.eval_frames.tolist())

    def render() -> None:
        frame = next(frames)
        for participant in shown:
            model.render_frame(cameras[participant], frame, participant)

    return render


def iter_forever(values: list[int]) -> Iterator[int]:
    while True:
        yield from values


@contextmanager
def every_sample(model: DialogueModel) -> Iterator[None]:
    """Within, nothing is culled, and nothing goes through the compiled march."""
    config = model.config
    before_config = config.colour_threshold, config.termination_threshold, config.fast_inference
    grids = [*model.head_occupancy, *model.torso_occupancy]
    occupied = [grid.occupied.clone() for grid in grids]
    config.colour_threshold, config.termination_threshold, config.fast_inference = 0.0, 0.0, False
    for grid in grids:
        grid.occupied.fill_(True)
    try:
        yield
    finally:
        config.colour_threshold, config.termination_threshold, config.fast_inference = before_config
        for grid, before in zip(grids, occupied, strict=True):
            grid.occupied.copy_(before)


def peak_of(state: Optional[Path], options: FramesBenchmark, size: int) -> dict[str, float]:
    """Peak memory of a process that loads avatars (those of `options`, or `state` of its own) and renders a few frames
    of two of them."""
    if options.load_config is not None:
        pipeline = load_pipeline_for_rendering(options.load_config)[1]
    else:
        data = conversation_or_sample(options.conversation, options.sample_seconds)

        def change(config: DialogueTrainerConfig) -> None:
            config.pipeline.model.drive = options.drive

        pipeline = TrainingLoop(data, 1, change).pipeline.eval()
        pipeline.load_state_dict(torch.load(state, weights_only=True))
    render = renderer(pipeline, size, 2)
    for _ in range(3):
        render()
    return peak_memory()


def measure(options: FramesBenchmark) -> dict[str, Any]:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    pipeline = trained(options)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        state = None
        if options.load_config is None and options.memory:
            state = Path(scratch) / "avatars.pt"
            torch.save(pipeline.state_dict(), state)
        for size in options.sizes:
            for avatars in (1, 2):
                ours = interleaved_seconds({"ours": renderer(pipeline, size, avatars)}, options.repeats, 2)["ours"]
                with every_sample(pipeline.model):
                    every = interleaved_seconds({"every": renderer(pipeline, size, avatars)}, options.baseline_repeats)[
                        "every"
                    ]
                row = {
                    "size": size,
                    "avatars": avatars,
                    "frames_per_second": 1.0 / ours,
                    "every_sample_frames_per_second": 1.0 / every,
                    "speedup": every / ours,
                }
                if options.memory and avatars == 2:
                    peak = in_own_process(peak_of, state, options, size)
                    row |= {f"peak_mib_{name}": value for name, value in peak.items()}
                rows.append(row)
    return {
        "device": device(),
        "threads": torch.get_num_threads(),
        "held_out_psnr": held_out_psnr(pipeline, 12),
        "frames": rows,
    }


def main(options: FramesBenchmark) -> None:
    figures = measure(options)
    titles = ("size", "avatars", "frames/s", "every sample", "ratio", "peak MiB")
    rows = [
        (
            row["size"],
            row["avatars"],
            row["frames_per_second"],
            row["every_sample_frames_per_second"],
            row["speedup"],
            row.get("peak_mib_gpu", row.get("peak_mib_resident", "")),
        )
        for row in figures["frames"]
    ]
    report(figures, titles, rows)


if __name__ == "__main__":
    main(tyro.cli(FramesBenchmark))
