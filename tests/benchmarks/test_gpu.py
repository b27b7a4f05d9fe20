"""The GPU benchmark runs, at its smallest, where only torch and the numerics' own needs are installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"

ABSENT = ("nerfstudio", "viser", "tyro", "rich", "av", "cv2", "scipy", "sklearn", "librosa", "soundfile", "torchvision")

RUN = """
import runpy, sys
for package in {absent!r}:
    sys.modules[package] = None
sys.argv = [{script!r}, "--tiny", "--output", {output!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


def test_it_runs_without_nerfstudio(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    code = RUN.format(absent=ABSENT, script=str(SCRIPT), output=str(output))
    # The interpreter has tests of its own; here it would only be slow.
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    assert report == json.loads(result.stdout)
    assert report["copy_gigabytes_per_second"] > 0
    for measured in report["hash_grid"].values():
        for mode in ("forward", "forward_and_table_gradient", "forward_and_both_gradients"):
            assert all(difference < 1e-2 for difference in measured[mode]["difference_to_torch"].values())
        assert measured["forward"]["million_points_per_second"]["torch"] > 0
    assert set(report["density_network"]) == {"1 frame", "2 frames"}
    assert all(rate > 0 for rate in report["pictures"]["frames_per_second"].values())
    assert report["pictures"]["samples_in_one_picture"]["coloured"] > 0
    assert report["training"]["parameters_stay_finite"]
