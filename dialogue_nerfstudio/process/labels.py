"""Which pixels are background, torso, neck and head, frame by frame.

Conventions. Pictures are uint8 RGB `[H, W, 3]`, label maps uint8 `[H, W]` of BACKGROUND, TORSO, NECK and HEAD. A
person's silhouette comes from selfie segmentation of the crop; the parts are cut from it along the face mesh: the head
is what lies above the jaw's contour and, beside the face, above the ear lobes, and the ends of hair that hang below
them without reaching the shoulders; the neck is a band below the jaw. Image axes of the face: `right` points along the
eyes to the picture's right, `down` across them.
"""

from contextlib import contextmanager
from typing import Callable, Iterable, Iterator, Tuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from dialogue_nerfstudio.conversation.expression_basis import FACE_OVAL, JAW_LINE, eye_centers
from dialogue_nerfstudio.conversation.video import HEAD, NECK, TORSO, LabelWriter
from dialogue_nerfstudio.process.face_mesh import PersonSegmenter

SURE = 0.9
"""Probability from which on a pixel is a person's without doubt."""

UNSURE_REACH = 1 / 128
"""How far from such pixels doubtful ones may lie, in picture widths: edges are doubtful, but so are whole things that
the segmenter half takes for a person (a flower pot beside a shoulder: torso IoU 0.90 without this, 0.93 with it)."""

HAIR_BRIDGE = 0.05
"""Half the width, in eye spans, below which what joins the ends of hair to the shoulders does not count."""

JAW_MARGIN = 0.04
"""How far below the mesh's jaw the head reaches, in eye spans: the mesh ends on the skin, its shading does not."""

NECK_LENGTH = 0.35
"""Length of the neck below the chin, in distances from the eyes to the chin."""

Labeller = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(picture, landmarks) → label map."""

LOBE_LEFT, LOBE_RIGHT = JAW_LINE.index(132), JAW_LINE.index(361)
"""The jaw line's points at the height of the ear lobes, at the picture's left and right."""


def guided_filter(
    guide: Float32[np.ndarray, "height width"],
    mask: Float32[np.ndarray, "height width"],
    radius: int,
    epsilon: float = 1e-3,
) -> Float32[np.ndarray, "height width"]:
    """Snaps a soft mask to the edges of a grey picture of 0 … 1 (He, Sun & Tang 2010, eq. 5, 6 and 8)."""
    window = (2 * radius + 1, 2 * radius + 1)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, window, borderType=cv2.BORDER_REFLECT)

    guide_mean, mask_mean = mean(guide), mean(mask)
    slope = (mean(guide * mask) - guide_mean * mask_mean) / (mean(guide * guide) - guide_mean**2 + epsilon)
    offset = mask_mean - slope * guide_mean
    return mean(slope) * guide + mean(offset)


def largest_component(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Only the largest connected part of a mask."""
    count, components, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count <= 2:
        return mask
    return components == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))


def fill_holes(mask: Bool[np.ndarray, "height width"], largest: int) -> Bool[np.ndarray, "height width"]:
    """Closes holes of at most `largest` pixels."""
    count, components, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] <= largest
    small[0] = False
    return mask | small[components] if count > 1 else mask


