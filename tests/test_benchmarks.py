"""Every benchmark runs in its smallest form, and its figures are there. No times are asserted."""

import importlib
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from speech_weights import write_audio_encoder
from spoken_windows import trained_lip_sync
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.conversation import Conversation, DialogueError, load_conversation, save_conversation
from dialogue_nerfstudio.conversation.files import write_npz
from dialogue_nerfstudio.conversation.simulate import SimulationConfig, simulate_conversation
from dialogue_nerfstudio.conversation.simulate.motion_hours import MotionHoursConfig, simulate_motion_hours
from dialogue_nerfstudio.process.audio_features import load_audio
from dialogue_nerfstudio.process.decode import probe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch, tmp_path):
    """Imports a benchmark as `python benchmarks/NAME.py` would find its neighbours, with a cache folder of its own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield importlib.import_module
    for name in (
        "common",
        "measuring",
        "ablation",
        "avatar",
        "frames",
        "scaling",
        "hash_grid",
        "lip_features",
        "lip_sync",
        "rendering",
        "processing",
        "motion_ceiling",
        "pose_tcn",
        "gp_vae",
        "animate",
    ):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_conversation(tmp_path_factory.mktemp("tiny") / "conversation")


def test_motion_ceiling(benchmark_module, capsys):
    module = benchmark_module("motion_ceiling")
    module.main(module.Options(seeds=1, conversations=2, seconds=60.0))
    rows = {line[:36].strip(): float(line[36:].split()[0]) for line in capsys.readouterr().out.splitlines()[2:]}
    # A predictor that lacks a sense falls behind one that has both.
    for sense in ("sound", "partner's motion"):
        assert rows[f"without {sense}, linear"] < rows["ceiling"] - 0.03
    assert 0.6 < rows["ceiling"] < 0.95


def test_pose_tcn(benchmark_module, tmp_path, capsys):
    talks = MotionHoursConfig(hours=8 * 24 / 3600, num_people=4, conversation_seconds=24.0)
    simulate_motion_hours(talks, tmp_path / "talks", workers=1)
    module = benchmark_module("pose_tcn")
    table, figure = tmp_path / "figures.json", tmp_path / "curves.png"
    module.PoseTcnBenchmark(data=tmp_path / "talks", seeds=2, steps=2, figure=figure, table=table).run()
    results = json.loads(table.read_text())
    assert list(results) == list(module.VARIANTS) and all(len(runs) == 2 for runs in results.values())
    for runs in results.values():
        assert all(np.isfinite(list(found.values())).all() and found["ceiling"] > 0.5 for found in runs)
    assert figure.stat().st_size > 0 and "frames_per_cpu_second" in capsys.readouterr().out


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
        *(tiny, "expression", 3, 32),
        target=0.0,
        evaluate_from=2,
        evaluate_every=1,
        eval_frames=1,
        baseline_steps=1,
        rays=64,
    )
    figures = module.measure(options)
    assert figures["target_reached"]["step"] == 2 and len(figures["curve"]) == 1
    assert 0 < figures["target_reached"]["seconds"] < figures["training_seconds"]
    assert set(figures["speedup_over"]) == {"torch_kernel", "no_culling"}
    assert set(figures["participants"]) == {"p0", "p1"}
    assert figures["processes"] == 1 and figures["rays"] == 64


def test_frames(benchmark_module, tiny):
    module = benchmark_module("frames")
    figures = module.measure(module.FramesBenchmark(tiny, sizes=(16,), iterations=2, repeats=1, baseline_repeats=1))
    assert [(row["size"], row["avatars"]) for row in figures["frames"]] == [(16, 1), (16, 2)]
    assert all(row["frames_per_second"] > 0 and row["speedup"] > 0 for row in figures["frames"])
    # Of a process of its own.
    assert figures["frames"][1]["peak_mib_resident"] > 10.0


def test_frames_leaves_the_avatars_as_they_were(benchmark_module, tiny):
    module = benchmark_module("frames")
    model = module.trained(module.FramesBenchmark(tiny, iterations=1)).model
    model.head_occupancy[0].occupied[::2] = False
    before = model.head_occupancy[0].occupied.clone()
    with module.every_sample(model):
        assert model.head_occupancy[0].occupied.all() and model.config.colour_threshold == 0.0
    assert (model.head_occupancy[0].occupied == before).all() and model.config.colour_threshold > 0.0


def test_animate(benchmark_module, tmp_path, capsys):
    from dialogue_nerfstudio.cli.training import train_avatars

    module = benchmark_module("animate")
    data = write_tiny_conversation(tmp_path / "talk", num_frames=75)
    avatars = train_avatars(data, tmp_path / "outputs", 1, 0, 16, drive="audio")
    options = module.AnimateBenchmark(
        (avatars,), None, 2.0, (2.0,), first_frame_roles=("rttm",), memory_seconds=(), resolution=16, repeats=1
    )
    module.main(options)
    printed = capsys.readouterr().out
    figures = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    assert figures["models"] == [] and figures["people"] == 2
    assert figures["motion"]["frames_per_second"] > 0.0
    assert [row["roles"] for row in figures["first_picture"]] == ["rttm"]
    assert all(row["processor_seconds"] > 0.0 for row in figures["first_picture"])


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


def test_a_watched_process_tells_what_it_took(benchmark_module):
    measuring = benchmark_module("measuring")
    looks = []
    result, took = measuring.watched(time.sleep, 0.3, look=lambda: looks.append(1))
    assert result is None and took["seconds"] >= 0.3 and took["peak_mib"] > 5.0 and looks
    with pytest.raises(RuntimeError, match="failed"):
        measuring.watched(time.sleep, "long")


def test_report_is_json_and_a_table(benchmark_module, capsys):
    measuring = benchmark_module("measuring")
    measuring.report({"speed": 1.5}, ("figure", "value"), [("speed", 1.5)])
    captured = capsys.readouterr()
    assert captured.out == '{\n  "speed": 1.5\n}\n'
    assert captured.err == "figure  value\nspeed   1.5  \n"


# Processing -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A short simulation, where the benchmark of processing keeps it."""
    root = tmp_path_factory.mktemp("processing") / "simulated" / "seed_0_2_64_2"
    simulate_conversation(SimulationConfig(seconds=2.0, size=64), root)
    return root


