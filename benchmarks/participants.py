"""Several participants in one network against a model each: quality, parameters, memory and time, as JSON or Markdown.

    python benchmarks/participants.py data/chat --steps 500 --markdown

Every arrangement is trained for the same number of steps a participant, on the same rays a step, in a process of its
own. "separate" is the baseline: one model a participant, trained on a conversation of one.
"""

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
import tyro

from dialogue_nerfstudio.conversation import load_conversation, save_conversation
from dialogue_nerfstudio.nerf.config import method
from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline

ARRANGEMENTS = ("separate", "per-participant", "shared", "atlas")


@dataclass
class ParticipantsBenchmark:
    """Compare ways to hold several participants."""

    conversation: tyro.conf.Positional[Path]
    """A conversation folder."""
    steps: int = 500
    """Training steps a participant; learning rates decay over them."""
    people: Optional[int] = None
    """Take the first people only."""
    resolution: int = 128
    """Pixels."""
    eval_frames: int = 12
    """Held-out frames measured a participant."""
    arrangements: tuple[str, ...] = ARRANGEMENTS
    """Which to measure; separate is the one the others are compared with."""
    seed: int = 0
    """Of everything random."""
    markdown: bool = False
    """Print a table instead of JSON."""


def part_of(source: Path, ids: list[str], folder: Path) -> Path:
    """A conversation of some of the participants, whose files are links into the whole one's folder."""
    conversation = load_conversation(source)
    folder.mkdir(parents=True)
    for entry in source.resolve().iterdir():
        if entry.name not in ("conversation.json", "roles.rttm", "participants"):
            (folder / entry.name).symlink_to(entry)
    for name in ids:
        (folder / "participants" / name).mkdir(parents=True)
        for entry in (source.resolve() / "participants" / name).iterdir():
            if entry.name != "motion.npz":
                (folder / "participants" / name / entry.name).symlink_to(entry)
    part = replace(
        conversation,
        participants=[conversation.participant(name) for name in ids],
        segments=[segment for segment in conversation.segments if segment.speaker in ids],
    )
    save_conversation(part, folder)
    return folder