def person_mask(
    image: UInt8[np.ndarray, "height width 3"],
    probability: Float32[np.ndarray, "height width"],
    landmarks: Float[np.ndarray, "478 2"],
) -> Bool[np.ndarray, "height width"]:
    """The person's silhouette: the guided mask's largest part, where it is near pixels that are surely a person's,
    together with the face itself."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
    refined = guided_filter(grey, np.ascontiguousarray(probability), radius=max(image.shape[1] // 64, 2))
    sure = cv2.morphologyEx((probability > SURE).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    near = cv2.dilate(sure, _disc(max(round(UNSURE_REACH * image.shape[1]), 1))) > 0
    mask = (refined > 0.5) & near
    face = polygon_mask(landmarks[list(FACE_OVAL)], *mask.shape)
    return fill_holes(largest_component(mask | face), mask.size // 400)


def face_axes(landmarks: Float[np.ndarray, "478 2"]) -> Tuple[np.ndarray, np.ndarray, float]:
    """Unit vectors `right` and `down` of the face in the picture, and its eye span in pixels."""
    left_eye, right_eye = eye_centers(landmarks)
    across = left_eye - right_eye
    span = float(np.linalg.norm(across))
    right = across / max(span, 1e-6)
    return right, np.array([-right[1], right[0]]), span


def jaw_contour(landmarks: Float[np.ndarray, "478 2"]) -> Float[np.ndarray, "n 2"]:
    """The mesh's jaw from ear lobe to ear lobe, moved outwards by JAW_MARGIN."""
    _, _, span = face_axes(landmarks)
    outwards = landmarks[list(JAW_LINE)] - eye_centers(landmarks).mean(axis=0)
    outwards /= np.maximum(np.linalg.norm(outwards, axis=1, keepdims=True), 1e-6)
    return (landmarks[list(JAW_LINE)] + JAW_MARGIN * span * outwards)[LOBE_LEFT : LOBE_RIGHT + 1]


def head_polygon(landmarks: Float[np.ndarray, "478 2"], reach: float) -> Float[np.ndarray, "n 2"]:
    """The region above the jaw's contour, widened sideways without end (`reach` pixels) at the ear lobes' height."""
    right, down, span = face_axes(landmarks)
    jaw = jaw_contour(landmarks)
    # Lobes hang a little below the landmarks at their height.
    lobes = jaw[[-1, 0]] + JAW_MARGIN * span * down
    up = -reach * down
    corners = [
        lobes[0],
        lobes[0] + reach * right,
        lobes[0] + reach * right + up,
        lobes[1] - reach * right + up,
        lobes[1] - reach * right,
        lobes[1],
    ]
    return np.concatenate([jaw, corners])


def neck_polygon(landmarks: Float[np.ndarray, "478 2"]) -> Float[np.ndarray, "n 2"]:
    """The band under the head: from the ear lobes inwards to below the jaw, NECK_LENGTH past the chin.

    It reaches behind the jaw's contour, so what shows of the neck beside the jaw is neck, too; the head is drawn over
    it.
    """
    _, down, _ = face_axes(landmarks)
    jaw = jaw_contour(landmarks)
    chin, eyes = landmarks[152], eye_centers(landmarks).mean(axis=0)
    bottom = (chin - eyes) @ down * (1.0 + NECK_LENGTH)

    def lowered(point: np.ndarray) -> np.ndarray:
        return point + (bottom - (point - eyes) @ down) * down

    return np.concatenate([jaw[[0, -1]], [lowered(landmarks[397]), lowered(landmarks[172])]])


def polygon_mask(polygon: Float[np.ndarray, "n 2"], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """The pixels inside a polygon."""
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [_vertices(polygon)], 1)
    return mask.astype(bool)


def _vertices(polygon: Float[np.ndarray, "n 2"]) -> np.ndarray:
    """Whole pixel coordinates for OpenCV, whose pixel centres lie at whole numbers."""
    return np.round(polygon - 0.5).astype(np.int32)


def part_labels(
    person: Bool[np.ndarray, "height width"], landmarks: Float[np.ndarray, "478 2"]
) -> UInt8[np.ndarray, "height width"]:
    """Cuts a silhouette into torso, neck and head."""
    return without_slivers(with_hanging_hair(_cut(person, landmarks), landmarks), landmarks)


def _cut(
    person: Bool[np.ndarray, "height width"], landmarks: Float[np.ndarray, "478 2"]
) -> UInt8[np.ndarray, "height width"]:
    height, width = person.shape
    parts = np.full((height, width), TORSO, np.uint8)
    cv2.fillPoly(parts, [_vertices(neck_polygon(landmarks))], NECK)
    cv2.fillPoly(parts, [_vertices(head_polygon(landmarks, reach=float(width + height)))], HEAD)
    return np.where(person, parts, 0).astype(np.uint8)


