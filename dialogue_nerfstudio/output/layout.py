"""Place the participants' pictures in one frame: one alone, any number side by side, or in rows and columns.

Convention: a picture is uint8 [H, W, 3] RGB, rows downwards. Layouts never crop; the smaller pictures of a row are
enlarged to the tallest, keeping their aspect.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dialogue_nerfstudio.conversation.errors import DialogueError

SEPARATOR_GREY = 24
"""Grey level of the line between two people: dark, so that it does not read as part of either picture."""


def check_picture(picture: np.ndarray, where: str = "a picture") -> None:
    """Refuse what is not uint8 [H, W, 3].

    Raises:
        DialogueError: naming `where` and what was given.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise DialogueError(
            f"{where.capitalize()} must be a uint8 array of shape [H, W, 3], but it is {picture.dtype} "
            f"{list(picture.shape)}; convert it first."
        )


def resize_to_height(picture: UInt8[np.ndarray, "h w 3"], height: int) -> UInt8[np.ndarray, "height w2 3"]:
    """The picture at `height` rows with its aspect kept (Lanczos); the same array if it has that height already."""
    if picture.shape[0] == height:
        return picture
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def separator_width(height: int) -> int:
    """Columns of the line between two people: 1/128 of the height, at least 2 and even, so that sizes stay even."""
    return max(2, 2 * round(height / 256))


def side_by_side(pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> UInt8[np.ndarray, "H W 3"]:
    """Join pictures from left to right, all at the height of the tallest, with a thin dark line between neighbours.

    Raises:
        DialogueError: if there is no picture or one is not uint8 [H, W, 3].
    """
    if not pictures:
        raise DialogueError("There is no picture to lay out; name at least one participant.")
    for index, picture in enumerate(pictures):
        check_picture(picture, f"picture {index}")
    height = max(picture.shape[0] for picture in pictures)
    line = np.full((height, separator_width(height), 3), SEPARATOR_GREY, dtype=np.uint8)
    columns = [resize_to_height(pictures[0], height)]
    for picture in pictures[1:]:
        columns += [line, resize_to_height(picture, height)]
    return np.concatenate(columns, axis=1)


def grid(pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> UInt8[np.ndarray, "H W 3"]:
    """Join pictures in rows from left to right, as many columns as rows or one more, in cells of one size with thin
    dark lines between; a last row with fewer pictures stands in the middle.

    Raises:
        DialogueError: if there is no picture or one is not uint8 [H, W, 3].
    """
    if not pictures:
        raise DialogueError("There is no picture to lay out; name at least one participant.")
    for index, picture in enumerate(pictures):
        check_picture(picture, f"picture {index}")
    height = max(picture.shape[0] for picture in pictures)
    resized = [resize_to_height(picture, height) for picture in pictures]
    width, gap = max(picture.shape[1] for picture in resized), separator_width(height)
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), SEPARATOR_GREY, dtype=np.uint8)
    for index, picture in enumerate(resized):
        row, column = divmod(index, columns)
        empty = columns - min(columns, len(pictures) - row * columns)
        left = column * (width + gap) + empty * (width + gap) // 2 + (width - picture.shape[1]) // 2
        canvas[row * (height + gap) :][:height, left : left + picture.shape[1]] = picture
    return canvas


def contact_sheet(
    rows: Sequence[Sequence[UInt8[np.ndarray, "_ _ 3"]]], height: int, gap: int = 4
) -> UInt8[np.ndarray, "H W 3"]:
    """A grid of pictures on white, each row at `height` rows of pixels, `gap` pixels between and around them.

    Raises:
        DialogueError: if a row is empty or a picture is not uint8 [H, W, 3].
    """
    strips = []
    for row in rows:
        if not row:
            raise DialogueError("A row of the contact sheet has no picture; give every row at least one.")
        for picture in row:
            check_picture(picture)
        resized = [resize_to_height(picture, height) for picture in row]
        framed = [np.pad(picture, ((gap, 0), (gap, 0), (0, 0)), constant_values=255) for picture in resized]
        strips.append(np.concatenate(framed, axis=1))
    width = max(strip.shape[1] for strip in strips) + gap
    padded = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    return np.pad(np.concatenate(padded, axis=0), ((0, gap), (0, 0), (0, 0)), constant_values=255)
