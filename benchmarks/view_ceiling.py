"""What one camera can know of other views, on simulated truth: python benchmarks/view_ceiling.py simulated/truth

No avatar is trained. Every view around the recorded one is put together from the colours of the recorded frame alone,
carried over by a geometry:

- `true`: the true surface, so that what is missing is what the recording never saw, and what differs is shading and
  the recording's resolution at grazing angles. No method that learns from one camera gets further without guessing.
- `proxy`: the surface of the geometry prior (nerf/geometry_priors.py), built from the labels.

Figures as in novel_views.py, over the true silhouette; `seen` is the share of it that the recording saw, `psnr seen`
is over that share only. What was not seen takes the colour of the nearest pixel that was. The second table is the
depth of the proxy's surface against the true one, in millimetres along the recording camera's rays.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from novel_views import YAWS, mean_figures, resized
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation import Camera
from dialogue_nerfstudio.conversation.simulate import TruthRenderer
from dialogue_nerfstudio.conversation.simulate.truth import TrueView
from dialogue_nerfstudio.conversation.video import HEAD
from dialogue_nerfstudio.metrics.images import label_regions, psnr
from dialogue_nerfstudio.nerf.datamanager import pixel_directions
from dialogue_nerfstudio.nerf.geometry_priors import BodyProxies, GeometryPriorConfig, person_proxy
from dialogue_nerfstudio.nerf.view_range import swung

SAME_SURFACE = 0.006
"""Metres by which a point may lie behind what the recording sees and still be what it sees."""
PROXY_FRAMES = 8
"""Training frames that a proxy is made from."""

Depth = Float[np.ndarray, "height width"]


def points_of(camera: Camera, depth: Depth) -> Float[np.ndarray, "height width 3"]:
    """Points of person space at depths along the rays of a camera's pixels."""
    directions = pixel_directions(camera, *depth.shape).reshape(*depth.shape, 3)
    return camera.camera_to_person[:, 3] + depth[..., None] * directions


