"""A tiny conversation, and a pipeline shrunk to train on it within seconds."""

from pathlib import Path

import pytest
from tiny_conversation import write_tiny_conversation


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
    # Every path of the fields is at work, also those that are off by default.
    config.model.head.view_dependent = True
    config.model.head.encoding = "grid"
    config.model.head_samples, config.model.torso_samples = 12, 8
    config.model.occupancy.resolution = 16
    config.model.signals.audio = AudioNetConfig(base_width=4, code_size=16)
    return config


@pytest.fixture
def pipeline(small_config):
    from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline

    return DialoguePipeline(small_config, device="cpu", test_mode="val")
