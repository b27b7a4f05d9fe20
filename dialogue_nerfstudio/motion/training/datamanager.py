"""Datamanager of motion models: windows of motion and sound, drawn by a generator that the step's number seeds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Literal, Optional, Tuple, Type, Union

import numpy as np
import torch
from nerfstudio.data.datamanagers.base_datamanager import DataManager, DataManagerConfig
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from torch import nn

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.motion.windows import MotionWindows, WindowSource, join_windows


@dataclass
class MotionDataManagerConfig(DataManagerConfig):
    """Windows of conversations. nerfstudio's own options about images have no effect."""

    _target: Type = field(default_factory=lambda: MotionDataManager)
    sources: Tuple[Path, ...] = ()
    """Further folders of conversations or of simulated motion, beside --data."""
    data_share: Optional[float] = None
    """Part of each batch's windows, 0 to 1, that are of --data, the rest of everything: makes a short recording count
    beside hours of others. None for as often as its length gives."""
    eval_fraction: float = 0.2
    """Part of each recorded conversation, at its end, that is held out."""
    windows_per_batch: int = 32
    """Windows a training step, of each process."""
    eval_windows: int = 256
    """Held-out windows, evenly spread, that evaluation looks at; fewer where there are no more."""
    seed: int = 0
    """Of the draws."""


class MotionDataManager(DataManager):
    """The conversations of a run, split into training and held-out frames.

    Args:
        config: see there.
        window: frames of a window.
        needs_mel: whether windows bring the spectrogram.
        device: where batches go.
        world_size, local_rank: processes that train together, each on windows of its own, and which this is.

    Raises:
        DialogueError: there is no data, or it cannot be read.
    """

    config: MotionDataManagerConfig

    def __init__(
        self,
        config: MotionDataManagerConfig,
        window: int,
        needs_mel: bool,
        device: Union[torch.device, str] = "cpu",
        world_size: int = 1,
        local_rank: int = 0,
        **_: Any,
    ):
        # DataManager's own initialiser sets up pictures.
        nn.Module.__init__(self)
        self.config, self.window, self.device = config, window, device
        self.world_size, self.local_rank = world_size, local_rank
        self.train_dataset = self._open("train", needs_mel)
        self.eval_dataset = self._open("eval", needs_mel)
        self._favoured = None
        if config.data_share is not None and config.sources:
            if not 0.0 <= config.data_share <= 1.0:
                raise DialogueError(f"the data share is a part of each batch, 0 to 1, not {config.data_share}.")
            self._favoured = self._open("train", needs_mel, alone=True)
        self.train_sampler = self.eval_sampler = None

    def _open(self, split: Literal["train", "eval"], needs_mel: bool, alone: bool = False) -> WindowSource:
        if self.config.data is None:
            raise DialogueError("there is no data to train on; give --data FOLDER of conversations.")
        from dialogue_nerfstudio.motion.dataset import MotionDataset

        folders = [self.config.data, *(() if alone else self.config.sources)]
        return MotionDataset(folders, split, self.window, needs_mel, self.config.eval_fraction)

    def next_train(self, step: int) -> MotionWindows:
        """The windows of a training step: the same for the same step, whatever went before."""
        rng = np.random.default_rng([self.config.seed, self.local_rank, step])
        count = self.config.windows_per_batch
        if self._favoured is None:
            return self.train_dataset.draw(count, rng).to(self.device)
        favoured = round(self.config.data_share * count)
        draws = ((self._favoured, favoured), (self.train_dataset, count - favoured))
        # People of --data have the same numbers in both: they come first.
        return join_windows([dataset.draw(some, rng) for dataset, some in draws if some]).to(self.device)

    def next_eval(self, step: int) -> MotionWindows:
        """Held-out windows to look at during training."""
        rng = np.random.default_rng([self.config.seed, step])
        count = min(self.config.windows_per_batch, len(self.eval_dataset))
        numbers = rng.choice(len(self.eval_dataset), count, replace=False)
        return self.eval_dataset.batch(np.sort(numbers).tolist()).to(self.device)

    def eval_batches(self) -> Iterator[MotionWindows]:
        """The held-out windows that evaluation looks at."""
        count = min(self.config.eval_windows, len(self.eval_dataset))
        numbers = np.unique(np.linspace(0, len(self.eval_dataset) - 1, count).round().astype(int)).tolist()
        size = self.config.windows_per_batch
        for first in range(0, len(numbers), size):
            yield self.eval_dataset.batch(numbers[first : first + size]).to(self.device)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which as many windows are drawn as lie end to end in the training frames."""
        return max(1, round(len(self.train_dataset) / (self.config.windows_per_batch * self.world_size)))

    def get_train_rays_per_batch(self) -> int:
        """nerfstudio's measure of speed; here frames."""
        return self.config.windows_per_batch * self.window

    def get_eval_rays_per_batch(self) -> int:
        return self.get_train_rays_per_batch()

    def get_datapath(self) -> Optional[Path]:
        return self.config.data

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> List[TrainingCallback]:
        return []

    def get_param_groups(self) -> Dict[str, List[nn.Parameter]]:
        return {}
