"""Train and measure avatars from Python, through nerfstudio's own trainer and in this process; the demo's middle."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import numpy as np
from jaxtyping import UInt8

Progress = Callable[[str, float, float], None]
"""Called with a stage, how much of it is done, and how much there is."""

Watch = Callable[[Any, int], None]
"""Called with the pipeline and the number of training steps done, after each."""


def train_avatars(
    data: Path,
    output_dir: Path,
    iterations: int,
    seed: int,
    resolution: Optional[int] = None,
    progress: Optional[Progress] = None,
    drive: str = "role",
    configure: Optional[Callable[[Any], None]] = None,
    watch: Optional[Watch] = None,
) -> Path:
    """What `ns-train dialogue-nerf --data DATA` does, without a viewer.

    Args:
        data: a conversation folder.
        output_dir: nerfstudio's; the run ends up in output_dir/NAME/dialogue-nerf/run.
        iterations: how many.
        seed: of everything random.
        resolution: height of the pictures to train on, pixels; the method's own default if None.
        progress: called as progress("train", iterations done, iterations).
        drive: what moves faces, the model's `drive`.
        configure: changes the trainer's config in place, before it is saved.
        watch: sees the avatars while they are trained.

    Returns:
        The config.yml that nerfstudio's other commands take as --load-config.
    """
    import torch
    from nerfstudio.configs.base_config import LocalWriterConfig
    from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
    from nerfstudio.utils import writer

    from dialogue_nerfstudio.nerf.config import dialogue_nerf

    config = copy.deepcopy(dialogue_nerf.config)
    config.output_dir = output_dir
    config.timestamp = "run"
    config.data = data
    config.pipeline.datamanager.data = data
    config.pipeline.datamanager.dataparser.resolution = resolution
    config.pipeline.model.drive = drive
    config.max_num_iterations = iterations
    config.steps_per_save = iterations
    config.machine.seed = seed
    config.vis = "tensorboard"
    config.logging.local_writer = LocalWriterConfig(enable=False)
    config.logging.profiler = "none"
    # The demo measures all held-out frames afterwards.
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = iterations + 1
    if configure is not None:
        configure(config)
    config.save_config()

    # As ns-train seeds; its module imports every method there is, for ten seconds.
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # nerfstudio's event writers are global, and a second training in one process would write to the first one's files.
    writer.EVENT_WRITERS.clear()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    if progress is not None:
        trainer.callbacks.append(
            TrainingCallback(
                where_to_run=[TrainingCallbackLocation.AFTER_TRAIN_ITERATION],
                update_every_num_iters=1,
                func=lambda step: progress("train", step + 1, iterations),
            )
        )
    if watch is not None:
        trainer.callbacks.append(
            TrainingCallback(
                where_to_run=[TrainingCallbackLocation.AFTER_TRAIN_ITERATION],
                update_every_num_iters=1,
                func=lambda step: watch(trainer.pipeline, step + 1),
            )
        )
    trainer.train()
    return config.get_base_dir() / "config.yml"


def measure_held_out(pipeline: Any, progress: Optional[Progress] = None) -> dict[str, dict[str, float]]:
    """Each participant's mean image metrics over the held-out frames, by the numbers that `ns-eval` averages.

    Args:
        pipeline: a loaded pipeline.
        progress: called as progress("measure", frames done, frames).

    Returns:
        participant id → metric → mean, and "frames".
    """
    import torch

    rows: dict[str, list[dict[str, float]]] = {name: [] for name in pipeline.model.participant_ids}
    loader = pipeline.datamanager.fixed_indices_eval_dataloader
    with torch.no_grad():
        for index, (camera, batch) in enumerate(loader):
            outputs = pipeline.model.get_outputs_for_camera(camera=camera)
            values, _ = pipeline.model.get_image_metrics_and_images(outputs, batch)
            rows[_participant(pipeline, camera)].append({name: float(value) for name, value in values.items()})
            if progress is not None:
                progress("measure", index + 1, len(loader))
    return {
        name: {"frames": len(of_one), **{key: float(np.mean([row[key] for row in of_one])) for key in of_one[0]}}
        for name, of_one in rows.items()
        if of_one
    }


def compare_held_out(pipeline: Any, count: int) -> list[list[UInt8[np.ndarray, "h w 3"]]]:
    """Held-out frames of every participant, evenly spread: a row as recorded, below it the row as rendered."""
    import torch

    loader = pipeline.datamanager.fixed_indices_eval_dataloader
    shown = loader.cameras.metadata["participant"].reshape(-1).cpu().numpy()
    rows = []
    for participant in range(len(pipeline.model.participant_ids)):
        indices = np.flatnonzero(shown == participant)
        chosen = indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)]
        recorded, rendered = [], []
        for index in chosen:
            camera, batch = loader.get_camera(int(index))
            with torch.no_grad():
                outputs = pipeline.model.get_outputs_for_camera(camera=camera)
            recorded.append(to_picture(batch["image"]))
            rendered.append(to_picture(outputs["rgb"]))
        rows += [recorded, rendered]
    return rows


def to_picture(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """A float tensor [H, W, 3] in 0 … 1 as bytes, rounded."""
    return (image.detach().cpu().clamp(0, 1) * 255).round().byte().numpy()


def _participant(pipeline: Any, camera: Any) -> str:
    return pipeline.model.participant_ids[int(camera.metadata["participant"].reshape(-1)[0])]