def with_hanging_hair(
    parts: UInt8[np.ndarray, "height width"], landmarks: Float[np.ndarray, "478 2"]
) -> UInt8[np.ndarray, "height width"]:
    """Labels with those pieces of torso made head that hang from the head and end in the air: bobs, ear rings, beards.

    What reaches the picture's border is torso, and so is what a bridge wider than twice HAIR_BRIDGE joins to it: hair
    that lies on the shoulders cannot be told from them by its shape.
    """
    _, _, span = face_axes(landmarks)
    reach = max(round(HAIR_BRIDGE * span), 1)
    torso = (parts == TORSO).astype(np.uint8)
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(_opened(torso, reach), connectivity=4)
    left, top, width, height = stats[:, :4].T
    at_border = (left == 0) | (left + width == parts.shape[1]) | (top + height == parts.shape[0])
    # The first component is what is not torso.
    at_border[0] = False
    if not at_border.any():
        return parts
    body = cv2.dilate(at_border[pieces].astype(np.uint8), _disc(reach))
    return _joined_to_head(parts, (torso > 0) & (body == 0))


def without_slivers(
    parts: UInt8[np.ndarray, "height width"], landmarks: Float[np.ndarray, "478 2"]
) -> UInt8[np.ndarray, "height width"]:
    """Labels with neck that is thinner than twice HAIR_BRIDGE, along the jaw and between it and hair, made head: there
    the cut is no surer than that, and moves with every landmark."""
    _, _, span = face_axes(landmarks)
    neck = (parts == NECK).astype(np.uint8)
    return _joined_to_head(parts, (neck > 0) & (_opened(neck, max(round(HAIR_BRIDGE * span), 1)) == 0))


def _opened(mask: UInt8[np.ndarray, "height width"], radius: int) -> UInt8[np.ndarray, "height width"]:
    """A mask without what is thinner than a disc; it goes on beyond the picture's border."""
    padded = cv2.copyMakeBorder(mask, radius, radius, radius, radius, cv2.BORDER_REPLICATE)
    return cv2.morphologyEx(padded, cv2.MORPH_OPEN, _disc(radius))[radius:-radius, radius:-radius]


def _joined_to_head(
    parts: UInt8[np.ndarray, "height width"], pieces: Bool[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width"]:
    """Labels with those connected pieces made head that touch it."""
    count, numbers = cv2.connectedComponents(pieces.astype(np.uint8), connectivity=8)
    beside_head = cv2.dilate((parts == HEAD).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    joined = np.zeros(count, bool)
    joined[np.unique(numbers[beside_head])] = True
    joined[0] = False
    return np.where(joined[numbers], HEAD, parts).astype(np.uint8)


def steady(maps: Iterable[UInt8[np.ndarray, "height width"]]) -> Iterator[UInt8[np.ndarray, "height width"]]:
    """Label maps without labels that last for one frame: where the next frame agrees with the frame before, as it was
    given out, that label stays.

    An edge that moves on passes as it is; one that jumps there and back does not. One frame is held back.
    """
    before = waiting = None
    for following in maps:
        if waiting is not None:
            before = waiting if before is None else np.where(before == following, following, waiting)
            yield before
        waiting = following
    if waiting is not None:
        yield waiting


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


@contextmanager
def cut_silhouettes() -> Iterator[Labeller]:
    """The default way to label: selfie segmentation cut along the face mesh."""
    with PersonSegmenter() as segmenter:
        yield lambda image, landmarks: part_labels(person_mask(image, segmenter(image), landmarks), landmarks)


def write_labels(
    frames: Iterable[np.ndarray],
    landmarks: Float[np.ndarray, "num_frames 478 2"],
    writer: LabelWriter,
    label: Labeller,
    progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Writes the label map of every frame, steadied.

    Args:
        frames: the person's pictures.
        landmarks: the face mesh.
        writer: takes the maps.
        label: makes one.
        progress: told the part done.

    Raises:
        DialogueError: the disk is full.
    """
    maps = (label(frame, points) for frame, points in zip(frames, landmarks, strict=True))
    for index, labels in enumerate(steady(maps)):
        writer.write(labels)
        progress((index + 1) / len(landmarks))
