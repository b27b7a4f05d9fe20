"""Trainer of motion models: nerfstudio's, with epochs, and processes that train together on a CPU."""

import random
import socket
from dataclasses import dataclass, field
from typing import Any, Optional, Type, Union

import numpy as np
import torch
import torch.distributed as dist
from nerfstudio.configs.base_config import MachineConfig
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils import comms
from nerfstudio.utils.rich_utils import CONSOLE

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.nerf.trainer import RunTrainer
from dialogue_nerfstudio.nerf.user_errors import exit_on_user_error


@dataclass
class MotionMachineConfig(MachineConfig):
    """nerfstudio's, where several devices may also be a CPU's processes.

    nerfstudio's launcher refuses more than one device without CUDA, so that on a CPU `num_devices` is moved out of its
    sight, and `MotionTrainerConfig.setup` launches the processes.
    """

    cpu_processes: int = 1
    """Processes that train together on a CPU, each on windows of its own; `--machine.num-devices` sets it too."""

    def __post_init__(self) -> None:
        if self.device_type == "cpu" and self.num_devices > 1:
            self.cpu_processes, self.num_devices = self.num_devices, 1


@dataclass
class MotionTrainerConfig(TrainerConfig):
    """nerfstudio's trainer for motion models."""

    _target: Type = field(default_factory=lambda: MotionTrainer)
    machine: MotionMachineConfig = field(default_factory=MotionMachineConfig)
    """Where it trains."""
    epochs: Optional[float] = None
    """Passes over the training frames, which then say how many steps there are; None for max_num_iterations."""

    def setup(self, **kwargs: Any) -> Union["MotionTrainer", "CpuProcesses"]:
        """The trainer, or on a CPU with several processes what launches one in each."""
        if self.machine.device_type == "cpu" and self.machine.cpu_processes > 1 and not dist.is_initialized():
            return CpuProcesses(self)
        return super().setup(**kwargs)


class MotionTrainer(RunTrainer):
    """See the module's sentence."""

    config: MotionTrainerConfig

    def setup(self, test_mode: str = "val") -> None:
        if self.config.is_viewer_enabled() or self.config.is_viewer_legacy_enabled():
            with exit_on_user_error():
                raise DialogueError(
                    "motion models have no picture to show in the viewer; train with --vis tensorboard."
                )
        super().setup(test_mode)

    def setup_optimizers(self) -> Optimizers:
        # The first moment at which the data is known, and before learning rates are planned over the run.
        if self.config.epochs is not None:
            steps = round(self.config.epochs * self.pipeline.datamanager.steps_per_epoch)
            self.config.max_num_iterations = max(1, steps)
            CONSOLE.log(
                f"{self.config.epochs:g} epochs of this data are {self.config.max_num_iterations} steps; "
                "--epochs None leaves it to --max-num-iterations."
            )
        return super().setup_optimizers()


class CpuProcesses:
    """Stands for a trainer whose training happens in several processes (DistributedDataParallel over gloo).

    Args:
        config: the run's; `machine.cpu_processes` of them are started.
    """

    def __init__(self, config: MotionTrainerConfig):
        self.config = config

    def setup(self) -> None:
        """Nothing: each process sets up its own trainer."""

    def train(self) -> None:
        """Trains in all processes and waits for them.

        Raises:
            SystemExit: code 2, where one ended with a user error.
        """
        processes, port = self.config.machine.cpu_processes, _free_port()
        try:
            torch.multiprocessing.spawn(_train_in_process, args=(processes, port, self.config), nprocs=processes)
        except torch.multiprocessing.ProcessExitedException as error:
            # The process has said what was wrong.
            raise SystemExit(error.exit_code) from error


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _train_in_process(rank: int, processes: int, port: int, config: MotionTrainerConfig) -> None:
    # Together they should not use more cores than one process would.
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=processes, rank=rank)
    # What nerfstudio's launcher would have made: every process is on this machine.
    comms.LOCAL_PROCESS_GROUP = dist.new_group(list(range(processes)))
    try:
        # As nerfstudio's train_loop, whose module would bring every other method into each process.
        seed = config.machine.seed + rank
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        trainer = config.setup(local_rank=rank, world_size=processes)
        trainer.setup()
        trainer.train()
        comms.synchronize()
    finally:
        dist.destroy_process_group()
