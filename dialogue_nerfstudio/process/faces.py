"""Finds the people of a video and cuts one fixed square crop for each, clamped to the panel they sit in.

Conventions. Boxes and crops are (x0, y0, x1, y1) in pixels of the upright source picture, x to the right, y down; a
crop's numbers are whole. A *panel* is the
part of the picture one camera fills: a conference video has several, side by side or on a black canvas.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Callable, List, Optional, Sequence, Tuple

import av
import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.video import VideoWriter
from dialogue_nerfstudio.process.decode import Picture, SourceVideo
from dialogue_nerfstudio.process.face_mesh import FaceDetector

DETECTION_STEP = 5
"""Faces are looked for in every this many frames …"""

MAX_LOOKS = 40
"""… and in more seldom ones of a video so long that these would be more: people keep their seats, and a look takes as
long as decoding ten pictures."""

DETECTION_HEIGHT = 540
"""Pictures are shrunk to this height before they are looked at: faces of 30 px there are found."""

BLACK = 20
"""Brightest value of a canvas pixel."""

CROP_HALF_SIZE = 1.5
"""Half of a crop's side in face boxes: shows hair, shoulders and the upper chest."""

MAX_UNASKED_PEOPLE = 4
"""More faces of the same size are a panel or an audience, of which the user says who talks."""

MIN_FACE_SIZE = 32.0
"""Mean of width and height (pixels of the recording) of the smallest face box whose landmarks mean anything: its mouth
is about 12 pixels wide."""

CROP_ABOVE = 1.3
"""How much of it lies above the face box's middle, in face boxes."""


@dataclass
class FaceTrack:
    """One face over time."""

    frames: List[int]
    boxes: List[Float[np.ndarray, " 4"]]
    scores: List[float]

    @property
    def box(self) -> Float[np.ndarray, " 4"]:
        """The median box."""
        return np.median(self.boxes, axis=0)

    @property
    def size(self) -> float:
        """Mean of width and height of the median box, pixels."""
        return box_size(self.box)

    @property
    def center(self) -> Float[np.ndarray, " 2"]:
        return (self.box[:2] + self.box[2:]) / 2


def box_size(box: Float[np.ndarray, " 4"]) -> float:
    """Mean of width and height."""
    return float((box[2] - box[0]) + (box[3] - box[1])) / 2


def overlapping_tiles(width: int, height: int, count: int = 3) -> Int[np.ndarray, "num_tiles 4"]:
    """The whole picture and, where it is not nearly square, `count` overlapping squares along its longer side.

    The detector sees 192×192 pixels, so that a face of a wide picture is small in it and two faces hide each other less
    in squares.
    """
    whole = [(0, 0, width, height)]
    side = min(width, height)
    if max(width, height) < 1.2 * side:
        return np.array(whole)
    starts = np.round(np.linspace(0, max(width, height) - side, count)).astype(int)
    tiles = [(s, 0, s + side, side) if width > height else (0, s, side, s + side) for s in starts]
    return np.array(whole + tiles)


def detect_faces(
    image: UInt8[np.ndarray, "height width 3"], detector: Callable[[np.ndarray], Float[np.ndarray, "n 5"]]
) -> Float[np.ndarray, "num_faces 5"]:
    """Faces found in any tile, each once: boxes in pixels of `image` and scores."""
    height, width = image.shape[:2]
    found = [np.zeros((0, 5))]
    for x0, y0, x1, y1 in overlapping_tiles(width, height):
        boxes = detector(image[y0:y1, x0:x1])
        # A face cut by a tile's inner edge is whole in the neighbouring tile.
        cut = ((boxes[:, 0] < 0) & (x0 > 0)) | ((boxes[:, 2] > x1 - x0) & (x1 < width))
        cut |= ((boxes[:, 1] < 0) & (y0 > 0)) | ((boxes[:, 3] > y1 - y0) & (y1 < height))
        found.append(boxes[~cut] + np.array([x0, y0, x0, y0, 0]))
    return suppress_duplicates(np.concatenate(found))


