"""The whole way once, small: simulate, process, train, measure, render; and resuming it."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dialogue_nerfstudio.cli import demo, training
from dialogue_nerfstudio.nerf.config import dialogue_nerf
from dialogue_nerfstudio.output.video import read_provenance

OPTIONS = ("--seconds", 3, "--size", 96, "--resolution", 32, "--iterations", 20, "--new-seconds", 2)


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_demo_makes_a_video_and_a_summary_and_resumes(cli, tmp_path, monkeypatch):
    pytest.importorskip("mediapipe", reason="processing a video needs mediapipe")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "demo"
    result = cli("demo", "--output", folder, *OPTIONS)
    assert result.code == 0, result.stderr
    summary = json.loads((folder / "summary.json").read_text())
    stages = {"simulate", "process", "tracking", "train", "measure", "script", "render", "total"}
    assert set(summary["seconds"]) == stages
    assert set(summary["participants"]) == {"p0", "p1"}
    for figures in summary["participants"].values():
        assert figures["psnr"] > 5 and -1 <= figures["ssim"] <= 1
    for figures in summary["tracking"]["participants"].values():
        assert 0 <= figures["head_rotation_degrees_offset_removed"] < 10
    assert 0 <= summary["tracking"]["role_accuracy_per_frame"] <= 1
    assert read_provenance(Path(summary["video"]))["synthetic"] is True
    assert summary["render"]["frames"] == 50 and summary["render"]["audio_seconds"] == pytest.approx(2.0)
    for picture in (summary["comparison"], summary["stills"]):
        with Image.open(picture) as sheet:
            assert np.asarray(sheet).std() > 10

    before = times(folder)
    assert cli("demo", "--output", folder, *OPTIONS).code == 0
    after = times(folder)
    assert {path for path in before if before[path] != after[path]} == {str(folder / "summary.json")}


@pytest.mark.parametrize("processes", [None, 1])
def test_training_takes_as_many_processes_as_pay_unless_told_otherwise(monkeypatch, processes):
    config = copy.deepcopy(dialogue_nerf.config)
    monkeypatch.setattr(training, "train_avatars", lambda *_, configure: configure(config))
    demo._train(Path("conversation"), Path("outputs"), demo.Demo(processes=processes), None)
    assert config.pipeline.processes == processes