def _as_if_processed(truth: Path, output: Path) -> Conversation:
    """A processed conversation without a fault, but for a lost frame."""
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(truth, output)
    found = load_conversation(output)
    people = []
    for person in found.participants:
        x, y, width, height = person.source["crop"]
        people.append(replace(person, source={"crop": [x, y, x + width, y + height]}))
        write_npz(
            found.participant_path(person.id, "tracking.npz"),
            landmarks=np.zeros((found.num_frames, 478, 2), np.float32),
            reprojection_error=np.full(found.num_frames, 0.5, np.float32),
            confidence=np.ones(found.num_frames, np.float32),
            visible=np.arange(found.num_frames) > 0,
        )
    save_conversation(replace(found, participants=people), output)
    return load_conversation(output)


@pytest.fixture
def processing(benchmark_module, monkeypatch):
    module = benchmark_module("processing")
    calls = []

    def processed(video, output, config, progress):
        calls.append(output.name)
        return _as_if_processed(video.parent / "truth", output)

    monkeypatch.setattr(module, "processed", processed)
    return module, calls


def test_processing_scores_the_truth_without_a_fault_and_keeps_it(processing, simulated):
    module, calls = processing
    folder = simulated.parents[1]
    options = module.ProcessingBenchmark(seeds=1, seconds=2.0, size=64, folder=folder)
    figures = module.measure(options)
    means = {name: values["mean"] for name, values in figures["simulated"].items()}
    for name in ("rotation_degrees", "gaze_degrees", "translation_mm_centred", "der"):
        assert means[name] == pytest.approx(0, abs=1e-3), name
    assert means["label_change"] == means["true_label_change"] > 0
    for name in ("iou_head", "iou_torso", "iou_background", "blink_f1", "roles_per_frame"):
        assert means[name] == 1.0
    assert means["lost_frames"] == 1 and means["reprojection_rmse_px"] == pytest.approx(0.5)
    lines = module.rows(figures)
    assert ["simulated iou_head", 1.0, "1 … 1", "0.93"] in lines

    module.measure(options)
    assert calls == ["seed_0_2_64_2"], "what is kept was measured again"
    module.measure(replace(options, process=replace(options.process, focal=300.0)))
    assert len(calls) == 2


