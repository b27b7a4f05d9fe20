"""The user's own label maps: a lossless video or a folder of PNGs, in place of found ones.

Conventions. A map shows, pixel by pixel, either numbers in one grey channel (0 background, 1 torso, 2 neck, 3 head) or
colours, those of AD-NeRF's parsing: white or black background, red torso, green neck, blue head. It has the size of the
person's crop, or that of the whole recording, of which the crop is then cut; one map a frame of the conversation, at
its 25 frames a second, or one a frame of the whole recording, of which the shot is taken.
"""

import re
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.video import BACKGROUND, HEAD, FrameReader
from dialogue_nerfstudio.process.ad_nerf_folder import PARSING_COLOURS

CONVENTION = (
    "grey 0 background, 1 torso, 2 neck, 3 head, or the colours white or black background, red torso, green neck, blue "
    "head"
)

COLOUR_TOLERANCE = 8
"""How far a byte may be from its colour: a lossless video that went through YUV."""

LARGEST_STRANGE_SHARE = 1e-3
"""Part of a map that may have none of the colours; it becomes background."""

PROBED_MAPS = 3
"""Maps looked at before any long work starts."""


def decoded_labels(image: UInt8[np.ndarray, "height width *channels"], where: str) -> UInt8[np.ndarray, "height width"]:
    """Labels of a map in grey or RGB.

    Raises:
        DialogueError: it shows anything else.
    """
    if image.ndim == 3 and (image[..., 0] == image[..., 1]).all() and (image[..., 1] == image[..., 2]).all():
        # A video of greys that came back as colours; white and black alone are colours.
        image = image[..., 0] if not np.isin(image, (0, 255)).all() else image
    if image.ndim == 2:
        strange = image > HEAD
        if strange.any():
            row, column = np.argwhere(strange)[0]
            raise DialogueError(
                f"{where} has the unknown label {int(image[row, column])} at ({column}, {row}): the convention is "
                f"{CONVENTION}, and the video must be lossless (FFV1, PNG)."
            )
        return image
    labels = np.full(image.shape[:2], 255, np.uint8)
    # PARSING_COLOURS are in OpenCV's order.
    for label, colour in [*PARSING_COLOURS.items(), (BACKGROUND, (0, 0, 0))]:
        near = np.abs(image.astype(np.int16) - np.int16(colour[::-1])).max(axis=-1) <= COLOUR_TOLERANCE
        labels[near] = label
    strange = labels == 255
    if strange.mean() > LARGEST_STRANGE_SHARE:
        row, column = np.argwhere(strange)[0]
        raise DialogueError(
            f"{where} has the unknown colour {tuple(int(v) for v in image[row, column])} (RGB) at ({column}, {row}): "
            f"the convention is {CONVENTION}, and the video must be lossless (FFV1, PNG)."
        )
    labels[strange] = BACKGROUND
    return labels