def train_and_measure(data: Path, sharing: str, steps: int, options: ParticipantsBenchmark) -> dict[str, Any]:
    """One model of everybody in `data`, trained for `steps` steps a participant."""
    torch.manual_seed(options.seed)
    trainer = method(cuda=torch.cuda.is_available())
    config = trainer.pipeline
    config.datamanager.data = data
    config.datamanager.dataparser.resolution = options.resolution
    config.datamanager.participants_per_batch = 1
    config.model.grid_sharing = sharing
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = DialoguePipeline(config, device=device, test_mode="val")
    total = steps * len(pipeline.model.participant_ids)
    groups = pipeline.get_param_groups()
    optimizers, schedulers = [], []
    for name, parameters in groups.items():
        optimizers.append(trainer.optimizers[name]["optimizer"].setup(params=parameters))
        # RunDecay reads the run's length from the trainer; here it is the same decay over these steps.
        schedulers.append(torch.optim.lr_scheduler.LambdaLR(optimizers[-1], lambda step: 0.05 ** (step / total)))
    pipeline.train()
    begun, worked = time.perf_counter(), time.process_time()
    for step in range(total):
        for optimizer in optimizers:
            optimizer.zero_grad()
        _, losses, _ = pipeline.get_train_loss_dict(step)
        sum(losses.values()).backward()
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        pipeline.model.update_occupancy(step)
    elapsed, work = time.perf_counter() - begun, time.process_time() - worked
    sizes = {name: sum(p.numel() for p in parameters) for name, parameters in groups.items()}
    return {
        "psnr": held_out_psnr(pipeline, options.eval_frames),
        "grid_parameters": sizes["grids"],
        "network_parameters": sizes["networks"],
        "steps": total,
        "seconds": elapsed,
        "processor_seconds": work,
        "peak_resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def held_out_psnr(pipeline: DialoguePipeline, count: int) -> dict[str, dict[str, float]]:
    """Mean PSNR of full frame and head, of evenly chosen held-out frames of each participant."""
    pipeline.eval()
    loader = pipeline.datamanager.fixed_indices_eval_dataloader
    participants = np.array(loader.input_dataset.participants)
    result = {}
    for row, name in enumerate(pipeline.model.participant_ids):
        own = np.flatnonzero(participants == row)
        values: dict[str, list[float]] = {"full": [], "head": []}
        for index in own[np.linspace(0, len(own) - 1, min(count, len(own))).round().astype(int)].tolist():
            camera, batch = loader.get_camera(index)
            metrics, _ = pipeline.model.get_image_metrics_and_images(
                pipeline.model.get_outputs_for_camera(camera), batch
            )
            values["full"].append(metrics["psnr"])
            values["head"].append(metrics["psnr_head"])
        result[name] = {region: float(np.mean(numbers)) for region, numbers in values.items()}
    return result


def _in_process(send: Callable[[Any], None], threads: int, *arguments: Any) -> None:
    torch.set_num_threads(threads)
    send(train_and_measure(*arguments))


def in_own_process(*arguments: Any) -> dict[str, Any]:
    """`train_and_measure` in a fresh process, so that the peak memory is its own.

    Raises:
        RuntimeError: it failed; its traceback is on stderr.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(sender.send, torch.get_num_threads(), *arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError as error:
        raise RuntimeError("training failed, see above") from error
    finally:
        process.join()
    return result


def measure(options: ParticipantsBenchmark) -> dict[str, Any]:
    """All arrangements, with what they cost and lose against separate models."""
    ids = load_conversation(options.conversation).participant_ids[: options.people]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        everybody = part_of(options.conversation, ids, Path(scratch) / "everybody")
        for arrangement in options.arrangements:
            if arrangement == "separate":
                parts = []
                for name in ids:
                    alone = part_of(options.conversation, [name], Path(scratch) / name)
                    parts.append(in_own_process(alone, "per-participant", options.steps, options))
                result = {key: sum(part[key] for part in parts) for key in parts[0] if key != "psnr"}
                result["peak_resident_gib"] = max(part["peak_resident_gib"] for part in parts)
                result["psnr"] = {name: value for part in parts for name, value in part["psnr"].items()}
            else:
                result = in_own_process(everybody, arrangement, options.steps, options)
            for region in ("full", "head"):
                result[f"mean_psnr_{region}"] = float(np.mean([result["psnr"][name][region] for name in ids]))
            result["parameters"] = result["grid_parameters"] + result["network_parameters"]
            if "separate" in results:
                baseline = results["separate"]
                result["psnr_against_separate"] = result["mean_psnr_full"] - baseline["mean_psnr_full"]
                result["psnr_head_against_separate"] = result["mean_psnr_head"] - baseline["mean_psnr_head"]
                result["parameters_against_separate"] = result["parameters"] / baseline["parameters"]
                result["processor_seconds_against_separate"] = (
                    result["processor_seconds"] / baseline["processor_seconds"]
                )
            results[arrangement] = result
    return {
        "people": len(ids),
        "steps_a_participant": options.steps,
        "resolution": options.resolution,
        "threads": torch.get_num_threads(),
        "arrangements": results,
    }


def as_markdown(figures: dict[str, Any]) -> str:
    """The table of docs/participants.md."""
    lines = [
        f"{figures['people']} people, {figures['steps_a_participant']} steps each, {figures['resolution']} pixels",
        "",
        "| arrangement | PSNR full / head (dB) | against separate | parameters | of separate | peak memory | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in figures["arrangements"].items():
        against, share = "", ""
        if "psnr_against_separate" in result:
            against = f"{result['psnr_against_separate']:+.2f} / {result['psnr_head_against_separate']:+.2f}"
            share = f"{result['parameters_against_separate']:.2f}"
        lines.append(
            f"| {name} | {result['mean_psnr_full']:.2f} / {result['mean_psnr_head']:.2f} | {against} "
            f"| {result['parameters'] / 1e6:.2f} M | {share} | {result['peak_resident_gib']:.2f} GiB "
            f"| {result['processor_seconds']:.0f} s |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    chosen = tyro.cli(ParticipantsBenchmark)
    table = measure(chosen)
    print(as_markdown(table) if chosen.markdown else json.dumps(table, indent=2))
