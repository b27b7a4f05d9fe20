"""The plate: medians of what is seen, smooth continuation elsewhere."""

import numpy as np
from PIL import Image

from dialogue_nerfstudio.conversation import FrameReader, LabelReader, LabelWriter, VideoWriter
from dialogue_nerfstudio.process import background


def _scene(count: int = 30, size: int = 64):
    """A static gradient behind a red bar that moves to and fro."""
    x = np.linspace(60, 180, size)
    plate = np.stack([np.tile(x, (size, 1)), np.tile(x[:, None], (1, size)), np.full((size, size), 100.0)], axis=-1)
    frames, labels = [], []
    for index in range(count):
        left = 20 + round(8 * np.sin(index / 3))
        label = np.zeros((size, size), np.uint8)
        label[20:, left : left + 20] = 3
        frames.append(np.where(label[..., None] > 0, [250, 0, 0], plate).astype(np.uint8))
        labels.append(label)
    return plate, np.stack(frames), np.stack(labels)


def test_median_ignores_what_hides_the_background():
    plate, frames, labels = _scene()
    median, count = background.masked_median(frames, labels == 0)
    seen = count > 0
    assert np.abs(median.astype(int) - plate.astype(np.uint8))[seen].max() == 0
    assert not seen[40, 28] and (median[40, 28] == 0).all()


def test_median_is_numpy_s_lower_median():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (9, 5, 70, 3), dtype=np.uint8)
    median, count = background.masked_median(frames, np.ones((9, 5, 70), bool), rows=2)
    np.testing.assert_array_equal(median, np.median(frames, axis=0).astype(np.uint8))
    assert (count == 9).all()


def test_unseen_places_are_continued_smoothly():
    plate, _, labels = _scene()
    known = ~(labels > 0).any(axis=0)
    filled = background.fill_unseen(np.where(known[..., None], plate, 0).astype(np.float32), known)
    np.testing.assert_array_equal(filled[known], plate.astype(np.float32)[known])
    assert np.abs(filled - plate)[~known].mean() < 20
    assert filled[~known].min() > 50


def test_nothing_known_and_everything_known():
    picture = np.random.default_rng(0).random((7, 9, 3)).astype(np.float32)
    assert (background.fill_unseen(picture, np.zeros((7, 9), bool)) == 127).all()
    assert (background.fill_unseen(picture, np.ones((7, 9), bool)) == picture).all()
    one = np.zeros((7, 9), bool)
    one[3, 3] = True
    np.testing.assert_allclose(
        background.fill_unseen(picture, one), np.broadcast_to(picture[3, 3], (7, 9, 3)), atol=1e-5
    )


def test_plate_from_files(tmp_path):
    plate, frames, labels = _scene()
    with (
        VideoWriter(tmp_path / "video.mp4", 25.0, 64, 64) as video,
        LabelWriter(tmp_path / "labels.mkv", 25.0, 64, 64) as maps,
    ):
        for frame, label in zip(frames, labels, strict=True):
            video.write(frame)
            maps.write(label)
    with FrameReader(tmp_path / "video.mp4") as video, LabelReader(tmp_path / "labels.mkv") as maps:
        found, holes = background.background_plate(video, maps)
    assert found.shape == (64, 64, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(float) - plate)[:15].mean() < 4
    hidden = (labels > 0).all(axis=0)
    assert hidden.any() and holes[hidden].all(), "what was never seen is marked"
    assert not holes[:15].any() and not holes[:, :5].any(), "what was always seen is not"


def test_holes_lie_beside_the_plate(tmp_path):
    holes = np.zeros((8, 8), bool)
    holes[2:4] = True
    background.write_plate(tmp_path, np.zeros((8, 8, 3), np.uint8), holes)
    with Image.open(tmp_path / "background_holes.png") as image:
        assert ((np.asarray(image) == 255) == holes).all()
    background.write_plate(tmp_path, np.zeros((8, 8, 3), np.uint8), None)
    assert not (tmp_path / "background_holes.png").exists(), "a given plate has none"


def test_memory_does_not_grow_with_the_video():
    read = set()

    class Frames(FrameReader):
        width = height = 16

        def __init__(self):
            """Nothing to open."""

        def __len__(self):
            return 100000

        def __getitem__(self, index):
            read.add(index)
            return np.full((16, 16, 3), 90, np.uint8)

    class Labels(LabelReader):
        def __init__(self):
            """Nothing to open."""

        def __getitem__(self, index):
            return np.zeros((16, 16), np.uint8)

    plate, holes = background.background_plate(Frames(), Labels())
    assert len(read) == background.NUM_SAMPLES and (plate == 90).all() and not holes.any()
