"""Shards: who is in which split, going on where it stopped, and refusing to mix."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.motion_shards import MANIFEST_NAME, read_manifest
from dialogue_nerfstudio.conversation.simulate.motion_hours import (
    MotionHoursConfig,
    plan_conversations,
    simulate_motion_hours,
)
from dialogue_nerfstudio.conversation.simulate.styles import PersonStyle, draw_style

SMALL = MotionHoursConfig(hours=8 * 10.0 / 3600.0, num_people=6, conversation_seconds=10.0, seed=1)


def _shards(folder):
    return {path.name: load_file(path) for path in sorted(folder.glob("shard-*.safetensors"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "data"
    simulate_motion_hours(SMALL, folder, workers=1)
    return folder


@pytest.mark.parametrize("num_people", [4, 6, 12, 40])
def test_splits_hold_out_conversations_and_people(num_people):
    plan = plan_conversations(MotionHoursConfig(hours=4.0, num_people=num_people))
    people = {
        split: {person for entry in plan if entry.split == split for person in entry.people}
        for split in ("train", "eval", "unseen")
    }
    assert people["eval"] <= people["train"] and not people["unseen"] & people["train"]
    assert bool(people["unseen"]) == (num_people >= 6)
    assert all(len(set(entry.people)) == 2 for entry in plan)
    counts = [sum(person in entry.people for entry in plan if entry.split == "train") for person in people["train"]]
    # Everybody appears in several conversations, and about equally often.
    assert min(counts) >= 2 and max(counts) - min(counts) <= 1


def test_more_hours_extend_the_plan():
    short, long = (plan_conversations(MotionHoursConfig(hours=hours)) for hours in (1.0, 3.0))
    assert len(short) == 20 and len(long) == 60 and long[:20] == short


def test_manifest_tells_the_truth(whole):
    manifest = read_manifest(whole)
    assert [PersonStyle.from_json(style) for style in manifest.people.values()] == [draw_style(n, 1) for n in range(6)]
    assert len(manifest.conversations) == 8
    for entry in manifest.conversations:
        arrays = load_file(whole / entry.file_name)
        assert arrays["head_pose"].shape == arrays["expected_head_pose"].shape == (2, 250, 6)
        assert arrays["mel"].shape == (2, 800, 80) and arrays["mel"].dtype == np.float16
        assert all(np.isfinite(array).all() for array in arrays.values())


def test_goes_on_after_an_interruption_and_a_damaged_shard(whole, tmp_path):
    folder = tmp_path / "data"

    def interrupt(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_motion_hours(SMALL, folder, workers=1, progress=interrupt)
    assert not (folder / MANIFEST_NAME).exists() and len(_shards(folder)) == 3
    with pytest.raises(DialogueError, match="never finished"):
        read_manifest(folder)
    kept, cut = folder / "shard-00000.safetensors", folder / "shard-00001.safetensors"
    stamp = kept.stat().st_mtime_ns
    cut.write_bytes(cut.read_bytes()[:1000])
    (folder / ".shard-00004-abcd1234.safetensors").write_bytes(b"half")
    calls = []
    simulate_motion_hours(SMALL, folder, workers=1, progress=lambda done, total: calls.append((done, total)))
    assert calls[0] == (2, 8) and calls[-1] == (8, 8)
    assert kept.stat().st_mtime_ns == stamp and not list(folder.glob(".*"))
    for name, arrays in _shards(whole).items():
        for key, values in load_file(folder / name).items():
            np.testing.assert_array_equal(values, arrays[key])


def test_processes_change_nothing(whole, tmp_path):
    simulate_motion_hours(SMALL, tmp_path, workers=2)
    for name, arrays in _shards(tmp_path).items():
        np.testing.assert_array_equal(arrays["head_pose"], load_file(whole / name)["head_pose"])
        # Sums of float32 may end in another last bit where threads are fewer, and float16 round to the next number.
        np.testing.assert_allclose(arrays["mel"], load_file(whole / name)["mel"], rtol=1e-3, atol=1e-6)


def test_other_options_are_refused(whole, tmp_path):
    from dataclasses import replace

    with pytest.raises(DialogueError, match="--num-people"):
        simulate_motion_hours(replace(SMALL, num_people=7), whole, workers=1)
    (tmp_path / "shard-00000.safetensors").write_bytes((whole / "shard-00000.safetensors").read_bytes())
    with pytest.raises(DialogueError, match="simulated otherwise"):
        simulate_motion_hours(replace(SMALL, seed=2), tmp_path, workers=1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"hours": 0.001}, "at least 8 conversations"),
        ({"hours": -1.0}, "hours is -1"),
        ({"num_people": 1}, "num-people is 1"),
        ({"people_per_conversation": 9}, "people-per-conversation is 9"),
        ({"conversation_seconds": 1.0}, "seconds is 1"),
    ],
)
def test_bad_options(options, sentence, tmp_path):
    with pytest.raises(DialogueError, match=sentence):
        simulate_motion_hours(MotionHoursConfig(**options), tmp_path)


def test_damaged_manifest(whole, tmp_path):
    values = json.loads((whole / MANIFEST_NAME).read_text())
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**values, "schema_version": 99}))
    with pytest.raises(DialogueError, match="upgrade dialogue-nerfstudio"):
        read_manifest(tmp_path)
    del values["people"]
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(values))
    with pytest.raises(DialogueError, match="is damaged"):
        read_manifest(tmp_path)
