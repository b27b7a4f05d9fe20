"""Constructed recordings for the quality report: a person about whom there is nothing to say, and a folder."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.conversation.files import read_npz, write_npz
from dialogue_nerfstudio.process.quality import ParticipantQuality, PictureQuality

FRAMES, FPS = 500, 25.0


def good_pictures(looks: int = 20) -> PictureQuality:
    return PictureQuality(
        frames=np.linspace(0, FRAMES - 1, looks).astype(int),
        brightness=np.full(looks, 130.0),
        clipped=np.zeros(looks),
        blur=np.full(looks, 0.5),
        background_change=np.full(looks, 1.5),
        cut=np.zeros(looks, bool),
    )


def good_person() -> ParticipantQuality:
    """Somebody about whom there is nothing to say."""
    time = np.arange(FRAMES) / FPS
    return ParticipantQuality(
        id="ann",
        visible=np.ones(FRAMES, bool),
        reprojection_error=0.9 + 0.1 * np.sin(time),
        rotation=np.stack([4 * np.sin(time), 6 * np.cos(time), np.sin(2 * time)], axis=1),
        jitter=0.05,
        motion=9.0,
        blink=np.zeros(FRAMES),
        blinks=np.array([3.0, 8.0, 14.0]),
        opening=0.1 + 0.1 * np.sin(9 * time) ** 2,
        speaking=time < 12,
        lips=None,
        eye_distance=90.0,
        tilt=3.0,
        pictures=good_pictures(),
    )


def lost(start: int, stop: int) -> Bool[np.ndarray, " num_frames"]:
    """Seen but for the frames start … stop − 1."""
    frames = np.arange(FRAMES)
    return (frames < start) | (frames >= stop)


def measured_folder(root: Path) -> Path:
    """A tiny conversation with what `process` leaves beside it."""
    write_tiny_conversation(root, num_frames=75)
    time = np.arange(75)
    for index in range(2):
        folder = root / "participants" / f"p{index}"
        tracking = read_npz(folder / "tracking.npz")
        steps = np.stack([np.sin(time / 5), np.cos(time / 7)], axis=1)
        tracking["landmarks"] = (tracking["landmarks"][:1] + steps[:, None]).astype(np.float32)
        tracking["reprojection_error"] = np.full(75, 0.05, np.float32)
        tracking["visible"][10:13] = index == 0
        write_npz(folder / "tracking.npz", **tracking)
        write_npz(folder / "face.npz", mouth_opening=(0.1 + 0.05 * np.sin(time)).astype(np.float32))
    return root
