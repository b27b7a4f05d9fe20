"""The trackers: one interface, what each cannot give, and the sentence when a back end or a file is missing.

The network of face-alignment is replaced by one of a single layer that is trained to nothing: it knows each of 68 dots
by its colour. Its weights are saved as the package's own are, and loaded through the package's own path.
"""

import io
import json
import sys
import urllib.error
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from media import tone, write_video
from synthetic_face import rotation_difference, synthetic_face
from torch import nn

from dialogue_nerfstudio.cli.main import main
from dialogue_nerfstudio.conversation import DialogueError, load_conversation
from dialogue_nerfstudio.conversation.expression_basis import MESH_OF_68, expression_basis, eye_centers, mirror_pairs
from dialogue_nerfstudio.process import diarization, faces, labels, pipeline
from dialogue_nerfstudio.process.expression import eye_aspect_ratio, measure_face
from dialogue_nerfstudio.process.head_pose import track_head
from dialogue_nerfstudio.process.landmarks import LandmarkTrack, bridged
from dialogue_nerfstudio.process.trackers import TRACKERS, TrackerConfig, fan, lacks_sentence, make_tracker
from dialogue_nerfstudio.process.trackers.points68 import carry_matrix, lift_68, measured_by_68

SIZE = 256


def _colours() -> np.ndarray:
    """68 directions evenly on a sphere about mid-grey, as RGB 0 … 1 (a Fibonacci lattice)."""
    index = np.arange(68) + 0.5
    polar, turn = np.arccos(1 - 2 * index / 68), np.pi * (1 + 5**0.5) * index
    directions = np.stack([np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], axis=1)
    return 0.5 + 0.49 * directions


class DotNetwork(nn.Module):
    """In FAN's place: heat maps of 64 × 64 that are largest at the dot of each landmark's colour."""

    def __init__(self, num_modules: int):
        super().__init__()
        self.num_modules = num_modules
        self.l0 = nn.Conv2d(3, 68, kernel_size=1)

    def forward(self, x):
        return [nn.functional.max_pool2d(self.l0(x), 4).clamp(min=1e-4) ** 4]


def _dot_weights() -> dict:
    directions = torch.from_numpy(_colours() - 0.5).float() / 0.49
    return {"l0.weight": (2 * directions)[:, :, None, None], "l0.bias": -directions.sum(dim=1)}


