"""`ns-dialogue eval-motion` and `export-motion` on folders whose difference is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import trimesh
from motion_generators import recorded_person
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.conversation import load_conversation
from dialogue_nerfstudio.metrics.motion import PROTOCOLS


@pytest.fixture
def folders(tmp_path):
    """A true pair of people, and a prediction that is 0.1 rad and 10 mm off in every number."""
    for name, seed in (("p0", 0), ("p1", 1)):
        motion = recorded_person(name, 300, seed).reference
        for folder in ("truth", "predicted"):
            (tmp_path / folder).mkdir(exist_ok=True)
        motion.save(tmp_path / "truth" / f"{name}.npz")
        off = np.array([0.1, 0.1, 0.1, 0.01, 0.01, 0.01], np.float32)
        replace(motion, head_pose=motion.head_pose + off).save(tmp_path / "predicted" / f"{name}.npz")
    return tmp_path / "predicted", tmp_path / "truth"


def test_every_number_has_its_protocol(cli, folders, tmp_path):
    result = cli("eval-motion", *folders, "--json", tmp_path / "out.json")
    assert result.code == 0, result.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    pose, expression, blinks = (report["scores"][kind] for kind in ("pose", "expression", "blinks"))
    assert pose["d_rot"]["value"] == pytest.approx(0.1, rel=1e-3)
    assert pose["d_pos"]["value"] == pytest.approx(0.01, rel=1e-3)
    assert pose["fd_frechet"]["value"] == pytest.approx(3 * 0.01 + 3 * 0.0001, rel=1e-3)
    assert pose["wtlcc"]["value"] == pytest.approx(0.0, abs=1e-5), "an offset changes no correlation"
    assert expression["l1_rlhg"]["value"] == 0.0 and expression["si_d_l2l"]["value"] == expression["si_d_l2l"]["truth"]
    assert blinks["blinks_per_second_closure"]["value"] == blinks["blinks_per_second_closure"]["truth"] == 0.25
    assert blinks["blink_wtlcc"]["value"] > 0.5
    for scores in report["scores"].values():
        for key, score in scores.items():
            assert score["protocol"] == PROTOCOLS[key] and key in result.stdout
    assert report["participants"]["p1"] == {"frames": 300, "predicted_as": "p1"}


def test_clips_samples_and_one_persons_partner(cli, folders, tmp_path):
    predicted, truth = folders
    options = ["--participants", "p0", "--partner", truth / "p1.npz", "--samples", truth, "--clip-seconds", "4"]
    result = cli("eval-motion", predicted, truth, *options, "--json", tmp_path / "out.json")
    assert result.code == 0, result.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert list(report["participants"]) == ["p0"] and report["clip_seconds"] == 4
    # One more sample, 0.1 rad and 10 mm away in three numbers each.
    assert report["scores"]["pose"]["diversity"]["value"] == pytest.approx(np.sqrt(0.03 + 0.0003), rel=1e-3)
    assert "p_fd" in report["scores"]["pose"]


def test_a_conversations_landmarks_give_its_ear(cli, tmp_path):
    tiny = write_tiny_conversation(tmp_path / "tiny", num_frames=50)
    result = cli("eval-motion", tiny, tiny, "--json", tmp_path / "out.json")
    assert result.code == 0, result.stderr
    blinks = json.loads((tmp_path / "out.json").read_text())["scores"]["blinks"]
    assert blinks["blinks_per_second_ear"]["value"] is None and blinks["blinks_per_second_ear"]["truth"] >= 0


def test_what_cannot_be_compared_is_refused(refused, folders, tmp_path):
    predicted, truth = folders
    refused("eval-motion", predicted, tmp_path / "no", naming=["no"])
    refused("eval-motion", predicted, truth, "--participants", "bob", naming=["bob", "p0, p1"])
    refused("eval-motion", predicted, truth, "--partner", truth / "p1.npz", naming=["--partner", "2 people"])
    refused("eval-motion", predicted, truth, "--clip-seconds", "0", naming=["--clip-seconds 0"])
    recorded_person("p0", 10).reference.save(tmp_path / "short.npz")
    refused("eval-motion", tmp_path / "short.npz", truth / "p0.npz", naming=["short.npz", "10 frames in common"])
    other = recorded_person("p0", 100).reference
    replace(other, expression_basis="FLAME").save(tmp_path / "flame.npz")
    refused("eval-motion", tmp_path / "flame.npz", truth / "p0.npz", naming=["flame.npz", "FLAME", "refit"])


def test_export_writes_what_is_asked_for(cli, folders, tmp_path):
    _, truth = folders
    assert cli("export-motion", truth).code == 0
    assert len(trimesh.load(tmp_path / "truth.glb", process=False).geometry) == 2
    assert cli("export-motion", truth, "--format", "csv", "--participants", "p1").code == 0
    assert [path.name for path in (tmp_path / "truth_csv").iterdir()] == ["p1.csv"]
    assert cli("export-motion", truth / "p0.npz", "--format", "npz", "--output", tmp_path / "plain").code == 0
    assert (tmp_path / "plain" / "p0.npz").is_file()


def test_export_takes_the_trackers_own_weights(cli, tmp_path):
    tiny = write_tiny_conversation(tmp_path / "tiny", num_frames=30)
    conversation = load_conversation(tiny)
    tracking = dict(conversation.tracking("p0"))
    weights = np.linspace(0, 1, 30, dtype=np.float32)[:, None]
    np.savez(
        tiny / "participants" / "p0" / "tracking.npz",
        **tracking, blendshapes=weights, blendshape_names=np.array(["cheekPuff"]),
    )  # fmt: skip
    assert cli("export-motion", tiny, "--format", "csv", "--output", tmp_path / "csv").code == 0
    header, *rows = (tmp_path / "csv" / "p0.csv").read_text().splitlines()
    column = header.split(",").index("cheekPuff")
    assert float(rows[-1].split(",")[column]) == 1.0
    assert "cheekPuff" not in (tmp_path / "csv" / "p1.csv").read_text()


def test_impossible_exports_are_refused(refused, folders, tmp_path):
    _, truth = folders
    refused("export-motion", truth, "--output", tmp_path / "a.fbx", naming=["a.fbx", ".glb"])
    refused("export-motion", truth, "--participants", "bob", naming=["bob", "p0, p1"])
    refused("export-motion", truth, "--format", "csv", "--output", truth / "p0.npz", naming=["p0.npz", "folder"])