def suppress_duplicates(faces: Float[np.ndarray, "n 5"]) -> Float[np.ndarray, "m 5"]:
    """Keeps the surest of boxes whose middles lie within half a box of each other."""
    kept: List[np.ndarray] = []
    for face in faces[np.argsort(-faces[:, 4])]:
        middle = (face[:2] + face[2:4]) / 2
        if all(
            np.linalg.norm(middle - (k[:2] + k[2:4]) / 2) > 0.5 * max(box_size(face[:4]), box_size(k[:4])) for k in kept
        ):
            kept.append(face)
    return np.array(kept).reshape(-1, 5)


def associate(detections: Sequence[Tuple[int, Float[np.ndarray, "_ 5"]]]) -> List[FaceTrack]:
    """Links detections to tracks by position: a face moves less than one box between looks, and people do not swap
    seats.

    Args:
        detections: (frame, faces) in order of time.
    """
    tracks: List[FaceTrack] = []
    for frame, faces in detections:
        pairs = sorted(
            (np.linalg.norm(_middle(track.boxes[-1]) - _middle(face)) / box_size(track.boxes[-1]), i, j)
            for i, track in enumerate(tracks)
            for j, face in enumerate(faces)
        )
        used_tracks, used_faces = set(), set()
        for distance, i, j in pairs:
            similar = 0.6 < box_size(faces[j][:4]) / box_size(tracks[i].boxes[-1]) < 1.7
            if distance < 1.0 and similar and i not in used_tracks and j not in used_faces:
                tracks[i].frames.append(frame)
                tracks[i].boxes.append(faces[j][:4])
                tracks[i].scores.append(float(faces[j][4]))
                used_tracks.add(i)
                used_faces.add(j)
        tracks += [
            FaceTrack([frame], [face[:4]], [float(face[4])]) for j, face in enumerate(faces) if j not in used_faces
        ]
    return tracks


def _middle(box: Float[np.ndarray, " n"]) -> Float[np.ndarray, " 2"]:
    return (box[:2] + box[2:4]) / 2


def choose_people(
    tracks: Sequence[FaceTrack], num_looks: int, num_people: Optional[int], where: str, steady: float = 0.5
) -> List[FaceTrack]:
    """The largest steady tracks, from left to right.

    Args:
        tracks: what `associate` found.
        num_looks: in how many frames faces were looked for.
        num_people: how many to return; None takes every steady face at least 0.6 times the size of the largest, which
            leaves out insets and pictures on the
            wall.
        where: the video, for the messages.
        steady: the part of the looks in which a person's face must have been found.

    Raises:
        DialogueError: there are too few, more than MAX_UNASKED_PEOPLE where no number was asked for, or one is smaller
            than MIN_FACE_SIZE.
    """
    people = sorted((t for t in tracks if len(t.frames) >= steady * num_looks), key=lambda t: -t.size)
    if not people:
        seen = max((len(t.frames) for t in tracks), default=0)
        detail = f"the best was seen in {seen} of {num_looks} looks" if seen else "none was seen at all"
        raise DialogueError(
            f"{where} shows no face for most of its length ({detail}): give a video that shows the people's faces."
        )
    if num_people is None:
        people = [t for t in people if t.size >= 0.6 * people[0].size]
    elif len(people) < num_people:
        raise DialogueError(
            f"{where} shows {len(people)} face(s) for most of its length, and {num_people} people were asked for: "
            "give the right number of people or another video."
        )
    if num_people is None and len(people) > MAX_UNASKED_PEOPLE:
        seats = sorted(people, key=lambda t: t.center[0])
        places = "; ".join(f"{t.size:.0f} px at ({t.center[0]:.0f}, {t.center[1]:.0f})" for t in seats)
        raise DialogueError(
            f"{where} shows {len(people)} faces of similar size ({places}): say with --num-people how many of the "
            "largest talk, or cut out the part of the picture that shows them."
        )
    chosen = people[:num_people]
    if chosen[-1].size < MIN_FACE_SIZE:
        x, y = chosen[-1].center
        raise DialogueError(
            f"{where}: the face at ({x:.0f}, {y:.0f}) is {chosen[-1].size:.0f} pixels large, and at least "
            f"{MIN_FACE_SIZE:.0f} are needed: give a recording with more pixels or a closer view, or fewer people with "
            "--num-people."
        )
    return sorted(chosen, key=lambda t: t.center[0])


