"""Loading a trained motion model from a config.yml as a generator, without the data it was trained on."""

from pathlib import Path
from typing import Optional, Tuple

import torch
import yaml

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.motion.generator import MotionGenerator
from dialogue_nerfstudio.motion.model import MotionModel
from dialogue_nerfstudio.motion.training.config import METHODS
from dialogue_nerfstudio.motion.training.pipeline import checkpoint_statistics, load_parameters
from dialogue_nerfstudio.motion.training.trainer import MotionTrainerConfig
from dialogue_nerfstudio.nerf.config_reader import read_yaml
from dialogue_nerfstudio.nerf.load import find_checkpoint, read_checkpoint


def load_generator(config_path: Path, device: Optional[str] = None) -> Tuple[MotionTrainerConfig, MotionGenerator]:
    """The newest checkpoint of a motion run (or the one that its config names) as a generator.

    Args:
        config_path: the config.yml that training wrote.
        device: where it computes; None for the GPU where there is one.

    Returns:
        (config, generator): `config.load_dir` and `config.load_step` say what was loaded.

    Raises:
        DialogueError: as `load_motion_model`.
    """
    config, model = load_motion_model(config_path, device)
    return config, model.generator()


def load_motion_model(config_path: Path, device: Optional[str] = None) -> Tuple[MotionTrainerConfig, MotionModel]:
    """The same as a model, in eval mode.

    Raises:
        DialogueError: the config or checkpoint is missing, damaged, of another method, or they do not belong together.
    """
    config = read_motion_config(config_path)
    path = find_checkpoint(config)
    checkpoint = read_checkpoint(path)
    state = checkpoint["pipeline"]
    statistics = checkpoint_statistics(state, config.pipeline.model)
    model = config.pipeline.model.build(statistics)
    load_parameters(model, state)
    config.load_dir, config.load_step = path.parent, int(checkpoint["step"])
    return config, model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def read_motion_config(config_path: Path) -> MotionTrainerConfig:
    """The config of a motion run.

    Raises:
        DialogueError: it is missing, damaged, or of another method.
    """
    config_path, names = Path(config_path), ", ".join(METHODS)
    if not config_path.is_file():
        raise DialogueError(f"{config_path} does not exist; give the config.yml that ns-train wrote ({names}).")
    try:
        config = read_yaml(config_path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DialogueError(f"{config_path} is not a readable config ({error}); train again.") from error
    if not isinstance(config, MotionTrainerConfig) or config.method_name not in METHODS:
        method = getattr(config, "method_name", None)
        found = f" but of {method}" if method else ""
        raise DialogueError(f"{config_path} is not a config of a motion method ({names}){found}.")
    return config
