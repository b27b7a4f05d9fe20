"""The boxes of head and torso, so large that the ray of every labelled pixel meets its box.

Conventions. Boxes are `[2, 3]`, minimum and maximum corner, metres: the head's in head space (it moves with the head),
the torso's (with the neck) in person space. Pixels are continuous, v downwards; labels are uint8 `[H, W]`. A pixel's
place is taken where its ray meets a plane through the middle of the body part: z = 0 in head space for the head (the
widest part of a skull), z = TORSO_PLANE in person space for the torso.
"""

from typing import Callable, Iterable, Tuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.conversation import Camera
from dialogue_nerfstudio.conversation.video import HEAD, NECK, TORSO

HEAD_MARGIN = 0.01
HEAD_BACK = -0.14
"""Head space z of the skull's back, with hair."""
HEAD_FRONT_MARGIN = 0.02
"""Added to the nearest point of the face: lips pursed, glasses."""

TORSO_PLANE = -0.05
"""Person space z at which shoulders are about: a little behind the head's centre."""
TORSO_MARGIN = 0.02
TORSO_BELOW = 0.05
"""How far the torso goes on below the picture, for views from elsewhere."""
TORSO_BACK, TORSO_FRONT = -0.30, 0.12


def outline(mask: Bool[np.ndarray, "height width"]) -> Float[np.ndarray, "n 2"]:
    """Corners of the pixels of a mask's convex hull, in continuous pixels: a box that holds them on a plane holds them
    all."""
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return np.zeros((0, 2))
    corners = cv2.convexHull(np.concatenate(contours))[:, 0]
    return np.concatenate([corners + np.array([du, dv]) for du in (0, 1) for dv in (0, 1)]).astype(float)


def pixel_rays(pixels: Float[np.ndarray, "n 2"], camera: Camera) -> Tuple[np.ndarray, np.ndarray]:
    """Origin `[3]` and directions `[n, 3]` of pixels in person space; directions are not normalised."""
    local = np.stack(
        [
            (pixels[:, 0] - camera.cx) / camera.focal,
            (camera.cy - pixels[:, 1]) / camera.focal,
            -np.ones(len(pixels)),
        ],
        axis=1,
    )
    return camera.camera_to_person[:, 3], local @ camera.camera_to_person[:, :3].T


def on_plane(
    origin: Float[np.ndarray, "3"], directions: Float[np.ndarray, "n 3"], z: float
) -> Float[np.ndarray, "n 2"]:
    """x and y where rays meet the plane of that z."""
    distance = (z - origin[2]) / directions[:, 2]
    return origin[:2] + distance[:, None] * directions[:, :2]


def body_boxes(
    labels: Iterable[UInt8[np.ndarray, "height width"]],
    head_pose: Float[np.ndarray, "num_frames 6"],
    camera: Camera,
    shape: Float[np.ndarray, "478 3"],
    progress: Callable[[float], None] = lambda fraction: None,
) -> Tuple[Float[np.ndarray, "2 3"], Float[np.ndarray, "2 3"]]:
    """Head box and torso box of one person.

    Args:
        labels: every label map of the clip, in order.
        head_pose: axis-angle and translation, head to person space.
        camera: the recording camera in person space.
        shape: the neutral face in head space, which the head box holds as well.
    """
    rotations = Rotation.from_rotvec(head_pose[:, :3]).as_matrix()
    head_low, head_high = shape[:, :2].min(axis=0), shape[:, :2].max(axis=0)
    torso_low, torso_high = np.array([-0.05, -0.05]), np.array([0.05, 0.0])
    for index, (label, rotation, translation) in enumerate(zip(labels, rotations, head_pose[:, 3:], strict=True)):
        head = outline(label == HEAD)
        if len(head):
            origin, directions = pixel_rays(head, camera)
            places = on_plane((origin - translation) @ rotation, directions @ rotation, 0.0)
            head_low, head_high = np.minimum(head_low, places.min(axis=0)), np.maximum(head_high, places.max(axis=0))
        torso = outline((label == TORSO) | (label == NECK))
        if len(torso):
            places = on_plane(*pixel_rays(torso, camera), TORSO_PLANE)
            torso_low, torso_high = (
                np.minimum(torso_low, places.min(axis=0)),
                np.maximum(torso_high, places.max(axis=0)),
            )
        progress((index + 1) / len(head_pose))
    front = float(shape[:, 2].max()) + HEAD_FRONT_MARGIN
    head_box = np.array([[*(head_low - HEAD_MARGIN), HEAD_BACK], [*(head_high + HEAD_MARGIN), front]])
    below = torso_low - TORSO_MARGIN - np.array([0.0, TORSO_BELOW])
    torso_box = np.array([[*below, TORSO_BACK], [*(torso_high + TORSO_MARGIN), TORSO_FRONT]])
    return head_box, torso_box
