"""A conversation folder round-trips, and every kind of damage is one sentence that names it."""

import json

import numpy as np
import pytest
from samples import make_motion

from dialogue_nerfstudio.conversation import (
    Camera,
    Conversation,
    DialogueError,
    LabelWriter,
    Participant,
    SpeechSegment,
    VideoWriter,
    load_conversation,
    save_conversation,
    split_frames,
)

NUM_FRAMES = 6


def make_conversation() -> Conversation:
    camera = Camera(64, 48, 128.0, 32.0, 24.0, np.hstack([np.eye(3), [[0.0], [0.0], [0.6]]]))
    participants = [
        Participant(
            id=participant_id,
            name=participant_id.upper(),
            camera=camera,
            head_box=np.array([[-0.1, -0.15, -0.12], [0.1, 0.15, 0.12]]),
            torso_box=np.array([[-0.3, -0.4, -0.3], [0.3, 0.0, 0.1]]),
            motion=make_motion(NUM_FRAMES),
            source={"file": "chat.mp4", "crop": [0, 0, 64, 48]},
        )
        for participant_id in ("p0", "p1")
    ]
    train, held_out = split_frames(NUM_FRAMES, 0.34)
    return Conversation(NUM_FRAMES, participants, [SpeechSegment(0, 0.12, "p1")], train, held_out)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "chat"
    for participant_id in ("p0", "p1"):
        with (
            VideoWriter(root / "participants" / participant_id / "video.mp4", 25, 64, 48) as video,
            LabelWriter(root / "participants" / participant_id / "labels.mkv", 25, 64, 48) as labels,
        ):
            for index in range(NUM_FRAMES):
                video.write(np.full((48, 64, 3), 10 * index, dtype=np.uint8))
                labels.write(np.full((48, 64), index % 4, dtype=np.uint8))
    save_conversation(make_conversation(), root)
    return root


def test_round_trip(folder):
    expected, loaded = make_conversation(), load_conversation(folder)
    assert loaded.participant_ids == ["p0", "p1"]
    assert loaded.train_frames.tolist() == [0, 1, 2, 3] and loaded.eval_frames.tolist() == [4, 5]
    assert loaded.speaking.tolist() == [[False, True]] * 3 + [[False, False]] * 3
    for ours, theirs in zip(loaded.participants, expected.participants, strict=True):
        assert np.allclose(ours.camera.camera_to_person, theirs.camera.camera_to_person)
        assert np.allclose(ours.head_box, theirs.head_box) and np.allclose(ours.torso_box, theirs.torso_box)
        assert np.allclose(ours.motion.head_pose, theirs.motion.head_pose)
        assert ours.source == theirs.source
    assert loaded.frames("p0")[3].mean() == pytest.approx(30, abs=2)
    assert (loaded.labels("p1")[3] == 3).all()


def test_split_with_a_gap_round_trips(folder):
    conversation = make_conversation()
    conversation.train_frames, conversation.eval_frames = np.array([0, 1, 3]), np.array([2, 5])
    save_conversation(conversation, folder)
    loaded = load_conversation(folder)
    assert loaded.train_frames.tolist() == [0, 1, 3] and loaded.eval_frames.tolist() == [2, 5]


def edit_manifest(folder, **changes):
    manifest = json.loads((folder / "conversation.json").read_text())
    manifest.update(changes)
    (folder / "conversation.json").write_text(json.dumps(manifest))


def test_newer_schema(folder):
    edit_manifest(folder, schema_version=99)
    with pytest.raises(DialogueError, match=r"schema version 99.*upgrade"):
        load_conversation(folder)


def test_half_written_folder(folder):
    (folder / "conversation.json").unlink()
    with pytest.raises(DialogueError, match=r"never finished.*goes on where it stopped"):
        load_conversation(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(DialogueError, match="not a folder"):
        load_conversation(tmp_path / "none")


def test_damaged_manifest(folder):
    edit_manifest(folder, participants=[{"id": "p0"}])
    with pytest.raises(DialogueError, match=r"conversation\.json is damaged"):
        load_conversation(folder)


def test_id_that_leaves_the_folder(folder):
    manifest = json.loads((folder / "conversation.json").read_text())
    manifest["participants"][0]["id"] = "../participants/p0"
    (folder / "conversation.json").write_text(json.dumps(manifest))
    with pytest.raises(DialogueError, match="more than letters"):
        load_conversation(folder)


def test_nan_in_a_motion(folder):
    motion = make_motion(NUM_FRAMES)
    motion.head_pose[2, 1] = np.nan
    motion.save(folder / "participants" / "p1" / "motion.npz")
    with pytest.raises(DialogueError, match=r"participants/p1/motion\.npz: head_pose is not a number at frame 2"):
        load_conversation(folder)


def test_motion_of_another_length(folder):
    make_motion(NUM_FRAMES + 1).save(folder / "participants" / "p1" / "motion.npz")
    with pytest.raises(DialogueError, match="participant p1 has 7 frames"):
        load_conversation(folder)


def test_rttm_of_strangers(folder):
    (folder / "roles.rttm").write_text("SPEAKER x 1 0.0 1.0 <NA> <NA> zoe <NA> <NA>\n")
    with pytest.raises(DialogueError, match="zoe"):
        load_conversation(folder)


def test_video_of_another_length(folder):
    with VideoWriter(folder / "participants" / "p0" / "video.mp4", 25, 64, 48) as video:
        video.write(np.zeros((48, 64, 3), dtype=np.uint8))
    with pytest.raises(DialogueError, match=r"video\.mp4 has 1 frames"):
        load_conversation(folder).frames("p0")


def test_missing_feature_is_named(folder):
    with pytest.raises(DialogueError, match="'hubert'"):
        load_conversation(folder).feature("hubert")


@pytest.mark.parametrize(("num_frames", "fraction", "num_eval"), [(500, 0.1, 50), (10, 0.01, 1), (2, 0.9, 1)])
def test_split_holds_out_the_end(num_frames, fraction, num_eval):
    train, held_out = split_frames(num_frames, fraction)
    assert held_out.tolist() == list(range(num_frames - num_eval, num_frames))
    assert np.array_equal(np.concatenate([train, held_out]), np.arange(num_frames))


@pytest.mark.parametrize(("num_frames", "fraction"), [(1, 0.1), (10, 0.0), (10, 1.0), (10, float("nan"))])
def test_impossible_split(num_frames, fraction):
    with pytest.raises(DialogueError):
        split_frames(num_frames, fraction)
