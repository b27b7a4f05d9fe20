"""Tiny random networks in the very formats that published weights come in, so that the real loading code runs."""

from pathlib import Path

import torch


def write_wav2lip(path: Path, seed: int = 0, prefix: str = "module.") -> Path:
    """A checkpoint as Wav2Lip's training writes it: the whole network's state, of several GPUs, beside the optimizer's;
    of the faces' part only a stand-in."""
    from dialogue_nerfstudio.process.wav2lip import Wav2LipAudioEncoder

    torch.manual_seed(seed)
    encoder = Wav2LipAudioEncoder()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    state = {f"{prefix}audio_encoder.{name}": value for name, value in encoder.state_dict().items()}
    state[f"{prefix}face_encoder_blocks.0.0.conv_block.0.weight"] = torch.zeros(16, 6, 7, 7)
    torch.save({"state_dict": state, "optimizer": None, "global_step": 10, "global_epoch": 1}, path)
    return path


def write_audio_encoder(path: Path, seed: int = 0) -> Path:
    """An untrained audio encoder of this package's lip-sync model, twelve numbers a code."""
    from dialogue_nerfstudio.motion.audio_encoder import AudioEncoder, save_audio_encoder

    torch.manual_seed(seed)
    save_audio_encoder(path, AudioEncoder(8, 12))
    return path


def write_speech_model(folder: Path, kind: str, seed: int = 0, normalises: bool = True, safe: bool = True) -> Path:
    """A HuBERT or wav2vec 2.0 of 16 hidden numbers, saved by transformers."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(seed)
    config_type, model_type = {
        "hubert": (HubertConfig, HubertModel),
        "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    }[kind]
    config = config_type(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
    )
    model_type(config).save_pretrained(folder, safe_serialization=safe)
    Wav2Vec2FeatureExtractor(do_normalize=normalises).save_pretrained(folder)
    return folder
