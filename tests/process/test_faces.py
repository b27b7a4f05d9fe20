"""Association, choice of people, panels and crops on layouts that are known."""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.process import faces
from dialogue_nerfstudio.process.decode import Picture, SourceVideo


def _face(x: float, y: float, size: float, score: float = 0.9) -> np.ndarray:
    return np.array([x - size / 2, y - size / 2, x + size / 2, y + size / 2, score])


def _looks(*people, count: int = 20, jitter: float = 3.0) -> list:
    """Detections of people given as (x, y, size), who move a little; in every look in another order."""
    rng = np.random.default_rng(0)
    looks = []
    for index in range(count):
        found = [_face(x + rng.normal(0, jitter), y + rng.normal(0, jitter), size) for x, y, size in people]
        looks.append((5 * index, np.array(found)[rng.permutation(len(found))]))
    return looks


def test_tiles_cover_the_picture_and_overlap():
    tiles = faces.overlapping_tiles(1920, 1080)
    assert len(tiles) == 4 and (tiles[0] == [0, 0, 1920, 1080]).all()
    assert (tiles[1:, 2] - tiles[1:, 0] == 1080).all()
    assert tiles[1, 0] == 0 and tiles[-1, 2] == 1920
    assert (tiles[1:-1, 2] > tiles[2:, 0] + 500).all()


def test_square_pictures_and_tall_ones():
    assert len(faces.overlapping_tiles(512, 512)) == 1
    tall = faces.overlapping_tiles(720, 1280)
    assert tall[-1, 3] == 1280 and (tall[:, 2] == 720).all()


def test_detections_of_tiles_are_merged_and_cut_faces_left_out():
    def detector(tile):
        # The whole picture sees both faces, the left tile sees one whole and one cut by its edge.
        if tile.shape[1] == 1000:
            return np.array([_face(200, 250, 100), _face(490, 250, 100, 0.6)])
        if tile.shape == (500, 500, 3) and tile[0, 0, 0] == 1:
            return np.array([_face(201, 251, 100, 0.95), _face(490, 250, 100, 0.99)])
        return np.zeros((0, 5))

    image = np.zeros((500, 1000, 3), np.uint8)
    image[0, 0] = 1
    found = faces.detect_faces(image, detector)
    assert len(found) == 2
    np.testing.assert_allclose(sorted(found[:, 4]), [0.6, 0.95])


def test_tracks_follow_people_whatever_the_order_of_detections():
    tracks = faces.associate(_looks((300, 300, 100), (700, 320, 120)))
    assert sorted(len(track.frames) for track in tracks) == [20, 20]
    centers = sorted(track.center[0] for track in tracks)
    np.testing.assert_allclose(centers, [300, 700], atol=3)


def test_a_missed_look_does_not_end_a_track():
    looks = _looks((300, 300, 100))
    looks[7] = (35, np.zeros((0, 5)))
    tracks = faces.associate(looks)
    assert len(tracks) == 1 and len(tracks[0].frames) == 19


def test_people_come_from_left_to_right_without_the_inset():
    tracks = faces.associate(_looks((900, 300, 200), (300, 300, 180), (1200, 700, 60)))
    people = faces.choose_people(tracks, 20, None, "chat.mp4")
    np.testing.assert_allclose([p.center[0] for p in people], [300, 900], atol=3)
    assert len(faces.choose_people(tracks, 20, 3, "chat.mp4")) == 3
    assert faces.choose_people(tracks, 20, 1, "chat.mp4")[0].center[0] == pytest.approx(900, abs=3)


def test_a_passer_by_is_not_a_person():
    looks = _looks((300, 300, 100))
    for index in range(4):
        frame, found = looks[index]
        looks[index] = (frame, np.concatenate([found, [_face(700, 300, 150)]]))
    assert len(faces.choose_people(faces.associate(looks), 20, None, "chat.mp4")) == 1