class GivenLabels:
    """Label maps of one person's crop from a video or a folder of PNGs.

    Args:
        path: a video file, or a folder of PNGs whose names end in their numbers.
        crop: the person's square in the recording, (x0, y0, x1, y1).
        size: the crop's side as written, pixels.
        picture: width and height of the recording.
        num_frames: the conversation's.
        shot: the first one's number in the whole recording, and how many that has.

    Raises:
        DialogueError: it is missing or unreadable, of another length or size, or shows unknown labels.
    """

    def __init__(
        self,
        path: Path,
        crop: Int[np.ndarray, " 4"],
        size: int,
        picture: Tuple[int, int],
        num_frames: int,
        shot: Tuple[int, int],
    ):
        self.path, self._crop, self._size, self._num_frames = Path(path), crop, size, num_frames
        self._files: Optional[List[Path]] = None
        if self.path.is_dir():
            self._files = numbered_pictures(self.path)
            length = len(self._files)
        else:
            if not self.path.is_file():
                raise DialogueError(
                    f"There is no {self.path}: give a label video, a folder of PNGs, or a parser's weights."
                )
            with FrameReader(self.path) as reader:
                length = len(reader)
        if length not in (num_frames, shot[1]):
            whole = f" (or {shot[1]}, the whole recording's)" if shot[1] != num_frames else ""
            raise DialogueError(
                f"{self.path} has {length} label maps, but the conversation {num_frames} frames{whole}: give one map a "
                "frame at 25 frames a second."
            )
        self._first = 0 if length == num_frames else shot[0]
        probed = np.unique(np.linspace(0, num_frames - 1, PROBED_MAPS).astype(int)).tolist()
        height, width = next(self._maps(probed)).shape
        if (width, height) not in ((size, size), picture):
            raise DialogueError(
                f"{self.path} has label maps of {width}x{height}, but the person's crop is {size}x{size} and the "
                f"recording {picture[0]}x{picture[1]}: give maps of one of these sizes."
            )
        self._shape = (height, width)
        for _ in self._maps(probed):
            """Decoding refuses unknown labels."""

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "size size"]]:
        """The crop's label maps, in order.

        Raises:
            DialogueError: a map is damaged, of another size than the first, or shows unknown labels.
        """
        for index, labels in enumerate(self._maps(range(self._num_frames))):
            if labels.shape != self._shape:
                raise DialogueError(
                    f"{self._name(index)} is {labels.shape[1]}x{labels.shape[0]}, but the first one is "
                    f"{self._shape[1]}x{self._shape[0]}: give all maps of one size."
                )
            if labels.shape != (self._size, self._size):
                x0, y0, x1, y1 = (int(v) for v in self._crop)
                piece = np.ascontiguousarray(labels[y0:y1, x0:x1])
                labels = cv2.resize(piece, (self._size, self._size), interpolation=cv2.INTER_NEAREST_EXACT)
            yield labels

    def _name(self, index: int) -> str:
        number = self._first + index
        return str(self._files[number]) if self._files is not None else f"{self.path}, frame {number},"

    def _maps(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        if self._files is not None:
            for index in indices:
                yield decoded_labels(_read_png(self._files[self._first + index]), self._name(index))
            return
        with LabelMapReader(self.path) as reader:
            for index in indices:
                yield decoded_labels(reader[self._first + index], self._name(index))


class LabelMapReader(FrameReader):
    """Frames of a label video as it stores them: one channel where it is grey, else RGB."""

    def __init__(self, path: Path):
        super().__init__(path)
        # Converted to RGB, grey numbers would be stretched to the range of a screen.
        self.pixel_format = "gray" if self._stream.codec_context.pix_fmt.startswith("gray") else "rgb24"


def numbered_pictures(folder: Path) -> List[Path]:
    """The PNGs of a folder in the order of the last numbers of their names.

    Raises:
        DialogueError: there are none, or one has no number.
    """
    found = []
    for path in folder.glob("*.png"):
        numbers = re.findall(r"\d+", path.stem)
        if not numbers:
            raise DialogueError(f"{path} has no number in its name: number label maps, 00000.png, 00001.png, …")
        found.append((int(numbers[-1]), path))
    if not found:
        raise DialogueError(f"{folder} holds no PNG: give a folder of label maps, 00000.png, 00001.png, …")
    return [path for _, path in sorted(found)]


def _read_png(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            # A palette's numbers mean nothing on their own: its colours count.
            return np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise DialogueError(f"{path} is not a readable picture ({error}): give a PNG.") from error


def label_media(masks: Sequence[str], participants: Sequence[str]) -> List[Path]:
    """Which label video or folder is whose.

    Args:
        masks: one path for each participant in their order, one for all (maps of the whole recording), or one folder
            with an entry for each participant, named by id: p0.mkv, p1/ …

    Raises:
        DialogueError: their number fits nobody, or a participant has no entry.
    """
    paths = [Path(mask) for mask in masks]
    if len(paths) == 1 and paths[0].is_dir() and not any(paths[0].glob("*.png")):
        own = []
        for participant in participants:
            found = sorted(path for path in paths[0].iterdir() if path.stem == participant)
            if len(found) != 1:
                raise DialogueError(
                    f"{paths[0]} holds {len(found)} label video(s) or folder(s) named {participant}: give one for each "
                    f"of {', '.join(participants)}, or PNGs."
                )
            own += found
        return own
    if len(paths) not in (1, len(participants)):
        raise DialogueError(
            f"{len(paths)} label videos were given for {len(participants)} people: give one for each, from left to "
            "right, or one of the whole recording."
        )
    return paths * len(participants) if len(paths) == 1 else paths
