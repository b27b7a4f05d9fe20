"""Ablation of the image-quality options: trains one conversation's avatars with each, prints Markdown, keeps JSON.

    python benchmarks/ablation.py data/anchor --drive expression --output anchor_ablation --iterations 1000

A finished variant is a file in the output folder: what was interrupted goes on where it stopped, and options can be
added later. Every variant has the same seed and steps.
"""

import copy
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from dialogue_nerfstudio.cli.training import measure_held_out, train_avatars
from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.metrics.flicker import flicker
from dialogue_nerfstudio.nerf.load import load_pipeline_for_rendering
from dialogue_nerfstudio.nerf.still import held_still

Changes = dict[str, Any]

BASE: Changes = {"model.refinement.by_signal": False, "model.signal_noise": 0.0}
"""What base, and every variant before its own changes, has different from the method's defaults."""

VARIANTS: dict[str, tuple[str, Changes]] = {
    "base": ("none of the options below", {}),
    "no-region-attention": ("the signal acts alike everywhere in space", {"model.head.region_attention": False}),
    "eyes-with-face": ("blink and gaze mixed into the face code", {"model.signals.separate_eyes": False}),
    "pose-and-noise": (
        "pose-by-signal and noise of 0.2: the method's defaults",
        {"model.refinement.by_signal": True, "model.signal_noise": 0.2},
    ),
    "eyes-swap": ("a third of training frames with another frame's blink and gaze", {"model.eyes_swap": 0.33}),
    "frame-appearance": ("appearance code for each training frame, mean elsewhere", {"model.frame_appearance": True}),
    "pose-per-frame": ("pose correction for each training frame", {"model.refinement.per_frame": True}),
    "pose-by-signal": ("pose correction linear in pose and expression", {"model.refinement.by_signal": True}),
    "signal-noise-0.1": ("noise of 0.1 deviations on expression and residual", {"model.signal_noise": 0.1}),
    "signal-noise-0.3": ("noise of 0.3 deviations on expression and residual", {"model.signal_noise": 0.3}),
    "weight-average": ("moving average of the weights, decay 0.95 a step", {"model.average_decay": 0.95}),
    "lip-stage": ("lip patches (edges and SSIM) in the last fifth", {"datamanager.lip_stage_share": 0.2}),
    "tri-plane": ("three hash planes in place of the head's grid", {"model.head.encoding": "tri-plane"}),
    "four-features": (
        "four features a level in the head's grid in place of two",
        {"model.head.grid.features_per_level": 4},
    ),
    "distortion": (
        "Mip-NeRF 360's distortion loss in place of the spread",
        {"model.spread_coefficient": 0.0, "model.distortion_coefficient": 0.01},
    ),
    "no-spread": ("no loss of a ray's spread", {"model.spread_coefficient": 0.0}),
    "no-entropy": ("no loss of opacity's entropy", {"model.entropy_coefficient": 0.0}),
}
"""Name → (what differs from base, changes of the pipeline's config)."""

REGIONS = ("full", "head", "mouth", "eyes", "torso")
STILL_FRAMES = 12
SWAPPED_FRAMES = 6


@dataclass
class Ablation:
    """Measure what each option does for a conversation."""

    conversation: tyro.conf.Positional[Path]
    """A conversation folder."""
    output: Path
    """Folder for the results; what is there already is not measured again."""
    drive: Literal["role", "audio", "expression"] = "expression"
    """What moves faces."""
    iterations: int = 1000
    """Training steps of each variant."""
    resolution: int = 128
    """Pixels."""
    seed: int = 0
    """Of everything random."""
    variants: list[str] = field(default_factory=lambda: list(VARIANTS))
    """Which variants, in this order; differences and ratios are to base."""


def apply(config: Any, changes: Changes) -> None:
    """Sets options of a pipeline's config by their dotted names.

    Raises:
        DialogueError: there is no such option.
    """
    for name, value in changes.items():
        *path, last = name.split(".")
        target = config
        for part in path:
            target = getattr(target, part)
        if not hasattr(target, last):
            raise DialogueError(f"there is no option {name}.")
        setattr(target, last, copy.deepcopy(value))


def measure(options: Ablation, changes: Changes, scratch: Path) -> dict[str, Any]:
    """Trains one variant and measures it: image metrics of held-out frames, flicker, leaks, processor time a step."""
    times = []

    def configure(config: Any) -> None:
        apply(config.pipeline, {**BASE, **changes})

    def note(_: str, __: float, ___: float) -> None:
        times.append(time.process_time())

    config_path = train_avatars(
        options.conversation,
        scratch,
        options.iterations,
        options.seed,
        options.resolution,
        note,
        options.drive,
        configure,
    )
    _, pipeline = load_pipeline_for_rendering(config_path)
    # The first tenth compiles kernels and fills caches.
    begin = len(times) // 10
    return {
        "people": measure_held_out(pipeline),
        "step_seconds": (times[-1] - times[begin]) / (len(times) - 1 - begin),
        "parameters": sum(parameter.numel() for parameter in pipeline.model.parameters()),
        **measure_stillness(pipeline),
        **measure_leaks(pipeline),
    }


