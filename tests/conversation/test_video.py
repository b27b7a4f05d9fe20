"""Frames come back at their own index, whatever the order they are asked for; label maps come back bit for bit."""

import av
import numpy as np
import pytest

from dialogue_nerfstudio.conversation import DialogueError, FrameReader, LabelReader, LabelWriter, VideoWriter
from dialogue_nerfstudio.conversation.video import GreyReader, spread_frames

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


def test_brightness_is_that_of_the_coloured_picture(tmp_path):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [90, 140, 200]], np.uint8)
    # Wider than lines are aligned to.
    picture = np.repeat(np.repeat(colours[None], 12, axis=1), 48, axis=0)
    with VideoWriter(tmp_path / "v.mp4", 25, 72, 48) as writer:
        for _ in range(3):
            writer.write(picture)
    with GreyReader(tmp_path / "v.mp4") as reader:
        grey = reader[1]
    assert grey.shape == (48, 72) and grey.dtype == np.uint8
    assert np.abs(grey[:, 5::12] - colours @ np.array([0.299, 0.587, 0.114])).max() < 4


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


def test_frames_are_spread_over_a_clip_and_lie_on_keyframes_of_a_long_one(tmp_path):
    np.testing.assert_array_equal(spread_frames(3, 40), [0, 1, 2])
    some = spread_frames(500, 40)
    assert some[0] == 0 and some[-1] == 499 and len(some) == 40
    assert 45 <= len(spread_frames(1150, 60)) < 60 and (spread_frames(1150, 60) % 25 == 0).all()
    path = tmp_path / "v.mp4"
    with VideoWriter(path, 25.0, 32, 32) as writer:
        for index in range(160):
            # A cut in the middle of an interval moves no keyframe.
            writer.write(np.full((32, 32, 3), 40 if index < 85 else 210, np.uint8))
    with av.open(str(path)) as container:
        keys = [round(p.pts * p.time_base * 25) for p in container.demux(video=0) if p.size and p.is_keyframe]
    assert set(spread_frames(160, 5)) <= set(keys) and len(spread_frames(160, 5)) == 5