class PanelFinder:
    """Gathers what a static layout shows over some frames: black canvas, and straight borders that never move.

    Borders are edges one pixel wide that run the whole height of a panel; a door frame or a shelf in a room is blurrier
    or interrupted by the person.
    """

    def __init__(self, height: int, width: int):
        self._brightest = np.zeros((height, width), np.uint8)
        self._step_x: List[np.ndarray] = []

    def add(self, image: UInt8[np.ndarray, "height width 3"]) -> None:
        cv2.max(self._brightest, _largest_channel(image), self._brightest)
        if len(self._step_x) < 12:
            self._step_x.append(_largest_channel(cv2.absdiff(image[:, 1:], image[:, :-1])))

    @property
    def canvas(self) -> Bool[np.ndarray, "height width"]:
        """Pixels that were black in every frame."""
        return self._brightest <= BLACK

    def panel(self, box: Float[np.ndarray, " 4"], others: Sequence[Float[np.ndarray, " 4"]]) -> Int[np.ndarray, " 4"]:
        """The panel around a face box, given the other faces' boxes.

        From the face outwards the panel ends where a row or column is canvas, at a static border, or half way to
        another face.
        """
        height, width = self._brightest.shape
        x, y = (int(v) for v in np.clip(_middle(box), 0, (width - 1, height - 1)))
        size = box_size(box)
        rows = slice(max(int(y - size / 2), 0), max(int(y + size / 2), 1))
        x0, x1 = _run_around(self.canvas[rows].mean(axis=0) < 0.9, x)
        y0, y1 = _run_around(self.canvas[:, x0:x1].mean(axis=1) < 0.9, y)
        for other in others:
            middle = _middle(other)
            if not y0 - size < middle[1] < y1 + size or not x0 <= middle[0] < x1:
                continue
            lo, hi = sorted((middle[0], float(x)))
            border = self._border_between(int(lo), int(hi), y0, y1)
            border = int((lo + hi) / 2) if border is None else border
            x0, x1 = (max(x0, border), x1) if middle[0] < x else (x0, min(x1, border))
        return np.array([x0, y0, x1, y1])

    def _border_between(self, lo: int, hi: int, y0: int, y1: int) -> Optional[int]:
        """The column at which a static edge runs through most rows of y0 … y1, if there is one in (lo, hi)."""
        steps = np.median(np.stack([s[y0:y1, lo:hi] for s in self._step_x]), axis=0)
        if steps.shape[1] < 3:
            return None
        beside = np.maximum(np.roll(steps, 2, axis=1), np.roll(steps, -2, axis=1))
        sharp = ((steps > 8) & (steps > 2 * beside)).mean(axis=0)
        sharp[[0, 1, -1, -2]] = 0
        best = int(np.argmax(sharp))
        return lo + best + 1 if sharp[best] > 0.6 else None


