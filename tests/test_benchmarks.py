"""Every benchmark runs in its smallest form, and its figures are there. No times are asserted."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.conversation import DialogueError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch, tmp_path):
    """Imports a benchmark as `python benchmarks/NAME.py` would find its neighbours, with a cache folder of its own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield importlib.import_module
    for name in ("common", "ablation", "avatar", "frames", "scaling", "hash_grid", "rendering"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_conversation(tmp_path_factory.mktemp("tiny") / "conversation")


def test_hash_grid(benchmark_module):
    module = benchmark_module("hash_grid")
    figures = module.measure(
        module.Options(points=256, num_levels=2, log2_hashmap_size=8, max_resolution=32, repeats=1)
    )
    for mode in ("forward", "forward_backward", "forward_backward_positions"):
        speeds = figures[mode]["million_points_per_second"]
        assert {"numba", "torch", "nerfstudio_torch"} <= set(speeds)
        assert all(speed >= 0 for speed in speeds.values())


def test_rendering(benchmark_module):
    module = benchmark_module("rendering")
    figures = module.measure(module.Options(size=16, repeats=1))
    assert set(figures["frames_per_second"]) == {"march", "every_sample"}


def test_avatar(benchmark_module, tiny):
    module = benchmark_module("avatar")
    options = module.AvatarBenchmark(
        tiny, "expression", 3, 32, target=0.0, evaluate_from=2, evaluate_every=1, eval_frames=1, baseline_steps=1
    )
    figures = module.measure(options)
    assert figures["target_reached"]["step"] == 2 and len(figures["curve"]) == 1
    assert 0 < figures["target_reached"]["seconds"] < figures["training_seconds"]
    assert set(figures["speedup_over"]) == {"torch_kernel", "no_culling"}
    assert set(figures["participants"]) == {"p0", "p1"}


def test_frames(benchmark_module, tiny):
    module = benchmark_module("frames")
    figures = module.measure(
        module.FramesBenchmark(tiny, sizes=(16, 32), iterations=2, repeats=1, baseline_repeats=1, memory=False)
    )
    assert [(row["size"], row["avatars"]) for row in figures["frames"]] == [(16, 1), (16, 2), (32, 1), (32, 2)]
    assert all(row["frames_per_second"] > 0 and row["speedup"] > 0 for row in figures["frames"])


def test_frames_leaves_the_avatars_as_they_were(benchmark_module, tiny):
    module = benchmark_module("frames")
    model = module.trained(module.FramesBenchmark(tiny, iterations=1)).model
    model.head_occupancy[0].occupied[::2] = False
    before = model.head_occupancy[0].occupied.clone()
    with module.every_sample(model):
        assert model.head_occupancy[0].occupied.all() and model.config.colour_threshold == 0.0
    assert (model.head_occupancy[0].occupied == before).all() and model.config.colour_threshold > 0.0


def test_ablation_measures_each_variant_once(benchmark_module, tiny, tmp_path, capsys):
    module = benchmark_module("ablation")
    options = module.Ablation(tiny, tmp_path / "ablation", "expression", 2, 32, 0, ["base", "pose-and-noise"])
    module.main(options)
    rows = {name: json.loads((options.output / f"{name}.json").read_text()) for name in options.variants}
    assert rows["pose-and-noise"]["parameters"] > rows["base"]["parameters"]
    assert all(row["flicker"] >= 0 and set(row["people"]) == {"p0", "p1"} for row in rows.values())
    table = (options.output / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["base", "pose-and-noise"]
    assert len({line.count("|") for line in table}) == 1
    capsys.readouterr()
    module.main(options)
    assert "done" not in capsys.readouterr().out
    with pytest.raises(DialogueError, match="other settings"):
        module.main(replace(options, iterations=3))
    with pytest.raises(DialogueError, match="no variant 'none'"):
        module.main(replace(options, variants=["none"]))


def test_every_ablation_changes_options_that_exist(benchmark_module):
    from dialogue_nerfstudio.nerf.config import cpu_pipeline

    module = benchmark_module("ablation")
    for name, (_, changes) in module.VARIANTS.items():
        config = cpu_pipeline()
        module.apply(config, {**module.BASE, **changes})
        assert (config == cpu_pipeline()) == (name == "pose-and-noise"), name
    with pytest.raises(DialogueError, match="no option"):
        module.apply(cpu_pipeline(), {"model.nothing": 1})


def test_scaling(benchmark_module, tiny):
    module = benchmark_module("scaling")
    options = module.ScalingBenchmark(
        tiny, samples=(0.5, 1.0), levels=(2, 8), avatars=(1, 3), frames=(1, 2), steps=1, warm_up=1, memory=False
    )
    figures = module.measure(options)
    for series, base in (("samples", 1.0), ("levels", 8), ("avatars", 1), ("frames", 1)):
        ratios = {entry["value"]: entry["time_ratio"] for entry in figures[series]}
        assert ratios[base] == 1.0 and len(ratios) == 2


def test_enlarged_conversations_repeat_what_there_is(benchmark_module, tiny, tmp_path):
    from dialogue_nerfstudio.conversation import load_conversation

    common = benchmark_module("common")
    original = load_conversation(tiny)
    longer = load_conversation(common.enlarged(tiny, tmp_path / "longer", times=2, people=3))
    assert longer.num_frames == 2 * original.num_frames and longer.participant_ids == ["p0", "p1", "p2"]
    assert (longer.speaking[:, 0] == longer.speaking[:, 2]).all()
    turns = longer.speaking.reshape(2, original.num_frames, 3)
    assert (turns[0] == turns[1]).all() and (turns[0, :, :2] == original.speaking).all()
    longer.feature("mel")
    for reader in (longer.frames("p2"), longer.labels("p2")):
        with reader:
            assert len(reader) == longer.num_frames


def test_without_a_folder_a_sample_is_simulated_once(benchmark_module, capsys):
    common = benchmark_module("common")
    root = common.conversation_or_sample(None, seconds=2.0, size=64)
    assert "simulating" in capsys.readouterr().err
    assert common.conversation_or_sample(None, seconds=2.0, size=64) == root
    assert capsys.readouterr().err == ""
    assert (root / "features" / "mel.npz").is_file()


def test_memory_is_measured_in_a_process_of_its_own(benchmark_module):
    common = benchmark_module("common")
    assert common.in_own_process(common.peak_memory)["resident"] > 10.0


def test_report_is_json_and_a_table(benchmark_module, capsys):
    common = benchmark_module("common")
    common.report({"speed": 1.5}, ("figure", "value"), [("speed", 1.5)])
    captured = capsys.readouterr()
    assert captured.out == '{\n  "speed": 1.5\n}\n'
    assert captured.err == "figure  value\nspeed   1.5  \n"
