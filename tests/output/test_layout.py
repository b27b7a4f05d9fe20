"""Layouts keep every picture whole, at one height, in order."""

import numpy as np
import pytest

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.output.layout import (
    SEPARATOR_GREY,
    check_picture,
    contact_sheet,
    grid,
    resize_to_height,
    separator_width,
    side_by_side,
)


def solid(height: int, width: int, colour: int) -> np.ndarray:
    return np.full((height, width, 3), colour, dtype=np.uint8)


def test_one_picture_is_unchanged():
    picture = np.random.default_rng(0).integers(0, 255, (8, 6, 3), dtype=np.uint8)
    assert np.array_equal(side_by_side([picture]), picture)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_pictures_stand_in_order_with_a_line_between(count):
    line = separator_width(64)
    frame = side_by_side([solid(64, 48, 40 * (i + 1)) for i in range(count)])
    assert frame.shape == (64, 48 * count + line * (count - 1), 3)
    for i in range(count):
        start = i * (48 + line)
        assert (frame[:, start : start + 48] == 40 * (i + 1)).all()


def test_smaller_picture_grows_to_the_tallest_and_keeps_its_aspect():
    frame = side_by_side([solid(100, 80, 10), solid(50, 30, 200)])
    assert frame.shape == (100, 80 + separator_width(100) + 60, 3)
    assert (frame[:, -60:] == 200).all()


def test_resize_keeps_a_gradient():
    gradient = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], 16, 1).repeat(3, 2)
    small = resize_to_height(gradient, 16)
    assert small.shape == (16, 8, 3)
    assert np.abs(small[:, 0, 0].astype(float) - np.linspace(4, 251, 16)).max() < 3


def test_contact_sheet_is_a_grid_on_white():
    sheet = contact_sheet([[solid(10, 10, 0)] * 3, [solid(20, 20, 0)] * 2], height=16, gap=2)
    assert sheet.shape == (2 + 2 * 18, 2 + 3 * 18, 3)
    assert (sheet == 0).all(axis=2).sum() == 5 * 16 * 16


@pytest.mark.parametrize("shape, dtype", [((4, 4), np.uint8), ((4, 4, 3), np.float32), ((0, 4, 3), np.uint8)])
def test_what_is_not_a_picture_is_refused(shape, dtype):
    with pytest.raises(DialogueError, match="uint8"):
        check_picture(np.zeros(shape, dtype))


def test_no_picture_is_refused():
    with pytest.raises(DialogueError, match="at least one participant"):
        side_by_side([])


def test_a_grid_has_rows_of_one_size_and_centres_the_last():
    pictures = [np.full((64, 48, 3), 10 * (index + 1), dtype=np.uint8) for index in range(5)]
    joined = grid(pictures)
    assert joined.shape == (2 * 64 + 2, 3 * 48 + 2 * 2, 3)
    assert [joined[0, x, 0] for x in (0, 50, 100)] == [10, 20, 30]
    assert joined[66, 24, 0] == SEPARATOR_GREY and joined[66, 26, 0] == 40 and joined[66, 80, 0] == 50
    assert (grid(pictures[:1]) == pictures[0]).all()
    with pytest.raises(DialogueError, match="no picture"):
        grid([])