@torch.no_grad()
def measure_stillness(pipeline: Any) -> dict[str, float]:
    """Flicker, in grey levels of 255, of the first held-out frame held still with the tracker's trembling added."""
    model, dataset = pipeline.model, pipeline.datamanager.eval_dataset
    recorded = model.signals
    frame = dataset.frames[0]
    values = []
    for participant in range(len(model.participant_ids)):
        camera = dataset.cameras[dataset.participants.index(participant)].reshape((1,))
        model.set_signals(held_still(recorded, frame, STILL_FRAMES, jitter=1.0))
        pictures = torch.stack(
            [model.render_frame(camera, index, participant)["rgb"].cpu() for index in range(STILL_FRAMES)]
        )
        model.set_signals(recorded)
        values.append(255.0 * flicker(pictures))
    return {"flicker": float(np.mean(values))}


@torch.no_grad()
def measure_leaks(pipeline: Any) -> dict[str, float]:
    """What blinking does to the mouth and the face's expression to the eyes: RMS change outside over inside.

    Signals are swapped with those of the frame where they differ most: closed eyes onto an open-eyed face; and the
    widest against the most closed mouth, with blink and gaze left alone.
    """
    model, dataset = pipeline.model, pipeline.datamanager.eval_dataset
    recorded = model.signals
    changes: dict[str, list[float]] = {"blink_to_mouth": [], "expression_to_eyes": []}
    for participant in range(len(model.participant_ids)):
        rows = [row for row, shown in enumerate(dataset.participants) if shown == participant]
        chosen = [rows[int(index)] for index in np.linspace(0, len(rows) - 1, min(SWAPPED_FRAMES, len(rows)))]
        blink = recorded.blink.clone()
        blink[participant] = recorded.blink[participant].amax(dim=0)
        expression, residual = recorded.expression.clone(), recorded.residual.clone()
        extent = recorded.expression[participant].square().sum(dim=-1)
        widest = int(extent.argmax())
        expression[participant] = recorded.expression[participant, widest]
        residual[participant] = recorded.residual[participant, widest]
        for name, swapped, inside, outside in (
            ("blink_to_mouth", {"blink": blink}, "eyes_box", "mouth_box"),
            ("expression_to_eyes", {"expression": expression, "residual": residual}, "mouth_box", "eyes_box"),
        ):
            for row in chosen:
                batch, camera, frame = dataset[row], dataset.cameras[row : row + 1], dataset.frames[row]
                before = model.render_frame(camera, frame, participant, "expression")["rgb"]
                model.set_signals(type(recorded)(**{**vars(recorded), **swapped}))
                after = model.render_frame(camera, frame, participant, "expression")["rgb"]
                model.set_signals(recorded)
                moved = [_change(before, after, batch[box]) for box in (inside, outside)]
                if moved[0] > 0:
                    changes[name].append(moved[1] / moved[0])
    return {name: float(np.mean(values)) if values else float("nan") for name, values in changes.items()}


def _change(before: torch.Tensor, after: torch.Tensor, box: torch.Tensor) -> float:
    left, top, right, bottom = box.tolist()
    part = (after - before)[top:bottom, left:right]
    return part.square().mean().sqrt().item() if part.numel() else 0.0


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The table of all measured variants; base first, others as differences of PSNR from it."""
    base = rows.get("base")
    heads = ["variant", *(f"PSNR {name}" for name in REGIONS), *(f"SSIM {name}" for name in REGIONS)]
    heads += ["flicker", "blink → mouth", "expression → eyes", "step time", "parameters"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, row in rows.items():
        values = _mean_over_people(row["people"])
        cells = [name]
        for metric in ("psnr", "ssim"):
            for region in REGIONS:
                key = metric if region == "full" else f"{metric}_{region}"
                digits = 2 if metric == "psnr" else 4
                if base is None or name == "base":
                    cells.append(f"{values[key]:.{digits}f}")
                else:
                    cells.append(f"{values[key] - _mean_over_people(base['people'])[key]:+.{digits}f}")
        cells += [f"{row['flicker']:.2f}", f"{row['blink_to_mouth']:.2f}", f"{row['expression_to_eyes']:.2f}"]
        cells.append(f"{row['step_seconds'] / base['step_seconds']:.2f}" if base else "–")
        cells.append(f"{row['parameters'] / base['parameters']:.2f}" if base else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean_over_people(people: dict[str, dict[str, float]]) -> dict[str, float]:
    first = next(iter(people.values()))
    return {key: float(np.mean([person[key] for person in people.values()])) for key in first}


def main(options: Ablation) -> None:
    unknown = sorted(set(options.variants) - set(VARIANTS))
    if unknown:
        raise DialogueError(f"there is no variant '{unknown[0]}'; choose among {', '.join(VARIANTS)}.")
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.variants:
        path = options.output / f"{name}.json"
        settings = {
            "drive": options.drive,
            "iterations": options.iterations,
            "resolution": options.resolution,
            "seed": options.seed,
        }
        if path.is_file():
            if json.loads(path.read_text())["settings"] != settings:
                raise DialogueError(f"{path} was measured with other settings; give another --output.")
            continue
        scratch = options.output / "training" / name
        description, changes = VARIANTS[name]
        row = {"description": description, "settings": settings, **measure(options, changes, scratch)}
        shutil.rmtree(scratch)
        path.write_text(json.dumps(row, indent=2))
        print(f"{name}: done", flush=True)
    rows = {name: options.output / f"{name}.json" for name in VARIANTS}
    table = markdown({name: json.loads(path.read_text()) for name, path in rows.items() if path.is_file()})
    (options.output / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main(tyro.cli(Ablation))
