"""Which pixels are background, torso, neck and head, frame by frame.

Conventions. Pictures are uint8 RGB `[H, W, 3]`, label maps uint8 `[H, W]` of BACKGROUND, TORSO, NECK and HEAD. A
person's silhouette comes from selfie segmentation of the crop; the parts are cut from it along the face mesh: the head
is what lies above the jaw's contour and, beside the face, above the ear lobes, and the ends of hair that hang below
them without reaching the shoulders; the neck is a band below the jaw. Image axes of the face: `right` points along the
eyes to the picture's right, `down` across them.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, Iterable, Iterator, List, Tuple

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

SEGMENTED_STEP = 2
"""The segmenter sees every this many pictures; those between take what it said of their neighbours."""

FLOW_SIZE = 128
"""Side in pixels of the pictures in which is found how things moved to those neighbours."""

Labeller = Callable[[Iterable[np.ndarray], np.ndarray], Iterator[np.ndarray]]
"""(pictures, the landmarks of each) → label maps, in order."""

CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))

LOBE_LEFT, LOBE_RIGHT = JAW_LINE.index(132), JAW_LINE.index(361)
"""The jaw line's points at the height of the ear lobes, at the picture's left and right."""


def guided_filter(
    guide: Float32[np.ndarray, "height width"],
    mask: Float32[np.ndarray, "mask_height mask_width"],
    radius: int,
    epsilon: float = 1e-3,
) -> Float32[np.ndarray, "height width"]:
    """Snaps a soft mask to the edges of a grey picture of 0 … 1 (He, Sun & Tang 2010, eq. 5, 6 and 8); where the mask
    is smaller than the picture, the linear model is fitted at the mask's size (He & Sun 2015, Fast Guided Filter)."""
    height, width = guide.shape
    small = guide if mask.shape == guide.shape else cv2.resize(guide, mask.shape[::-1], interpolation=cv2.INTER_AREA)
    side = 2 * max(round(radius * mask.shape[1] / width), 1) + 1

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, (side, side), borderType=cv2.BORDER_REFLECT)

    guide_mean, mask_mean = mean(small), mean(mask)
    slope = (mean(small * mask) - guide_mean * mask_mean) / (mean(small * small) - guide_mean**2 + epsilon)
    model = [mean(slope), mean(mask_mean - slope * guide_mean)]
    if mask.shape != guide.shape:
        model = [cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR) for part in model]
    return cv2.add(cv2.multiply(model[0], guide), model[1])


