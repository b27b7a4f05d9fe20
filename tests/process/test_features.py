"""Audio features by name, from networks saved in their published formats."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from speech_weights import write_audio_encoder, write_speech_model, write_wav2lip
from tiny_conversation import write_tiny_conversation

from dialogue_nerfstudio.conversation import DialogueError, load_conversation
from dialogue_nerfstudio.conversation.acoustics import mel_features
from dialogue_nerfstudio.conversation.files import read_npz, write_npz
from dialogue_nerfstudio.motion.audio_encoder import load_audio_encoder
from dialogue_nerfstudio.process import speech_models
from dialogue_nerfstudio.process.features import (
    FeatureExtractor,
    features_of_new_sound,
    parse_weights,
    recorded_origin,
    write_feature,
    write_features,
)
from dialogue_nerfstudio.process.speech_models import load_speech_model, speech_states
from dialogue_nerfstudio.process.wav2lip import load_wav2lip


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {
        "wav2lip": str(write_wav2lip(folder / "wav2lip.pth")),
        "hubert": str(write_speech_model(folder / "hubert", "hubert")),
        "wav2vec2": str(write_speech_model(folder / "wav2vec2", "wav2vec2", safe=False)),
        "contrastive": str(write_audio_encoder(folder / "encoder.safetensors")),
    }


@pytest.mark.parametrize("kind", ["mel", "mfcc", "prosody", "wav2lip", "contrastive", "hubert", "wav2vec2"])
@pytest.mark.parametrize("seconds", [0.01, 1.0, 3.0])
def test_always_exactly_the_asked_rows(weights, kind, seconds):
    sizes = {"mfcc": (16, 13), "prosody": (2,), "wav2lip": (512,), "contrastive": (12,)}
    row = {"mel": (16, 80), **sizes, "hubert": (16,), "wav2vec2": (16,)}[kind]
    feature = FeatureExtractor(kind, weights.get(kind)).feature(noise(seconds), 16_000, 37)
    assert feature.rows.shape == (37, *row) and feature.silence.shape == row
    assert feature.rows.dtype == np.float32 and np.isfinite(feature.rows).all() and np.isfinite(feature.silence).all()


def test_wav2lips_codes_are_its_layers_applied_to_four_times_the_mel(weights):
    state = torch.load(weights["wav2lip"], weights_only=True)["state_dict"]
    mel = mel_features(noise(1.0), 16_000, 25)
    signal = 4.0 * torch.from_numpy(mel).transpose(1, 2).unsqueeze(1)
    strides = [1, 1, 1, (3, 1), 1, 1, 3, 1, 1, (3, 2), 1, 1, 1]
    for index, stride in enumerate(strides):
        part = {key: state[f"module.audio_encoder.{index}.conv_block.{key}"] for key in ("0.weight", "0.bias")}
        norm = [
            state[f"module.audio_encoder.{index}.conv_block.1.{key}"]
            for key in ("running_mean", "running_var", "weight", "bias")
        ]
        padding = 1 if index < 11 else 0
        out = torch.nn.functional.conv2d(signal, part["0.weight"], part["0.bias"], stride, padding)
        out = torch.nn.functional.batch_norm(out, *norm)
        signal = torch.relu(out + signal if index in (1, 2, 4, 5, 7, 8, 10) else out)
    codes = FeatureExtractor("wav2lip", weights["wav2lip"]).rows(noise(1.0), 16_000, 25, 25.0)
    np.testing.assert_allclose(codes, signal.flatten(1).numpy(), atol=1e-4)
    assert signal.shape[1:] == (512, 1, 1)


def test_mfcc_are_the_cosine_transform_of_mel():
    mel, mfcc = mel_features(noise(1.0), 16_000, 25), FeatureExtractor("mfcc").rows(noise(1.0), 16_000, 25, 25.0)
    bands = np.arange(80)
    for number in (0, 1, 12):
        wave = np.cos(np.pi * number * (bands + 0.5) / 80) * np.sqrt((1 if number == 0 else 2) / 80)
        np.testing.assert_allclose(mfcc[..., number], mel @ wave, atol=1e-4)


def test_contrastive_rows_are_the_encoders_codes_of_mel_windows(weights):
    audio = noise(1.0)
    feature = FeatureExtractor("contrastive", weights["contrastive"]).feature(audio, 16_000, 25)
    encoder = load_audio_encoder(Path(weights["contrastive"]))
    expected = encoder(torch.from_numpy(mel_features(audio, 16_000, 25)))
    np.testing.assert_allclose(feature.rows, expected, atol=1e-5)
    np.testing.assert_allclose(feature.silence, encoder(torch.full((1, 16, 80), -1.0))[0], atol=1e-5)


def test_a_bare_state_dict_of_wav2lip_is_taken_too(tmp_path, weights):
    state = torch.load(weights["wav2lip"], weights_only=True)["state_dict"]
    torch.save({name.removeprefix("module."): value for name, value in state.items()}, tmp_path / "bare.pth")
    bare, whole = load_wav2lip(tmp_path / "bare.pth"), load_wav2lip(Path(weights["wav2lip"]))
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), whole.parameters(), strict=True))


def test_a_frame_hears_the_two_states_in_its_middle(weights):
    model, _ = load_speech_model("hubert", weights["hubert"])
    audio = noise(2.0)
    states = model(torch.from_numpy(np.pad(audio, (0, 400)))[None]).last_hidden_state[0]
    rows = speech_states(model, False, audio, 50, 25.0)
    # The last state lies across the end, where padding decides how many there are.
    np.testing.assert_allclose(rows[:49], states[:98].reshape(49, 2, 16).mean(1), atol=0.05)
    assert np.abs(rows[10] - rows[30]).max() > 0.1


def test_long_sound_is_heard_in_blocks_that_agree_with_the_whole(weights, monkeypatch):
    model, _ = load_speech_model("wav2vec2", weights["wav2vec2"])
    audio = noise(6.0)
    whole = speech_states(model, True, audio, 150, 25.0)
    monkeypatch.setattr(speech_models, "BLOCK_SECONDS", 2.0)
    blocks = speech_states(model, True, audio, 150, 25.0)
    assert blocks.shape == whole.shape
    # Attention reaches everywhere, so blocks are not the whole, but far nearer to it than one frame to another.
    near, far = np.abs(blocks - whole).mean(), np.abs(whole[1:] - whole[:-1]).mean()
    assert near < 0.25 * far


def test_other_frame_rates_have_a_state_in_every_frame(weights):
    model, _ = load_speech_model("hubert", weights["hubert"])
    for fps in (20.0, 30.0, 60.0):
        rows = speech_states(model, True, noise(1.0), round(fps), fps)
        assert rows.shape == (round(fps), 16) and (np.abs(rows).sum(1) > 0).all()


def test_what_a_model_wants_of_loudness_is_read_from_its_folder(tmp_path):
    assert load_speech_model("hubert", str(write_speech_model(tmp_path / "a", "hubert", normalises=False)))[1] is False
    assert load_speech_model("hubert", str(write_speech_model(tmp_path / "b", "hubert", normalises=True)))[1] is True


def test_stored_features_know_what_made_them_and_hear_new_sound_alike(tmp_path, weights):
    root = write_tiny_conversation(tmp_path / "c")
    conversation = load_conversation(root)
    audio, rate = conversation.audio()
    for kind in ("wav2lip", "contrastive", "hubert"):
        write_feature(root, FeatureExtractor(kind, weights[kind]).feature(audio, rate, 24))
        assert recorded_origin(conversation, kind).weights == weights[kind]
        again = features_of_new_sound(conversation, kind, audio, rate, 24)
        np.testing.assert_allclose(again, conversation.feature(kind), atol=1e-5)
        assert conversation.silent_feature(kind).shape == again.shape[1:]
    assert json.loads(str(read_npz(root / "features" / "hubert.npz")["origin"]))["kind"] == "hubert"
    # mel of before knew nothing of itself.
    assert features_of_new_sound(conversation, "mel", audio, rate, 24).shape == (24, 16, 80)
    assert (conversation.silent_feature("mel") == -1).all()


def test_other_weights_than_those_of_training_are_refused(tmp_path, weights):
    root = write_tiny_conversation(tmp_path / "c")
    conversation = load_conversation(root)
    audio, rate = conversation.audio()
    mine = write_wav2lip(tmp_path / "mine.pth", seed=5)
    write_feature(root, FeatureExtractor("wav2lip", str(mine)).feature(audio, rate, 24))
    with pytest.raises(DialogueError, match="other weights"):
        features_of_new_sound(conversation, "wav2lip", audio, rate, 24, weights["wav2lip"])
    moved = mine.rename(tmp_path / "moved.pth")
    with pytest.raises(DialogueError, match="--audio-weights"):
        features_of_new_sound(conversation, "wav2lip", audio, rate, 24)
    assert features_of_new_sound(conversation, "wav2lip", audio, rate, 24, str(moved)).shape == (24, 512)
    write_npz(root / "features" / "strange.npz", features=np.zeros((24, 3), np.float32))
    with pytest.raises(DialogueError, match="does not say what made it"):
        features_of_new_sound(conversation, "strange", audio, rate, 24)


def test_bad_weights_are_one_clear_sentence(tmp_path, weights, monkeypatch):
    with pytest.raises(DialogueError, match="no audio feature 'deepspeech'"):
        FeatureExtractor("deepspeech")
    with pytest.raises(DialogueError, match="wav2lip=PATH"):
        FeatureExtractor("wav2lip")
    with pytest.raises(DialogueError, match="contrastive=PATH"):
        FeatureExtractor("contrastive")
    with pytest.raises(DialogueError, match="does not hold the audio encoder of a lip-sync model"):
        FeatureExtractor("contrastive", weights["wav2lip"])
    with pytest.raises(DialogueError, match="has no weights"):
        FeatureExtractor("mel", "x.pth")
    with pytest.raises(DialogueError, match=r"no file .*gone\.pth"):
        FeatureExtractor("wav2lip", str(tmp_path / "gone.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(DialogueError, match=r"text\.pth is not a checkpoint"):
        FeatureExtractor("wav2lip", str(tmp_path / "text.pth"))
    torch.save({"state_dict": {"audio_encoder.0.conv_block.0.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(DialogueError, match="does not hold Wav2Lip's audio encoder"):
        FeatureExtractor("wav2lip", str(tmp_path / "other.pth"))
    torch.save({"state_dict": tmp_path}, tmp_path / "code.pth")
    with pytest.raises(DialogueError, match="weights alone"):
        FeatureExtractor("wav2lip", str(tmp_path / "code.pth"))
    with pytest.raises(DialogueError, match="kind 'wav2vec2', not 'hubert'"):
        FeatureExtractor("hubert", weights["wav2vec2"])
    with pytest.raises(DialogueError, match="There is no folder"):
        FeatureExtractor("hubert", str(tmp_path / "gone"))
    with pytest.raises(DialogueError, match="is a file"):
        FeatureExtractor("hubert", weights["wav2lip"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DialogueError, match=r"empty holds no config\.json"):
        FeatureExtractor("wav2vec2", str(tmp_path / "empty"))
    with pytest.raises(DialogueError, match="KIND=PATH"):
        parse_weights(["wav2lip"])
    with pytest.raises(DialogueError, match="KIND=PATH"):
        parse_weights(["mel=a.pth"])
    assert parse_weights(["hubert=a=b"]) == {"hubert": "a=b"}
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(DialogueError, match="pip install"):
        FeatureExtractor("hubert", weights["hubert"])


def test_features_written_for_a_conversation(tmp_path, weights):
    write_features(tmp_path, noise(1.0), 16_000, 25, kinds=("mel", "wav2lip"), weights=weights)
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == ["mel.npz", "wav2lip.npz"]