def test_no_face_and_too_few_faces_are_named():
    empty = faces.associate([(0, np.zeros((0, 5)))])
    with pytest.raises(DialogueError, match=r"chat\.mp4 shows no face"):
        faces.choose_people(empty, 20, None, "chat.mp4")
    with pytest.raises(DialogueError, match=r"chat\.mp4 shows 1 face.*2 people were asked for"):
        faces.choose_people(faces.associate(_looks((300, 300, 100))), 20, 2, "chat.mp4")


def test_eight_faces_are_an_audience_until_a_number_is_given():
    tracks = faces.associate(_looks(*[(100 + 200 * i, 300, 100 + i) for i in range(8)]))
    with pytest.raises(
        DialogueError, match=r"hall\.mp4 shows 8 faces of similar size \(100 px at \(100, 300\).*--num-people"
    ):
        faces.choose_people(tracks, 20, None, "hall.mp4")
    two = faces.choose_people(tracks, 20, 2, "hall.mp4")
    np.testing.assert_allclose([p.center[0] for p in two], [1300, 1500], atol=5)
    assert len(faces.choose_people(tracks, 20, 8, "hall.mp4")) == 8


def test_a_face_of_too_few_pixels_is_refused():
    tracks = faces.associate(_looks((300, 300, 100), (700, 300, 24)))
    assert len(faces.choose_people(tracks, 20, None, "far.mp4")) == 1
    with pytest.raises(DialogueError, match=r"far\.mp4: the face at \(7\d\d, 30\d\) is 2\d pixels large.*32"):
        faces.choose_people(tracks, 20, 2, "far.mp4")


def _finder(image: np.ndarray, noise: int = 0) -> faces.PanelFinder:
    rng = np.random.default_rng(0)
    finder = faces.PanelFinder(*image.shape[:2])
    for _ in range(6):
        finder.add(np.clip(image + rng.integers(-noise, noise + 1, image.shape), 0, 255).astype(np.uint8))
    return finder


def test_panels_on_a_black_canvas():
    image = np.zeros((540, 960, 3), np.int16)
    image[70:470, 100:480] = 120
    image[70:470, 500:880] = 90
    left, right = _face(290, 260, 120)[:4], _face(690, 260, 150)[:4]
    finder = _finder(image, noise=4)
    np.testing.assert_array_equal(finder.panel(left, [right]), [100, 70, 480, 470])
    np.testing.assert_array_equal(finder.panel(right, [left]), [500, 70, 880, 470])


def test_panels_side_by_side_meet_at_their_border():
    """Two recordings joined without a gap, each with a smooth background of its own."""
    x = np.linspace(0, 1, 256)
    image = np.concatenate([np.tile(80 + 40 * x, (256, 1)), np.tile(160 - 30 * x, (256, 1))], axis=1)
    image = np.repeat(image[..., None], 3, axis=2).astype(np.int16)
    left, right = _face(100, 120, 90)[:4], _face(400, 120, 90)[:4]
    finder = _finder(image, noise=2)
    assert finder.panel(left, [right])[2] == 256
    assert finder.panel(right, [left])[0] == 256


def test_one_room_is_parted_half_way_between_the_faces():
    image = np.full((400, 800, 3), 100, np.int16)
    left, right = _face(200, 200, 100)[:4], _face(560, 200, 100)[:4]
    finder = _finder(image, noise=2)
    assert finder.panel(left, [right])[2] == 380
    assert finder.panel(right, [left])[0] == 380


def test_an_inset_far_above_or_below_parts_nothing():
    image = np.full((800, 800, 3), 100, np.int16)
    assert _finder(image).panel(_face(400, 200, 100)[:4], [])[3] == 800


