"""Stages remember being finished, and only then."""

import json
from pathlib import Path

import pytest

from dialogue_nerfstudio.process.stages import StageRunner, source_fingerprint


class _Counter:
    """A stage that counts how often it ran."""

    def __init__(self, path: Path, fail: bool = False):
        self.path, self.fail, self.runs = path, fail, 0

    def __call__(self, progress) -> None:
        self.runs += 1
        progress(0.5)
        if self.fail:
            raise KeyboardInterrupt
        self.path.write_text("result")


def _run(root: Path, first: _Counter, second: _Counter, options=None, source=None, progress=None) -> StageRunner:
    (root / "work").mkdir(exist_ok=True)
    runner = StageRunner(root, root / "work", source or [["in.mp4", 1, 2]], progress)
    runner.run("first", first, [first.path], options=options)
    runner.run("second", second, [second.path], needs=["first"])
    return runner


@pytest.fixture
def stages(tmp_path):
    return tmp_path, _Counter(tmp_path / "first.txt"), _Counter(tmp_path / "second.txt")


def test_a_second_run_runs_nothing(stages):
    assert _run(*stages).ran == ["first", "second"]
    again = _run(*stages)
    assert again.ran == [] and stages[1].runs == stages[2].runs == 1
    assert set(again.seconds) == {"first", "second"} and all(seconds >= 0 for seconds in again.seconds.values())


def test_a_stage_that_was_killed_runs_again_and_earlier_ones_do_not(stages):
    _root, first, second = stages
    second.fail = True
    with pytest.raises(KeyboardInterrupt):
        _run(*stages)
    second.fail = False
    assert _run(*stages).ran == ["second"]
    assert (first.runs, second.runs) == (1, 2)


def test_other_options_run_the_stage_and_what_follows(stages):
    _run(*stages, options={"size": 1})
    assert _run(*stages, options={"size": 2}).ran == ["first", "second"]
    assert _run(*stages, options={"size": 2}).ran == []


def test_another_input_runs_everything(stages):
    _run(*stages)
    assert _run(*stages, source=[["in.mp4", 1, 3]]).ran == ["first", "second"]


def test_a_missing_or_changed_output_is_made_again(stages):
    _root, first, second = stages
    _run(*stages)
    second.path.unlink()
    assert _run(*stages).ran == ["second"]
    first.path.write_text("half")
    assert _run(*stages).ran == ["first"]


def test_a_torn_stamp_counts_as_unfinished(stages):
    root, *_ = stages
    _run(*stages)
    (root / "work" / "first.json").write_text('{"fingerp')
    assert _run(*stages).ran == ["first"]
    (root / "work" / "first.json").write_text("[]")
    assert _run(*stages).ran == ["first"]


def test_the_result_disappears_before_anything_is_redone(stages):
    root, _first, second = stages
    _run(*stages)
    (root / "conversation.json").write_text("{}")
    _run(*stages)
    assert (root / "conversation.json").exists()
    second.path.unlink()
    second.fail = True
    with pytest.raises(KeyboardInterrupt):
        _run(*stages)
    assert not (root / "conversation.json").exists()


def test_a_stage_must_write_what_it_promised(tmp_path):
    runner = StageRunner(tmp_path, tmp_path, [])
    with pytest.raises(RuntimeError, match="did not write"):
        runner.run("empty", lambda progress: None, [tmp_path / "nothing.txt"])


def test_progress_names_the_stage_and_ends_at_one(stages):
    calls = []
    _run(*stages, progress=lambda *call: calls.append(call))
    assert calls == [
        ("first", 0.0, 1.0),
        ("first", 0.5, 1.0),
        ("first", 1.0, 1.0),
        ("second", 0.0, 1.0),
        ("second", 0.5, 1.0),
        ("second", 1.0, 1.0),
    ]


def test_source_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"123")
    before = source_fingerprint([path])
    json.dumps(before)
    path.write_bytes(b"1234")
    assert source_fingerprint([path]) != before
