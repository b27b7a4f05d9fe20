"""Label maps of the user's own: both conventions, both sizes, and what is wrong with them."""

import numpy as np
import pytest
from PIL import Image

from dialogue_nerfstudio.conversation import DialogueError, LabelWriter, VideoWriter
from dialogue_nerfstudio.process.given_labels import GivenLabels, decoded_labels, label_media

SIZE, FRAMES, PICTURE = 32, 6, (80, 48)
CROP = np.array([8, 10, 40, 42])


def _maps(width: int = SIZE, height: int = SIZE, count: int = FRAMES) -> np.ndarray:
    """Random blocks, other ones in each frame."""
    blocks = np.random.default_rng(0).integers(0, 4, (count, height // 4, width // 4), dtype=np.uint8)
    return blocks.repeat(4, 1).repeat(4, 2)


def _coloured(labels: np.ndarray) -> np.ndarray:
    return np.array([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[labels]


def _video(path, maps):
    with LabelWriter(path, 25.0, maps.shape[2], maps.shape[1]) as writer:
        for labels in maps:
            writer.write(labels)
    return path


def _folder(path, pictures):
    path.mkdir()
    for index, picture in enumerate(pictures):
        # Names without leading zeros: 10 comes after 9.
        Image.fromarray(picture).save(path / f"frame_{index + 5}.png")
    return path


def _given(path, num_frames=FRAMES, shot=(0, FRAMES), crop=CROP, size=SIZE):
    return GivenLabels(path, crop, size, PICTURE, num_frames, shot)


def test_numbers_in_a_lossless_video(tmp_path):
    maps = _maps()
    np.testing.assert_array_equal(list(_given(_video(tmp_path / "labels.mkv", maps))), maps)


def test_numbers_and_colours_in_pictures(tmp_path):
    maps = _maps()
    np.testing.assert_array_equal(list(_given(_folder(tmp_path / "numbers", maps))), maps)
    np.testing.assert_array_equal(list(_given(_folder(tmp_path / "colours", _coloured(maps)))), maps)


def test_colours_in_a_lossless_video(tmp_path):
    import av

    maps = _maps()
    with av.open(str(tmp_path / "labels.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "bgr0"
        for picture in _coloured(maps):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    np.testing.assert_array_equal(list(_given(tmp_path / "labels.mkv")), maps)


def test_maps_of_the_recording_are_cut_and_sized(tmp_path):
    maps = _maps(*PICTURE)
    video = _video(tmp_path / "labels.mkv", maps)
    np.testing.assert_array_equal(list(_given(video)), maps[:, 10:42, 8:40])
    larger = np.array(list(_given(video, size=64)))
    np.testing.assert_array_equal(larger[:, ::2, ::2], maps[:, 10:42, 8:40])


def test_maps_of_the_whole_recording_begin_with_the_shot(tmp_path):
    maps = _maps(count=9)
    given = _given(_video(tmp_path / "labels.mkv", maps), num_frames=4, shot=(3, 9))
    np.testing.assert_array_equal(list(given), maps[3:7])


def test_wrong_length_size_and_labels_are_refused(tmp_path):
    with pytest.raises(DialogueError, match=r"labels.mkv has 5 label maps, but the conversation 6 frames"):
        _given(_video(tmp_path / "labels.mkv", _maps(count=5)))
    with pytest.raises(DialogueError, match=r"40x40, but the person's crop is 32x32 and the recording 80x48"):
        _given(_video(tmp_path / "labels.mkv", _maps(40, 40)))
    strange = _maps()
    strange[5, 3, 2] = 7
    with pytest.raises(DialogueError, match=r"frame 5, has the unknown label 7 at \(2, 3\).*lossless"):
        _given(_video(tmp_path / "labels.mkv", strange))
    with pytest.raises(DialogueError, match=r"There is no .*none\.mkv"):
        _given(tmp_path / "none.mkv")
    (tmp_path / "text.mkv").write_text("no video")
    with pytest.raises(DialogueError, match="not a readable video"):
        _given(tmp_path / "text.mkv")


def test_a_lossy_video_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 4, (FRAMES, SIZE, SIZE))
    with VideoWriter(tmp_path / "labels.mp4", 25.0, SIZE, SIZE, crf=30) as writer:
        for picture in _coloured(noise):
            writer.write(picture)
    with pytest.raises(DialogueError, match=r"unknown colour .* lossless"):
        _given(tmp_path / "labels.mp4")


def test_strange_folders_are_refused(tmp_path):
    folder = _folder(tmp_path / "maps", _maps())
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "frame_7.png")
    with pytest.raises(DialogueError, match=r"frame_7\.png is 8x8, but the first one is 32x32"):
        list(_given(folder))
    (folder / "frame_5.png").write_text("no picture")
    with pytest.raises(DialogueError, match=r"frame_5\.png is not a readable picture"):
        list(_given(folder))
    (folder / "cover.png").touch()
    with pytest.raises(DialogueError, match="no number in its name"):
        _given(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DialogueError, match="no PNG"):
        _given(tmp_path / "empty")


def test_white_and_black_are_background():
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[2:] = 255
    assert (decoded_labels(picture, "a map") == 0).all()


def test_whose_maps_are_whose(tmp_path):
    people = ["anna", "ben"]
    a, b = tmp_path / "a.mkv", tmp_path / "b.mkv"
    assert label_media([str(a), str(b)], people) == [a, b]
    assert label_media([str(a)], people) == [a, a]
    folder = tmp_path / "maps"
    (folder / "ben").mkdir(parents=True)
    with pytest.raises(DialogueError, match=r"holds 0 label video\(s\) or folder\(s\) named anna"):
        label_media([str(folder)], people)
    (folder / "anna.mkv").touch()
    assert label_media([str(folder)], people) == [folder / "anna.mkv", folder / "ben"]
    with pytest.raises(DialogueError, match="3 label videos were given for 2 people"):
        label_media([str(a)] * 3, people)