def test_processing_sees_what_is_wrong(processing, simulated, tmp_path):
    module, _ = processing
    truth = load_conversation(simulated / "truth")
    found = _as_if_processed(simulated / "truth", tmp_path / "found")
    first = found.participants[0]
    turn = Rotation.from_euler("x", 6.0, degrees=True)
    first.motion.head_pose[:, :3] = (Rotation.from_rotvec(first.motion.head_pose[:, :3]) * turn).as_rotvec()
    first.motion.gaze[:, :, 0] += np.deg2rad(4.0)
    first.source["crop"] = [8, 0, 72, 64]
    scores = module.score(truth, replace(found, segments=[]))
    assert scores["people"][0]["rotation_degrees"] == pytest.approx(6.0, abs=1e-3)
    assert scores["rotation_degrees"] == pytest.approx(3.0, abs=1e-3)
    assert scores["rotation_degrees_centred"] == pytest.approx(0.0, abs=1e-3)
    assert 1.5 < scores["gaze_degrees"] < 2.1 and scores["gaze_degrees_centred"] < 0.1
    assert scores["people"][0]["iou_head"] < 0.9 < scores["people"][1]["iou_head"]
    assert scores["der"] == 1.0 and scores["roles_per_frame"] < 1.0
    with pytest.raises(DialogueError, match="1 people, the simulation 2"):
        module.score(truth, replace(found, participants=[first]))


def test_labels_are_compared_where_both_crops_are(benchmark_module):
    module = benchmark_module("processing")
    labels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    same = module.resample_labels(labels, (10, 20, 4), (10, 20, 4), 4)
    np.testing.assert_array_equal(same, labels)
    moved = module.resample_labels(labels, (10, 20, 4), (11, 18, 4), 4)
    np.testing.assert_array_equal(moved[2:, :3], labels[:2, 1:])
    assert (moved[:2] == 255).all() and (moved[:, 3] == 255).all()
    larger = module.resample_labels(labels, (10, 20, 4), (10, 20, 4), 8)
    np.testing.assert_array_equal(larger, labels.repeat(2, 0).repeat(2, 1))


def test_a_looped_video_repeats_pictures_and_sound(benchmark_module, simulated, tmp_path):
    module = benchmark_module("processing")
    assert module.looped(simulated / "video.mp4", tmp_path / "loop.mkv", 6.0) == 3
    source, loop = probe(simulated / "video.mp4"), probe(tmp_path / "loop.mkv")
    assert loop.num_frames == 3 * source.num_frames == 150
    once, thrice = list(source.frames()), list(loop.frames())
    for index in (0, 17, 49):
        for turn in range(3):
            np.testing.assert_array_equal(once[index], thrice[50 * turn + index])
    assert abs(len(load_audio(tmp_path / "loop.mkv")) - 6 * 16000) < 3 * 1024


def test_processing_refuses_what_is_not_there(benchmark_module, tmp_path):
    module = benchmark_module("processing")
    with pytest.raises(DialogueError, match="no file"):
        module.measure(module.ProcessingBenchmark(seeds=0, clips=(tmp_path / "none.mp4",), folder=tmp_path))
    with pytest.raises(DialogueError, match="belong together"):
        module.measure(module.ProcessingBenchmark(seeds=0, audio=tmp_path / "talk.wav", folder=tmp_path))


def test_gp_vae(benchmark_module, tmp_path, capsys):
    module = benchmark_module("gp_vae")
    hours = MotionHoursConfig(hours=8 * 20 / 3600, num_people=6, conversation_seconds=20.0)
    simulate_motion_hours(hours, tmp_path / "motion", workers=1)
    comparison = module.Comparison(
        output=tmp_path / "results",
        data=tmp_path / "motion",
        kinds=("gp", "shared"),
        seeds=(0,),
        steps=4,
        windows_per_batch=8,
        samples=2,
        windows=2,
        reference_seconds=5.0,
    )
    comparison.run()
    printed = capsys.readouterr().out
    assert "| Transformer GP-VAE |" in printed and "| Transformer GP-VAE, poses relative to everybody |" in printed
    assert printed.count("style with sound") == 2
    assert all((tmp_path / "results" / f"style_{kind}.png").is_file() for kind in ("gp", "shared"))
    figures = json.loads((tmp_path / "results" / "gp_0_eval.json").read_text())
    assert set(module.COLUMNS.values()) <= set(figures) and np.isfinite(list(figures.values())).all()
    # Finished models are not trained again.
    comparison.run()
    assert "trained in" in printed and "trained in" not in capsys.readouterr().out


