"""The static picture behind a person, put together from what they uncover over time, and where it had to be made up.

Conventions. Frames are uint8 RGB `[H, W, 3]`, label maps uint8 `[H, W]`; K sampled frames, the same number for any
length of the video, so that memory does not grow with it.
"""

from pathlib import Path
from typing import Callable, Optional, Tuple

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from PIL import Image

from dialogue_nerfstudio.conversation.conversation import HOLES_NAME, PLATE_NAME
from dialogue_nerfstudio.conversation.files import atomic_path
from dialogue_nerfstudio.conversation.video import FrameReader, LabelReader, spread_frames

NUM_SAMPLES = 40
"""Frames the plate is made of; more sharpen nothing."""

PERSON_MARGIN = 0.02
"""How far around the person pixels are not trusted, in picture widths: hair, blur and shadow."""


def masked_median(
    frames: UInt8[np.ndarray, "k height width 3"], seen: Bool[np.ndarray, "k height width"], rows: int = 64
) -> Tuple[UInt8[np.ndarray, "height width 3"], Int[np.ndarray, "height width"]]:
    """Per-pixel median of the frames in which a pixel is seen, and in how many it is; 0 where in none."""
    count = seen.sum(axis=0)
    plate = np.zeros(frames.shape[1:], np.uint8)
    for start in range(0, frames.shape[1], rows):
        part = slice(start, start + rows)
        # No value sorts behind that of unseen samples, and which of equal ones comes first makes no difference.
        values = np.where(seen[:, part, :, None], frames[:, part], np.uint8(255))
        values.sort(axis=0)
        middle = np.maximum((count[part] - 1) // 2, 0)
        median = np.take_along_axis(values, np.broadcast_to(middle[None, ..., None], (1, *values.shape[1:])), axis=0)[0]
        plate[part] = np.where(count[part, :, None] > 0, median, 0)
    return plate, count


def fill_unseen(
    plate: Float32[np.ndarray, "height width 3"], known: Bool[np.ndarray, "height width"]
) -> Float32[np.ndarray, "height width 3"]:
    """Continues the known pixels smoothly into the others: averages over ever coarser grids, used from coarse to fine
    where nothing finer is known.

    A plate with nothing known becomes mid-grey.
    """
    if known.all():
        return plate
    if not known.any():
        return np.full_like(plate, 127.0)
    height, width = known.shape
    if min(height, width) <= 1:
        return np.where(known[..., None], plate, plate[known].mean(axis=0))
    half = ((width + 1) // 2, (height + 1) // 2)
    weight = known.astype(np.float32)
    coarse_weight = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(plate * weight[..., None], half, interpolation=cv2.INTER_AREA)
    coarse = coarse / np.maximum(coarse_weight, 1e-6)[..., None]
    coarse = fill_unseen(coarse.astype(np.float32), coarse_weight > 1e-3)
    fine = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.where(known[..., None], plate, fine)


def background_plate(
    frames: FrameReader, labels: LabelReader, progress: Callable[[float], None] = lambda fraction: None
) -> Tuple[UInt8[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"]]:
    """The plate behind one person, and its holes: the pixels that were never seen, or in too few frames to trust.

    The plate is the per-pixel median of the frames in which a pixel is clear of the person. Holes are continued from
    their surroundings; they only matter to a view from another side.
    """
    chosen = spread_frames(len(frames), NUM_SAMPLES)
    margin = 2 * max(round(PERSON_MARGIN * frames.width), 1) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (margin, margin))
    stack = np.empty((len(chosen), frames.height, frames.width, 3), np.uint8)
    seen = np.empty(stack.shape[:3], bool)
    for index, frame in enumerate(chosen):
        stack[index] = frames[int(frame)]
        seen[index] = cv2.dilate((labels[int(frame)] > 0).astype(np.uint8), kernel) == 0
        progress((index + 1) / len(chosen))
    plate, count = masked_median(stack, seen)
    # A pixel seen once or twice may be a blurred sleeve.
    known = count >= max(2, len(chosen) // 20)
    filled = fill_unseen(plate.astype(np.float32), known)
    return np.clip(filled.round(), 0, 255).astype(np.uint8), ~known


def write_plate(
    folder: Path, plate: UInt8[np.ndarray, "height width 3"], holes: Optional[Bool[np.ndarray, "height width"]]
) -> None:
    """Writes background.png and, where the holes are known, background_holes.png: white where the plate is made up.

    Raises:
        DialogueError: the disk is full.
    """
    with atomic_path(folder / PLATE_NAME) as temporary:
        Image.fromarray(plate).save(temporary)
    if holes is None:
        # An earlier run may have had some.
        (folder / HOLES_NAME).unlink(missing_ok=True)
        return
    with atomic_path(folder / HOLES_NAME) as temporary:
        Image.fromarray(np.where(holes, 255, 0).astype(np.uint8)).save(temporary)
