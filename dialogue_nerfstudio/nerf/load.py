"""Loading trained avatars from a config.yml, strictly, for rendering from Python."""

from pathlib import Path
from typing import Tuple

import torch
import yaml
from nerfstudio.engine.trainer import TrainerConfig

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.nerf.config import METHODS
from dialogue_nerfstudio.nerf.config_reader import read_yaml
from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline


def load_pipeline_for_rendering(config_path: Path) -> Tuple[TrainerConfig, DialoguePipeline]:
    """The newest checkpoint of a run (or the one that its config names), ready to render.

    Args:
        config_path: the config.yml that training wrote.

    Returns:
        (config, pipeline): the pipeline in eval mode on the GPU where there is one; `config.load_dir` and
        `config.load_step` say what was loaded.

    Raises:
        DialogueError: the config or checkpoint is missing, damaged, of another method, or does not fit the data.
    """
    config = read_config(config_path)
    checkpoint = find_checkpoint(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = DialoguePipeline(config.pipeline, device=device, test_mode="inference")
    pipeline.eval()
    state = read_checkpoint(checkpoint)
    pipeline.load_strictly(state["pipeline"], state["step"])
    config.load_dir, config.load_step = checkpoint.parent, int(state["step"])
    return config, pipeline


def read_config(config_path: Path) -> TrainerConfig:
    """A run's config.

    Raises:
        DialogueError: it is missing, damaged, or of another method.
    """
    config_path = Path(config_path)
    if not config_path.is_file():
        raise DialogueError(f"{config_path} does not exist; give the config.yml that `ns-train dialogue-nerf` wrote.")
    try:
        config = read_yaml(config_path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DialogueError(f"{config_path} is not a readable config ({error}); train again.") from error
    if not isinstance(config, TrainerConfig) or config.method_name not in METHODS:
        raise DialogueError(f"{config_path} is not a config of the method dialogue-nerf (or -large, or -paper).")
    return config


def find_checkpoint(config: TrainerConfig) -> Path:
    """The checkpoint that a config names, or the newest of its run.

    Raises:
        DialogueError: there is none.
    """
    if config.load_checkpoint is not None:
        path = Path(config.load_checkpoint)
        if not path.is_file():
            raise DialogueError(f"the checkpoint {path} does not exist.")
        return path
    folder = config.get_checkpoint_dir()
    checkpoints = sorted(folder.glob("step-*.ckpt"))
    if not checkpoints:
        raise DialogueError(
            f"there is no checkpoint in {folder}; train first, and run this from the folder where training ran."
        )
    return checkpoints[-1]


def read_checkpoint(path: Path) -> dict:
    """A checkpoint's dictionary; no code in it is run.

    Raises:
        DialogueError: the file is damaged or is no checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises pickle, zip, runtime, EOF and OS errors for damaged files
        raise DialogueError(f"{path} is not a readable checkpoint ({type(error).__name__}); train again.") from error
    if not isinstance(state, dict) or not {"pipeline", "step"} <= set(state):
        raise DialogueError(f"{path} is not a checkpoint of nerfstudio.")
    return state
