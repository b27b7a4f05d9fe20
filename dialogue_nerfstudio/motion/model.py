"""What every trainable motion model is to the trainer: a module with losses and figures on windows, and a generator.

A model's numerics import torch and NumPy only; `motion.training` puts it into nerfstudio's trainer. What normalises
its input (means, deviations of the training set) and everything else that generation needs is in its `state_dict`, so
that a checkpoint and its config are enough to generate, without the training data.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Dict

from jaxtyping import Float
from torch import Tensor, nn

from dialogue_nerfstudio.motion.generator import MotionGenerator
from dialogue_nerfstudio.motion.windows import MotionWindows


@dataclass
class MotionStatistics:
    """Means and standard deviations of the training set, per column."""

    head_pose: Float[Tensor, "2 6"]
    head_velocity: Float[Tensor, "2 6"]
    """Of head_pose[t] − head_pose[t − 1]."""
    expression: Float[Tensor, "2 E"]
    blink: Float[Tensor, "2 2"]
    gaze: Float[Tensor, "2 4"]
    prosody: Float[Tensor, "2 2"]
    num_people: int
    expression_basis: str
    expression_names: tuple[str, ...]


@dataclass
class MotionModelConfig:
    """Base of every motion model's config."""

    # Not an abstract class: a run's config.yml is read by way of the plain default of a pipeline's field.

    @property
    def window(self) -> int:
        """Frames of a training window."""
        raise NotImplementedError

    @property
    def needs_mel(self) -> bool:
        """Whether windows must bring the spectrogram."""
        return False

    def build(self, statistics: MotionStatistics) -> "MotionModel":
        """The untrained model; when a checkpoint is loaded, with the statistics that are in it."""
        raise NotImplementedError


class MotionModel(nn.Module, ABC):
    """A motion model in training."""

    config: MotionModelConfig

    @abstractmethod
    def losses(self, windows: MotionWindows, step: int) -> Dict[str, Tensor]:
        """Named losses of a batch, already weighted; their sum is minimised."""

    @abstractmethod
    def figures(self, windows: MotionWindows) -> Dict[str, float]:
        """Named figures of a held-out batch, for TensorBoard and ns-eval."""

    def forward(self, windows: MotionWindows, step: int) -> Dict[str, Tensor]:
        """`losses`, by the name under which PyTorch's DistributedDataParallel sees it."""
        return self.losses(windows, step)

    def parameter_groups(self) -> Dict[str, list[nn.Parameter]]:
        """Parameters by the name of their optimiser; one group, `networks`, unless a model says otherwise."""
        return {"networks": list(self.parameters())}

    @abstractmethod
    def generator(self) -> MotionGenerator:
        """This model, trained, as a generator; it computes where the model is."""
