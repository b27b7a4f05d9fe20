"""Writes this folder's ready experiments from the method's own configuration: python configs/write_configs.py

Run one with `ns-train dialogue-nerf --load-config configs/laptop.yml` (any method's name does); it trains on data/chat
unless you edit `data`.
"""

from pathlib import Path
from typing import Dict

import yaml

from dialogue_nerfstudio.nerf.config import large_method, method, paper_method
from dialogue_nerfstudio.nerf.trainer import DialogueTrainerConfig

FOLDER = Path(__file__).parent
DATA = Path("data/chat")


def laptop() -> DialogueTrainerConfig:
    """128 pixels on a CPU, minutes."""
    return method(cuda=False)


def gpu() -> DialogueTrainerConfig:
    """512 pixels with CUDA."""
    return method(cuda=True)


def one_network() -> DialogueTrainerConfig:
    """As in the paper: everybody shares all but the latent codes, and the pose acts on the torso's looks directly."""
    config = method(cuda=False)
    config.pipeline.model.grid_sharing = "shared"
    config.pipeline.model.torso.pose_appearance = True
    config.pipeline.model.torso.pose_frequencies = 3
    return config


def large() -> DialogueTrainerConfig:
    """Larger grids and networks at 512 pixels with CUDA: dialogue-nerf-large."""
    return large_method(cuda=True)


def large_laptop() -> DialogueTrainerConfig:
    """Larger grids and networks at 256 pixels on a CPU, hours: dialogue-nerf-large."""
    return large_method(cuda=False)


def paper() -> DialogueTrainerConfig:
    """The renderer as published at 512 pixels with CUDA, 600,000 iterations: dialogue-nerf-paper."""
    return paper_method(cuda=True)


def paper_laptop() -> DialogueTrainerConfig:
    """The renderer as published at 64 pixels on a CPU, to see it work: dialogue-nerf-paper."""
    return paper_method(cuda=False)


EXPERIMENTS = {
    "laptop.yml": laptop,
    "gpu.yml": gpu,
    "one_network.yml": one_network,
    "large.yml": large,
    "large_laptop.yml": large_laptop,
    "paper.yml": paper,
    "paper_laptop.yml": paper_laptop,
}


def texts() -> Dict[str, str]:
    """File name → YAML."""
    result = {}
    for name, make in EXPERIMENTS.items():
        config = make()
        config.data = config.pipeline.datamanager.data = DATA
        result[name] = f"# {make.__doc__}\n{yaml.dump(config)}"
    return result


if __name__ == "__main__":
    for file_name, text in texts().items():
        (FOLDER / file_name).write_text(text, encoding="utf-8")
        print(FOLDER / file_name)
