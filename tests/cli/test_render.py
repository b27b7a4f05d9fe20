"""`ns-dialogue render` on a model that was really trained, for a few steps, on a tiny conversation."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from media import tone

from dialogue_nerfstudio.conversation.conversation import load_conversation
from dialogue_nerfstudio.conversation.roles import SpeechSegment, write_rttm
from dialogue_nerfstudio.output.video import read_provenance


def pictures(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_the_recording_side_by_side_with_sound(cli, trained, tmp_path):
    result = cli("render", "--load-config", trained.config, "--output", tmp_path / "out.mp4")
    assert result.code == 0, result.stderr
    summary = json.loads((tmp_path / "out.json").read_text())
    conversation = load_conversation(trained.data)
    assert summary["frames"] == conversation.num_frames and summary["fps"] == 25.0
    assert summary["seconds"] == pytest.approx(conversation.num_frames / 25)
    assert summary["frames_per_second_rendered"] > 0
    statement = read_provenance(tmp_path / "out.mp4")
    assert statement["synthetic"] is True and statement["method"] == "dialogue-nerf"
    assert statement["checkpoint_step"] == trained.iterations - 1
    assert statement["sources"] == [trained.data.name] and summary["sources"] == [str(trained.data)]
    assert str(trained.data.parent) not in json.dumps(statement), "a video tells where its maker keeps things"
    with av.open(str(tmp_path / "out.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height) == (summary["width"], summary["height"])
        assert video.width == 2 * trained.size + 2 and video.height == trained.size
        assert float(audio.duration * audio.time_base) == pytest.approx(summary["seconds"], abs=0.04)


def test_one_participant_a_range_and_a_resolution(cli, trained, tmp_path):
    out = tmp_path / "out.mp4"
    options = ["--participants", "p1", "--frames", "3:8", "--resolution", "48"]
    result = cli("render", "--load-config", trained.config, "--output", out, *options)
    assert result.code == 0, result.stderr
    assert pictures(out).shape == (5, 48, 48, 3)


def test_the_eval_split(cli, trained, tmp_path):
    result = cli("render", "--load-config", trained.config, "--output", tmp_path / "out.mp4", "--split", "eval")
    assert result.code == 0, result.stderr
    assert len(pictures(tmp_path / "out.mp4")) == len(load_conversation(trained.data).eval_frames)


def test_another_motion_moves_the_picture(cli, trained, tmp_path):
    motion = load_conversation(trained.data).participant("p0").motion.slice(0, 4)
    motion.head_pose[:, 1] = np.linspace(-0.4, 0.4, 4)
    motion.save(tmp_path / "turn.npz")
    out = tmp_path / "out.mp4"
    options = ["--motion", tmp_path / "turn.npz", "--motion-map", "p0=turn", "--participants", "p0"]
    result = cli("render", "--load-config", trained.config, "--output", out, *options)
    assert result.code == 0, result.stderr
    frames = pictures(out).astype(float)
    assert len(frames) == 4
    assert np.abs(frames[0] - frames[3]).mean() > 1
    assert "turn.npz" in read_provenance(out)["sources"]


def test_new_audio_sounds_and_has_its_length(cli, trained, tmp_path):
    soundfile.write(tmp_path / "new.wav", tone(1.6), 16000)
    write_rttm(tmp_path / "roles.rttm", [SpeechSegment(0, 0.8, "p1"), SpeechSegment(0.8, 1.6, "p0")])
    for options in (["--speaker", "p0"], ["--rttm", tmp_path / "roles.rttm"]):
        out = tmp_path / "out.mp4"
        options = ["--audio", tmp_path / "new.wav", *options]
        result = cli("render", "--load-config", trained.config, "--output", out, *options)
        assert result.code == 0, result.stderr
        assert json.loads((tmp_path / "out.json").read_text())["frames"] == 40
        with av.open(str(out)) as container:
            sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        assert np.abs(sound[4800:48000]).max() == pytest.approx(0.3, abs=0.05)


def test_a_co_located_scene_is_recorded_in_the_video(cli, trained, tmp_path):
    out = tmp_path / "out.mp4"
    options = ["--layout", "co-located", "--camera", "orbit", "--frames", "0:3", "--spacing", "0.9"]
    result = cli("render", "--load-config", trained.config, "--output", out, *options)
    assert result.code == 0, result.stderr
    frames = pictures(out)
    assert frames.shape == (3, trained.size, 56, 3) and np.abs(frames[0].astype(float) - frames[1]).max() > 0
    statement = read_provenance(out)
    assert statement["layout"] == "co-located" and statement["camera"] == "orbit"
    assert statement["placements"] == {
        "p0": {"position": [-0.45, 0.0, 0.0], "yaw": 25.0},
        "p1": {"position": [0.45, 0.0, 0.0], "yaw": -25.0},
    }


def test_a_camera_path_over_the_videos_frames(cli, trained, tmp_path):
    matrix = np.eye(4)
    matrix[:3, 3] = 0.0, 0.0, 1.8
    frames = [{"camera_to_world": matrix.ravel().tolist(), "fov": fov, "aspect": 1.5} for fov in (30, 50)]
    path = {"render_height": 20, "render_width": 30, "seconds": 0.1, "camera_path": frames}
    (tmp_path / "path.json").write_text(json.dumps(path))
    (tmp_path / "seats.json").write_text('{"p0": {"position": [-0.4, 0]}, "p1": {"position": [0.4, 0], "yaw": -20}}')
    out = tmp_path / "out.mp4"
    options = ["--layout", "co-located", "--camera", tmp_path / "path.json", "--placement", tmp_path / "seats.json"]
    result = cli("render", "--load-config", trained.config, "--output", out, "--frames", "0:4", *options)
    assert result.code == 0, result.stderr
    assert pictures(out).shape == (4, 20, 30, 3)
    statement = read_provenance(out)
    assert statement["camera"] == "path.json" and statement["placements"]["p1"]["yaw"] == -20.0


def test_a_grid(cli, trained, tmp_path):
    out = tmp_path / "out.mp4"
    options = ["--layout", "grid", "--frames", "0:1", "--participants", "p0", "p1", "p0"]
    result = cli("render", "--load-config", trained.config, "--output", out, *options)
    assert result.code == 0, result.stderr
    assert pictures(out).shape == (1, 2 * trained.size + 2, 2 * trained.size + 2, 3)


def test_drive_changes_the_speakers_face(cli, trained, tmp_path):
    results = {}
    for drive in ("audio", "expression"):
        out = tmp_path / f"{drive}.mp4"
        result = cli("render", "--load-config", trained.config, "--output", out, "--drive", drive, "--frames", "0:2")
        assert result.code == 0, result.stderr
        results[drive] = pictures(out).astype(float)
    assert np.abs(results["audio"] - results["expression"]).max() > 0


@pytest.mark.parametrize(
    "options, naming",
    [
        (["--speaker", "p0"], ["--audio"]),
        (["--motion-map", "p0=x"], ["--motion"]),
        (["--resolution", "1"], ["--resolution 1"]),
        (["--participants", "p7"], ["p7", "p0, p1"]),
        (["--frames", "5:99"], ["--frames 5:99"]),
        (["--frames", "0:5", "--split", "eval"], ["--frames", "--split"]),
        (["--motion", "nowhere"], ["nowhere"]),
        (["--camera", "front"], ["--camera front", "--layout co-located"]),
        (["--camera", "path.json", "--layout", "grid"], ["--camera path.json", "--layout co-located"]),
        (["--placement", "arc"], ["--placement arc", "--layout co-located"]),
        (["--spacing", "1"], ["--spacing", "--layout co-located"]),
        (["--layout", "co-located", "--camera", "drone"], ["--camera drone", "front, over-shoulder, orbit"]),
        (["--layout", "co-located", "--camera", "no.json"], ["no.json", "no such file"]),
        (["--layout", "co-located", "--placement", "sofa"], ["sofa", "arc, side-by-side"]),
        (["--layout", "co-located", "--spacing", "0.1"], ["p0 and p1", "0.10 m apart", "at least"]),
        (["--layout", "co-located", "--spacing", "-1"], ["--spacing -1"]),
        (["--layout", "co-located", "--camera", "over-shoulder", "--participants", "p0"], ["over-shoulder", "two"]),
        (["--audio", "nothing.wav", "--speaker", "p0"], ["nothing.wav"]),
    ],
)
def test_impossible_requests_are_refused_by_name(refused, trained, tmp_path, options, naming):
    refused("render", "--load-config", trained.config, "--output", tmp_path / "out.mp4", *options, naming=naming)
    assert list(tmp_path.iterdir()) == []
