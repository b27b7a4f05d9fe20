"""Avatars from the side and in poses nobody recorded, against simulated truth: python benchmarks/novel_views.py --help

Trains nothing: give the config.yml of avatars that were trained on the truth folder of a simulation
(`ns-dialogue simulate`, then `ns-train dialogue-nerf --data simulated/truth`). Prints two tables, one of camera angles
around the recorded one and one of head poses around the recording's mean, and can write a picture strip of both.

Avatar and truth stand before the same, true background, so that the figures are about people, not plates. psnr is over
the union of both silhouettes; iou, holes and floaters as in metrics/silhouettes.py, seam as in metrics/seam.py.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from PIL import Image
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation import Camera
from dialogue_nerfstudio.conversation.simulate import TruthRenderer
from dialogue_nerfstudio.metrics.images import label_regions, psnr
from dialogue_nerfstudio.metrics.seam import seam_metrics
from dialogue_nerfstudio.metrics.silhouettes import silhouette_metrics
from dialogue_nerfstudio.nerf.model import DialogueModel
from dialogue_nerfstudio.nerf.view_range import swung

YAWS = (-45, -30, -15, 0, 15, 30, 45)
POSES = ((0, 0), (15, 0), (-15, 0), (0, 15), (0, -15), (15, 15), (15, -15), (-15, 15), (-15, -15))
"""(yaw, pitch) of the head from the recording's mean, degrees."""

Figures = Dict[str, float]


def resized(camera: Camera, height: int) -> Camera:
    """The camera at another size of its picture."""
    scale = height / camera.height
    return replace(
        camera,
        width=round(camera.width * scale),
        height=height,
        focal=camera.focal * scale,
        cx=camera.cx * scale,
        cy=camera.cy * scale,
    )


def nerfstudio_camera(camera: Camera) -> Cameras:
    """One camera of nerfstudio's kind."""
    return Cameras(
        camera_to_worlds=torch.tensor(np.asarray(camera.camera_to_person), dtype=torch.float32)[None],
        fx=camera.focal,
        fy=camera.focal,
        cx=camera.cx,
        cy=camera.cy,
        width=camera.width,
        height=camera.height,
    )


def over_background(
    model: DialogueModel, rendered: Dict[str, torch.Tensor], camera: Camera, participant: int, background: np.ndarray
) -> torch.Tensor:
    """The avatar over another background than its own plate: what the plate lent is taken back."""
    camera_ns = nerfstudio_camera(camera)
    bundle = camera_ns.generate_rays(camera_indices=0, keep_shape=True)
    origins, directions = bundle.origins.view(-1, 3), bundle.directions.view(-1, 3)
    height = model.plates.height_for(participant, camera.focal)
    plate, _ = model.plates(origins, directions, participant, height)
    through = 1.0 - rendered["accumulation"]
    other = torch.from_numpy(background).float() / 255.0
    return (rendered["rgb"] + through * (other - plate.view(other.shape))).clamp(0.0, 1.0)


def following_torso(truth: TruthRenderer, participant: int, head_pose: np.ndarray) -> np.ndarray:
    """How this body stands when its head has a pose nobody recorded: the linear fit over the training frames."""
    frames = truth.conversation.train_frames
    person = truth.people[participant]
    heads = person.motion.head_pose[frames].astype(np.float64)
    mean, torsos = heads.mean(axis=0), person.torso_pose[frames].astype(np.float64)
    slopes, *_ = np.linalg.lstsq(heads - mean, torsos - torsos.mean(axis=0), rcond=None)
    return torsos.mean(axis=0) + (head_pose - mean) @ slopes


def compare(
    model: DialogueModel,
    truth: TruthRenderer,
    participant: int,
    frame: int,
    model_frame: int,
    camera: Camera,
    head_pose: Optional[np.ndarray] = None,
) -> Tuple[Figures, np.ndarray]:
    """Figures of one view, and the picture: truth above avatar above opacity."""
    torso_pose = None if head_pose is None else following_torso(truth, participant, head_pose)
    true = truth.render(participant, frame, camera, head_pose=head_pose, torso_pose=torso_pose)
    rendered = model.render_frame(nerfstudio_camera(camera), model_frame, participant, "expression")
    predicted = over_background(model, rendered, camera, participant, true.background)
    target, labels = torch.from_numpy(true.rgb).float() / 255.0, torch.from_numpy(true.labels)
    opacity = rendered["accumulation"][..., 0]
    either = (opacity > 0.5) | (labels > 0)
    regions = label_regions(labels)
    figures = {
        "psnr": psnr(predicted, target, either),
        "head": psnr(predicted, target, regions["head"]),
        "torso": psnr(predicted, target, regions["torso"]),
        **silhouette_metrics((opacity > 0.5).numpy(), true.silhouette),
        **seam_metrics(predicted, target, opacity, labels),
    }
    del figures["seam_share"]
    alpha = opacity.clamp(0, 1)[..., None].expand(-1, -1, 3)
    picture = (torch.cat([target, predicted, alpha]).numpy() * 255.0 + 0.5).astype(np.uint8)
    return figures, picture