def _largest_channel(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width"]:
    """Many times faster than NumPy's maximum over so short an axis."""
    red, green, blue = cv2.split(image)
    return cv2.max(cv2.max(red, green), blue)


def _run_around(keep: Bool[np.ndarray, " n"], index: int) -> Tuple[int, int]:
    """Start and stop of the run of True around `index` (the nearest one where `index` itself is False)."""
    if not keep.any():
        return 0, len(keep)
    if not keep[index]:
        index = int(np.flatnonzero(keep)[np.argmin(np.abs(np.flatnonzero(keep) - index))])
    outside = np.flatnonzero(~keep)
    before, after = outside[outside < index], outside[outside > index]
    return (int(before[-1]) + 1 if len(before) else 0), (int(after[0]) if len(after) else len(keep))


def square_crop(box: Float[np.ndarray, " 4"], panel: Int[np.ndarray, " 4"]) -> Int[np.ndarray, " 4"]:
    """The square that shows a face with hair and shoulders, moved and if need be shrunk to lie in its panel.

    Where the wanted square nearly fills the panel, it is the panel's largest square. The side is even.
    """
    panel = np.asarray(panel)
    x0, y0, x1, y1 = panel
    size, (x, y) = box_size(box), _middle(box)
    largest = min(x1 - x0, y1 - y0)
    side = 2 * CROP_HALF_SIZE * size
    side = int(largest if side > 0.85 * largest else side) // 2 * 2
    left = int(np.clip(round(x - side / 2), x0, x1 - side))
    top = int(np.clip(round(y - CROP_ABOVE / (2 * CROP_HALF_SIZE) * side), y0, y1 - side))
    return np.array([left, top, left + side, top + side])


@dataclass
class FoundPerson:
    """Where one person is in one source video."""

    face_box: Float[np.ndarray, " 4"]
    panel: Int[np.ndarray, " 4"]
    crop: Int[np.ndarray, " 4"]
    looks_found: float
    """Part of the looks in which the detector saw the face."""
    faces_seen: int = 1
    """How many steady faces of at least half this one's size the video shows."""


class FaceLooks:
    """Looks for faces in some pictures of a video, and then says who is where. A context manager.

    Args:
        source: the video.
        num_frames: how many of its frames count; None for all.
    """

    def __init__(self, source: SourceVideo, num_frames: Optional[int] = None):
        self._source, self._num_frames = source, num_frames or source.num_frames
        self.step = max(DETECTION_STEP, -(-self._num_frames // MAX_LOOKS))
        self._looks = len(range(0, self._num_frames, self.step))
        self._scale = min(1.0, DETECTION_HEIGHT / min(source.height, source.width))
        self._finder = PanelFinder(source.height, source.width)
        self._detections: List[Tuple[int, Float[np.ndarray, "n 5"]]] = []

    def __enter__(self) -> "FaceLooks":
        self._open = FaceDetector()
        self._detector = self._open.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.__exit__(*exception)

    def add(self, frame: int, picture: Picture) -> None:
        """Looks at the picture if this frame is one to look at."""
        if frame % self.step or frame >= self._num_frames:
            return
        if (frame // self.step) % max(self._looks // 12, 1) == 0:
            self._finder.add(picture.rgb)
        faces = detect_faces(picture.shrunk(self._scale) if self._scale < 1 else picture.rgb, self._detector)
        faces[:, :4] /= self._scale
        self._detections.append((frame, faces))

    def people(self, num_people: Optional[int]) -> List[FoundPerson]:
        """Associates, chooses and crops.

        Raises:
            DialogueError: no face, or fewer than asked for.
        """
        found = associate(self._detections)
        tracks = choose_people(found, self._looks, num_people, str(self._source.path))
        people = []
        steady = [t for t in found if len(t.frames) >= 0.5 * self._looks]
        for track in tracks:
            panel = self._finder.panel(track.box, [other.box for other in tracks if other is not track])
            seen = sum(other.size >= 0.5 * track.size for other in steady)
            share = len(track.frames) / self._looks
            people.append(FoundPerson(track.box, panel, square_crop(track.box, panel), share, seen))
        return people


def find_people(
    source: SourceVideo, num_people: Optional[int], progress: Callable[[float], None] = lambda fraction: None
) -> List[FoundPerson]:
    """Detects, associates, chooses and crops; reads the video once.

    Raises:
        DialogueError: no face, or fewer than asked for.
    """
    with FaceLooks(source) as looks:
        for index, picture in enumerate(source.pictures(step=looks.step)):
            looks.add(index * looks.step, picture)
            progress(min((index + 1) * looks.step / source.num_frames, 1.0))
    return looks.people(num_people)


def crop_size(crop: Int[np.ndarray, " 4"], size: Optional[int], largest: int = 512) -> int:
    """Side of the written crop in pixels: `size`, or the native one up to `largest`; always even."""
    native = int(crop[2] - crop[0])
    return (size if size is not None else min(native, largest)) // 2 * 2


class CropCutter:
    """Cuts one crop out of a source's pictures in the codec's own format, which neither takes it through RGB nor
    touches what lies outside.

    Args:
        crop: in the upright picture; where its corner is odd, the colours of formats with fewer of them shift by half a
            pixel.
        size: height and width of what is cut out, even.
    """

    def __init__(self, crop: Int[np.ndarray, " 4"], size: int):
        self._crop, self._size = crop, size
        self._graph: Optional[av.filter.Graph] = None
        self._made_for: Tuple[Any, ...] = ()
        self._latest: Tuple[Optional[Picture], Optional[av.VideoFrame]] = (None, None)

    def __call__(self, picture: Picture) -> av.VideoFrame:
        """The crop as limited-range yuv420p of BT.601, which is what videos without tags are taken for."""
        if picture is not self._latest[0]:
            frame = picture.frame
            kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
            if kind != self._made_for:
                self._graph, self._made_for = self._make_graph(picture), kind
            self._graph.push(frame)
            self._latest = (picture, self._graph.pull())
        return self._latest[1]

    def _make_graph(self, picture: Picture) -> av.filter.Graph:
        frame, (x0, y0, x1, y1) = picture.frame, (int(v) for v in self._crop)
        width, height = frame.width, frame.height
        # Where the upright crop lies in the picture as it was stored, and how that is turned upright.
        stored, turn = {
            0: ((x0, y0, x1, y1), []),
            1: ((width - y1, x0, width - y0, x1), [("transpose", "cclock")]),
            2: ((width - x1, height - y1, width - x0, height - y0), [("hflip", ""), ("vflip", "")]),
            3: ((y0, height - x1, y1, height - x0), [("transpose", "clock")]),
        }[picture.quarter_turns]
        left, top, right, bottom = stored
        # Area averaging shrinks without aliasing, Lanczos enlarges sharply.
        method = "area" if self._size <= right - left else "lanczos"
        filters = [
            (
                "buffer",
                f"video_size={width}x{height}:pix_fmt={frame.format.name}:time_base=1/1000:"
                f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
            ),
            # Scaling refuses values that some codecs write there, and needs neither.
            ("setparams", "color_primaries=unknown:color_trc=unknown"),
            ("crop", f"{right - left}:{bottom - top}:{left}:{top}:exact=1"),
            (
                "scale",
                f"{self._size}:{self._size}:flags={method}+accurate_rnd:out_color_matrix=smpte170m:out_range=limited",
            ),
            ("format", "yuv420p"),
            *turn,
            ("buffersink", ""),
        ]
        graph = av.filter.Graph()
        linked = [graph.add(name, options) for name, options in filters]
        for before, after in pairwise(linked):
            before.link_to(after)
        graph.configure()
        return graph


def write_crops(
    source: SourceVideo,
    crops: Sequence[Int[np.ndarray, " 4"]],
    sizes: Sequence[int],
    writers: Sequence[VideoWriter],
    num_frames: int,
    progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Cuts every person's crop from one pass over the source.

    Raises:
        DialogueError: the source is damaged, or the disk is full.
    """
    cutters = [CropCutter(crop, size) for crop, size in zip(crops, sizes, strict=True)]
    for index, picture in enumerate(source.pictures(stop=num_frames)):
        for cut, writer in zip(cutters, writers, strict=True):
            writer.write_encodable(cut(picture))
        progress((index + 1) / num_frames)
