"""The whole of process on synthetic people, with the neural networks replaced by what they would ideally say; and bad
input.

Where the clips of the project's authors are at hand, the real networks run, too (marked `shared`).
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from face_model_files import true_model, write_ict
from media import noise_frames, tone, write_video
from scipy.spatial.transform import Rotation
from synthetic_face import rotation_difference, synthetic_face

from dialogue_nerfstudio.cli.main import main
from dialogue_nerfstudio.conversation import DialogueError, SpeechSegment, load_conversation, write_rttm
from dialogue_nerfstudio.conversation.expression_basis import ExpressionBasis, face_triangles, mean_face
from dialogue_nerfstudio.conversation.files import write_json
from dialogue_nerfstudio.conversation.video import HEAD, LabelWriter
from dialogue_nerfstudio.process import boxes, diarization, face_mesh, faces, labels, landmarks, pipeline
from dialogue_nerfstudio.process.audio_features import load_audio, save_wav
from dialogue_nerfstudio.process.decode import SourceVideo
from dialogue_nerfstudio.process.pipeline import ProcessConfig, process_video
from dialogue_nerfstudio.process.recordings import find_recordings, process_inputs

FRAMES, SIZE = 50, 128


@pytest.fixture(scope="module")
def people():
    return [synthetic_face(FRAMES, size=SIZE, seed=seed) for seed in (1, 2)]


def _picture(person, index: int, number: int) -> np.ndarray:
    """A drawing of the person, with patches on the skin, which turn with the head; squares in its top left corner say,
    and their negatives below, which person and frame it is."""
    x = np.linspace(70, 120, SIZE)
    image = np.stack(
        [np.tile(x, (SIZE, 1)), np.tile(x[:, None], (1, SIZE)), np.full((SIZE, SIZE), 90 + 40 * number)], -1
    )
    image = image.astype(np.uint8)
    chin, brow = person.points[index, 152], person.points[index, 10]
    center, height = (chin + brow) / 2, np.linalg.norm(chin - brow)
    cv2.ellipse(image, (SIZE // 2, SIZE + 12), (SIZE // 2 - 12, SIZE // 3), 0, 0, 360, (30, 30, 60), -1)
    middle = tuple(np.round(center).astype(int).tolist())
    cv2.ellipse(image, middle, (int(0.42 * height), int(0.62 * height)), 0, 0, 360, (200, 160, 140), -1)
    x, y = 1e3 * mean_face()[face_triangles(), :2].mean(axis=1).T
    shades = 1.0 + 0.2 * np.sin(0.3 * x + number) * np.sin(0.25 * y)
    patches = np.round(16 * person.points[index][face_triangles()]).astype(np.int32)
    for patch, shade in zip(patches, shades, strict=True):
        cv2.fillConvexPoly(image, patch, [int(shade * value) for value in (200, 160, 140)], shift=4)
    for bit in range(8):
        value = 255 if (number * 64 + index) >> bit & 1 else 0
        image[:8, 8 * bit : 8 * bit + 8] = value
        image[8:16, 8 * bit : 8 * bit + 8] = 255 - value
    return image


@pytest.fixture(scope="module")
def video(people, tmp_path_factory) -> Path:
    frames = [np.concatenate([_picture(p, i, n) for n, p in enumerate(people)], axis=1) for i in range(FRAMES)]
    return write_video(tmp_path_factory.mktemp("video") / "chat.mp4", frames, audio=tone(FRAMES / 25))


class _Fake:
    calls = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def _reads(image: np.ndarray) -> tuple:
    """Person and frame, or (−1, −1) where the picture's corner is not one of a drawing."""
    squares = image[:16, :64].astype(float).mean(axis=2).reshape(2, 8, 8, 8)[:, 2:6, :, 2:6].mean(axis=(1, 3))
    if not (np.abs(squares[0] - squares[1]) > 200).all():
        return -1, -1
    return divmod(sum(int(value > 128) << bit for bit, value in enumerate(squares[0])), 64)


@pytest.fixture
def ideal_networks(monkeypatch, people):
    # Drawing takes longer than all the rest; `conversation` and the tests of the report do it.
    monkeypatch.setattr(pipeline.Processing, "write_report", _write_empty_report)
    return _replace_networks(monkeypatch, people)


def _write_empty_report(self, conversation, progress):
    (self.output / "report.html").write_text("")
    write_json(self.work("quality.json"), {"participants": {}, "findings": []})


