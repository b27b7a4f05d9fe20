"""Trainer: nerfstudio's, with checkpoints never half-written and learning rates that follow the run's length."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional, Tuple, Type

import torch
from nerfstudio.engine.optimizers import AdamOptimizerConfig, Optimizers
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils.decorators import check_main_thread
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dialogue_nerfstudio.conversation.files import atomic_path
from dialogue_nerfstudio.nerf.user_errors import exit_on_user_error


@dataclass
class FusedAdamConfig(AdamOptimizerConfig):
    """Adam in one pass over the parameters, which dense hash tables make long."""

    eps: float = 1e-15
    """Added to the denominator; small, because most table entries have tiny gradients (Instant-NGP)."""
    betas: Tuple[float, float] = (0.9, 0.99)
    """Decay of the running means of gradients and of their squares (Instant-NGP): an entry of a hash table gets a
    gradient in few steps only, and its scale must be known within a run of a thousand."""
    fused: bool = True
    """PyTorch's fused kernel."""


@dataclass
class RunDecayConfig(SchedulerConfig):
    """Exponential decay over the run.

    nerfstudio's own exponential decay stores NumPy numbers in checkpoints, which torch ≥ 2.6 refuses to load.
    """

    _target: Type = field(default_factory=lambda: RunDecay)
    final_share: float = 0.05
    """Share of the initial learning rate that is left at the end."""
    max_steps: Optional[int] = None
    """Steps until the end; None for the run's max_num_iterations."""


class RunDecay(Scheduler):
    """lr(step) = lr · final_share^(step / max_steps)."""

    config: RunDecayConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LambdaLR:
        steps, final = self.config.max_steps, self.config.final_share
        assert steps is not None, "DialogueTrainer fills max_steps in"
        return LambdaLR(optimizer, lambda step: float(final ** min(step / steps, 1.0)))


class RunTrainer(Trainer):
    """nerfstudio's trainer with what the module's sentence says, for models of any kind."""

    def train(self) -> None:
        with exit_on_user_error():
            super().train()

    def setup_optimizers(self) -> Optimizers:
        for group in self.config.optimizers.values():
            scheduler = group["scheduler"]
            if isinstance(scheduler, RunDecayConfig) and scheduler.max_steps is None:
                scheduler.max_steps = self.config.max_num_iterations
        return super().setup_optimizers()

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """The base class writes in place, so that a full disk or a kill would leave half a file as the newest one."""
        path: Path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        pipeline = getattr(self.pipeline, "module", self.pipeline)
        state = {
            "step": step,
            "pipeline": pipeline.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
        }
        with exit_on_user_error(), atomic_path(path) as temporary:
            _save(state, temporary)
        if self.config.save_only_latest_checkpoint:
            for other in self.checkpoint_dir.glob("step-*.ckpt"):
                if other != path:
                    other.unlink()


@dataclass
class DialogueTrainerConfig(TrainerConfig):
    """nerfstudio's trainer for avatars."""

    _target: Type = field(default_factory=lambda: DialogueTrainer)


class DialogueTrainer(RunTrainer):
    """The trainer of avatars."""

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        super().setup(test_mode)
        getattr(self.pipeline, "module", self.pipeline).datamanager.total_steps = self.config.max_num_iterations

    def train(self) -> None:
        try:
            super().train()
        finally:
            getattr(self.pipeline, "module", self.pipeline).end_processes()


def _save(state: dict, path: Path) -> None:
    """torch.save through a Python file, whose OSError says why it failed; torch's own writer hides that."""
    with open(path, "wb") as stream:
        torch.save(state, stream)
