"""A lip-sync run through nerfstudio's trainer, and everything that is made of its config.yml without its data."""

import copy
import shutil

import numpy as np
import pytest
from spoken_windows import SMALL_LIP_SYNC
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.cli.main import main
from dialogue_nerfstudio.conversation import load_conversation
from dialogue_nerfstudio.motion.face_codes import FaceCodesConfig
from dialogue_nerfstudio.motion.generator import Character
from dialogue_nerfstudio.motion.signals import MotionSignals
from dialogue_nerfstudio.motion.training.config import METHODS
from dialogue_nerfstudio.motion.training.load import load_generator, load_motion_model
from dialogue_nerfstudio.motion.training.trainer import MotionMachineConfig
from dialogue_nerfstudio.process.features import FeatureExtractor


@pytest.fixture(scope="module")
def conversation_folder(tmp_path_factory):
    return write_tiny_conversation(tmp_path_factory.mktemp("spoken") / "chat", num_frames=250, size=16)


def _train(name, model, data, tmp_path, monkeypatch):
    """What `ns-train NAME --data DATA` does, two steps of it."""
    from nerfstudio.scripts.train import train_loop

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nerfstudio.utils.writer.EVENT_WRITERS", [])
    config = copy.deepcopy(METHODS[name].config)
    config.max_num_iterations, config.timestamp, config.machine = 2, "run", MotionMachineConfig(device_type="cpu")
    config.pipeline.model = model
    config.pipeline.datamanager.data = data
    config.pipeline.datamanager.windows_per_batch = 3
    config.pipeline.datamanager.eval_fraction = 0.3
    config.steps_per_eval_batch = config.steps_per_eval_all_images = 1
    config.save_config()
    train_loop(0, 1, config)
    return config.get_base_dir() / "config.yml"


def test_a_run_becomes_a_feature_a_file_and_a_generator(conversation_folder, tmp_path, monkeypatch, capsys):
    data = shutil.copytree(conversation_folder, tmp_path / "chat")
    config_path = _train("dialogue-lip-sync", copy.deepcopy(SMALL_LIP_SYNC), data, tmp_path, monkeypatch)
    file = tmp_path / "encoder.safetensors"
    arguments = ["features", data, "--kind", "contrastive", "--weights", config_path, "--save-weights", file]
    assert main([str(argument) for argument in arguments]) == 0
    assert "audio-feature contrastive" in capsys.readouterr().out
    conversation = load_conversation(data)
    rows = conversation.feature("contrastive")
    assert rows.shape == (250, 24)
    again = FeatureExtractor("contrastive", str(file))
    assert again.origin.fingerprint == FeatureExtractor("contrastive", str(config_path)).origin.fingerprint
    np.testing.assert_allclose(again.rows(*conversation.audio(), 250, 25.0), rows, atol=1e-5)

    config, generator = load_generator(config_path, "cpu")
    assert config.load_step == 1 and generator.provides == ("expression",)
    signals = MotionSignals(
        ("p0",), np.zeros((1, 25, 2), np.float32), np.zeros((1, 80, 80), np.float32), np.ones((1, 25), bool)
    )
    person = Character("p0", conversation.participants[0].motion, conversation.speaking[:, 0])
    assert generator.generate(signals, [person], 0)["p0"]["expression"].shape == (25, 28)
    assert main(["features", str(data), "--kind", "mel", "--save-weights", str(file)]) == 2
    assert "leave it out" in capsys.readouterr().err


def test_face_codes_train_and_load(conversation_folder, tmp_path, monkeypatch):
    model = FaceCodesConfig(widths=(16,))
    config_path = _train("dialogue-face-codes", model, conversation_folder, tmp_path, monkeypatch)
    _, loaded = load_motion_model(config_path, "cpu")
    mouth, eye = loaded.encode(load_conversation(conversation_folder).participants[0].motion)
    assert mouth.shape == (250, 32) and eye.shape == (250, 16)
