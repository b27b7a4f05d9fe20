"""Progress adds up over stages of known shares."""

import io

import pytest
from rich.console import Console

from dialogue_nerfstudio.cli.progress import StageProgress


def test_shares_add_up():
    with StageProgress({"a": 3.0, "b": 1.0}, Console(file=io.StringIO())) as progress:
        progress("a", 1, 2)
        assert progress.overall == pytest.approx(1.5)
        progress("a", 2, 2)
        progress("b", 0.5, 1.0)
        assert progress.overall == pytest.approx(3.5)


def test_every_stage_is_shown_on_a_terminal():
    screen = io.StringIO()
    with StageProgress(console=Console(file=screen, width=100, force_terminal=True)) as progress:
        progress("load", 1, 1)
        progress("render", 5, 20)
        progress("nothing to do", 0, 0)
    shown = screen.getvalue()
    assert "load" in shown and "100 %" in shown and "25 %" in shown and "nothing to do" in shown


def test_a_log_gets_a_line_for_each_finished_stage():
    log = io.StringIO()
    with StageProgress(console=Console(file=log, width=100)) as progress:
        for done in range(21):
            progress("render", done, 20)
        progress("render", 20, 20)
        progress("never finished", 1, 2)
    (line,) = log.getvalue().splitlines()
    assert line.startswith("render: ") and line.endswith(" s")
