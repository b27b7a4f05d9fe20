"""A tiny conversation with a known answer, in a second: ellipsoid heads and shoulders over a plate, ray cast.

Two people take turns: whoever speaks moves the jaw, everybody nods and blinks. It has every file of a processed one.
"""

from pathlib import Path
from typing import Tuple

import numpy as np
import soundfile
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation import (
    EXPRESSION_NAMES,
    Camera,
    Conversation,
    LabelWriter,
    Motion,
    Participant,
    VideoWriter,
    frames_to_segments,
    save_conversation,
    split_frames,
)
from dialogue_nerfstudio.conversation.files import write_npz

BACKGROUND, TORSO, HEAD = 0, 1, 3
HEAD_RADII = np.array([0.08, 0.11, 0.10])
TORSO_CENTRE, TORSO_RADII = np.array([0.0, -0.27, -0.06]), np.array([0.2, 0.15, 0.1])
DISTANCE = 1.0
SKIN = np.array([[0.85, 0.6, 0.5], [0.55, 0.4, 0.3]])
CLOTH = np.array([[0.2, 0.3, 0.7], [0.7, 0.2, 0.2]])


def write_tiny_conversation(
    root: Path, num_people: int = 2, num_frames: int = 24, size: int = 32, eval_fraction: float = 0.2
) -> Path:
    """Writes the folder and returns it."""
    root = Path(root)
    ids = [f"p{index}" for index in range(num_people)]
    speaking = np.stack([(np.arange(num_frames) // 6) % num_people == index for index in range(num_people)], axis=1)
    rng = np.random.default_rng(0)
    people = []
    for index, name in enumerate(ids):
        motion = _motion(index, speaking[:, index], num_frames)
        camera = Camera(
            width=size,
            height=size,
            focal=2.0 * size,
            cx=size / 2,
            cy=size / 2,
            camera_to_person=np.concatenate([np.eye(3), [[0.0], [-0.05], [DISTANCE]]], axis=1),
        )
        person = Participant(
            id=name,
            name=name,
            camera=camera,
            head_box=np.stack([-1.2 * HEAD_RADII, 1.2 * HEAD_RADII]),
            torso_box=np.stack([TORSO_CENTRE - 1.2 * TORSO_RADII, TORSO_CENTRE + 1.2 * TORSO_RADII]),
            motion=motion,
        )
        _write_media(root / "participants" / name, person, index)
        people.append(person)
    loudness = np.repeat(speaking.any(axis=1), 640) * 0.1
    (root / "features").mkdir(parents=True, exist_ok=True)
    soundfile.write(root / "audio.wav", (loudness * rng.standard_normal(len(loudness))).astype(np.float32), 16000)
    jaw = np.max([person.motion.expression[:, 0] for person in people], axis=0)
    mel = np.tile((2 * jaw - 1)[:, None, None], (1, 16, 80)) + 0.05 * rng.standard_normal((num_frames, 16, 80))
    write_npz(root / "features" / "mel.npz", features=mel.astype(np.float32))
    train_frames, eval_frames = split_frames(num_frames, eval_fraction)
    save_conversation(
        Conversation(
            num_frames=num_frames,
            participants=people,
            segments=frames_to_segments(speaking, ids, 25.0),
            train_frames=train_frames,
            eval_frames=eval_frames,
        ),
        root,
    )
    return root


def _motion(index: int, speaking: np.ndarray, num_frames: int) -> Motion:
    time = np.arange(num_frames)
    pose = np.zeros((num_frames, 6))
    pose[:, 0] = 0.1 * np.sin(0.5 * time + index)
    pose[:, 1] = 0.15 * np.cos(0.3 * time + index)
    pose[:, 3] = 0.01 * np.sin(0.4 * time)
    expression = np.zeros((num_frames, len(EXPRESSION_NAMES)))
    expression[:, 0] = speaking * (0.5 + 0.5 * np.sin(1.3 * time))
    blink = np.repeat(((time + 3 * index) % 8 == 0).astype(float)[:, None], 2, axis=1)
    residual = 0.1 * np.sin(time)[:, None] * np.ones((1, 2 + index))
    return Motion(pose, expression, blink, np.zeros((num_frames, 2, 2)), residual)


def _write_media(folder: Path, person: Participant, index: int) -> None:
    camera, motion = person.camera, person.motion
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[0 : camera.height, 0 : camera.width]
    plate = np.stack([rows / camera.height, columns / camera.width, np.full(rows.shape, 0.3 + 0.3 * index)], axis=-1)
    Image.fromarray((255 * plate).astype(np.uint8)).save(folder / "background.png")
    with (
        VideoWriter(folder / "video.mp4", 25.0, camera.width, camera.height, crf=1) as video,
        LabelWriter(folder / "labels.mkv", 25.0, camera.width, camera.height) as labels,
    ):
        for frame in range(motion.num_frames):
            image, label = draw(person, index, frame, plate)
            video.write(image)
            labels.write(label)
    landmarks = np.full((motion.num_frames, 478, 2), camera.width / 2) + np.random.default_rng(1).normal(
        0, camera.width / 10, (motion.num_frames, 478, 2)
    )
    ones = np.ones(motion.num_frames)
    write_npz(
        folder / "tracking.npz",
        landmarks=landmarks.astype(np.float32),
        reprojection_error=0 * ones.astype(np.float32),
        confidence=ones.astype(np.float32),
        visible=ones.astype(bool),
    )


def draw(
    person: Participant, index: int, frame: int, plate: Float[np.ndarray, "h w 3"]
) -> Tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """One frame and its labels."""
    camera, motion = person.camera, person.motion
    rows, columns = np.mgrid[0 : camera.height, 0 : camera.width] + 0.5
    directions = np.stack(
        [(columns - camera.cx) / camera.focal, -(rows - camera.cy) / camera.focal, -np.ones_like(rows)], axis=-1
    )
    origin = camera.camera_to_person[:, 3]
    rotation = Rotation.from_rotvec(motion.head_pose[frame, :3]).as_matrix()
    head_origin, head_directions = (origin - motion.head_pose[frame, 3:]) @ rotation, directions @ rotation
    sway = TORSO_CENTRE + np.array([0.5 * motion.head_pose[frame, 3], 0.0, 0.0])
    head_depth = _ellipsoid_depth(head_origin, head_directions, HEAD_RADII)
    torso_depth = _ellipsoid_depth(origin - sway, directions, TORSO_RADII)
    image, labels = plate.copy(), np.zeros(rows.shape, dtype=np.uint8)
    torso = np.isfinite(torso_depth)
    image[torso], labels[torso] = CLOTH[index], TORSO
    head = np.isfinite(head_depth) & (head_depth < torso_depth)
    image[head], labels[head] = SKIN[index], HEAD
    points = head_origin + head_directions * np.where(head, head_depth, 0.0)[..., None]
    mouth = head & (points[..., 2] > 0) & (np.abs(points[..., 0]) < 0.03)
    mouth &= np.abs(points[..., 1] + 0.05) < 0.008 + 0.02 * motion.expression[frame, 0]
    image[mouth] = [0.3, 0.05, 0.05]
    eyes = head & (points[..., 2] > 0) & (np.abs(np.abs(points[..., 0]) - 0.035) < 0.015)
    eyes &= np.abs(points[..., 1] - 0.02) < 0.012 * (1.0 - motion.blink[frame, 0])
    image[eyes] = [0.95, 0.95, 0.95]
    return np.round(255 * image).astype(np.uint8), labels


def _ellipsoid_depth(
    origin: Float[np.ndarray, "3"], directions: Float[np.ndarray, "h w 3"], radii: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "h w"]:
    """Distance along unnormalised directions to the first hit; infinite without one."""
    o, d = origin / radii, directions / radii
    a, b, c = (d * d).sum(-1), (d * o).sum(-1), (o * o).sum() - 1.0
    root = b * b - a * c
    return np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0.0))) / a, np.inf)