@pytest.mark.parametrize(
    ("box", "panel"),
    [
        (_face(300, 300, 60), (0, 0, 1280, 720)),
        (_face(40, 40, 60), (0, 0, 1280, 720)),
        (_face(1250, 700, 60), (0, 0, 1280, 720)),
        (_face(128, 110, 90), (0, 0, 256, 256)),
        (_face(384, 110, 90), (256, 0, 512, 256)),
        (_face(290, 260, 120), (101, 70, 480, 471)),
        (_face(200, 300, 400), (0, 0, 512, 512)),
    ],
)
def test_crops_are_even_squares_inside_their_panel(box, panel):
    x0, y0, x1, y1 = faces.square_crop(box[:4], np.array(panel))
    assert x1 - x0 == y1 - y0 and (x1 - x0) % 2 == 0
    assert panel[0] <= x0 and panel[1] <= y0 and x1 <= panel[2] and y1 <= panel[3]
    assert (
        x1 - x0
        >= min(2 * faces.CROP_HALF_SIZE * faces.box_size(box[:4]), min(panel[2] - panel[0], panel[3] - panel[1])) - 2
    )


def test_crops_show_the_shoulders_and_the_hair():
    x0, y0, x1, y1 = faces.square_crop(_face(600, 300, 100)[:4], np.array([0, 0, 1280, 720]))
    assert (x0 + x1) / 2 == 600
    assert 300 - y0 >= 125 and y1 - 300 >= 165


def test_a_face_that_nearly_fills_its_panel_gets_all_of_it():
    np.testing.assert_array_equal(
        faces.square_crop(_face(250, 240, 180)[:4], np.array([0, 0, 512, 512])), [0, 0, 512, 512]
    )


def test_crop_size():
    crop = np.array([10, 10, 777, 777])
    assert faces.crop_size(crop, None) == 512
    assert faces.crop_size(np.array([0, 0, 301, 301]), None) == 300
    assert faces.crop_size(crop, 256) == 256


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("tags", [("yuv420p", 2, 0), ("yuv420p", 1, 1), ("yuv420p", 6, 2), ("yuv420p10le", 9, 1)])
def test_crops_of_the_codec_s_format_are_those_of_the_upright_picture(turns, tags):
    layout, matrix, scope = tags
    coarse = np.random.default_rng(turns).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC)
    matrices = {1: "ITU709", 9: "BT2020"}
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
        format=layout, dst_colorspace=matrices.get(matrix), dst_color_range=scope or None
    )
    frame.colorspace, frame.color_range = matrix, scope
    # Reserved values, as VP9 may carry them.
    frame.color_trc = frame.color_primaries = 3
    picture = Picture(frame, turns, VideoReformatter())
    x0, y0 = 26, 14
    for size in (80, 120, 200):
        cut = faces.CropCutter(np.array([x0, y0, x0 + 120, y0 + 120]), size)(picture)
        # As a reader without tags takes it.
        found = av.VideoFrame.from_ndarray(cut.to_ndarray(), format="yuv420p").to_ndarray(format="rgb24").astype(float)
        piece = picture.rgb[y0 : y0 + 120, x0 : x0 + 120]
        wanted = cv2.resize(piece, (size, size), interpolation=cv2.INTER_AREA if size < 120 else cv2.INTER_LANCZOS4)
        assert np.abs(found - wanted).mean() < 5.0 and np.abs((found - wanted).mean(axis=(0, 1))).max() < 5.0
        assert cut.format.name == "yuv420p" and (cut.width, cut.height) == (size, size)
        aside = cv2.resize(np.roll(piece, 3, axis=1), (size, size), interpolation=cv2.INTER_AREA)
        assert np.abs(found - wanted).mean() < 0.7 * np.abs(found - aside).mean()


def test_a_long_video_is_looked_at_less_often():
    def source(count: int) -> SourceVideo:
        return SourceVideo(Path("a.mp4"), 64, 64, 0, np.arange(count), np.arange(count), 0.04, 25.0, 25.0)

    assert faces.FaceLooks(source(200)).step == faces.DETECTION_STEP
    step = faces.FaceLooks(source(15000)).step
    assert len(range(0, 15000, step)) == faces.MAX_LOOKS
