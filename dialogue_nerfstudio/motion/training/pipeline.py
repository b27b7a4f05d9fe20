"""Pipeline of motion models: draws windows, asks the model for losses and figures, and loads completely or not at
all."""

import math
from collections import defaultdict
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, List, Literal, Mapping, Optional, Tuple, Type, Union

import numpy as np
import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.pipelines.base_pipeline import Pipeline, VanillaPipelineConfig
from torch import Tensor, nn
from torch.cuda.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.motion.model import MotionModel, MotionModelConfig, MotionStatistics
from dialogue_nerfstudio.motion.training.datamanager import MotionDataManager, MotionDataManagerConfig
from dialogue_nerfstudio.nerf.memory import keep_freed_memory
from dialogue_nerfstudio.nerf.user_errors import exit_on_user_error

CHECKPOINT_FORMAT = 1
"""Of what is stored; a newer one is refused."""

STATE_KEY = "_extra_state"
"""Where nn.Module puts what `get_extra_state` gives."""


@dataclass
class MotionPipelineConfig(VanillaPipelineConfig):
    """Data and model."""

    _target: Type = field(default_factory=lambda: MotionPipeline)
    datamanager: MotionDataManagerConfig = field(default_factory=MotionDataManagerConfig)
    """Where windows come from."""
    model: MotionModelConfig = field(default_factory=MotionModelConfig)
    """What learns to move."""

    def setup(self, **kwargs: Any) -> "MotionPipeline":
        """What nerfstudio's commands call; a user error ends them with one sentence. From Python use the class."""
        with exit_on_user_error():
            return super().setup(**kwargs)


class MotionPipeline(Pipeline):
    """A motion model on its data.

    Args:
        config: see there.
        device: where the model is.
        test_mode: nerfstudio's; motion needs its data in all of them.
        world_size, local_rank: processes that train together and which of them this is.
        grad_scaler: unused.

    Raises:
        DialogueError: the data cannot be read.
    """

    datamanager: MotionDataManager

    def __init__(
        self,
        config: MotionPipelineConfig,
        device: Union[torch.device, str],
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Optional[GradScaler] = None,
    ):
        super().__init__()
        if torch.device(device).type == "cpu":
            keep_freed_memory()
        self.config, self.world_size, self.local_rank = config, world_size, local_rank
        self._device = torch.device(device)
        self.datamanager = MotionDataManager(
            config.datamanager,
            window=config.model.window,
            needs_mel=config.model.needs_mel,
            device=self._device,
            world_size=world_size,
            local_rank=local_rank,
        )
        self.statistics = self.datamanager.train_dataset.statistics
        self._model: nn.Module = config.model.build(self.statistics).to(self._device)
        if world_size > 1:
            ids = [local_rank] if self._device.type == "cuda" else None
            self._model = DistributedDataParallel(self._model, device_ids=ids, find_unused_parameters=True)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def model(self) -> MotionModel:
        """The model, without what synchronises its gradients."""
        return getattr(self._model, "module", self._model)

    def get_train_loss_dict(self, step: int) -> Tuple[None, Dict[str, Tensor], Dict[str, Any]]:
        with exit_on_user_error():
            windows = self.datamanager.next_train(step)
        # Whatever a model draws belongs to the step, so that a run that resumes goes on as if it had not stopped.
        torch.manual_seed(_step_seed(self.config.datamanager.seed, self.local_rank, step))
        return None, self._model(windows, step), {}

    @torch.no_grad()
    def get_eval_loss_dict(self, step: int) -> Tuple[None, Dict[str, Tensor], Dict[str, Any]]:
        self.eval()
        with exit_on_user_error():
            windows = self.datamanager.next_eval(step)
        torch.manual_seed(_step_seed(self.config.datamanager.seed, self.local_rank, step))
        losses, figures = self.model.losses(windows, step), self.model.figures(windows)
        self.train()
        return None, losses, figures

    def get_eval_image_metrics_and_images(self, step: int) -> Tuple[Dict[str, Any], Dict[str, Tensor]]:
        """Motion has no pictures; figures of a batch."""
        _, _, figures = self.get_eval_loss_dict(step)
        return {**figures, "num_rays": self.datamanager.get_eval_rays_per_batch()}, {}

    @torch.no_grad()
    def get_average_eval_image_metrics(
        self, step: Optional[int] = None, output_path: Optional[Path] = None, get_std: bool = False
    ) -> Dict[str, float]:
        """Figures over the held-out windows; the mean over batches, of those in which a figure is defined.

        Args:
            step: of the training, or None.
            output_path: unused: there are no pictures.
            get_std: also give each figure's standard deviation over batches as `<name>_std`.
        """
        self.eval()
        values: Dict[str, List[float]] = defaultdict(list)
        with exit_on_user_error():
            for number, windows in enumerate(self.datamanager.eval_batches()):
                torch.manual_seed(_step_seed(self.config.datamanager.seed, 0, number))
                for name, value in self.model.figures(windows).items():
                    if math.isfinite(value):
                        values[name].append(float(value))
        self.train()
        means = {name: float(np.mean(found)) for name, found in values.items()}
        spread = {f"{name}_std": float(np.std(found)) for name, found in values.items()} if get_std else {}
        return {**means, **spread}

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> List[TrainingCallback]:
        return []

    def get_param_groups(self) -> Dict[str, List[nn.Parameter]]:
        return self.model.parameter_groups()

    def get_extra_state(self) -> Dict[str, Any]:
        """What a checkpoint says of itself beside parameters: enough to build the model without its data."""
        return {
            "format": CHECKPOINT_FORMAT,
            "model": type(self.config.model).__name__,
            "statistics": statistics_state(self.statistics),
        }

    def set_extra_state(self, state: Dict[str, Any]) -> None:
        self.statistics = read_statistics(state["statistics"])

    def load_pipeline(self, loaded_state: Dict[str, Any], step: int) -> None:
        """What nerfstudio's commands call; a user error ends them with one sentence."""
        with exit_on_user_error():
            self.load_strictly(loaded_state)

    def load_strictly(self, loaded_state: Mapping[str, Any]) -> None:
        """Loads every parameter, and the statistics that the checkpoint was trained with, or refuses.

        Raises:
            DialogueError: the checkpoint is of another model, other sizes, or another expression basis than the data.
        """
        statistics = checkpoint_statistics(loaded_state, self.config.model)
        own = self.statistics
        if (statistics.expression_basis, statistics.expression_names) != (own.expression_basis, own.expression_names):
            raise DialogueError(
                f"the checkpoint moves faces in the basis '{statistics.expression_basis}', the data is in "
                f"'{own.expression_basis}'; carry the data over with `ns-dialogue refit`."
            )
        load_parameters(self.model, loaded_state)
        self.statistics = statistics