def largest_component(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Only the largest connected part of a mask, with its holes counted as parts of it."""
    contours, hierarchy = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = [contour for contour, links in zip(contours, hierarchy[0], strict=True) if links[3] < 0] if contours else []
    if len(parts) < 2:
        return mask
    areas = [_num_pixels(part) for part in parts]
    del parts[int(np.argmax(areas))]
    kept = mask.view(np.uint8).copy()
    cv2.drawContours(kept, parts, -1, 0, cv2.FILLED)
    return kept.view(bool)


def fill_holes(mask: Bool[np.ndarray, "height width"], largest: int) -> Bool[np.ndarray, "height width"]:
    """Closes holes of at most `largest` pixels, those at the picture's border included."""
    # Behind a frame, what reaches the border is a hole like the others.
    framed = cv2.copyMakeBorder(mask.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    contours, hierarchy = cv2.findContours(framed, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    holes = [contour for contour, links in zip(contours, hierarchy[0], strict=True) if links[3] >= 0]
    # The pixels of a hole's contour are those around it.
    small = [hole for hole in holes if _num_pixels(hole) - len(hole) <= largest]
    cv2.drawContours(framed, small, -1, 1, cv2.FILLED)
    return framed[1:-1, 1:-1].astype(bool)


def _num_pixels(contour: np.ndarray) -> float:
    """Pixels on and inside a contour that names all of its own (Pick's theorem)."""
    return cv2.contourArea(contour) + len(contour) / 2 + 1


def person_mask(
    image: UInt8[np.ndarray, "height width 3"],
    probability: Float32[np.ndarray, "mask_height mask_width"],
    landmarks: Float[np.ndarray, "478 2"],
) -> Bool[np.ndarray, "height width"]:
    """The person's silhouette: the guided mask's largest part, where it is near pixels that are surely a person's,
    together with the face itself. The probability may be of a smaller size."""
    height, width = image.shape[:2]
    sure = cv2.morphologyEx((probability > SURE).view(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    near = cv2.dilate(sure, _disc(max(round(UNSURE_REACH * probability.shape[1]), 1)))
    oval, radius = landmarks[list(FACE_OVAL)], max(width // 64, 2)
    # The filter is a mean of means, so what is farther than two radii does not matter.
    small_place, place = _surroundings(near, oval, (height, width), 3 * radius)
    grey = cv2.cvtColor(np.ascontiguousarray(image[place]), cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey *= 1.0 / 255.0
    refined = guided_filter(grey, np.ascontiguousarray(probability[small_place]), radius)
    near = cv2.resize(near[small_place], grey.shape[::-1], interpolation=cv2.INTER_NEAREST)
    mask = (refined > 0.5).view(np.uint8) & near
    cv2.fillPoly(mask, [_vertices(oval - (place[1].start, place[0].start))], 1)
    person = np.zeros((height, width), bool)
    person[place] = fill_holes(largest_component(mask.view(bool)), person.size // 400)
    return person


def _surroundings(
    near: UInt8[np.ndarray, "mask_height mask_width"],
    oval: Float[np.ndarray, "n 2"],
    shape: Tuple[int, int],
    margin: int,
) -> Tuple[Tuple[slice, slice], Tuple[slice, slice]]:
    """The rectangle that holds a mask and the face, with a margin in pixels of the picture: its rows and columns in the
    mask and in the picture. It begins and ends where a pixel of both does."""
    box, places = cv2.boundingRect(near), []
    for axis, (points, whole, small) in enumerate(zip(oval.T[::-1], shape, near.shape, strict=True)):
        first, length = box[1 - axis], box[3 - axis]
        start, stop = float(points.min()), float(points.max())
        if length:
            start, stop = min(start, first * whole / small), max(stop, (first + length) * whole / small)
        units = math.gcd(whole, small)
        begin = min(max(math.floor((start - margin) * units / whole), 0), units - 1)
        end = max(min(math.ceil((stop + margin) * units / whole), units), begin + 1)
        places.append([slice(begin * size // units, end * size // units) for size in (small, whole)])
    (small_rows, rows), (small_columns, columns) = places
    return (small_rows, small_columns), (rows, columns)


@dataclass
class _Segmented:
    """A picture that the segmenter saw."""

    small: UInt8[np.ndarray, "flow_size flow_size"]
    probability: Float32[np.ndarray, "mask_height mask_width"]


def person_probabilities(
    images: Iterable[UInt8[np.ndarray, "height width 3"]],
    segment: Callable[[np.ndarray], Float32[np.ndarray, "mask_height mask_width"]],
    step: int = SEGMENTED_STEP,
) -> Iterator[Tuple[UInt8[np.ndarray, "height width 3"], Float32[np.ndarray, "mask_height mask_width"]]]:
    """Every picture with its probability of a person: the segmenter's for each `step`-th and the last one; for those
    between, that of both neighbours carried along the optical flow (Kroeger et al. 2016) and averaged, the nearer one
    counting for more. Up to `step` pictures are held back.
    """
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    waiting: List[np.ndarray] = []
    before = None

    def between(after: _Segmented) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        for place, image in enumerate(waiting, start=1):
            small, later = _shrunk_grey(image), place / (len(waiting) + 1)
            earlier, following = _carried(before, small, flow), _carried(after, small, flow)
            yield image, cv2.addWeighted(earlier, 1 - later, following, later, 0.0)

    for index, image in enumerate(images):
        if index % step:
            waiting.append(image)
            continue
        after = _Segmented(_shrunk_grey(image), segment(image))
        yield from between(after)
        yield image, after.probability
        waiting, before = [], after
    if waiting:
        last = waiting.pop()
        after = _Segmented(_shrunk_grey(last), segment(last))
        yield from between(after)
        yield last, after.probability


def _shrunk_grey(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "flow_size flow_size"]:
    # Halving is many times faster than other factors, and pictures mostly have four times this size.
    half = cv2.resize(image, (2 * FLOW_SIZE, 2 * FLOW_SIZE), interpolation=cv2.INTER_AREA)
    return cv2.resize(cv2.cvtColor(half, cv2.COLOR_RGB2GRAY), (FLOW_SIZE, FLOW_SIZE), interpolation=cv2.INTER_AREA)


def _carried(
    neighbour: _Segmented, small: UInt8[np.ndarray, "flow_size flow_size"], flow: cv2.DISOpticalFlow
) -> Float32[np.ndarray, "mask_height mask_width"]:
    """The neighbour's probability where its things are in another picture, given shrunken."""
    height, width = neighbour.probability.shape
    moved = flow.calc(small, neighbour.small, None) * np.array([width / FLOW_SIZE, height / FLOW_SIZE], np.float32)
    moved = cv2.resize(moved, (width, height), interpolation=cv2.INTER_LINEAR)
    places = cv2.add(moved, _pixel_places(height, width), dst=moved)
    return cv2.remap(neighbour.probability, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@lru_cache(maxsize=4)
def _pixel_places(height: int, width: int) -> Float32[np.ndarray, "height width 2"]:
    """The column and row of every pixel."""
    return np.ascontiguousarray(np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1), np.float32)


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
    parts, place = np.zeros(person.shape, np.uint8), _around(person)
    points = landmarks - (place[1].start, place[0].start)
    parts[place] = without_slivers(with_hanging_hair(_cut(person[place], points), points), points)
    return parts


def _cut(
    person: Bool[np.ndarray, "height width"], landmarks: Float[np.ndarray, "478 2"]
) -> UInt8[np.ndarray, "height width"]:
    height, width = person.shape
    parts = np.full((height, width), TORSO, np.uint8)
    cv2.fillPoly(parts, [_vertices(neck_polygon(landmarks))], NECK)
    cv2.fillPoly(parts, [_vertices(head_polygon(landmarks, reach=float(width + height)))], HEAD)
    parts *= person
    return parts


def with_hanging_hair(
    parts: UInt8[np.ndarray, "height width"], landmarks: Float[np.ndarray, "478 2"]
) -> UInt8[np.ndarray, "height width"]:
    """Labels with those pieces of torso made head that hang from the head and end in the air: bobs, ear rings, beards.

    What reaches the picture's border is torso, and so is what a bridge wider than twice HAIR_BRIDGE joins to it: hair
    that lies on the shoulders cannot be told from them by its shape.
    """
    _, _, span = face_axes(landmarks)
    reach = max(round(HAIR_BRIDGE * span), 1)
    place = _around(parts == TORSO)
    torso = (parts[place] == TORSO).view(np.uint8)
    height, width = torso.shape
    # What touches a side of `place` touches the picture's, but for its top and for sides that no torso reaches.
    contours, _ = cv2.findContours(_opened(torso, reach), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    at_border = []
    for contour in contours:
        left, top, across, down = cv2.boundingRect(contour)
        if left == 0 or left + across == width or top + down == height:
            at_border.append(contour)
    if not at_border:
        return parts
    body = np.zeros_like(torso)
    cv2.drawContours(body, at_border, -1, 1, cv2.FILLED)
    result = parts.copy()
    _join_to_head(result[place], torso & ~_dilated(body, reach))
    return result


def without_slivers(
    parts: UInt8[np.ndarray, "height width"], landmarks: Float[np.ndarray, "478 2"]
) -> UInt8[np.ndarray, "height width"]:
    """Labels with neck that is thinner than twice HAIR_BRIDGE, along the jaw and between it and hair, made head: there
    the cut is no surer than that, and moves with every landmark."""
    _, _, span = face_axes(landmarks)
    result = parts.copy()
    place = _around(parts == NECK)
    neck = (parts[place] == NECK).view(np.uint8)
    _join_to_head(result[place], neck & ~_opened(neck, max(round(HAIR_BRIDGE * span), 1)))
    return result


def _around(mask: Bool[np.ndarray, "height width"]) -> Tuple[slice, slice]:
    """The rectangle that holds a mask and one pixel more on every side, as far as the picture goes."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    return slice(max(top - 1, 0), top + height + 1), slice(max(left - 1, 0), left + width + 1)


def _opened(mask: UInt8[np.ndarray, "height width"], radius: int) -> UInt8[np.ndarray, "height width"]:
    """A mask without what is thinner than a disc; it goes on beyond the picture's border."""
    padded = cv2.copyMakeBorder(mask, radius, radius, radius, radius, cv2.BORDER_REPLICATE)
    square, cross = _octagon(radius)
    padded = cv2.erode(cv2.erode(padded, square), CROSS, iterations=cross)
    return _dilated(padded, radius)[radius:-radius, radius:-radius]


def _dilated(mask: UInt8[np.ndarray, "height width"], radius: int) -> UInt8[np.ndarray, "height width"]:
    square, cross = _octagon(radius)
    return cv2.dilate(cv2.dilate(mask, square), CROSS, iterations=cross)


def _octagon(radius: int) -> Tuple[UInt8[np.ndarray, "side side"], int]:
    """A disc as the sum of a square and some crosses, which is many times faster."""
    cross = max(round((2.0 - np.sqrt(2.0)) * radius), 1)
    side = 2 * (radius - cross) + 1
    return np.ones((side, side), np.uint8), cross


def _join_to_head(parts: UInt8[np.ndarray, "height width"], pieces: UInt8[np.ndarray, "height width"]) -> None:
    """Makes those connected pieces head that touch it, in place."""
    touching = pieces & cv2.dilate((parts == HEAD).view(np.uint8), np.ones((3, 3), np.uint8))
    if not touching.any():
        return
    count, numbers = cv2.connectedComponents(pieces, connectivity=8, ltype=cv2.CV_16U)
    joined = np.zeros(count, bool)
    joined[numbers[touching.view(bool)]] = True
    np.copyto(parts, HEAD, where=joined.take(numbers))


def steady(maps: Iterable[UInt8[np.ndarray, "height width"]]) -> Iterator[UInt8[np.ndarray, "height width"]]:
    """Label maps without labels that last for one frame: where the next frame agrees with the frame before, as it was
    given out, that label stays.

    An edge that moves on passes as it is; one that jumps there and back does not. One frame is held back.
    """
    before = waiting = None
    for following in maps:
        if waiting is not None:
            if before is not None:
                waiting = waiting.copy()
                np.copyto(waiting, following, where=before == following)
            before = waiting
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

        def cut(frames: Iterable[np.ndarray], landmarks: np.ndarray) -> Iterator[np.ndarray]:
            pictures = person_probabilities(frames, segmenter)
            for (image, probability), points in zip(pictures, landmarks, strict=True):
                yield part_labels(person_mask(image, probability, points), points)

        yield cut


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
        label: makes them.
        progress: told the part done.

    Raises:
        DialogueError: the disk is full.
    """
    for index, labels in enumerate(steady(label(frames, landmarks))):
        writer.write(labels)
        progress((index + 1) / len(landmarks))
