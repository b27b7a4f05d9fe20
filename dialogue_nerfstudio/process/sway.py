"""How the shoulders move beyond following the head: pictures of the torso registered to their mean.

Conventions. T frames; pictures are shrunk to WIDTH pixels. A motion of the torso in the picture is [6]: to the right
and down in pixels, at the torso's centre, and clockwise in radians; then how much wider, taller and sheared it is,
shares of its size (the symmetric part of the affine transform, less one). Sway is [T, 6] in person space: +x and +y in
metres at the torso's depth, radians counter-clockwise as the camera sees it, and wider, taller and sheared likewise.

A head that turns takes the shoulders along, which a renderer learns from the head's pose. What is left (breathing,
shifting weight) is a millimetre or two: little, but half a pixel at 256 pixels, and collars are sharp. Bodies that
breathe or turn also change their width: the lapels of a real speaker went apart by a pixel while their middle stood
still.
"""

from typing import Callable, List, Optional

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.conversation import Camera
from dialogue_nerfstudio.conversation.motion import SWAY_SIZE
from dialogue_nerfstudio.conversation.video import NECK, TORSO, GreyReader, LabelReader, spread_frames

WIDTH = 256
"""Pixels across a picture in which the torso is registered: to a few hundredths of one where cloth has edges."""

NUM_SAMPLES = 16
"""Frames that the mean torso is made of; reaching each takes the time of many that are read in order."""

USUALLY = 0.5
"""Share of the frames in which a pixel has to show neck or torso to count: the edges of collars, which tell most, are
covered by the chin now and then."""

SMALLEST = 400
"""Pixels that a torso must have to be registered at all."""

FARTHEST = 0.1
"""Largest plausible motion, in picture widths."""

STEP = 2
"""Every this many frames one is registered, and the last; a cubic spline goes through what they say. Torsos move too
slowly for the difference to show, and the noise of single frames is less."""

LEAST_CORRELATION = 0.8
"""Frames that resemble the mean torso less than this (an arm in front of it) are bridged."""

CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 15, 5e-4)
"""When registration of a frame ends; going on until the correlation changes by a fifth of this takes half as long again
and comes no nearer to the simulated truth."""

RIDGE = 0.1
"""Of the fit to the head's pose, in frames: a head that hardly moves explains nothing."""


def register(
    reference: Float32[np.ndarray, "height width"],
    picture: Float32[np.ndarray, "height width"],
    mask: Bool[np.ndarray, "height width"],
    start: Optional[Float32[np.ndarray, "2 3"]] = None,
    model: int = cv2.MOTION_EUCLIDEAN,
) -> Optional[Float32[np.ndarray, "2 3"]]:
    """The transform (`model`: OpenCV's name of rigid or affine ones) that carries positions of `reference` to those of
    `picture` (enhanced correlation coefficient, Evangelidis & Psarakis 2008); None where it is not found."""
    warp = np.eye(2, 3, dtype=np.float32) if start is None else start.copy()
    try:
        correlation, warp = cv2.findTransformECC(reference, picture, warp, model, CRITERIA, mask.astype(np.uint8), 3)
    except cv2.error:
        # OpenCV's word for "does not converge", as on a picture that shows something else.
        return None
    centre = np.array([mask.shape[1], mask.shape[0]]) / 2.0
    moved = warp[:, :2] @ centre + warp[:, 2] - centre
    if correlation < LEAST_CORRELATION or np.abs(moved).max() > FARTHEST * WIDTH:
        return None
    return warp


def _at(warp: Optional[Float32[np.ndarray, "2 3"]], centre: Float[np.ndarray, "2"]) -> Float[np.ndarray, "6"]:
    """A transform as (right, down, clockwise, wider, taller, sheared) about a centre; NaN for none."""
    if warp is None:
        return np.full(SWAY_SIZE, np.nan)
    moved = warp[:, :2] @ centre + warp[:, 2] - centre
    (across, slant), (turn, along) = warp[:, :2] - np.eye(2)
    return np.array([*moved, 0.5 * (turn - slant), across, along, 0.5 * (turn + slant)])