def _replace_networks(monkeypatch: pytest.MonkeyPatch, people: list) -> type:
    """Detector, mesh, segmentation and diarization that know the truth."""

    class Detector(_Fake):
        def __call__(self, image):
            # Two people side by side, or the tile of one of them.
            rows = []
            for number in range(image.shape[1] // SIZE):
                half = image[:, number * SIZE : (number + 1) * SIZE]
                who, index = _reads(half)
                if 0 <= who < 2 and 0 <= index < FRAMES:
                    points = people[who].points[index] + [number * SIZE, 0]
                    rows.append([*points.min(axis=0), *points.max(axis=0), 0.9])
            return np.array(rows).reshape(-1, 5)

    class Mesher(_Fake):
        lost = range(0)

        def __call__(self, image):
            _Fake.calls += 1
            who, index = _reads(image)
            if who == 1 and index in self.lost:
                return None
            return people[who].points[index].astype(np.float32), people[who].depth[index].astype(np.float32)

    class Segmenter(_Fake):
        def __call__(self, image):
            mask = ((image[..., 0].astype(int) > 150) | (image[..., 0] < 50)).astype(np.float32)
            mask[:18, :66] = 0
            return mask

    monkeypatch.setattr(pipeline, "require_mediapipe", lambda: None)
    monkeypatch.setattr(faces, "FaceDetector", Detector)
    monkeypatch.setattr(landmarks, "FaceMesher", Mesher)
    monkeypatch.setattr(labels, "PersonSegmenter", Segmenter)
    monkeypatch.setattr(
        diarization, "diarize", lambda *_: [SpeechSegment(0.1, 1.2, "voice0"), SpeechSegment(1.3, 1.9, "voice1")]
    )
    _Fake.calls = 0
    return Mesher


@pytest.fixture(scope="module")
def conversation(people, video, tmp_path_factory):
    """The processed video; tests that change the folder take `chat`, a copy."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _replace_networks(monkeypatch, people)
        return process_video([video], tmp_path_factory.mktemp("made") / "chat", ProcessConfig(num_people=2))


@pytest.fixture
def chat(conversation, ideal_networks, tmp_path) -> Path:
    return Path(shutil.copytree(conversation.root, tmp_path / "chat"))


def test_lips_are_registered_unless_it_is_not_wanted(chat, video, monkeypatch):
    asked = []

    def marked(frames, head, face, basis, visible, progress):
        asked.append(sum(1 for _ in frames))
        return replace(face, expression=np.full_like(face.expression, 0.25))

    def expressions(**options):
        made = process_video([video], chat, ProcessConfig(num_people=2, **options))
        return np.stack([participant.motion.expression for participant in made.participants])

    monkeypatch.setattr(pipeline, "register_lips", marked)
    assert expressions(register_lips=False).std() > 0.01 and not asked
    ran = json.loads((chat / "process.json").read_text())["stages_run"]
    assert "expression" in ran and "head" not in ran
    assert np.allclose(expressions(), 0.25) and asked == [FRAMES, FRAMES]


def test_conversation_is_whole_and_loads(conversation):
    loaded = load_conversation(conversation.root)
    assert loaded.participant_ids == ["p0", "p1"]
    assert loaded.num_frames == FRAMES and loaded.fps == 25.0
    assert loaded.feature("mel").shape == (FRAMES, 16, 80) and loaded.feature("prosody").shape == (FRAMES, 2)
    assert len(loaded.audio()[0]) == FRAMES * 640
    for participant in loaded.participants:
        assert len(loaded.frames(participant.id)) == len(loaded.labels(participant.id)) == FRAMES
        assert loaded.background(participant.id).shape == (SIZE, SIZE, 3)
        tracking = loaded.tracking(participant.id)
        assert tracking["landmarks"].shape == (FRAMES, 478, 2) and tracking["visible"].all()
        assert tracking["confidence"].min() > 0.1
        assert participant.camera.focal == 2 * SIZE
    assert list(loaded.eval_frames) == list(range(45, 50))


def test_people_are_cut_apart_at_their_border(conversation):
    crops = [participant.source["crop"] for participant in conversation.participants]
    assert crops == [[0, 0, SIZE, SIZE], [SIZE, 0, 2 * SIZE, SIZE]]


def test_poses_and_expressions_are_the_true_ones(conversation, people):
    for participant, person in zip(conversation.participants, people, strict=True):
        rotations = Rotation.from_rotvec(participant.motion.head_pose[:, :3]).as_matrix()
        constant = (Rotation.from_matrix(rotations).inv() * Rotation.from_matrix(person.rotations)).mean()
        error = rotation_difference(person.rotations, (Rotation.from_matrix(rotations) * constant).as_matrix())
        assert np.median(error) < 0.7, "at 128 pixels"
        # The neutral face is the one with the mouth most nearly closed, here never quite.
        jaw = participant.motion.expression[:, 0]
        assert np.corrcoef(jaw, person.expression[:, 0])[0, 1] > 0.95


def test_rays_of_all_labelled_pixels_meet_their_boxes(conversation):
    for participant in conversation.participants:
        reader = conversation.labels(participant.id)
        for index in (0, 20, 49):
            label, pose = reader[index], participant.motion.head_pose[index]
            rotation = Rotation.from_rotvec(pose[:3]).as_matrix()
            for mask, box, in_head in (
                (label == HEAD, participant.head_box, True),
                ((label > 0) & (label < HEAD), participant.torso_box, False),
            ):
                v, u = np.nonzero(mask)
                assert len(u) > 50
                origin, directions = boxes.pixel_rays(np.stack([u + 0.5, v + 0.5], axis=1), participant.camera)
                if in_head:
                    origin, directions = (origin - pose[3:]) @ rotation, directions @ rotation
                a, b = (box[0] - origin) / directions, (box[1] - origin) / directions
                assert (np.minimum(a, b).max(axis=1) <= np.maximum(a, b).min(axis=1)).all()


def test_summary_has_the_figures(conversation):
    summary = json.loads((conversation.root / "process.json").read_text())
    assert set(summary["participants"]) == {"p0", "p1"}
    assert all(p.motion.sway.shape == (conversation.num_frames, 6) for p in conversation.participants)
    for figures in summary["participants"].values():
        assert figures["lost_frames"] == 0
        assert 0 < figures["reprojection_rmse_px"] < 1.0
        assert 0 <= figures["speaking_share"] <= 1
    assert {
        "people",
        "crops",
        "landmarks",
        "head",
        "expression",
        "labels",
        "background",
        "sway",
        "boxes",
        "audio",
        "total",
    } <= set(summary["seconds"])


def test_a_second_run_runs_no_stage(chat, video):
    calls = _Fake.calls
    before = (chat / "participants" / "p0" / "video.mp4").stat().st_mtime_ns
    process_video([video], chat, ProcessConfig(num_people=2))
    assert _Fake.calls == calls
    assert (chat / "participants" / "p0" / "video.mp4").stat().st_mtime_ns == before
    assert json.loads((chat / "process.json").read_text())["stages_run"] == []


def test_another_focal_length_keeps_the_landmarks(chat, video):
    calls = _Fake.calls
    again = process_video([video], chat, ProcessConfig(num_people=2, focal=300.0))
    assert _Fake.calls == calls
    assert again.participants[0].camera.focal == 300.0
    ran = json.loads((chat / "process.json").read_text())["stages_run"]
    assert ran == ["head", "expression", "sway", "boxes", "roles", "report"]


def test_a_killed_run_goes_on_where_it_stopped(ideal_networks, video, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "track_head", killed)
        with pytest.raises(KeyboardInterrupt):
            process_video([video], tmp_path / "chat", ProcessConfig(num_people=2))
    with pytest.raises(DialogueError, match="never finished"):
        load_conversation(tmp_path / "chat")
    calls = _Fake.calls
    process_video([video], tmp_path / "chat", ProcessConfig(num_people=2))
    assert _Fake.calls == calls, "the landmarks were tracked again"
    load_conversation(tmp_path / "chat")


def test_the_made_up_part_of_the_plate_is_marked(conversation):
    summary = json.loads((conversation.root / "process.json").read_text())
    for participant in conversation.participants:
        holes = conversation.background_holes(participant.id)
        assert holes.shape == (SIZE, SIZE) and holes[SIZE // 2, SIZE // 2] and not holes[20:40, :4].any()
        assert summary["participants"][participant.id]["background_made_up_share"] == pytest.approx(holes.mean())


def test_a_video_without_cuts_is_decoded_twice(ideal_networks, video, tmp_path, monkeypatch):
    decoded = []
    pictures = SourceVideo.pictures
    monkeypatch.setattr(
        SourceVideo, "pictures", lambda self, *args, **kw: decoded.append(1) or pictures(self, *args, **kw)
    )
    whole = process_video([video], tmp_path / "chat")
    assert len(decoded) == 2, "once for shots and people, once for the crops"
    # People looked for by themselves, as after a kill, are the same.
    (tmp_path / "chat" / ".process" / "people.json").unlink()
    again = process_video([video], tmp_path / "chat")
    assert len(decoded) == 3
    assert [p.source for p in again.participants] == [p.source for p in whole.participants]


def test_sound_that_fails_ends_the_stages_beside_it(ideal_networks, video, tmp_path, monkeypatch):
    def fail(*_):
        raise DialogueError("nobody listens")

    monkeypatch.setattr(diarization, "diarize", fail)
    with pytest.raises(DialogueError, match="nobody listens"):
        process_video([video], tmp_path / "chat")
    assert (tmp_path / "chat" / ".process" / "audio.json").is_file()
    monkeypatch.setattr(diarization, "diarize", lambda *_: [SpeechSegment(0.1, 1.2, "voice0")])
    process_video([video], tmp_path / "chat")
    assert "audio" not in json.loads((tmp_path / "chat" / "process.json").read_text())["stages_run"]


def test_label_maps_of_the_user_s_own(chat, video, tmp_path):
    maps = np.zeros((FRAMES, SIZE, 2 * SIZE), np.uint8)
    maps[:, 40:90, 30:90], maps[:, 40:, SIZE + 10 : SIZE + 60] = HEAD, 1
    path = tmp_path / "labels.mkv"
    with LabelWriter(path, 25.0, 2 * SIZE, SIZE) as writer:
        for labels_now in maps:
            writer.write(labels_now)
    found = process_video([video], chat, ProcessConfig(num_people=2, masks=(str(path),)))
    for number, name in enumerate(("p0", "p1")):
        with found.labels(name) as reader:
            np.testing.assert_array_equal(reader[7], maps[7, :, number * SIZE : (number + 1) * SIZE])
    ran = json.loads((chat / "process.json").read_text())["stages_run"]
    assert {"labels", "background", "boxes", "report"} <= set(ran)
    assert not {"people", "crops", "landmarks", "head"} & set(ran)
    assert load_conversation(chat).provenance["options"]["masks"] == ["labels.mkv"]


def test_wrong_label_maps_stop_before_any_long_stage(ideal_networks, video, tmp_path):
    path = tmp_path / "labels.mkv"
    with LabelWriter(path, 25.0, SIZE, SIZE) as writer:
        for _ in range(FRAMES - 1):
            writer.write(np.zeros((SIZE, SIZE), np.uint8))
    calls = _Fake.calls
    with pytest.raises(DialogueError, match=f"has {FRAMES - 1} label maps, but the conversation {FRAMES} frames"):
        process_video([video], tmp_path / "chat", ProcessConfig(num_people=2, masks=(str(path),)))
    assert _Fake.calls == calls
    with pytest.raises(DialogueError, match=r"There is no nowhere\.pth"):
        process_video([video], tmp_path / "chat", ProcessConfig(num_people=2, masks=("nowhere.pth",)))


def test_progress_tells_every_stage(ideal_networks, video, tmp_path):
    seen = {}
    process_video(
        [video], tmp_path / "chat", ProcessConfig(), lambda stage, done, total: seen.update({stage: done / total})
    )
    assert len(seen) >= 10 and set(seen.values()) == {1.0}


def test_names_and_given_roles(ideal_networks, video, tmp_path):
    rttm = tmp_path / "roles.rttm"
    write_rttm(rttm, [SpeechSegment(0.0, 1.0, "ann"), SpeechSegment(1.0, 9.0, "bob")])
    made = process_video([video], tmp_path / "chat", ProcessConfig(names=("ann", "bob"), rttm=rttm))
    assert made.participant_ids == ["ann", "bob"]
    np.testing.assert_array_equal(made.speaking[:, 0], np.arange(FRAMES) < 25)
    assert made.segments[-1].end <= FRAMES / 25


def test_an_rttm_with_unknown_names(ideal_networks, video, tmp_path):
    rttm = tmp_path / "roles.rttm"
    # Names of a diarizer's own are given to faces; beside a participant's name, another is a mistake.
    write_rttm(rttm, [SpeechSegment(0.0, 1.0, "carol"), SpeechSegment(1.0, 2.0, "p0")])
    with pytest.raises(DialogueError, match=r"roles\.rttm.*carol.*p0, p1"):
        process_video([video], tmp_path / "chat", ProcessConfig(rttm=rttm))
    assert _Fake.calls == 0, "said before the long stages"


def test_shoulders_that_cannot_be_followed_are_said(ideal_networks, video, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "measure_sway", lambda frames, *_: np.zeros((len(frames), 6), np.float32))
    made = process_video([video], tmp_path / "chat")
    assert all(person.motion.sources["sway"].startswith("none") for person in made.participants)
    notes = json.loads((tmp_path / "chat" / "process.json").read_text())["notes"]
    assert any("shoulders of p0, p1 could not be followed" in note for note in notes)


def test_expressions_in_a_given_face_model_from_end_to_end(chat, video, people, tmp_path, capsys):
    (tmp_path / "ict").mkdir()
    path = write_ict(tmp_path / "ict", true_model())
    assert (
        main(["process", str(video), "--output", str(chat), "--num-people", "2", "--face-model-path", str(path)]) == 0
    )
    made = load_conversation(chat)
    names = ("browOuterUp_L", "jawOpen", "mouthPucker", "mouthSmile_L", "mouthSmile_R")
    basis = ExpressionBasis.load(chat / "face_model.npz")
    for participant, person in zip(made.participants, people, strict=True):
        motion = participant.motion
        assert motion.expression_names == names and motion.expression.shape == (FRAMES, 5)
        assert motion.expression_basis == basis.name == made.provenance["expression_basis"]
        assert np.corrcoef(motion.expression[:, 1], person.expression[:, 0])[0, 1] > 0.9, "the jaw"
    ran = json.loads((chat / "process.json").read_text())["stages_run"]
    assert "expression" in ran and not {"crops", "landmarks", "head", "labels"} & set(ran)
    assert main(["process", str(video), "--output", str(chat), "--num-people", "2"]) == 0
    assert (
        not (chat / "face_model.npz").exists()
        and len(load_conversation(chat).participants[0].motion.expression[0]) > 20
    )


def test_one_video_a_person(ideal_networks, people, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number, person in enumerate(people):
        pictures = [_picture(person, index, number) for index in range(FRAMES - 10 * number)]
        write_video(videos / f"{number}.mp4", pictures, audio=tone(2.4))
    process_inputs([videos], tmp_path / "chat")
    made = load_conversation(tmp_path / "chat")
    assert made.num_frames == FRAMES - 10 and len(made.participants) == 2
    assert (tmp_path / "chat" / "audio" / "p1.wav").is_file()


def test_a_short_loss_is_bridged_and_counted(ideal_networks, video, tmp_path):
    ideal_networks.lost = range(20, 24)
    process_video([video], tmp_path / "chat", ProcessConfig(num_people=2))
    figures = json.loads((tmp_path / "chat" / "process.json").read_text())["participants"]
    assert figures["p1"]["lost_frames"] == 4 and figures["p0"]["lost_frames"] == 0


def test_the_report_is_written_and_summed_up(conversation):
    page = (conversation.root / "report.html").read_text()
    assert "Ready to train" in page and page.count("data:image/jpeg") >= 10
    quality = json.loads((conversation.root / "process.json").read_text())["quality"]
    assert set(quality["participants"]) == {"p0", "p1"}
    assert {finding["severity"] for finding in quality["findings"]} <= {"problem", "note"}


def test_a_photograph_is_refused_but_not_against_the_user_s_will(monkeypatch, people, tmp_path, capsys):
    _replace_networks(monkeypatch, people)
    pictures = [np.concatenate([_picture(people[0], i, 0), _picture(people[1], 0, 1)], axis=1) for i in range(FRAMES)]
    path = write_video(tmp_path / "still.mp4", pictures, audio=tone(FRAMES / 25))
    command = ["process", str(path), "--num-people", "2", "--output", str(tmp_path / "chat")]
    for _ in range(2):
        assert main(command) == 2
        captured = capsys.readouterr()
        assert "Participant p1: Nothing in this face moves" in captured.err and "report.html" in captured.err
        assert "Not usable" in (tmp_path / "chat" / "report.html").read_text()
        assert not (tmp_path / "chat" / "conversation.json").exists()
    assert main([*command, "--allow-unusable"]) == 0
    assert "photograph" in capsys.readouterr().out
    assert len(load_conversation(tmp_path / "chat").participants) == 2
    assert main(command) == 2 and not (tmp_path / "chat" / "conversation.json").exists()


def test_sound_from_files_beside_the_videos(ideal_networks, people, tmp_path):
    videos = [
        write_video(tmp_path / f"{n}.mp4", [_picture(person, index, n) for index in range(FRAMES)])
        for n, person in enumerate(people)
    ]
    sounds = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path, amplitude in zip(sounds, (0.2, 0.5), strict=True):
        save_wav(path, amplitude / 0.3 * tone(2.0))
    with pytest.raises(DialogueError, match=r"0\.mp4 has no audio track.*--audio"):
        process_video(videos, tmp_path / "chat")
    made = process_video(videos, tmp_path / "chat", ProcessConfig(audio=tuple(sounds)))
    assert np.abs(made.audio()[0]).max() == pytest.approx(0.7, abs=0.01)
    assert np.abs(load_audio(tmp_path / "chat" / "audio" / "p1.wav")).max() == pytest.approx(0.5, abs=0.01)
    calls = _Fake.calls
    made = process_video(videos, tmp_path / "chat", ProcessConfig(audio=(sounds[0],)))
    assert np.abs(made.audio()[0]).max() == pytest.approx(0.2, abs=0.01)
    # What is left of everybody's own sound is cut from the one file.
    own = [np.abs(load_audio(path)).max() for path in (tmp_path / "chat" / "audio").glob("*.wav")]
    assert max(own, default=0.0) < 0.21 and _Fake.calls == calls
    made = process_video(videos, tmp_path / "chat", ProcessConfig(without_sound=True))
    assert not made.audio()[0].any() and _Fake.calls == calls
    assert "drive expression" in json.loads((tmp_path / "chat" / "process.json").read_text())["notes"][0]


def test_sound_much_shorter_than_the_pictures(ideal_networks, people, tmp_path):
    frames = [np.concatenate([_picture(p, i, n) for n, p in enumerate(people)], axis=1) for i in range(FRAMES)]
    path = write_video(tmp_path / "early.mp4", frames, audio=tone(0.7))
    with pytest.raises(DialogueError, match=r"early\.mp4 ends after 0\.[78] s, the pictures after 2\.0 s.*--audio"):
        process_video([path], tmp_path / "chat")
    assert _Fake.calls == 0, "said before the long stages"
    made = process_video([path], tmp_path / "chat", ProcessConfig(allow_unusable=True))
    sound = np.abs(made.audio()[0])
    assert len(sound) == FRAMES * 640 and sound[:10000].max() > 0.2 and not sound[16000:].any()
    notes = json.loads((tmp_path / "chat" / "process.json").read_text())["notes"]
    assert "silence was taken for the rest" in notes[0]
    save_wav(tmp_path / "whole.wav", tone(2.0))
    save_wav(tmp_path / "short.wav", tone(0.8))
    whole = process_video([path], tmp_path / "chat", ProcessConfig(audio=(tmp_path / "whole.wav",)))
    assert np.abs(whole.audio()[0][-3000:]).max() > 0.2
    with pytest.raises(DialogueError, match=r"short\.wav ends after 0\.8 s"):
        process_video([path], tmp_path / "chat", ProcessConfig(audio=(tmp_path / "short.wav",)))


def _cut_video(people, path: Path) -> Path:
    """Two seconds of an empty bright room, then both people, then another room; the sound grows at the first cut."""
    empty = [np.full((SIZE, 2 * SIZE, 3), 230, np.uint8)] * 60
    both = [np.concatenate([_picture(p, i, n) for n, p in enumerate(people)], axis=1) for i in range(FRAMES)]
    frames = [*empty, *both, *[np.full((SIZE, 2 * SIZE, 3), (250, 120, 20), np.uint8)] * 30]
    loudness = np.repeat([0.1, 1.0], [60 * 640, (len(frames) - 60) * 640])
    return write_video(path, frames, audio=(loudness * tone(len(frames) / 25)).astype(np.float32))


def test_the_longest_shot_with_the_people_is_taken(ideal_networks, people, tmp_path):
    path = _cut_video(people, tmp_path / "cut.mp4")
    made = process_video([path], tmp_path / "chat")
    assert made.num_frames == FRAMES and len(made.participants) == 2
    assert made.participants[0].source["start_seconds"] == pytest.approx(60 / 25)
    assert [_reads(frame)[1] for frame in made.frames("p0").iterate()][:3] == [0, 1, 2]
    samples, _ = made.audio()
    assert len(samples) == FRAMES * 640 and np.abs(samples[3000:]).max() > 0.25, "the sound is that of the shot"
    note = json.loads((tmp_path / "chat" / "process.json").read_text())["notes"][0]
    assert "1: 0.0-2.4 s, 2: 2.4-4.4 s, 3: 4.4-5.6 s" in note and "shot 2 was taken" in note
    for shot, message in ((1, "no face"), (4, "no shot 4; the shots are 1: 0.0-2.4 s")):
        with pytest.raises(DialogueError, match=message):
            process_video([path], tmp_path / f"chat{shot}", ProcessConfig(shot=shot))


def test_all_shots_become_conversations(ideal_networks, people, tmp_path, monkeypatch):
    both = [np.concatenate([_picture(p, i, n) for n, p in enumerate(people)], axis=1) for i in range(FRAMES)]
    empty = [np.full((SIZE, 2 * SIZE, 3), 230, np.uint8)] * 30
    other = [np.full((SIZE, 2 * SIZE, 3), (250, 120, 20), np.uint8)] * 12
    frames = [*both, *empty, *both, *other]
    path = write_video(tmp_path / "cut.mp4", frames, audio=tone(len(frames) / 25))
    looked = []
    find_cuts = pipeline.find_cuts
    monkeypatch.setattr(pipeline, "find_cuts", lambda *args: looked.append(args) or find_cuts(*args))
    made = process_inputs([path], tmp_path / "out", ProcessConfig(shot="all"))
    assert [each["folder"] for each in made] == ["shot-01", "shot-03"] and len(looked) == 1
    for each, start in zip(made, (0, FRAMES + 30), strict=True):
        conversation = load_conversation(tmp_path / "out" / each["folder"])
        assert conversation.num_frames == each["num_frames"] == FRAMES and len(conversation.participants) == 2
        assert conversation.participants[0].source["start_seconds"] == pytest.approx(start / 25)
    outcomes = json.loads((tmp_path / "out" / "shots.json").read_text())
    assert "no face" in outcomes[1]["reason"] and "shorter than 25" in outcomes[3]["reason"]
    calls = _Fake.calls
    process_inputs([path], tmp_path / "out", ProcessConfig(shot="all"))
    assert _Fake.calls == calls and len(looked) == 1, "finished shots are kept"
    with pytest.raises(DialogueError, match="None of the 1 shots"):
        write_video(tmp_path / "empty.mp4", empty, audio=tone(2))
        process_inputs([tmp_path / "empty.mp4"], tmp_path / "no", ProcessConfig(shot="all"))


def test_sound_beside_videos_is_theirs(ideal_networks, people, tmp_path):
    folder = tmp_path / "talk"
    folder.mkdir()
    for number, (name, person) in enumerate(zip("ba", people, strict=True)):
        write_video(folder / f"{'ab'[number]}.mp4", [_picture(person, index, number) for index in range(FRAMES)])
        save_wav(folder / f"{name}.wav", (0.2 + 0.3 * number) / 0.3 * tone(2.0))
    write_rttm(folder / "who.rttm", [SpeechSegment(0.0, 1.0, "p1")])
    process_inputs([folder], tmp_path / "chat")
    made = load_conversation(tmp_path / "chat")
    loudness = [np.abs(load_audio(tmp_path / "chat" / "audio" / f"{name}.wav")).max() for name in ("p0", "p1")]
    assert loudness == pytest.approx([0.5, 0.2], abs=0.01), "each the sound of its name"
    np.testing.assert_array_equal(made.speaking, np.stack([np.zeros(FRAMES), np.arange(FRAMES) < 25], axis=1))
    with pytest.raises(DialogueError, match=r"--audio and a\.wav"):
        process_inputs([folder], tmp_path / "no", ProcessConfig(audio=(folder / "a.wav",)))


def test_each_file_and_each_folder_is_a_recording(tmp_path):
    names = ("one.mp4", "one.wav", "one.rttm", "two.MOV", "voice.mp3", "notes.txt", ".hidden.mp4")
    names += ("pair/a.mp4", "pair/b.mp4", "pair/both.wav", "texts/a.txt", "done/audio.wav", "done/conversation.json")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = {
        recording.source.name: [file.name for file in recording.files] for recording in find_recordings([tmp_path])
    }
    assert found == {
        "one.mp4": ["one.mp4", "one.wav", "one.rttm"],
        "two.MOV": ["two.MOV"],
        "voice.mp3": ["voice.mp3"],
        "pair": ["a.mp4", "b.mp4", "both.wav"],
    }
    for message, inputs in (("no video and no sound", tmp_path / "texts"), ("no file", tmp_path / "none.mp4")):
        with pytest.raises(DialogueError, match=message):
            find_recordings([inputs])


def test_a_folder_of_many_videos_is_not_one_conversation(tmp_path):
    for index in range(17):
        (tmp_path / f"{index}.mp4").touch()
    with pytest.raises(DialogueError, match=r"17 videos.*add --each"):
        process_inputs([tmp_path], tmp_path / "chat")
    with pytest.raises(DialogueError, match="already is a conversation"):
        (tmp_path / "conversation.json").touch()
        process_inputs([tmp_path], tmp_path / "chat")


def test_a_face_lost_for_seconds(ideal_networks, video, tmp_path):
    ideal_networks.lost = range(12, 45)
    with pytest.raises(DialogueError, match=r"chat\.mp4.*participant p1 is lost from frame 12 to 44"):
        process_video([video], tmp_path / "chat", ProcessConfig(num_people=2))


def test_one_participant_s_failure_stops_the_others(ideal_networks, video, tmp_path, monkeypatch):
    def fails_for_the_first(self, participant, progress):
        if participant == "p0":
            raise DialogueError("p0 cannot be done")
        while True:
            progress(0.5)

    monkeypatch.setattr(pipeline.Processing, "track_landmarks", fails_for_the_first)
    with pytest.raises(DialogueError, match="p0 cannot be done"):
        process_video([video], tmp_path / "chat", ProcessConfig(num_people=2))


def test_one_face_where_two_are_asked_for(ideal_networks, people, tmp_path):
    pictures = [_picture(people[0], index, 0) for index in range(FRAMES)]
    path = write_video(tmp_path / "one.mp4", pictures, audio=tone(2.4))
    with pytest.raises(DialogueError, match=r"one\.mp4 shows 1 face.*2 people"):
        process_video([path], tmp_path / "chat", ProcessConfig(num_people=2))


def test_a_folder_that_holds_something_else_is_left_alone(ideal_networks, video, tmp_path):
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat" / "thesis.txt").write_text("years of work")
    with pytest.raises(DialogueError, match="already holds other files"):
        process_video([video], tmp_path / "chat")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ProcessConfig(num_people=0), "num_people"),
        (ProcessConfig(shot=0), "shot"),
        (ProcessConfig(audio=(Path("none.wav"),)), "none.wav"),
        (ProcessConfig(audio=(Path("a.wav"), Path("b.wav"))), "2 sound files"),
        (ProcessConfig(audio=(Path("a.wav"),), without_sound=True), "exclude"),
        (ProcessConfig(size=63), "size"),
        (ProcessConfig(size=99), "size"),
        (ProcessConfig(focal=-1.0), "focal"),
        (ProcessConfig(ipd=63.0), "metres"),
        (ProcessConfig(names=("ann",)), "1 name"),
        (ProcessConfig(names=("ann", "ann")), "differ"),
        (ProcessConfig(names=("an/n", "bob")), "letters"),
        (ProcessConfig(eval_fraction=1.0), "eval_fraction"),
        (ProcessConfig(rttm=Path("none.rttm")), "none.rttm"),
    ],
)
def test_bad_options(ideal_networks, video, tmp_path, config, message):
    with pytest.raises(DialogueError, match=message):
        process_video([video], tmp_path / "chat", config)


def test_bad_inputs(ideal_networks, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DialogueError, match="no video"):
        process_inputs([tmp_path / "empty"], tmp_path / "chat")
    with pytest.raises(DialogueError, match="No video"):
        process_video([], tmp_path / "chat")
    with pytest.raises(DialogueError, match="no file"):
        process_video([tmp_path / "none.mp4"], tmp_path / "chat")
    assert not (tmp_path / "chat").exists()


def test_without_mediapipe_there_is_one_sentence(monkeypatch, video, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "mediapipe", None)
    monkeypatch.delitem(__import__("sys").modules, "mediapipe.python.solutions", raising=False)
    with pytest.raises(DialogueError, match="mediapipe"):
        process_video([video], tmp_path / "chat")


def test_on_a_newer_python_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr(face_mesh.sys, "version_info", (3, 12, 1))
    with pytest.raises(DialogueError, match=r"Python 3\.12.*pip install"):
        face_mesh.require_mediapipe()


def test_nobody_in_the_video(tmp_path):
    pytest.importorskip("mediapipe", reason="the real detector looks for faces")
    path = write_video(tmp_path / "noise.mp4", noise_frames(40), audio=tone(1.6))
    with pytest.raises(DialogueError, match=r"noise\.mp4 shows no face"):
        process_video([path], tmp_path / "chat")


def test_errors_inside_the_quiet_block_are_not_swallowed(capfd):
    with pytest.raises(ValueError, match="told"), face_mesh.quiet_stderr():
        __import__("os").write(2, b"why it failed\n")
        raise ValueError("told")
    assert "why it failed" in capfd.readouterr().err
    with face_mesh.quiet_stderr():
        __import__("os").write(2, b"chatter\n")
    assert "chatter" not in capfd.readouterr().err


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("clip", "people", "rmse"),
    [("single_anchor_20s", 1, 0.8), ("single_13s", 1, 1.0), ("single_longhair_8s", 1, 1.6), ("dyad_8s", 2, 0.8)],
)
def test_real_clips(shared_clips, tmp_path, clip, people, rmse):
    pytest.importorskip("mediapipe", reason="the real networks")
    made = process_video([shared_clips / f"{clip}.mp4"], tmp_path / clip)
    figures = json.loads((tmp_path / clip / "process.json").read_text())["participants"]
    assert len(made.participants) == people
    for participant in made.participants:
        assert figures[participant.id]["lost_frames"] == 0
        assert figures[participant.id]["reprojection_rmse_px"] < rmse
        assert figures[participant.id]["rotation_jitter_degrees"] < 0.15
        label = made.labels(participant.id)[made.num_frames // 2]
        assert 0.1 < (label == HEAD).mean() < 0.6 and label[-10:].any() and not label[:3].all()
