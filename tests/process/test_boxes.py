"""Boxes: the ray of every labelled pixel meets its box."""

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation import Camera
from dialogue_nerfstudio.conversation.expression_basis import mean_face
from dialogue_nerfstudio.conversation.video import HEAD, NECK, TORSO
from dialogue_nerfstudio.process import boxes
from dialogue_nerfstudio.process.head_pose import project

SIZE = 128
CAMERA = Camera(
    SIZE, SIZE, 2.0 * SIZE, SIZE / 2, SIZE / 2, np.concatenate([np.eye(3), [[0.0], [-0.02], [0.9]]], axis=1)
)


def _clip(num_frames: int = 20):
    """A head that turns and shifts above shoulders, and its label maps."""
    t = np.arange(num_frames) / 25
    pose = np.stack(
        [
            0.2 * np.sin(3 * t),
            0.4 * np.sin(2 * t),
            0.2 * np.sin(4 * t),
            0.03 * np.sin(2 * t),
            0.02 * np.cos(3 * t),
            0 * t,
        ],
        axis=1,
    )
    maps = []
    for rotvec, shift in zip(pose[:, :3], pose[:, 3:], strict=True):
        label = np.zeros((SIZE, SIZE), np.uint8)
        cv2.ellipse(label, (64, 130), (60, 40), 0, 0, 360, TORSO, -1)
        rotation = Rotation.from_rotvec(rotvec).as_matrix()
        center = project(np.zeros((1, 3)), rotation, shift - CAMERA.camera_to_person[:, 3], CAMERA.focal, (64.0, 64.0))[
            0
        ]
        u, v = center.round().astype(int).tolist()
        cv2.rectangle(label, (u - 10, v), (u + 10, v + 50), NECK, -1)
        cv2.ellipse(label, (u, v), (24, 34), 0, 0, 360, HEAD, -1)
        maps.append(label)
    return maps, pose


def _hits(origins, directions, box) -> np.ndarray:
    with np.errstate(divide="ignore"):
        a, b = (box[0] - origins) / directions, (box[1] - origins) / directions
    return np.maximum.reduce(np.minimum(a, b), axis=-1) <= np.minimum.reduce(np.maximum(a, b), axis=-1)


def test_every_labelled_pixel_s_ray_meets_its_box():
    maps, pose = _clip()
    head_box, torso_box = boxes.body_boxes(maps, pose, CAMERA, mean_face())
    for label, frame in zip(maps, pose, strict=True):
        rotation = Rotation.from_rotvec(frame[:3]).as_matrix()
        for values, in_head in (((HEAD,), True), ((NECK, TORSO), False)):
            v, u = np.nonzero(np.isin(label, values))
            origin, directions = boxes.pixel_rays(np.stack([u + 0.5, v + 0.5], axis=1), CAMERA)
            if in_head:
                origin, directions = (origin - frame[3:]) @ rotation, directions @ rotation
            assert _hits(origin, directions, head_box if in_head else torso_box).all()


def test_boxes_are_not_much_larger_than_needed():
    maps, pose = _clip()
    head_box, torso_box = boxes.body_boxes(maps, pose, CAMERA, mean_face())
    assert ((head_box[1] - head_box[0]) < [0.35, 0.40, 0.30]).all()
    assert ((torso_box[1] - torso_box[0]) < [0.60, 0.60, 0.45]).all()


def test_head_box_holds_the_face():
    maps, pose = _clip(3)
    head_box, _ = boxes.body_boxes(maps, pose, CAMERA, mean_face())
    assert (mean_face() > head_box[0]).all() and (mean_face() < head_box[1]).all()


def test_torso_box_goes_on_below_the_picture():
    maps, pose = _clip(3)
    _, torso_box = boxes.body_boxes(maps, pose, CAMERA, mean_face())
    origin, directions = boxes.pixel_rays(np.array([[64.0, float(SIZE)]]), CAMERA)
    bottom = boxes.on_plane(origin, directions, boxes.TORSO_PLANE)[0, 1]
    assert torso_box[0, 1] <= bottom - boxes.TORSO_BELOW


def test_a_clip_without_torso_still_has_a_box():
    maps, pose = _clip(3)
    maps = [np.where(label == HEAD, HEAD, 0).astype(np.uint8) for label in maps]
    _, torso_box = boxes.body_boxes(maps, pose, CAMERA, mean_face())
    assert (torso_box[1] > torso_box[0]).all()


def test_rays_agree_with_projection():
    pixels = np.array([[10.0, 20.0], [64.0, 64.0], [100.5, 3.25]])
    origin, directions = boxes.pixel_rays(pixels, CAMERA)
    points = origin + 0.8 * directions
    np.testing.assert_allclose(
        project(points, np.eye(3), -CAMERA.camera_to_person[:, 3], CAMERA.focal, (64.0, 64.0)), pixels, atol=1e-9
    )
