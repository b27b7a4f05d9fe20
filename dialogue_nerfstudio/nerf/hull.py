"""Visual hulls: the cells of a head's or torso's box that the labels of the training frames leave possible.

Conventions: points are metres in person space; pixels are those of the training resolution. A hull is a boolean a cell,
in the order of `rendering.occupancy`.
"""

from typing import Iterable, Tuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from dialogue_nerfstudio.conversation import Camera

SMALLEST_SHARE = 0.02
"""A cell is kept if its pixel has the label in at least this share of the frames that see it."""


def cell_centres(box: Float[np.ndarray, "2 3"], resolution: int) -> Float[np.ndarray, "cells 3"]:
    """Centres of the cells of a box; x runs fastest."""
    steps = (np.arange(resolution) + 0.5) / resolution
    z, y, x = np.meshgrid(steps, steps, steps, indexing="ij")
    return box[0] + np.stack([x, y, z], axis=-1).reshape(-1, 3) * (box[1] - box[0])


def visual_hull(
    box: Float[np.ndarray, "2 3"],
    resolution: int,
    camera: Camera,
    frames: Iterable[Tuple[Float[np.ndarray, "3 4"], UInt8[np.ndarray, "h w"]]],
    keep: Tuple[int, ...],
    keep_below: bool = False,
) -> Bool[np.ndarray, " cells"]:
    """Carves a box.

    Args:
        box: of the part, in its own space.
        resolution: cells an axis.
        camera: the recording camera, at any size of its picture.
        frames: (rigid transform from the part's space to person space, label map) of training frames.
        keep: labels of the part.
        keep_below: whether cells below the picture can hold something. What is beside it cannot: nobody knows whether
            a shoulder goes on there, and what its colours would be.

    Returns:
        whether each cell can hold something.
    """
    centres = cell_centres(box, resolution)
    seen, hits, below = np.zeros(len(centres)), np.zeros(len(centres)), np.zeros(len(centres), dtype=bool)
    half_cell = 0.5 * float(np.linalg.norm((box[1] - box[0]) / resolution))
    rotation, position = camera.camera_to_person[:, :3], camera.camera_to_person[:, 3]
    for transform, labels in frames:
        local = (centres @ transform[:, :3].T + transform[:, 3] - position) @ rotation
        distance = np.maximum(-local[:, 2], 1e-3)
        scale = labels.shape[1] / camera.width
        # A cell may reach half its diagonal further than its centre, and labels err by about a pixel.
        reach = int(np.ceil(half_cell * camera.focal * scale / float(np.median(distance)))) + 1
        mask = cv2.dilate(np.isin(labels, keep).astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
        column = np.floor((camera.focal * local[:, 0] / distance + camera.cx) * scale).astype(int)
        row = np.floor((-camera.focal * local[:, 1] / distance + camera.cy) * scale).astype(int)
        inside = (local[:, 2] < 0) & (column >= 0) & (row >= 0) & (column < labels.shape[1]) & (row < labels.shape[0])
        seen += inside
        below |= (local[:, 2] < 0) & (column >= 0) & (column < labels.shape[1]) & (row >= labels.shape[0])
        hits[inside] += mask[row[inside], column[inside]]
    return (hits > SMALLEST_SHARE * np.maximum(seen, 1)) | (keep_below & below & (seen == 0))