def carried(
    recorded: TrueView, camera: Camera, recorded_depth: Depth, points: Float[np.ndarray, "h w 3"], there: np.ndarray
) -> Tuple[Float[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """(recorded colours, 0 … 1, where the recording camera sees the points; whether it does see them).

    Args:
        recorded: what the camera saw.
        recorded_depth: of the surface that the points are on, from that camera; 0 where there is none.
        points: in person space.
        there: whether there is a point.
    """
    local = (points - camera.camera_to_person[:, 3]) @ camera.camera_to_person[:, :3]
    ahead = np.maximum(-local[..., 2], 1e-3)
    column = camera.focal * local[..., 0] / ahead + camera.cx - 0.5
    row = -camera.focal * local[..., 1] / ahead + camera.cy - 0.5
    places = np.stack([row, column])
    colours = np.stack(
        [map_coordinates(recorded.rgb[..., c] / 255.0, places, order=1, mode="nearest") for c in range(3)], axis=-1
    )
    distance = np.linalg.norm(local, axis=-1)
    # At a silhouette a pixel is of one surface or the other, so the deepest of the pixels around counts.
    surface = np.where(recorded_depth > 0, recorded_depth, 0.0)
    height, width = surface.shape
    inside = (row > -0.5) & (row < height - 0.5) & (column > -0.5) & (column < width - 0.5)
    seen = np.zeros(distance.shape, bool)
    for down in (0, 1):
        for right in (0, 1):
            at = (
                np.clip(np.floor(row).astype(int) + down, 0, height - 1),
                np.clip(np.floor(column).astype(int) + right, 0, width - 1),
            )
            seen |= (surface[at] > 0) & (np.abs(distance - surface[at]) < SAME_SURFACE)
    return colours, seen & inside & there


def proxy_depth(
    proxies: BodyProxies, participant: int, camera: Camera, head_pose: Float[np.ndarray, "6"], size: Tuple[int, int]
) -> Depth:
    """Where a camera's rays meet head or torso of the proxy; 0 where neither."""
    origin = torch.from_numpy(camera.camera_to_person[:, 3]).float()
    directions = torch.from_numpy(pixel_directions(camera, *size))
    rotation = torch.from_numpy(Rotation.from_rotvec(head_pose[:3].astype(np.float64)).as_matrix()).float()
    shift = torch.from_numpy(head_pose[3:].astype(np.float32))
    middle = float(origin.norm())
    t = torch.full((len(directions),), middle - 0.4)
    met = torch.zeros(len(directions), dtype=torch.bool)
    for _ in range(160):
        points = origin + t[:, None] * directions
        distance = torch.minimum(
            proxies.distance(0, (points - shift) @ rotation, participant), proxies.distance(1, points, participant)
        )
        met |= distance < 1e-3
        t = torch.where(met, t, t + 0.7 * distance.clamp_min(1.5e-3))
    return torch.where(met & (t < middle + 0.5), t, torch.zeros(())).view(size).numpy()


def figures_of(colours: Float[np.ndarray, "h w 3"], seen: Bool[np.ndarray, "h w"], true: TrueView) -> Dict[str, float]:
    """Figures of one view put together from carried colours."""
    nearest = distance_transform_edt(~seen, return_distances=False, return_indices=True)
    filled = torch.from_numpy(colours[tuple(nearest)]).float()
    target, labels = torch.from_numpy(true.rgb).float() / 255.0, torch.from_numpy(true.labels)
    regions = label_regions(labels)
    return {
        "psnr": psnr(filled, target, labels > 0),
        "head": psnr(filled, target, regions["head"]),
        "torso": psnr(filled, target, regions["torso"]),
        "psnr seen": psnr(filled, target, (labels > 0) & torch.from_numpy(seen)),
        "seen": float(seen[true.silhouette].mean()),
    }


def proxies_of(truth: TruthRenderer, height: int) -> BodyProxies:
    """The geometry prior as training would build it, from true labels and poses."""
    config, volumes = GeometryPriorConfig(), []
    conversation = truth.conversation
    frames = conversation.train_frames[:: max(1, len(conversation.train_frames) // PROXY_FRAMES)]
    for index, participant in enumerate(conversation.participants):
        camera = resized(participant.camera, height)
        shown = []
        for frame in frames.tolist():
            pose = participant.motion.head_pose[frame].astype(np.float64)
            transform = np.concatenate([Rotation.from_rotvec(pose[:3]).as_matrix(), pose[3:, None]], axis=1)
            shown.append((transform, truth.render(index, frame, camera).labels))
        volumes.append(person_proxy(config, camera, participant.head_box, participant.torso_box, shown))
    boxes = [
        torch.from_numpy(np.stack([getattr(p, name) for p in conversation.participants])).float()
        for name in ("head_box", "torso_box")
    ]
    return BodyProxies(config, *boxes, volumes, [p.camera for p in conversation.participants])


def depth_errors(found: Depth, true: TrueView) -> Dict[str, float]:
    """Of a surface from the recording camera, in millimetres: mean, and mean absolute, for head and torso; and of the
    torso after the best shift in depth."""
    both = (found > 0) & true.silhouette
    error = 1000.0 * (found - true.depth)
    head, torso = both & (true.labels == HEAD), both & (true.labels != HEAD)
    return {
        "head mean": float(error[head].mean()),
        "head abs": float(np.abs(error[head]).mean()),
        "torso mean": float(error[torso].mean()),
        "torso abs": float(np.abs(error[torso]).mean()),
        "torso abs, shifted": float(np.abs(error[torso] - np.median(error[torso])).mean()),
    }


def measure(
    truth: TruthRenderer, height: int, frames: Sequence[int], yaws: Sequence[int] = YAWS
) -> Tuple[List[Tuple[str, Dict[str, float]]], Dict[str, float]]:
    """(rows of views by both geometries, the proxy's depth errors), means over people and frames."""
    proxies = proxies_of(truth, height)
    rows: Dict[str, List[Dict[str, float]]] = {}
    errors = []
    for index, person in enumerate(truth.people):
        camera = resized(person.camera, height)
        for frame in frames:
            recorded = truth.render(index, frame, camera)
            pose = person.motion.head_pose[frame]
            found = proxy_depth(proxies, index, camera, pose, recorded.labels.shape)
            errors.append(depth_errors(found, recorded))
            for yaw in yaws:
                other = replace(camera, camera_to_person=swung(camera.camera_to_person, np.radians(yaw)))
                true = truth.render(index, frame, other)
                by_proxy = proxy_depth(proxies, index, other, pose, true.labels.shape)
                for name, depth, surface in (("true", true.depth, recorded.depth), ("proxy", by_proxy, found)):
                    there = (depth > 0) & true.silhouette
                    carried_over = carried(recorded, camera, surface, points_of(other, depth), there)
                    rows.setdefault(f"{name} {yaw:+d}", []).append(figures_of(*carried_over, true))
    return [(name, mean_figures(rows[name])) for name in rows], mean_figures(errors)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", type=Path, help="the folder truth/ that `ns-dialogue simulate` wrote")
    parser.add_argument("--height", type=int, default=128, help="rows of the pictures")
    parser.add_argument("--frames", type=int, default=3, help="held-out frames a person")
    options = parser.parse_args(arguments)
    truth = TruthRenderer(options.truth)
    held_out = truth.conversation.eval_frames
    frames = held_out[np.linspace(0, len(held_out) - 1, options.frames).astype(int)].tolist()
    rows, errors = measure(truth, options.height, frames)
    print("| geometry, view | " + " | ".join(rows[0][1]) + " |\n|---|" + "---|" * len(rows[0][1]))
    for name, figures in sorted(rows, key=lambda row: row[0].startswith("proxy")):
        print(
            f"| {name} | "
            + " | ".join(f"{value:.{2 if key == 'seen' else 1}f}" for key, value in figures.items())
            + " |"
        )
    print("\nProxy's depth (mm): " + ", ".join(f"{name} {value:+.1f}" for name, value in errors.items()))


if __name__ == "__main__":
    main()