def _picture(points: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Grey, with a coloured dot at each of the 68 points, those hidden under others drawn first."""
    large = np.full((4 * size, 4 * size, 3), 127, np.uint8)
    for point, colour in zip(points, _colours(), strict=True):
        middle = tuple(np.round(4 * point - 0.5).astype(int).tolist())
        cv2.circle(large, middle, size // 36, tuple((255 * colour).round().tolist()), -1)
    return cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)


@pytest.fixture
def dot_network(monkeypatch, tmp_path) -> Path:
    """Weights in a file, and FAN's class replaced by one that takes them."""
    api = pytest.importorskip("face_alignment.api", reason="the optional package face-alignment")
    monkeypatch.setattr(api, "FAN", DotNetwork)
    torch.save(_dot_weights(), tmp_path / "2DFAN4.pth.tar")
    return tmp_path / "2DFAN4.pth.tar"


def test_the_68_are_the_mesh_s_own_in_order():
    # Mirrored landmarks are mirrored in the mark-up, too: as the package itself flips them.
    utils = pytest.importorskip("face_alignment.utils", reason="the optional package face-alignment")
    flipped = utils.shuffle_lr(torch.arange(68)[None, :, None, None]).flatten().numpy()
    assert (np.array(MESH_OF_68)[flipped] == mirror_pairs()[list(MESH_OF_68)]).all()


def test_lifting_keeps_what_was_seen_and_finds_the_rest():
    person = synthetic_face(60, size=SIZE, seed=3)
    points = person.points[:, list(MESH_OF_68)].astype(np.float32)
    points[7] = np.nan
    track = lift_68(points, SIZE, SIZE)
    assert list(np.flatnonzero(~track.visible)) == [7]
    assert track.measured.sum() == 68 and not track.has_irises
    seen = track.visible
    assert np.abs(track.points[seen][:, list(MESH_OF_68)] - points[seen]).max() < 0.4
    others = np.flatnonzero(~measured_by_68()[:468])
    error = np.linalg.norm(track.points[seen][:, others] - person.points[seen][:, others], axis=-1)
    assert np.median(error) < 1.0 and np.quantile(error, 0.99) < 5.0, "at an eye distance of 42 px"
    relief = track.depth[seen] - track.depth[seen].mean(axis=1, keepdims=True)
    true = person.depth[seen] - person.depth[seen].mean(axis=1, keepdims=True)
    assert np.corrcoef(relief.ravel(), true.ravel())[0, 1] > 0.97
    assert lift_68(np.full((3, 68, 2), np.nan, np.float32), SIZE, SIZE).visible.sum() == 0


def test_leftovers_are_carried_to_neighbours_only():
    carried = carry_matrix() @ np.eye(68)[MESH_OF_68.index(30 if 30 in MESH_OF_68 else 4)]
    assert carried[4] == pytest.approx(1.0, abs=0.02) and abs(carried[152]) < 0.02 and carried[1] > 0.5


def test_68_points_give_pose_expression_and_blink_but_no_gaze():
    person = synthetic_face(100, size=SIZE, seed=4)
    points = person.points[:, list(MESH_OF_68)]
    lids = {37: 41, 38: 40, 43: 47, 44: 46}
    shut = np.zeros(100)
    for start in (20, 60):
        shut[start : start + 6] = [0.4, 1.0, 1.0, 1.0, 0.6, 0.2]
    for upper, lower in lids.items():
        points[:, upper] += shut[:, None] * (points[:, lower] - points[:, upper])
    rng = np.random.default_rng(0)
    track = bridged(lift_68((points + 0.3 * rng.standard_normal(points.shape)).astype(np.float32), SIZE, SIZE))
    head = track_head(track, SIZE, SIZE)
    error = rotation_difference(head.rotations, person.rotations)
    assert error.mean() < 4.0 and np.isfinite(head.reprojection_error).all()
    face = measure_face(track, head, expression_basis(), 25.0)
    jaw = face.expression[:, 0]
    assert np.corrcoef(jaw, person.expression[:, 0])[0, 1] > 0.9
    assert face.blink[21:24].min() > 0.7 and face.blink[61:64].min() > 0.7 and face.blink[30:55].max() < 0.3
    assert not face.gaze.any()
    for name in ("expression", "residual", "blink", "mouth_opening"):
        assert np.isfinite(getattr(face, name)).all(), name
    ratio = eye_aspect_ratio(track.points.astype(float))
    assert ratio[22].mean() < 0.3 * ratio[30].mean()
    assert np.linalg.norm(np.diff(eye_centers(track.points), axis=1), axis=-1).min() > 20


def test_peaks_between_heat_map_pixels():
    y, x = np.mgrid[:64, :64] + 0.5
    true = np.array([[20.3, 31.8], [5.5, 60.1], [0.5, 0.5]])
    heat = np.exp(-0.5 * ((x - true[:, :1, None]) ** 2 + (y - true[:, 1:, None]) ** 2) / 1.2**2).astype(np.float32)
    peaks, scores = fan.sub_pixel_peaks(heat)
    np.testing.assert_allclose(peaks, true, atol=0.01)
    assert scores.min() > 0.8


def test_the_network_s_points_lie_on_the_dots(dot_network):
    person = synthetic_face(1, size=SIZE, seed=5)
    points = person.points[0, list(MESH_OF_68)]
    tracker = make_tracker(TrackerConfig("face-alignment", face_alignment_weights=dot_network))
    tracker.require()
    found, scores = tracker.look(_picture(points), fan.bounding_box(points))
    distance = np.linalg.norm(found - points, axis=1)
    # Dots that touch others are mixed colours after the square's shrinking.
    apart = np.sort(np.linalg.norm(points[:, None] - points[None], axis=-1), axis=1)[:, 1] > 8
    assert apart.sum() > 15 and distance[apart].max() < 2.5 and scores.mean() > 0.5


def _replace_mediapipe(monkeypatch: pytest.MonkeyPatch, box: np.ndarray) -> None:
    class Network:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    class Detector(Network):
        def __call__(self, image):
            return np.array([[*box, 0.9]])

    class Segmenter(Network):
        def __call__(self, image):
            mask = np.zeros(image.shape[:2], np.float32)
            mask[30:, 40:-40] = 1.0
            return mask

    monkeypatch.setattr(pipeline, "require_mediapipe", lambda: None)
    monkeypatch.setattr(faces, "FaceDetector", Detector)
    monkeypatch.setattr(fan, "FaceDetector", Detector)
    monkeypatch.setattr(labels, "PersonSegmenter", Segmenter)
    monkeypatch.setattr(diarization, "diarize", lambda *_: [])
    monkeypatch.setattr(pipeline.Processing, "write_report", _write_empty_report)


def _write_empty_report(self, conversation, progress):
    (self.output / "report.html").write_text("")
    (self.work("quality.json")).write_text(json.dumps({"participants": {}, "findings": []}))


def test_the_command_with_face_alignment(dot_network, monkeypatch, tmp_path, capsys):
    person = synthetic_face(30, size=SIZE, seed=6)
    points = person.points[:, list(MESH_OF_68)]
    _replace_mediapipe(monkeypatch, np.array([*points[0].min(axis=0), *points[0].max(axis=0)]))
    # Video blurs the dots' colours into each other: the network is loaded, and asked, but its answer made true.
    looks = iter([points[0], *points])
    ask = fan.FanTracker.look
    monkeypatch.setattr(fan.FanTracker, "look", lambda *asked: (next(looks).astype(np.float32), ask(*asked)[1]))
    video = write_video(tmp_path / "dots.mp4", [_picture(p) for p in points], audio=tone(1.2))
    command = ["process", str(video), "--output", str(tmp_path / "chat"), "--tracker", "face-alignment"]
    command += ["--face-alignment-weights", str(dot_network)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "face-alignment gives no gaze (eyes look straight ahead" in said and said.count("no gaze") == 1
    made = load_conversation(tmp_path / "chat")
    motion = made.participants[0].motion
    assert not motion.gaze.any() and "no irises" in motion.sources["gaze"]
    assert made.provenance["tracker"]["name"] == "face-alignment" and "gaze" in made.provenance["tracker"]["lacks"]
    figures = json.loads((tmp_path / "chat" / "process.json").read_text())
    assert figures["tracker"]["lacks"]["gaze"] and figures["participants"]["p0"]["lost_frames"] == 0
    tracking = made.tracking("p0")
    assert tracking["measured"].sum() == 68 and np.isfinite(tracking["landmarks"]).all()
    # The same again does nothing; another tracker's landmarks replace these, and everything that follows from them.
    assert main(command) == 0
    assert json.loads((tmp_path / "chat" / "process.json").read_text())["stages_run"] == []
    monkeypatch.setattr("dialogue_nerfstudio.process.trackers.mesh.track_landmarks", _mesh_of(person))
    assert main(command[:4]) == 0
    ran = json.loads((tmp_path / "chat" / "process.json").read_text())["stages_run"]
    assert ran[0] == "landmarks" and {"head", "expression", "labels"} <= set(ran) and "crops" not in ran
    again = load_conversation(tmp_path / "chat")
    assert again.participants[0].motion.sources["gaze"] == "tracked" and again.tracking("p0")["measured"].all()


def _mesh_of(person):
    def track(frames, num_frames, progress):
        return LandmarkTrack(person.track().points, person.track().depth, np.ones(sum(1 for _ in frames), bool))

    return track


def test_a_face_that_is_lost_is_looked_for_again(dot_network, monkeypatch):
    person = synthetic_face(1, size=SIZE, seed=7)
    points = person.points[0, list(MESH_OF_68)]
    _replace_mediapipe(monkeypatch, fan.bounding_box(points))
    tracker = make_tracker(TrackerConfig("face-alignment", face_alignment_weights=dot_network))
    empty = np.full((SIZE, SIZE, 3), 127, np.uint8)
    monkeypatch.setattr(fan, "MIN_SCORE", 0.3)
    track = tracker.track([_picture(points), empty, empty, _picture(points)], 4)
    assert track.visible.tolist() == [True, False, False, True]


def test_without_a_network_there_is_one_sentence(monkeypatch, tmp_path):
    utils = pytest.importorskip("face_alignment.utils", reason="the optional package face-alignment")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(utils, "download_url_to_file", offline)
    with pytest.raises(DialogueError, match=r"could not be downloaded.*2DFAN4.*--face-alignment-weights.*checkpoints"):
        make_tracker(TrackerConfig("face-alignment")).require()


def test_what_is_no_weights_file_is_refused(dot_network, tmp_path):
    def refused(path: Path) -> str:
        with pytest.raises(DialogueError) as error:
            make_tracker(TrackerConfig("face-alignment", face_alignment_weights=path)).require()
        return str(error.value)

    assert "There is no file" in refused(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    assert "text.pth does not hold the weights" in refused(tmp_path / "text.pth")
    torch.save({"l0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    assert "other.pth does not hold the weights" in refused(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "list.pth does not hold the weights" in refused(tmp_path / "list.pth")
    (tmp_path / "half.pth").write_bytes(dot_network.read_bytes()[:700])
    assert "half.pth does not hold the weights" in refused(tmp_path / "half.pth")
    torch.save(_Sneaky(tmp_path / "ran"), tmp_path / "pickle.pth")
    assert "pickle.pth does not hold" in refused(tmp_path / "pickle.pth") and not (tmp_path / "ran").exists()


class _Sneaky:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (io.open, (str(self.path), "w"))


def test_without_the_package_there_is_one_sentence(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "face_alignment"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "face_alignment", None)
    with pytest.raises(DialogueError, match=r"pip install --no-deps face-alignment"):
        make_tracker(TrackerConfig("face-alignment")).require()


def test_options_that_do_not_belong_together(tmp_path, capsys):
    for config, message in (
        (TrackerConfig("landmarker"), r"needs MediaPipe's task file.*--landmarker-task"),
        (TrackerConfig("landmarker", tmp_path / "none.task"), r"There is no file.*none\.task"),
        (TrackerConfig("mediapipe", Path("a.task")), r"--landmarker-task is read by --tracker landmarker"),
        (TrackerConfig("landmarker", Path("a.task"), Path("b.pth")), r"--face-alignment-weights is read by"),
        (TrackerConfig("openface"), r"no tracker openface: choose one of mediapipe, landmarker, face-alignment"),
    ):
        with pytest.raises(DialogueError, match=message):
            make_tracker(config).require()
    video = write_video(tmp_path / "grey.mp4", [np.full((64, 64, 3), 127, np.uint8)] * 30, audio=tone(1.2))
    assert main(["process", str(video), "--output", str(tmp_path / "x"), "--tracker", "landmarker"]) == 2
    assert "--landmarker-task" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_file_that_is_no_task(tmp_path):
    pytest.importorskip("mediapipe", reason="it reads task files")
    (tmp_path / "no.task").write_bytes(b"not a zip")
    with pytest.raises(DialogueError, match=r"no\.task is not a Face Landmarker task"):
        make_tracker(TrackerConfig("landmarker", tmp_path / "no.task")).require()


def test_only_what_is_lacking_is_said():
    assert lacks_sentence(make_tracker(TrackerConfig())) == ""
    assert "gaze" in lacks_sentence(make_tracker(TrackerConfig("face-alignment")))
    assert set(TRACKERS) == {"mediapipe", "landmarker", "face-alignment"}


def test_tracks_are_kept_with_blendshapes(tmp_path):
    track = synthetic_face(5).track()
    track.blendshapes = np.linspace(0, 1, 10, dtype=np.float32).reshape(5, 2)
    track.blendshapes[2], track.points[2], track.depth[2] = np.nan, np.nan, np.nan
    track.visible[2], track.blendshape_names = False, ("jawOpen", "eyeBlinkLeft")
    bridged(track).save(tmp_path / "track.npz")
    loaded = LandmarkTrack.load(tmp_path / "track.npz")
    assert loaded.blendshape_names == ("jawOpen", "eyeBlinkLeft") and loaded.measured.all()
    np.testing.assert_allclose(loaded.blendshapes[2], (loaded.blendshapes[1] + loaded.blendshapes[3]) / 2)


@pytest.mark.shared
def test_the_real_landmarker(shared_clips, tmp_path):
    pytest.importorskip("mediapipe", reason="the real networks")
    task = shared_clips.parent / "models" / "face_landmarker.task"
    if not task.is_file():
        pytest.skip("face_landmarker.task is not beside the clips")
    import av

    with av.open(str(shared_clips / "single_13s.mp4")) as container:
        frames = [
            frame.to_ndarray(format="rgb24") for frame, _ in zip(container.decode(video=0), range(60), strict=False)
        ]
    tracks = []
    for config in (TrackerConfig("landmarker", task), TrackerConfig()):
        tracker = make_tracker(config)
        tracker.require()
        tracks.append(tracker.track(frames, len(frames)))
    landmarker, mesh = tracks
    assert landmarker.visible.all() and len(landmarker.blendshape_names) == 51
    assert {"jawOpen", "eyeBlinkLeft", "mouthSmileRight"} <= set(landmarker.blendshape_names)
    assert (landmarker.blendshapes >= 0).all() and (landmarker.blendshapes <= 1).all()
    assert np.median(np.linalg.norm(landmarker.points - mesh.points, axis=-1)) < 3.0
    jaw = landmarker.blendshapes[:, landmarker.blendshape_names.index("jawOpen")]
    gap = np.linalg.norm(landmarker.points[:, 13] - landmarker.points[:, 14], axis=-1)
    assert np.corrcoef(jaw, gap)[0, 1] > 0.6