def load_parameters(model: MotionModel, loaded_state: Mapping[str, Any]) -> None:
    """Fills a model from a pipeline's state.

    Raises:
        DialogueError: a parameter is missing, too many, or of another size.
    """
    state = {
        key.removeprefix("_model.").removeprefix("module."): value
        for key, value in loaded_state.items()
        if key.startswith("_model.")
    }
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        difference = next(line.strip() for line in str(error).splitlines()[1:] if line.strip())
        raise DialogueError(
            f"the checkpoint does not fit this configuration ({difference}); load the config.yml that was saved "
            "with it."
        ) from error


def statistics_state(statistics: MotionStatistics) -> Dict[str, Any]:
    """Statistics as a checkpoint holds them: tensors, numbers and texts."""
    state = {entry.name: getattr(statistics, entry.name) for entry in fields(statistics)}
    return {name: value.detach().cpu().clone() if isinstance(value, Tensor) else value for name, value in state.items()}


def read_statistics(state: Mapping[str, Any]) -> MotionStatistics:
    """The statistics of a checkpoint.

    Raises:
        DialogueError: something is missing.
    """
    names = [entry.name for entry in fields(MotionStatistics)]
    missing = [name for name in names if name not in state]
    if missing:
        raise DialogueError(f"the checkpoint's statistics lack {', '.join(missing)}; train again.")
    return MotionStatistics(**{name: state[name] for name in names})


def checkpoint_statistics(loaded_state: Mapping[str, Any], config: MotionModelConfig) -> MotionStatistics:
    """The statistics in a pipeline's state, which must be of this kind of model.

    Raises:
        DialogueError: it is no motion model's, a newer program's, or another model's.
    """
    extra = loaded_state.get(STATE_KEY)
    if not isinstance(extra, dict) or not {"format", "model", "statistics"} <= set(extra):
        raise DialogueError("the checkpoint was not written by a motion model; give one of this method.")
    if extra["format"] > CHECKPOINT_FORMAT:
        raise DialogueError(
            f"the checkpoint has format {extra['format']}, this program knows up to {CHECKPOINT_FORMAT}; "
            "upgrade dialogue-nerfstudio."
        )
    if extra["model"] != type(config).__name__:
        raise DialogueError(
            f"the checkpoint is of {extra['model']}, the configuration of {type(config).__name__}; load the "
            "config.yml that was saved with it."
        )
    return read_statistics(extra["statistics"])


def _step_seed(seed: int, rank: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1)[0])
