"""Frames come back at their own index, whatever the order they are asked for; label maps come back bit for bit."""

import numpy as np
import pytest

from dialogue_nerfstudio.conversation import DialogueError, FrameReader, LabelReader, LabelWriter, VideoWriter

NUM_FRAMES = 60


@pytest.fixture
def video(tmp_path):
    with VideoWriter(tmp_path / "v.mp4", 25, 64, 48) as writer:
        for index in range(NUM_FRAMES):
            writer.write(np.full((48, 64, 3), 4 * index, dtype=np.uint8))
    return tmp_path / "v.mp4"


def test_random_access_is_frame_exact(video):
    with FrameReader(video) as reader:
        assert (len(reader), reader.fps, reader.width, reader.height) == (NUM_FRAMES, 25.0, 64, 48)
        for index in [0, 59, 30, 31, 5, 58, 24, 25, 26, 26, 0]:
            frame = reader[index]
            assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8
            assert abs(float(frame.mean()) - 4 * index) < 2, index
        means = [float(frame.mean()) for frame in reader.iterate(10, 14)]
        assert np.allclose(means, [40, 44, 48, 52], atol=2)
        with pytest.raises(IndexError):
            reader[NUM_FRAMES]


def test_labels_are_lossless(tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, (30, 33, 47), dtype=np.uint8)[:, :32, :46]
    with LabelWriter(tmp_path / "l.mkv", 25, 46, 32) as writer:
        for frame in labels:
            writer.write(frame)
    with LabelReader(tmp_path / "l.mkv") as reader:
        for index in [29, 0, 13, 14, 1]:
            assert np.array_equal(reader[index], labels[index])


def test_interrupted_writing_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "v.mp4", 25, 64, 48) as writer:
        writer.write(np.zeros((48, 64, 3), dtype=np.uint8))
        raise RuntimeError("interrupted")
    assert not list(tmp_path.iterdir())


def test_odd_size_is_refused(tmp_path):
    with pytest.raises(DialogueError, match="even"):
        VideoWriter(tmp_path / "v.mp4", 25, 63, 48)


def test_not_a_video(tmp_path):
    (tmp_path / "v.mp4").write_text("hello")
    with pytest.raises(DialogueError, match=r"v\.mp4"):
        FrameReader(tmp_path / "v.mp4")
    with pytest.raises(DialogueError, match="does not exist"):
        FrameReader(tmp_path / "w.mp4")
