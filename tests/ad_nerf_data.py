"""Writes folders as AD-NeRF's pipeline does, from people whose true poses are known."""

import json
from pathlib import Path
from typing import Iterable, Optional, Tuple

import cv2
import numpy as np
import soundfile
from scipy.spatial.transform import Rotation
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.conversation import Camera, Motion, load_conversation
from dialogue_nerfstudio.conversation.simulate import SimulationConfig, simulate_people
from dialogue_nerfstudio.conversation.simulate.dialogue import speak_dialogue
from dialogue_nerfstudio.conversation.video import HEAD, NECK, TORSO

OTHER_SPACE = (1.04, Rotation.from_rotvec([0.2, -0.1, 0.05]).as_matrix(), np.array([0.01, 0.03, -0.05]))
"""Scale, rotation and shift of a face model's head space against ours: x_theirs = s Q x_ours + d."""

COLOURS = {HEAD: (255, 0, 0), NECK: (0, 255, 0), TORSO: (0, 0, 255)}


def write_ad_nerf_folder(
    root: Path,
    pictures: Iterable[Tuple[np.ndarray, np.ndarray]],
    plate: np.ndarray,
    camera: Camera,
    motion: Motion,
    sound: Optional[np.ndarray],
    space: Tuple[float, np.ndarray, np.ndarray] = (1.0, np.eye(3), np.zeros(3)),
    first: int = 0,
    skipped: Tuple[int, ...] = (),
) -> Path:
    """Writes the folder and returns it.

    Args:
        pictures: (picture, labels) of every frame.
        plate: the background.
        camera, motion: the truth.
        sound: at 16 kHz, from the first picture on; None for none.
        space: the head space that the poses are written in.
        first: img_id of the first picture.
        skipped: frames that the transforms leave out.
    """
    for name in ("ori_imgs", "gt_imgs", "torso_imgs", "parsing"):
        (root / name).mkdir(parents=True)
    scale, turn, shift = space
    frames = []
    for index, (picture, labels) in enumerate(pictures):
        if index in skipped:
            continue
        name = str(first + index)
        parsing = np.full((*labels.shape, 3), 255, np.uint8)
        for label, colour in COLOURS.items():
            parsing[labels == label] = colour
        cv2.imwrite(str(root / "parsing" / f"{name}.png"), parsing)
        cv2.imwrite(str(root / "gt_imgs" / f"{name}.jpg"), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
        cv2.imwrite(str(root / "ori_imgs" / f"{name}.jpg"), picture[..., ::-1])
        body = np.isin(labels, (TORSO, NECK))
        torso = np.concatenate([picture[..., ::-1] * body[..., None], 255 * body[..., None]], axis=-1)
        cv2.imwrite(str(root / "torso_imgs" / f"{name}.png"), torso.astype(np.uint8))
        # x_camera = A x_head + a in metres; the file's world is the other head space and its unit another.
        to_camera = camera.camera_to_person[:, :3].T
        rotation = to_camera @ Rotation.from_rotvec(motion.head_pose[index, :3].astype(float)).as_matrix()
        translation = to_camera @ (motion.head_pose[index, 3:] - camera.camera_to_person[:, 3])
        theirs = rotation @ turn.T
        matrix = np.eye(4)
        matrix[:3, :3] = theirs.T
        matrix[:3, 3] = -theirs.T @ (scale * translation - theirs @ shift)
        frames.append({"img_id": first + index, "aud_id": first + index, "transform_matrix": matrix.tolist()})
    border = len(frames) * 10 // 11
    for split, part in (("train", frames[:border]), ("val", frames[border:])):
        content = {"focal_len": camera.focal, "cx": camera.cx, "cy": camera.cy, "frames": part}
        (root / f"transforms_{split}.json").write_text(json.dumps(content))
    cv2.imwrite(str(root / "bc.jpg"), plate[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
    count = first + motion.num_frames
    np.save(root / "aud_ds.npy", np.arange(count * 16 * 29, dtype=np.float32).reshape(count, 16, 29) % 97)
    rows = [f"{n + 1}, 1, 0.98, {2.0 * motion.blink[max(n - first, 0), 0]:.3f}" for n in range(count)]
    (root / "au.csv").write_text("\n".join(["frame, face_id, confidence, AU45_r", *rows]) + "\n")
    if sound is not None:
        lead = np.zeros(round(first / 25 * 16000), np.float32)
        soundfile.write(root / "aud.wav", np.concatenate([lead, sound]), 16000)
    return root


def tiny_ad_nerf_folder(root: Path, scratch: Path, num_frames: int = 33, size: int = 32, **options: object) -> Path:
    """The first person of the tiny conversation as such a folder; no tracker finds that face."""
    conversation = load_conversation(write_tiny_conversation(scratch, num_frames=num_frames, size=size))
    person = conversation.participants[0]
    with conversation.frames(person.id) as frames, conversation.labels(person.id) as labels:
        pictures = list(zip(frames.iterate(), labels.iterate(), strict=True))
    sound, _ = conversation.audio()
    plate = conversation.background(person.id)
    options = {"sound": sound, **options}
    return write_ad_nerf_folder(root, pictures, plate, person.camera, person.motion, **options)


def simulated_ad_nerf_folder(root: Path, config: SimulationConfig, **options: object) -> Tuple[Path, Camera, Motion]:
    """A simulated person, whom trackers find, as such a folder in another head space; and the truth."""
    (person, *_), dialogue = simulate_people(config)
    pictures = [person.render(frame)[:2] for frame in range(config.num_frames)]
    _, mix = speak_dialogue(dialogue, round(config.seconds * 16000), config.seed)
    plate = np.median([picture for picture, _ in pictures[::10]], axis=0).astype(np.uint8)
    write_ad_nerf_folder(root, pictures, plate, person.camera, person.motion, mix, **{"space": OTHER_SPACE, **options})
    return root, person.camera, person.motion