def torso_motion(
    frames: GreyReader, labels: LabelReader, progress: Optional[Callable[[float], None]] = None
) -> Float[np.ndarray, "num_frames 6"]:
    """The torso's motion in the picture, in pixels of WIDTH across, from its mean place; zeros where the frames
    show none that could be registered."""
    num_frames = len(frames)
    height = max(round(frames.height * WIDTH / frames.width), 1)

    def shrunk(frame: np.ndarray) -> Float32[np.ndarray, "height width"]:
        return cv2.resize(frame, (WIDTH, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0

    chosen = spread_frames(num_frames, NUM_SAMPLES)
    share = np.zeros((height, WIDTH))
    for frame in chosen:
        small = cv2.resize(labels[int(frame)], (WIDTH, height), interpolation=cv2.INTER_NEAREST)
        share += ((small == TORSO) | (small == NECK)) / len(chosen)
    mask = share > USUALLY
    if mask.sum() < SMALLEST:
        return np.zeros((num_frames, SWAY_SIZE))
    rows, columns = np.nonzero(mask)
    margin = round(0.02 * WIDTH)
    part = (
        slice(max(rows.min() - margin, 0), rows.max() + 1 + margin),
        slice(max(columns.min() - margin, 0), columns.max() + 1 + margin),
    )
    mask = mask[part]

    # A reference that is sharp: the mean of some frames first, then the median of the same frames registered to it.
    samples = [np.ascontiguousarray(shrunk(frames[int(frame)])[part]) for frame in chosen]
    reference = np.mean(samples, axis=0)
    size = (mask.shape[1], mask.shape[0])
    registered: List[np.ndarray] = []
    for sample in samples:
        warp = register(reference, sample, mask)
        if warp is not None:
            flags = cv2.INTER_LINEAR + cv2.WARP_INVERSE_MAP
            registered.append(cv2.warpAffine(sample, warp, size, flags=flags, borderMode=cv2.BORDER_REPLICATE))
    if len(registered) < 0.5 * len(samples):
        return np.zeros((num_frames, SWAY_SIZE))
    reference = np.median(registered, axis=0).astype(np.float32)

    centre = np.argwhere(mask).mean(axis=0)[::-1]
    looks = np.union1d(np.arange(0, num_frames, STEP), num_frames - 1)
    seen = np.empty((len(looks), SWAY_SIZE))
    warp = None
    for row, index in enumerate(looks):
        picture = np.ascontiguousarray(shrunk(frames[int(index)])[part])
        warp = register(reference, picture, mask, warp, cv2.MOTION_AFFINE)
        seen[row] = _at(warp, centre)
        if progress is not None and row % 12 == 0:
            progress(row / len(looks))
    found = np.isfinite(seen).all(axis=1)
    if found.mean() < 0.5:
        return np.zeros((num_frames, SWAY_SIZE))
    motion = between(looks[found], seen[found], num_frames)
    return motion - motion.mean(axis=0)


def between(
    frames: Int[np.ndarray, " k"], values: Float[np.ndarray, "k 6"], num_frames: int
) -> Float[np.ndarray, "num_frames 6"]:
    """What is known of some frames for all: a cubic spline where the known ones lie STEP apart, straight lines over
    longer gaps, which a spline would swing over; the ends go on as they are."""
    every = np.arange(num_frames)
    lines = np.stack([np.interp(every, frames, column) for column in values.T], axis=1)
    if len(frames) < 2:
        return lines
    inside = (every >= frames[0]) & (every <= frames[-1])
    after = np.clip(np.searchsorted(frames, every), 1, len(frames) - 1)
    near = inside & (frames[after] - frames[after - 1] <= STEP)
    lines[near] = CubicSpline(frames, values)(every[near])
    return lines


def beyond_head(
    motion: Float[np.ndarray, "num_frames n"], head_pose: Float[np.ndarray, "num_frames 6"]
) -> Float[np.ndarray, "num_frames n"]:
    """What a linear function of the head's angles and position does not explain of a motion."""
    angles = Rotation.from_rotvec(head_pose[:, :3].astype(np.float64)).as_euler("YXZ")
    pose = np.concatenate([angles, head_pose[:, 3:]], axis=1)
    pose = (pose - pose.mean(axis=0)) / np.maximum(pose.std(axis=0), 1e-4)
    rest = motion - motion.mean(axis=0)
    return rest - pose @ np.linalg.solve(pose.T @ pose + RIDGE * np.eye(6), pose.T @ rest)


def measure_sway(
    frames: GreyReader,
    labels: LabelReader,
    camera: Camera,
    head_pose: Float[np.ndarray, "num_frames 6"],
    progress: Optional[Callable[[float], None]] = None,
) -> Float32[np.ndarray, "num_frames 6"]:
    """Sway of one person; zeros where no torso shows."""
    right, down, clockwise, wider, taller, sheared = torso_motion(frames, labels, progress).T
    # The torso stands about as far from the camera as the person space's origin.
    metres = float(np.linalg.norm(camera.camera_to_person[:, 3])) / (camera.focal * WIDTH / camera.width)
    # Seen with the vertical axis upwards, a shear has the other sign, as a turn has.
    motion = np.stack([metres * right, -metres * down, -clockwise, wider, taller, -sheared], axis=1)
    return beyond_head(motion, head_pose).astype(np.float32)
