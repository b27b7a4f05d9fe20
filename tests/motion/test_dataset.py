"""Windows are what their sources hold, simulated and recorded; every rank sees its own; bad sources get a sentence."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.conversation import DialogueError, Motion, Participant, load_conversation, save_conversation
from dialogue_nerfstudio.conversation.acoustics import mel_spectrogram, prosody_features
from dialogue_nerfstudio.conversation.motion_shards import MANIFEST_NAME, read_manifest
from dialogue_nerfstudio.conversation.simulate.motion_hours import MotionHoursConfig, simulate_motion_hours
from dialogue_nerfstudio.motion import dataset as dataset_module
from dialogue_nerfstudio.motion.dataset import NOBODY, MotionDataset
from dialogue_nerfstudio.motion.mapped import TRACKS_NAME

CONFIG = MotionHoursConfig(hours=8 * 10.0 / 3600.0, num_people=6, conversation_seconds=10.0, seed=3)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("motion") / "data"
    simulate_motion_hours(CONFIG, folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def of_three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three") / "data"
    config = MotionHoursConfig(hours=8 * 10.0 / 3600.0, num_people=3, people_per_conversation=3, seed=3)
    simulate_motion_hours(config, folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return write_tiny_conversation(tmp_path_factory.mktemp("recorded") / "tiny", num_frames=100)


def _copy(source, target):
    shutil.copytree(source, target)
    return target


def test_windows_are_slices_of_the_shards(simulated):
    dataset = MotionDataset([simulated], window=60, with_mel=True)
    drawn = dataset.draw(16, np.random.default_rng(0))
    assert drawn.own.mel.shape == (16, 192, 80)
    for index in range(16):
        start = int(drawn.start[index])
        assert start % 5 == 0
        found = 0
        for entry in read_manifest(simulated).conversations:
            with safe_open(simulated / entry.file_name, framework="numpy") as shard:
                arrays = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
            for own in range(2):
                if not np.array_equal(arrays["head_pose"][own, start : start + 60], drawn.own.head_pose[index]):
                    continue
                found += 1
                assert entry.split == "train"
                assert dataset.person_ids[drawn.person[index]] == f"data/{entry.people[own]}"
                assert dataset.person_ids[drawn.partner_person[index]] == f"data/{entry.people[1 - own]}"
                for side, person in ((drawn.own, own), (drawn.partner, 1 - own)):
                    for name in ("head_pose", "expression", "blink", "prosody", "speaking", "expected_head_pose"):
                        stored = arrays[name][person, start : start + 60]
                        np.testing.assert_array_equal(stored, getattr(side, name)[index], err_msg=name)
                    gaze = arrays["gaze"][person, start : start + 60].reshape(60, 4)
                    np.testing.assert_array_equal(gaze, side.gaze[index])
                    first = round(start * 3.2)
                    np.testing.assert_array_equal(arrays["mel"][person, first : first + 192], side.mel[index])
        assert found == 1


def test_same_rng_same_windows(simulated):
    dataset = MotionDataset([simulated], window=60)
    first, again = (dataset.draw(8, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first.own.head_pose, again.own.head_pose) and first.own.mel is None
    assert not torch.equal(first.own.head_pose, dataset.draw(8, np.random.default_rng(6)).own.head_pose)


def test_every_start_is_drawn(simulated):
    dataset = MotionDataset([simulated], window=235)
    drawn = dataset.draw(1000, np.random.default_rng(0))
    assert set(drawn.start.tolist()) == {0, 5, 10, 15}
    assert set(drawn.person.tolist()) == set(dataset.split_people("train"))


def test_end_to_end_windows_cover_every_person_once(simulated):
    dataset = MotionDataset([simulated], window=58)
    windows = dataset.batch(range(len(dataset)))
    assert len(dataset) == 6 * 2 * (250 // 60)
    assert set(windows.start.tolist()) == {0, 60, 120, 180}
    first = windows.own.head_pose[:, 0].numpy()
    assert len(np.unique(first, axis=0)) == len(dataset)
    with pytest.raises(IndexError):
        dataset.batch([len(dataset)])


def test_splits_share_nobody_and_nothing(simulated):
    splits = {name: MotionDataset([simulated], name, window=60) for name in ("train", "eval", "unseen")}
    assert not set(splits["train"].split_people("train")) & set(splits["train"].split_people("unseen"))
    poses = {name: split.batch(range(len(split))).own.head_pose[:, 0].numpy() for name, split in splits.items()}
    everything = np.concatenate(list(poses.values()))
    assert len(np.unique(everything, axis=0)) == len(everything)
    assert splits["train"].person_ids == splits["unseen"].person_ids


def test_statistics_are_of_the_training_split(simulated):
    statistics = MotionDataset([simulated], "eval", window=60).statistics
    entries = [entry for entry in read_manifest(simulated).conversations if entry.split == "train"]
    poses, expressions = [], []
    for entry in entries:
        with safe_open(simulated / entry.file_name, framework="numpy") as shard:
            poses += list(shard.get_tensor("head_pose"))
            expressions += list(shard.get_tensor("expression").astype(np.float64))
    rows = np.concatenate(poses).astype(np.float64)
    steps = np.concatenate([np.diff(pose, axis=0) for pose in poses]).astype(np.float64)
    np.testing.assert_allclose(statistics.head_pose, [rows.mean(axis=0), rows.std(axis=0)], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(statistics.head_velocity, [steps.mean(axis=0), steps.std(axis=0)], rtol=1e-3, atol=1e-6)
    faces = np.concatenate(expressions)
    still = faces.std(axis=0) == 0
    assert still.any()
    np.testing.assert_allclose(statistics.expression[1], np.where(still, 1.0, faces.std(axis=0)), rtol=1e-4)
    assert statistics.num_people == 6 and statistics.expression_basis == "dialogue-28"


def test_few_conversations_are_open_at_a_time(simulated, monkeypatch):
    monkeypatch.setattr(dataset_module, "OPEN_CONVERSATIONS", 2)
    dataset = MotionDataset([simulated], window=60)
    seen = dataset.batch(range(len(dataset)))
    assert len(dataset._open) == 2
    assert torch.equal(
        seen.own.head_pose, MotionDataset([simulated], window=60).batch(range(len(dataset))).own.head_pose
    )


def test_partners_of_three_are_who_speaks(of_three):
    dataset = MotionDataset([of_three], window=200, with_mel=True)
    assert dataset.num_people == 3
    windows = dataset.batch(range(len(dataset)))
    entry = next(entry for entry in read_manifest(of_three).conversations if entry.split == "train")
    with safe_open(of_three / entry.file_name, framework="numpy") as shard:
        poses, speaking, mel = (shard.get_tensor(name) for name in ("head_pose", "speaking", "mel"))
    checked = set()
    for frame in range(200):
        speakers = np.flatnonzero(speaking[1:, frame]) + 1
        if len(speakers) == 1:
            np.testing.assert_array_equal(windows.partner.head_pose[0, frame], poses[speakers[0], frame])
            assert windows.partner.speaking[0, frame]
            step = int(np.ceil(frame * 3.2))
            np.testing.assert_array_equal(windows.partner.mel[0, step], mel[speakers[0], step])
            checked.add(int(speakers[0]))
    assert checked == {1, 2}


def test_recorded_conversation_joins(simulated, recorded):
    dataset = MotionDataset([simulated, recorded], window=20)
    assert dataset.num_people == 8 and dataset.person_ids[-1] == "tiny/p1"
    assert set(dataset.split_people("eval")) >= {6, 7}
    alone = MotionDataset([recorded], split="eval", window=20, with_mel=True)
    windows = alone.batch([0, 1])
    assert (recorded / TRACKS_NAME).is_file()
    assert len(alone) == 2 and windows.start.tolist() == [80, 80] and windows.own.expected_head_pose is None
    conversation = load_conversation(recorded)
    for person in (0, 1):
        motion = conversation.participants[person].motion
        np.testing.assert_allclose(windows.own.head_pose[person], motion.head_pose[80:], atol=1e-6)
        np.testing.assert_allclose(windows.own.expression[person], motion.expression[80:], atol=1e-3)
        np.testing.assert_array_equal(windows.own.speaking[person], conversation.speaking[80:, person])
        assert windows.partner_person[person] == 1 - person
        # Whoever is silent has a silent track.
        silent = ~conversation.speaking[80:, person]
        loud = windows.own.prosody[person, :, 1].numpy()
        assert loud[~silent].mean() > 5 * loud[silent][2:-2].mean() if (~silent).any() else loud.max() < 0.05
    both = dataset.draw(64, np.random.default_rng(0))
    assert both.own.expected_head_pose is None and set(both.person.tolist()) & {6, 7}


def test_folders_of_one_name_are_told_apart(simulated, tmp_path):
    other = _copy(simulated, tmp_path / "data")
    dataset = MotionDataset([simulated, other, simulated], window=20)
    assert dataset.num_people == 12 and len(set(dataset.person_ids)) == 12
    assert dataset.person_ids[0] == f"{simulated}/person-0000"


def test_separate_tracks_are_used_and_analysed_again_when_they_change(recorded, tmp_path):
    root = _copy(recorded, tmp_path / "tracks")
    rng = np.random.default_rng(0)
    sounds = (0.1 * rng.standard_normal((2, 64_000))).astype(np.float32)
    first = MotionDataset([root], window=20).batch([0]).own.prosody
    (root / "audio").mkdir()
    for person in (0, 1):
        soundfile.write(root / "audio" / f"p{person}.wav", sounds[person], 16_000, subtype="FLOAT")
    windows = MotionDataset([root], window=20, with_mel=True).batch([0])
    assert not torch.equal(first, windows.own.prosody)
    for side, sound in ((windows.own, sounds[0]), (windows.partner, sounds[1])):
        np.testing.assert_array_equal(side.prosody[0], prosody_features(sound, 16_000, 100)[:20])
        np.testing.assert_allclose(side.mel[0], mel_spectrogram(sound)[:64], atol=1e-3)


def test_somebody_alone_has_a_silent_partner(tmp_path):
    root = write_tiny_conversation(tmp_path / "alone", num_people=1, num_frames=60)
    windows = MotionDataset([root], window=20, with_mel=True).batch([0])
    assert windows.partner_person.tolist() == [NOBODY]
    assert not windows.partner.head_pose.any() and (windows.partner.mel == -1).all()
    assert not windows.partner.speaking.any()


def test_sequences_are_whole_and_bring_characters(simulated, recorded):
    sequences = list(MotionDataset([simulated, recorded], "eval", window=20, with_mel=True).sequences(4.0))
    assert [sequence.signals.num_frames for sequence in sequences] == [250, 20]
    entry = next(entry for entry in read_manifest(simulated).conversations if entry.split == "eval")
    with safe_open(simulated / entry.file_name, framework="numpy") as shard:
        truth = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    sequence = sequences[0]
    assert sequence.signals.participant_ids == entry.people
    np.testing.assert_array_equal(sequence.expected_head_pose, truth["expected_head_pose"])
    np.testing.assert_array_equal(sequence.signals.prosody, truth["prosody"])
    np.testing.assert_array_equal(sequence.signals.mel, truth["mel"].astype(np.float32))
    for person, (motion, character) in enumerate(zip(sequence.motions, sequence.characters, strict=True)):
        np.testing.assert_array_equal(motion.head_pose, truth["head_pose"][person])
        assert character.id == entry.people[person]
        assert character.reference.num_frames == len(character.was_speaking) == 100
        motion.validate("motion")
    recorded_sequence = sequences[1]
    assert recorded_sequence.start == 80 and recorded_sequence.expected_head_pose is None
    assert recorded_sequence.motions[0].sources["head_pose"] == "tracked"


def test_unseen_people_are_known_from_the_beginning_alone(simulated):
    dataset = MotionDataset([simulated], "unseen", window=60)
    sequence = next(dataset.sequences(4.0))
    assert sequence.start == 100 and sequence.signals.num_frames == 150
    entry = next(entry for entry in read_manifest(simulated).conversations if entry.split == "unseen")
    with safe_open(simulated / entry.file_name, framework="numpy") as shard:
        poses = shard.get_tensor("head_pose")
    np.testing.assert_array_equal(sequence.characters[0].reference.head_pose, poses[0, :100])
    np.testing.assert_array_equal(sequence.motions[0].head_pose, poses[0, 100:])
    assert set(dataset.characters(4.0)) == set(dataset.split_people("unseen"))
    with pytest.raises(DialogueError, match="ask for a shorter one"):
        next(dataset.sequences(9.0))


def test_bad_sources(simulated, recorded, tmp_path):
    def refused(sources, sentence, **options):
        with pytest.raises(DialogueError, match=sentence):
            MotionDataset(sources, **options)

    empty = tmp_path / "empty"
    empty.mkdir()
    refused([], "no motion data was given")
    refused([empty], "holds no motion_dataset.json")
    refused([tmp_path / "missing"], "is not a folder")
    half = _copy(simulated, tmp_path / "half")
    (half / MANIFEST_NAME).unlink()
    refused([half], "was never finished")
    refused([simulated], "fewer than the window's 251", window=251)
    refused([recorded], "fewer than the window's 40", window=40, split="eval")
    refused([recorded], "nothing in the split 'unseen' of tiny", split="unseen", window=20)
    damaged = _copy(simulated, tmp_path / "damaged")
    shard = damaged / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(DialogueError, match=r"shard-00000\.safetensors is damaged"):
        MotionDataset([damaged], window=20).batch([0])
    shard.unlink()
    with pytest.raises(DialogueError, match=r"shard-00000\.safetensors is missing"):
        MotionDataset([damaged], window=20).batch([0])


def test_bases_and_frame_rates_are_not_mixed(simulated, recorded, tmp_path):
    other = _copy(simulated, tmp_path / "other")
    values = json.loads((other / MANIFEST_NAME).read_text())
    (other / MANIFEST_NAME).write_text(json.dumps({**values, "expression_basis": "flame-10"}))
    with pytest.raises(DialogueError, match=r"'dialogue-28'.*ns-dialogue refit"):
        MotionDataset([other, recorded], window=20)
    (other / MANIFEST_NAME).write_text(json.dumps({**values, "fps": 30.0}))
    with pytest.raises(DialogueError, match="30 frames a second"):
        MotionDataset([other], window=20)


def test_voices_without_pictures_are_refused(recorded, tmp_path):
    root = _copy(recorded, tmp_path / "voices")
    conversation = load_conversation(root)
    conversation.participants = [Participant(id=person.id, name=person.name) for person in conversation.participants]
    save_conversation(conversation, root)
    with pytest.raises(DialogueError, match=r"of p0, p1 in .*there is a voice"):
        MotionDataset([root], window=20)


def test_a_value_that_is_no_number_is_named(simulated, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = _copy(simulated, tmp_path / "nan")
    arrays = load_file(folder / "shard-00000.safetensors")
    arrays["blink"][0, 7] = np.nan
    save_file(arrays, folder / "shard-00000.safetensors")
    with pytest.raises(DialogueError, match="shard-00000: blink"):
        _ = MotionDataset([folder], window=20).statistics


def test_motion_of_recordings_is_not_written_to(recorded):
    before = Motion.load(recorded / "participants" / "p0" / "motion.npz").head_pose.copy()
    windows = MotionDataset([recorded], window=20).batch([0])
    windows.own.head_pose.zero_()
    np.testing.assert_array_equal(
        MotionDataset([recorded], window=20).batch([0]).own.head_pose[0], before[:20].astype(np.float32)
    )
