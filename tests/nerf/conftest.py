"""A tiny conversation, and a pipeline shrunk to train on it within seconds."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_conversation import write_tiny_conversation  # noqa: E402


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Two people, 24 frames of 32 × 32 pixels; do not write to it."""
    return write_tiny_conversation(tmp_path_factory.mktemp("tiny") / "conversation")


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def small_config(tiny, cache):
    """A pipeline config of the smallest useful size."""
    from dialogue_nerfstudio.encodings.hash_grid import HashGridConfig
    from dialogue_nerfstudio.fields.audio_net import AudioNetConfig
    from dialogue_nerfstudio.nerf.config import cpu_pipeline

    config = cpu_pipeline()
    config.datamanager.data = tiny
    config.datamanager.cache_folder = cache
    config.datamanager.train_num_rays_per_batch = 256
    config.datamanager.frames_per_batch = 4
    grid = HashGridConfig(num_levels=4, log2_hashmap_size=12, base_resolution=8, max_resolution=32, kernel="torch")
    config.model.head.grid = config.model.torso.grid = grid
    config.model.head_samples, config.model.torso_samples = 12, 8
    config.model.occupancy.resolution = 16
    config.model.signals.audio = AudioNetConfig(base_width=4, code_size=16)
    return config


@pytest.fixture
def pipeline(small_config):
    from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline

    return DialoguePipeline(small_config, device="cpu", test_mode="val")


def train(pipeline, steps: int) -> "list[float]":
    """Photometric losses of a short training."""
    import torch

    groups = pipeline.get_param_groups()
    optimizers = [
        torch.optim.Adam(groups["grids"], lr=6e-2, eps=1e-15),
        torch.optim.Adam(groups["networks"], lr=5e-3, eps=1e-15),
    ]
    losses = []
    pipeline.train()
    for step in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        _, loss_dict, _ = pipeline.get_train_loss_dict(step)
        sum(loss_dict.values()).backward()
        for optimizer in optimizers:
            optimizer.step()
        if step % 16 == 15:
            pipeline.model.update_occupancy(step)
        losses.append(float(loss_dict["photometric"]))
    return losses