def mean_figures(figures: Sequence[Figures]) -> Figures:
    return {name: float(np.mean([values[name] for values in figures])) for name in figures[0]}


def view_table(
    model: DialogueModel, truth: TruthRenderer, frames: Sequence[int], height: int, yaws: Sequence[int] = YAWS
) -> Tuple[List[Tuple[str, Figures]], List[np.ndarray]]:
    """Rows of camera angles around the recording one, means over people and frames; and a picture strip a person."""
    rows, strips = [], [[] for _ in truth.people]
    for yaw in yaws:
        figures = []
        for participant, person in enumerate(truth.people):
            camera = resized(person.camera, height)
            camera = replace(camera, camera_to_person=swung(camera.camera_to_person, np.radians(yaw)))
            for index, frame in enumerate(frames):
                values, picture = compare(model, truth, participant, frame, frame, camera)
                figures.append(values)
                if index == 0:
                    strips[participant].append(picture)
        rows.append((f"camera {yaw:+d}", mean_figures(figures)))
    return rows, [np.concatenate(strip, axis=1) for strip in strips]


def pose_table(
    model: DialogueModel, truth: TruthRenderer, frame: int, height: int, poses: Sequence[Tuple[int, int]] = POSES
) -> Tuple[List[Tuple[str, Figures]], List[np.ndarray]]:
    """Rows of head poses around the recording's mean, from the recording camera; and the strips."""
    recorded = model.signals
    train_frames = truth.conversation.train_frames
    head_poses, motions = [], {}
    for participant, person in enumerate(truth.people):
        seen = person.motion.head_pose[train_frames].astype(np.float64)
        mean = Rotation.from_rotvec(seen[:, :3]).mean()
        turned = [Rotation.from_euler("YX", [yaw, -pitch], degrees=True) * mean for yaw, pitch in poses]
        head_poses.append([np.concatenate([turn.as_rotvec(), seen[:, 3:].mean(axis=0)]) for turn in turned])
        motion = person.motion.take(np.full(len(poses), frame))
        motions[model.participant_ids[participant]] = replace(motion, head_pose=np.float32(head_poses[-1]))
    model.set_signals(recorded.with_motion(motions))
    rows, strips = [], [[] for _ in truth.people]
    for index, (yaw, pitch) in enumerate(poses):
        figures = []
        for participant, person in enumerate(truth.people):
            camera = resized(person.camera, height)
            values, picture = compare(model, truth, participant, frame, index, camera, head_poses[participant][index])
            figures.append(values)
            strips[participant].append(picture)
        rows.append((f"head {yaw:+d} {pitch:+d}", mean_figures(figures)))
    model.set_signals(recorded)
    return rows, [np.concatenate(strip, axis=1) for strip in strips]


def print_table(rows: Sequence[Tuple[str, Figures]]) -> None:
    """As Markdown, so that it can be pasted into docs/bodies.md."""
    names = list(rows[0][1])
    print("| view | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for name, figures in rows:
        cells = [f"{figures[key]:.1f}" if key in ("psnr", "head", "torso") else f"{figures[key]:.3f}" for key in names]
        print(f"| {name} | " + " | ".join(cells) + " |")


def measure(model: DialogueModel, truth: TruthRenderer, height: int, picture: Optional[Path] = None) -> None:
    """Prints both tables; writes `picture` and `picture`'s name with -poses."""
    model.eval()
    held_out = truth.conversation.eval_frames
    frames = held_out[np.linspace(0, len(held_out) - 1, 3).astype(int)].tolist()
    for name, (rows, strips) in (
        ("", view_table(model, truth, frames, height)),
        ("-poses", pose_table(model, truth, frames[1], height)),
    ):
        print_table(rows)
        print()
        if picture is not None:
            Image.fromarray(np.concatenate(strips)).save(picture.with_name(picture.stem + name + picture.suffix))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load-config", type=Path, required=True, help="config.yml of avatars trained on the truth")
    parser.add_argument("--truth", type=Path, required=True, help="the truth folder they were trained on")
    parser.add_argument("--height", type=int, default=128, help="rows of the pictures compared")
    parser.add_argument("--picture", type=Path, help="PNG to write the strips to")
    options = parser.parse_args()
    from dialogue_nerfstudio.nerf.load import load_pipeline_for_rendering

    _, pipeline = load_pipeline_for_rendering(options.load_config)
    measure(pipeline.model, TruthRenderer(options.truth), options.height, options.picture)


if __name__ == "__main__":
    main()
