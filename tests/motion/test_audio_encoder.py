"""The audio encoder reads tracks as it reads windows, and its files bring nothing but weights."""

import numpy as np
import pytest
import torch

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.motion.audio_encoder import AudioEncoder, audio_codes, load_audio_encoder, save_audio_encoder
from dialogue_nerfstudio.motion.signals import mel_windows, window_steps


@pytest.fixture
def encoder() -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(8, 12).eval().requires_grad_(False)


def test_a_tracks_codes_are_those_of_its_windows_cut_out(encoder):
    mel = np.random.default_rng(0).uniform(-1, 1, (2, 160, 80)).astype(np.float32)
    frames = range(2, 48)
    along = encoder.along(torch.from_numpy(mel), torch.from_numpy(window_steps(frames)[:, 0]))
    for track, codes in zip(mel, along, strict=True):
        np.testing.assert_allclose(encoder(torch.from_numpy(mel_windows(track, frames))), codes, atol=1e-5)
    np.testing.assert_allclose(along.norm(dim=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(audio_codes(encoder, mel_windows(mel[0], frames), batch_size=7), along[0], atol=1e-5)


def _checkpoint(encoder: AudioEncoder) -> dict:
    state = {f"_model.audio_encoder.{name}": value for name, value in encoder.state_dict().items()}
    return {"step": 3, "pipeline": {**state, "_model.scale": torch.zeros(())}, "optimizers": {}}


def test_every_file_of_a_run_gives_the_same_encoder(encoder, tmp_path):
    (tmp_path / "nerfstudio_models").mkdir()
    other = AudioEncoder(8, 12)
    torch.save(_checkpoint(other), tmp_path / "nerfstudio_models" / "step-000000001.ckpt")
    torch.save(_checkpoint(encoder), tmp_path / "nerfstudio_models" / "step-000000003.ckpt")
    # Only where it lies is used of a config, which could otherwise name code to run.
    (tmp_path / "config.yml").write_text("!!python/object/apply:os.system ['false']")
    save_audio_encoder(tmp_path / "encoder.safetensors", encoder)
    for name in ("config.yml", "nerfstudio_models/step-000000003.ckpt", "encoder.safetensors"):
        loaded = load_audio_encoder(tmp_path / name)
        for key, value in encoder.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), (name, key)


class _Touch:
    """Pickled, it would write a file when read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_bad_files_are_one_clear_sentence_and_run_nothing(encoder, tmp_path):
    with pytest.raises(DialogueError, match=r"no file .*gone\.safetensors"):
        load_audio_encoder(tmp_path / "gone.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(DialogueError, match=r"text\.safetensors cannot be read"):
        load_audio_encoder(tmp_path / "text.safetensors")
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(DialogueError, match="not of an audio encoder"):
        load_audio_encoder(tmp_path / "other.safetensors")
    torch.save({"pipeline": {"_model.head.weight": torch.zeros(2)}}, tmp_path / "avatar.ckpt")
    with pytest.raises(DialogueError, match="does not hold the audio encoder"):
        load_audio_encoder(tmp_path / "avatar.ckpt")
    state = _checkpoint(encoder)
    state["pipeline"].pop("_model.audio_encoder.hidden.bias")
    torch.save(state, tmp_path / "half.ckpt")
    with pytest.raises(DialogueError, match=r"hidden\.bias"):
        load_audio_encoder(tmp_path / "half.ckpt")
    torch.save({"pipeline": _Touch(tmp_path / "ran")}, tmp_path / "code.ckpt")
    with pytest.raises(DialogueError, match="weights alone"):
        load_audio_encoder(tmp_path / "code.ckpt")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "alone.yml").write_text("x")
    with pytest.raises(DialogueError, match="no checkpoint beside it"):
        load_audio_encoder(tmp_path / "alone.yml")
    with pytest.raises(DialogueError, match=r"kept as \.safetensors"):
        save_audio_encoder(tmp_path / "encoder.pt", encoder)
