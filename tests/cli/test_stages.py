"""Finished stages are not run again; changed or interrupted ones are, with everything after them."""

import pytest

from dialogue_nerfstudio.cli.stages import StageLog


class Work:
    """Two stages that write a file each and count their runs."""

    def __init__(self, folder):
        self.folder, self.runs = folder, []

    def __call__(self, first_options, fail=False):
        log = StageLog(self.folder / "stages")

        def stage(name):
            self.runs.append(name)
            if fail:
                raise RuntimeError("power cut")
            (self.folder / name).write_text(name)
            return {"made": name}

        results = [
            log.run("a", first_options, [self.folder / "a"], lambda: stage("a")),
            log.run("b", {"x": 1}, [self.folder / "b"], lambda: stage("b")),
        ]
        assert set(log.seconds) == {"a", "b"}
        return results


def test_second_run_does_nothing_and_returns_the_same(tmp_path):
    work = Work(tmp_path)
    assert work({"n": 1}) == work({"n": 1}) == [{"made": "a"}, {"made": "b"}]
    assert work.runs == ["a", "b"]


def test_changed_options_and_missing_files_run_again(tmp_path):
    work = Work(tmp_path)
    work({"n": 1})
    work({"n": 2})
    assert work.runs == ["a", "b"] * 2
    (tmp_path / "b").unlink()
    work({"n": 2})
    assert work.runs == ["a", "b"] * 2 + ["b"]


def test_an_interrupted_stage_runs_again(tmp_path):
    work = Work(tmp_path)
    work({"n": 1})
    with pytest.raises(RuntimeError):
        work({"n": 2}, fail=True)
    work({"n": 2})
    assert work.runs == ["a", "b", "a", "a", "b"]
