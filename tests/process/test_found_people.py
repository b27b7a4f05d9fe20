"""The real detector on pictures of simulated people: many of them, and a phone held upright."""

import av
import numpy as np
import pytest
from simulated_heads import heads, write_upright

from dialogue_nerfstudio.cli.main import main
from dialogue_nerfstudio.process.decode import probe
from dialogue_nerfstudio.process.face_mesh import FaceMesher
from dialogue_nerfstudio.process.faces import find_people

pytest.importorskip("mediapipe", reason="the real detector looks for faces")


@pytest.fixture(scope="module")
def hall(tmp_path_factory):
    """Eight people in two rows."""
    portraits = heads(8, 160)
    rows = [np.concatenate(portraits[start : start + 4], axis=1) for start in (0, 4)]
    return write_upright(tmp_path_factory.mktemp("hall") / "hall.mp4", np.concatenate(rows, axis=0))


def test_eight_faces_are_a_question(hall, tmp_path, capsys):
    assert main(["process", str(hall), "--output", str(tmp_path / "out")]) == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert "hall.mp4 shows 8 faces of similar size" in sentence and "--num-people" in sentence
    assert not (tmp_path / "out" / "conversation.json").exists()


def test_eight_faces_can_all_be_taken(hall):
    people = find_people(probe(hall), 8)
    middles = np.array([[(p.face_box[0] + p.face_box[2]) / 2, (p.face_box[1] + p.face_box[3]) / 2] for p in people])
    assert len(people) == 8 and (np.diff(middles[:, 0]) > -8).all(), "from left to right"
    cells = {(int(x // 160), int(y // 160)) for x, y in middles}
    assert len(cells) == 8, "one in each part of the picture"


def test_two_people_filmed_by_a_phone_held_upright(tmp_path):
    """9:16, stored sideways: boxes, crops and faces are those of the upright picture."""
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a rotation")
    shade = np.linspace(120, 160, 640)[:, None, None]
    picture = np.tile(shade, (1, 360, 3)).astype(np.uint8)
    left, right = heads(2, 180)
    picture[200:380, :180], picture[260:440, 180:] = left, right
    source = probe(write_upright(tmp_path / "phone.mp4", picture, quarter_turns=1))
    assert (source.width, source.height) == (360, 640)
    people = find_people(source, None)
    assert len(people) == 2
    frame = next(source.frames())
    assert np.abs(frame.astype(int) - picture).mean() < 6
    with FaceMesher() as mesher:
        for person, (x, y) in zip(people, ((90, 285), (270, 345)), strict=True):
            box = person.face_box
            assert abs((box[0] + box[2]) / 2 - x) < 25 and abs((box[1] + box[3]) / 2 - y) < 40
            x0, y0, x1, y1 = person.crop
            assert 0 <= x0 < x1 <= 360 and 0 <= y0 < y1 <= 640
            found = None
            for _ in range(3):
                found = mesher(frame[y0:y1, x0:x1])
            assert found is not None
            points = found[0]
            assert points[10, 1] < points[1, 1] < points[152, 1], "forehead over nose over chin"