def test_lips_are_compared_where_both_faces_were_found(benchmark_module):
    module = benchmark_module("lip_features")
    rng = np.random.default_rng(0)
    opening = np.convolve(rng.random(120), np.ones(5) / 5, "same")
    points = np.tile(rng.uniform(0, 20, (20, 2)), (100, 1, 1))
    seen = np.arange(100) % 10 != 3
    recorded = module.Lips(points, opening[:100], np.full(100, 30.0), np.ones(100, bool))
    late = module.Lips(points * [1.0, 1.1], opening[2:102][::1], np.full(100, 30.0), seen)
    same = module.compare(recorded, recorded, opening[:100], 25.0)
    assert same["lmd"] == 0.0 and same["sync_offset"] == 0.0 and same["opening_correlation"] == pytest.approx(1.0)
    figures = module.compare(late, recorded, opening[:100], 25.0)
    expected = np.abs(0.1 * (points[0, :, 1] - points[0, :, 1].mean())).mean()
    assert figures["lmd"] == pytest.approx(expected, rel=1e-6)
    assert figures["lmd_over_inter_ocular"] == pytest.approx(expected / 30.0, rel=1e-6)
    # Its lips do now what the recording's will do in two frames.
    assert figures["sync_offset"] == pytest.approx(-0.08) and figures["frames_compared"] == pytest.approx(0.9)


def test_lip_features_trains_and_tracks_every_feature(benchmark_module, tiny, tmp_path, monkeypatch):
    module = benchmark_module("lip_features")
    seen = []

    def invented_lips(frames):
        # The tiny faces are ellipsoids that no tracker takes for faces.
        seen.append(frames.shape)
        opening = frames[..., 0].astype(float).mean(axis=(1, 2)) + np.arange(len(frames))
        points = np.arange(40.0).reshape(1, 20, 2) * opening[:, None, None]
        return module.Lips(points, opening, np.full(len(frames), 10.0), np.ones(len(frames), bool))

    monkeypatch.setattr(module, "track_lips", invented_lips)
    monkeypatch.setattr(module, "sync_offset", lambda *_: type("S", (), {"seconds": 0.0, "peak": 1.0})())
    weights = write_audio_encoder(tmp_path / "encoder.safetensors")
    options = module.LipFeaturesBenchmark(
        tiny, tmp_path / "out", weights, iterations=2, resolution=32, eval_fraction=0.3, seeds=(0,)
    )
    figures = module.measure(options)
    assert set(figures["features"]) == {"contrastive", "mel", "mfcc"}
    assert set(figures["features"]["mfcc"]["0"]) == {"p0", "p1"}
    assert len(seen) == 12 and seen[0][0] in (7, 8) and seen[0][1:] == (32, 32, 3)
    module.measure(options)
    assert len(seen) == 12
    options.iterations = 3
    with pytest.raises(DialogueError, match="other settings"):
        module.measure(options)
    options.weights = None
    with pytest.raises(DialogueError, match="--weights"):
        module.measure(options)


def test_lip_sync_intervals_hold_the_mean_and_know_that_neighbours_repeat(benchmark_module):
    module = benchmark_module("lip_sync")
    rng = np.random.default_rng(0)
    second = np.repeat(np.arange(40), 25)
    alike = np.repeat(rng.random(40) < 0.5, 25)
    mean, low, high = module.share_with_interval(alike, second, 500, 0)
    assert low < mean == alike.mean() < high and high - low > 0.2
    apart = rng.random(1000) < 0.5
    _, low, high = module.share_with_interval(apart, np.arange(1000), 500, 0)
    assert high - low < 0.1


def test_lip_sync_measures_a_model_on_a_recording(benchmark_module, tmp_path):
    module = benchmark_module("lip_sync")
    root = write_tiny_conversation(tmp_path / "long", num_frames=400, size=16)
    model = trained_lip_sync()
    dataset = module.MotionDataset([root], "eval", 50, True, 0.5)
    options = module.LipSyncBenchmark(tmp_path, evidence=(1, 5), resamples=50)
    figures = module.measure_retrieval(model, dataset, options)
    assert figures["1"]["anchors"] > 20 and 0.0 <= figures["1"]["exact"][0] <= figures["1"]["within_1"][0] <= 1.0
    mouths = module.measure_mouths(model, dataset)
    assert set(mouths["correlation"]) == {"jaw_open"}
    closure = module.measure_closure(model, 0, conversations=1, num_frames=250)
    assert closure["true_closed_over_open"] < 0.1 and closure["generated_closed_over_open"] < 0.6
