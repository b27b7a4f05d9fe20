"""Dubbed conversations: every frame and every sample is one of the recordings, where it is said to be."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
from samples import make_motion
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.cli.main import main
from dialogue_nerfstudio.conversation import DialogueError, SpeechSegment, load_conversation, save_conversation
from dialogue_nerfstudio.conversation.files import read_npz
from dialogue_nerfstudio.process.audio_features import load_audio
from dialogue_nerfstudio.process.dub import (
    FILLER,
    SILENT,
    SPEAKING,
    DubConfig,
    Part,
    dubbed_sound,
    find_speakers,
    make_dub,
    pauses,
    plan_parts,
    pose_distance,
    runs,
    utterances,
)

FRAMES = 160
SPOKEN = {"ann": [(0.4, 1.6), (2.2, 3.0), (3.6, 4.8), (5.4, 6.0)], "bob": [(0.0, 0.9), (1.9, 3.1), (4.0, 5.2)]}
CONFIG = DubConfig(seconds=8.0)


@pytest.fixture(scope="module")
def speakers(tmp_path_factory) -> Path:
    """Two recordings of one person each, who pause; every sample of their sound is its own number."""
    folder = tmp_path_factory.mktemp("speakers")
    for index, (name, spans) in enumerate(SPOKEN.items()):
        root = write_tiny_conversation(folder / name, num_people=1, num_frames=FRAMES, size=32)
        conversation = load_conversation(root)
        conversation.segments = [SpeechSegment(start, end, "p0") for start, end in spans]
        save_conversation(conversation, root)
        ramp = np.linspace(0.1, 0.5, FRAMES * 640, dtype=np.float32) * (1.0 - 0.5 * index)
        soundfile.write(root / "audio.wav", ramp, 16000, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def dubbed(speakers, tmp_path_factory):
    sources = [speakers / "ann", speakers / "bob"]
    made = make_dub(sources, tmp_path_factory.mktemp("out") / "dub", [3, 0], CONFIG)
    return load_conversation(made.root), [load_conversation(path) for path in sources]


def _parts(dubbed) -> list:
    conversation, _ = dubbed
    return [Part(**read_npz(conversation.participant_path(name, "rows.npz"))) for name in conversation.participant_ids]


def test_it_is_an_ordinary_conversation(dubbed):
    conversation, _ = dubbed
    assert conversation.participant_ids == ["p0", "p1"]
    assert [person.name for person in conversation.participants] == ["ann", "bob"]
    assert conversation.feature("mel").shape == (conversation.num_frames, 16, 80)
    assert len(conversation.audio()[0]) == conversation.num_frames * 640
    for name in conversation.participant_ids:
        assert len(conversation.frames(name)) == len(conversation.labels(name)) == conversation.num_frames
        assert conversation.background(name).shape == (32, 32, 3)
        assert conversation.tracking(name)["landmarks"].shape == (conversation.num_frames, 478, 2)


def test_pictures_labels_motion_and_landmarks_are_the_recordings_rows(dubbed):
    conversation, sources = dubbed
    for name, source, part in zip(conversation.participant_ids, sources, _parts(dubbed), strict=True):
        original = source.participants[0]
        np.testing.assert_array_equal(
            conversation.participant(name).motion.head_pose, original.motion.head_pose[part.rows]
        )
        np.testing.assert_array_equal(
            conversation.tracking(name)["landmarks"], source.tracking("p0")["landmarks"][part.rows]
        )
        with conversation.frames(name) as new, source.frames("p0") as old, conversation.labels(name) as labels:
            for frame in range(0, conversation.num_frames, 7):
                difference = np.abs(new[frame].astype(int) - old[int(part.rows[frame])])
                assert difference.mean() < 4, "but for being encoded again"
                with source.labels("p0") as maps:
                    np.testing.assert_array_equal(labels[frame], maps[int(part.rows[frame])])


def test_turns_alternate_and_nobody_speaks_into_another_s(dubbed):
    conversation, sources = dubbed
    parts = _parts(dubbed)
    speaking = np.stack([part.kinds == SPEAKING for part in parts], axis=1)
    assert not speaking.all(axis=1).any()
    turns = sorted((start, who) for who in range(2) for start, _ in runs(speaking[:, who]))
    order = [who for _, who in turns]
    assert len(order) >= 4 and all(a != b for a, b in itertools.pairwise(order))
    roles = conversation.speaking
    for who, (source, part) in enumerate(zip(sources, parts, strict=True)):
        expected = source.speaking[:, 0][part.rows] & speaking[:, who]
        np.testing.assert_array_equal(roles[:, who], expected)
        used = part.rows[speaking[:, who]]
        assert len(np.unique(used)) == len(used), "no utterance comes twice"


def test_silence_is_silent_and_flagged_for_what_it_is(dubbed):
    conversation, sources = dubbed
    for name, source, part in zip(conversation.participant_ids, sources, _parts(dubbed), strict=True):
        silent, filler = part.kinds == SILENT, part.kinds == FILLER
        assert not source.speaking[:, 0][part.rows[silent | filler]].any()
        assert len(np.unique(part.rows[silent])) == silent.sum(), "once"
        assert silent.sum() > 20
        said = conversation.provenance["dub"][name]
        for kind, mask in (("speaking", part.kinds == SPEAKING), ("silent", silent), ("filler", filler)):
            flagged = np.zeros(conversation.num_frames, bool)
            for start, stop in said[kind]:
                flagged[start:stop] = True
            np.testing.assert_array_equal(flagged, mask)
        cuts = set(said["cuts"])
        for frame in range(1, conversation.num_frames):
            assert (frame in cuts) == (part.rows[frame] != part.rows[frame - 1] + 1)


def test_sound_is_that_of_the_frames_sample_for_sample(dubbed):
    conversation, sources = dubbed
    tracks = []
    for name, source, part in zip(conversation.participant_ids, sources, _parts(dubbed), strict=True):
        track = load_audio(conversation.path("audio", f"{name}.wav"))
        tracks.append(track)
        original, _ = source.audio()
        gains = []
        for start, stop in runs(part.kinds == SPEAKING):
            inside = slice(start * 640 + 100, stop * 640 - 100)
            first = part.rows[start] * 640
            taken = original[first + 100 : first + (stop - start) * 640 - 100]
            gains.append(track[inside] / taken)
        gains = np.concatenate(gains)
        assert np.ptp(gains) < 1e-3, "one gain, and the samples where the frames are"
        quiet = np.repeat(part.kinds != SPEAKING, 640)
        assert not track[quiet].any()
    mix, _ = conversation.audio()
    np.testing.assert_allclose(mix, tracks[0] + tracks[1], atol=1e-4)
    levels = [np.sqrt(np.mean(track[track != 0] ** 2)) for track in tracks]
    assert 0.5 < levels[0] / levels[1] < 2.0, "recorded at different gains, heard as alike"


def test_the_same_seed_gives_the_same(speakers, dubbed, tmp_path):
    again = make_dub([speakers / "ann", speakers / "bob"], tmp_path / "again", [3, 0], CONFIG)
    rows = [read_npz(again.participant_path(name, "rows.npz"))["rows"] for name in ("p0", "p1")]
    np.testing.assert_array_equal(rows, [part.rows for part in _parts(dubbed)])


def test_seeds_differ():
    masks = [np.zeros(400, bool), np.zeros(400, bool)]
    for mask in masks:
        mask[np.arange(400) % 40 < 25] = True
    motions = [make_motion(400), make_motion(400)]
    made = [plan_parts(masks, motions, 25.0, CONFIG, np.random.default_rng(seed)) for seed in (0, 1)]
    assert len(made[0][0].rows) != len(made[1][0].rows) or (made[0][0].rows != made[1][0].rows).any()


def test_long_speech_is_cut_and_short_is_left_out():
    speaking = np.zeros(600, bool)
    for start, stop in ((0, 10), (50, 90), (94, 130), (200, 560)):
        speaking[start:stop] = True
    found = utterances(speaking, 25.0, DubConfig(), np.random.default_rng(0))
    assert found[0] == (50, 130), "a gap of four frames is no pause, a word of ten frames no turn"
    assert all(15 <= stop - start <= 150 for start, stop in found)
    assert found[1][0] == 200 and all(a[1] == b[0] for a, b in itertools.pairwise(found[1:]))
    assert pauses(speaking, 25.0, DubConfig()) == [(12, 48), (132, 198), (562, 598)]


def test_without_pauses_every_silence_is_a_filler():
    speaking = [np.ones(300, bool), np.ones(300, bool)]
    parts = plan_parts(speaking, [make_motion(300)] * 2, 25.0, CONFIG, np.random.default_rng(0))
    for part in parts:
        assert set(part.kinds.tolist()) == {SPEAKING, FILLER}


def test_pieces_begin_where_the_head_is():
    motion = make_motion(400)
    motion.head_pose[:] = 0
    motion.head_pose[:, 3] = np.linspace(0, 1, 400)
    mask = np.arange(400) % 40 < 20
    parts = plan_parts([mask, mask], [motion, motion], 25.0, DubConfig(seconds=6.0), np.random.default_rng(0))
    jumps, random = [], np.random.default_rng(0)
    for part in parts:
        starts = part.cuts[part.kinds[part.cuts] == SILENT]
        jumps += [pose_distance(motion.head_pose[part.rows[f - 1]], motion.head_pose[part.rows[f]]) for f in starts]
    assert np.mean(jumps) < 0.8 * np.mean(np.abs(np.diff(random.random((1000, 2)))))
    turned = np.array([0, np.radians(90), 0, 0, 0, 0])
    assert pose_distance(np.zeros(6), turned) == pytest.approx(0.2 * np.pi / 2)


def test_sound_fades_at_its_ends():
    part = Part(np.array([5, 6, 7, 0]), np.array([SPEAKING, SPEAKING, SPEAKING, SILENT]))
    sound = dubbed_sound(np.ones(6400, np.float32), part, 25.0, 0.5)
    assert sound[0] < 0.01 and sound[960] == 0.5 and sound[1919] < 0.01 and not sound[1920:].any()


def test_the_command_makes_many_and_goes_on(speakers, tmp_path, capsys):
    command = ["dub", str(speakers), "--output", str(tmp_path), "--count", "2", "--seconds", "4", "--workers", "1"]
    assert main(command) == 0
    assert "2 of 2" in capsys.readouterr().out
    first = (tmp_path / "dub-0000" / "conversation.json").stat().st_mtime_ns
    command[command.index("2")] = "3"
    assert main(command) == 0
    assert (tmp_path / "dub-0000" / "conversation.json").stat().st_mtime_ns == first
    made = [load_conversation(tmp_path / f"dub-{number:04d}") for number in range(3)]
    assert len({tuple(conversation.provenance["inputs"]) for conversation in made}) <= 2
    assert made[0].provenance["seed"] == [0, 0] and made[2].provenance["seed"] == [0, 2]


def test_what_cannot_be_dubbed_is_said(speakers, tmp_path, capsys):
    with pytest.raises(DialogueError, match=r"there are 1 conversation\(s\) of one person"):
        find_speakers([speakers / "ann"])
    with pytest.raises(DialogueError, match="not a folder"):
        find_speakers([tmp_path / "none"])
    pair = write_tiny_conversation(tmp_path / "pair", num_frames=30)
    with pytest.raises(DialogueError, match="1 of several people"):
        find_speakers([speakers / "ann", pair])
    with pytest.raises(DialogueError, match="ann: there is not enough speech"):
        make_dub([speakers / "ann", speakers / "bob"], tmp_path / "no", [0], DubConfig(min_turn=3.0))
    for option, value in (("--seconds", "1"), ("--min-turn", "9"), ("--max-gap", "0"), ("--count", "0")):
        assert main(["dub", str(speakers), "--output", str(tmp_path / "no"), option, value]) == 2
        assert option in capsys.readouterr().err
