"""`ns-dialogue animate` with models that were really trained, for a few steps: folder, video, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from motion_generators import recorded_person
from motion_stand_in import InventedWindows
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.cli.training import train_avatars
from dialogue_nerfstudio.conversation import load_conversation, save_conversation
from dialogue_nerfstudio.conversation.motion import Motion
from dialogue_nerfstudio.conversation.roles import SpeechSegment, write_rttm
from dialogue_nerfstudio.motion.pose_tcn import PoseTcnConfig
from dialogue_nerfstudio.motion.tcn import TcnConfig
from dialogue_nerfstudio.motion.training.config import motion_method
from dialogue_nerfstudio.motion.training.datamanager import MotionDataManager
from dialogue_nerfstudio.motion.training.trainer import MotionMachineConfig
from dialogue_nerfstudio.output.video import read_provenance

SIZE, FRAMES = 32, 50


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """(pose model, avatars): two trained runs; the avatars' people have motion enough to learn habits from."""
    from nerfstudio.scripts.train import train_loop
    from nerfstudio.utils import writer

    folder = tmp_path_factory.mktemp("animate")
    data = write_tiny_conversation(folder / "tiny", num_frames=60, size=SIZE)
    conversation = load_conversation(data)
    for number, participant in enumerate(conversation.participants):
        lively = recorded_person(participant.id, 60, number).reference
        participant.motion.head_pose[:], participant.motion.gaze[:] = lively.head_pose, lively.gaze
    save_conversation(conversation, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(writer, "EVENT_WRITERS", [])
        patch.setattr(
            MotionDataManager, "_open", lambda self, split, needs_mel: InventedWindows(self.window, needs_mel)
        )
        small = PoseTcnConfig(tcn=TcnConfig(channels=8, levels=2), context=30, target=30)
        run = motion_method("dialogue-pose-tcn", small, steps=2, windows_per_batch=2)
        run.machine, run.output_dir, run.timestamp = MotionMachineConfig(device_type="cpu"), folder / "motion", "run"
        run.pipeline.datamanager.data = Path("invented")
        run.save_config()
        train_loop(0, 1, run)
        avatars = train_avatars(data, folder / "outputs", 2, 0, SIZE)
        yield run.get_base_dir() / "config.yml", avatars


@pytest.fixture
def sound(tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal(FRAMES * 640)
    soundfile.write(tmp_path / "new.wav", noise, 16000)
    write_rttm(tmp_path / "turns.rttm", [SpeechSegment(0, 1, "p1"), SpeechSegment(1, 2, "p0")])
    return ["--audio", tmp_path / "new.wav", "--rttm", tmp_path / "turns.rttm"]


def test_a_folder_that_render_takes(cli, configs, sound, tmp_path):
    pose, avatars = configs
    result = cli("animate", "--load-config", avatars, pose, *sound, "--output", tmp_path / "chat2")
    assert result.code == 0, result.stderr
    record = json.loads((tmp_path / "chat2" / "animation.json").read_text())
    assert [(m["method"], m["checkpoint_step"]) for m in record["models"]] == [("dialogue-pose-tcn", 1)]
    assert record["participants"]["p0"]["sources"]["head_pose"].startswith("generated: dialogue-pose-tcn")
    assert "p0" in result.stdout and "generated" in result.stdout
    motion = Motion.load(tmp_path / "chat2" / "participants" / "p1" / "motion.npz")
    assert motion.num_frames == FRAMES and np.ptp(motion.head_pose, axis=0).max() > 0
    out = tmp_path / "chat2.mp4"
    result = cli("render", "--load-config", avatars, "--motion", tmp_path / "chat2", "--output", out)
    assert result.code == 0, result.stderr
    assert json.loads(out.with_suffix(".json").read_text())["frames"] == FRAMES


def test_a_video_is_rendered_meanwhile(cli, configs, sound, tmp_path):
    out = tmp_path / "new.mp4"
    result = cli("animate", "--load-config", *configs, *sound, "--output", tmp_path / "chat2", "--render", out)
    assert result.code == 0, result.stderr
    statement = read_provenance(out)
    assert statement["synthetic"] is True and statement["sources"] == ["tiny", "new.wav"]
    assert statement["motion_models"][0].startswith("dialogue-pose-tcn")
    changed = out.stat().st_mtime_ns
    again = cli("animate", "--load-config", *configs, *sound, "--output", tmp_path / "chat2", "--render", out)
    assert again.code == 0 and out.stat().st_mtime_ns > changed, "a finished animation is rendered from its folder"


def test_people_may_come_from_a_conversation_alone_and_move_by_habit(cli, configs, sound, tmp_path):
    data = configs[1].parents[4] / "tiny"
    options = ["--people", data, *sound[:2], "--speaker", "p1", "--participants", "p1", "--output", tmp_path / "chat2"]
    result = cli("animate", "--load-config", configs[0], *options)
    assert result.code == 0, result.stderr
    assert [path.name for path in (tmp_path / "chat2" / "participants").iterdir()] == ["p1"]


def test_what_cannot_be_animated_is_refused(refused, configs, sound, tmp_path):
    pose, avatars = configs
    output = ["--output", tmp_path / "out"]

    def refuse(*options, naming):
        return refused("animate", *options, *output, naming=naming)

    refuse("--load-config", tmp_path / "no.yml", *sound, naming=["no.yml", "no such file"])
    (tmp_path / "torn.yml").write_text("!!python/object:os.system {}")
    refuse("--load-config", tmp_path / "torn.yml", *sound, naming=["torn.yml", "not a readable config"])
    (tmp_path / "other.yml").write_text("method_name: nerfacto\n")
    refuse("--load-config", tmp_path / "other.yml", *sound, naming=["other.yml", "motion models", "dialogue-nerf"])
    refuse("--load-config", pose, *sound, naming=["nobody", "--people"])
    refuse("--load-config", avatars, avatars, *sound, naming=["both"])
    refuse("--load-config", pose, avatars, "--audio", "no.wav", naming=["--audio no.wav"])
    refuse("--load-config", pose, avatars, *sound, "--speaker", "p0", naming=["--speaker", "--rttm"])
    refuse("--load-config", pose, avatars, *sound, "--participants", "bob", naming=["bob", "p0, p1"])
    refuse("--load-config", pose, avatars, *sound, "--render", "new.avi", naming=["new.avi", ".mp4"])
    refuse("--load-config", pose, avatars, *sound, "--resolution", "64", naming=["--resolution", "--render"])
    people = write_tiny_conversation(tmp_path / "people", num_frames=60)
    refuse("--load-config", pose, "--people", people, *sound, "--render", "a.mp4", naming=["--render", "avatars"])
    short = write_tiny_conversation(tmp_path / "short", num_frames=20)
    refuse("--load-config", pose, "--people", short, *sound, naming=["16 recorded frames of p0"])
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("motion.npz"))
