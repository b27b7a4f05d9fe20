"""Avatars hear whatever audio feature the dataparser names, and nothing else than what they were trained with."""

import shutil

import numpy as np
import pytest
import torch
from speech_weights import write_audio_encoder, write_wav2lip

from dialogue_nerfstudio.conversation import DialogueError, load_conversation
from dialogue_nerfstudio.conversation.files import write_npz
from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline
from dialogue_nerfstudio.output.driving import Hearing, drive_by_audio
from dialogue_nerfstudio.process.audio_features import save_wav
from dialogue_nerfstudio.process.features import FeatureExtractor, write_feature


@pytest.fixture
def hearing(tiny, tmp_path, small_config):
    """A pipeline config whose avatars hear Wav2Lip's codes."""
    root = shutil.copytree(tiny, tmp_path / "conversation")
    audio, rate = load_conversation(root).audio()
    weights = str(write_wav2lip(tmp_path / "wav2lip.pth"))
    write_feature(root, FeatureExtractor("wav2lip", weights).feature(audio, rate, 24))
    small_config.datamanager.data = root
    small_config.datamanager.dataparser.audio_feature = "wav2lip"
    return small_config


def test_another_audio_feature_trains_and_moves_faces(hearing, tmp_path):
    torch.manual_seed(0)
    hearing.model.drive = "audio"
    pipeline = DialoguePipeline(hearing, device="cpu", test_mode="val")
    model = pipeline.model
    encoder = model.signal_encoder.audio_net.encoder
    assert encoder.layers[0].in_features == 512 and encoder.mean.abs().sum() > 0
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    before = encoder.layers[0].weight.detach().clone()
    for step in range(3):
        losses = pipeline.get_train_loss_dict(step)[1]
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert not torch.equal(before, encoder.layers[0].weight)
    frames, yes = torch.tensor([3, 20]), torch.tensor([True, True])
    net = model.signal_encoder.audio_net
    silent = net(model.signal_audio, frames, ~yes)
    torch.testing.assert_close(silent[0], silent[1])
    assert not torch.allclose(net(model.signal_audio, frames, yes), silent)

    save_wav(tmp_path / "new.wav", np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32))
    conversation = pipeline.datamanager.dataparser.conversation
    driving = drive_by_audio(conversation, tmp_path / "new.wav", speaker="p0", hearing=Hearing("wav2lip"))
    model.set_signals(model.signals.with_motion(driving.motions).with_audio(driving.features, driving.speaking))
    assert model.signal_audio.shape == (25, 512)
    with pytest.raises(DialogueError, match="'wav2lip'"):
        model.signals.with_audio(np.zeros((25, 16, 80), np.float32), driving.speaking)


def test_checkpoints_of_another_feature_are_refused(hearing, tiny, small_config):
    state = DialoguePipeline(hearing, device="cpu", test_mode="val").model.get_extra_state()
    hearing.datamanager.dataparser.audio_feature = "mel"
    model = DialoguePipeline(hearing, device="cpu", test_mode="val").model
    with pytest.raises(DialogueError, match=r"audio feature \(wav2lip 512\) is not this"):
        model.check_compatible(state)
    old = {name: value for name, value in model.get_extra_state().items() if name != "audio_feature"}
    model.check_compatible(old)


def test_a_feature_that_is_not_there_is_named_with_the_command_that_makes_it(small_config):
    small_config.datamanager.dataparser.audio_feature = "hubert"
    with pytest.raises(DialogueError, match=r"ns-dialogue features .* --kind hubert"):
        DialoguePipeline(small_config, device="cpu", test_mode="val")


def test_rows_without_silence_of_their_own_are_silent_at_zero(tiny, tmp_path, small_config):
    root = shutil.copytree(tiny, tmp_path / "conversation")
    write_npz(root / "features" / "deepspeech.npz", features=np.random.rand(24, 16, 29).astype(np.float32))
    small_config.datamanager.data = root
    small_config.datamanager.dataparser.audio_feature = "deepspeech"
    model = DialoguePipeline(small_config, device="cpu", test_mode="val").model
    assert model.signal_encoder.audio_net.encoder.layers[0].in_features == 16 * 29
    assert not model.signal_encoder.audio_net.silence.any()
    assert (model.signals.with_length(30).audio[24:] == 0).all()


def test_avatars_train_on_contrastive_codes_and_hear_new_sound_with_them(tiny, tmp_path, small_config):
    root = shutil.copytree(tiny, tmp_path / "conversation")
    conversation = load_conversation(root)
    weights = write_audio_encoder(tmp_path / "encoder.safetensors")
    write_feature(root, FeatureExtractor("contrastive", str(weights)).feature(*conversation.audio(), 24))
    small_config.datamanager.data = root
    small_config.datamanager.dataparser.audio_feature = "contrastive"
    small_config.model.drive = "audio"
    torch.manual_seed(0)
    pipeline = DialoguePipeline(small_config, device="cpu", test_mode="val")
    encoder = pipeline.model.signal_encoder.audio_net.encoder
    assert encoder.layers[0].in_features == 12
    sum(pipeline.get_train_loss_dict(0)[1].values()).backward()
    assert encoder.layers[0].weight.grad.abs().sum() > 0
    save_wav(tmp_path / "new.wav", np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32))
    driving = drive_by_audio(conversation, tmp_path / "new.wav", speaker="p0", hearing=Hearing("contrastive"))
    assert driving.features.shape == (25, 12)
    np.testing.assert_allclose(np.linalg.norm(driving.features, axis=1), 1.0, atol=1e-5)
    write_audio_encoder(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(DialogueError, match="other weights"):
        drive_by_audio(
            conversation,
            tmp_path / "new.wav",
            speaker="p0",
            hearing=Hearing("contrastive", str(tmp_path / "other.safetensors")),
        )
