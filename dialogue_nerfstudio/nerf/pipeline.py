"""Dialogue pipeline: datamanager and model together, and checkpoints that load completely or not at all."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Literal, Mapping, Optional, Tuple, Type, Union

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.cuda.amp.grad_scaler import GradScaler

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.conversation.video import HEAD, NECK, TORSO
from dialogue_nerfstudio.nerf.avatar_model import AvatarModelConfig
from dialogue_nerfstudio.nerf.datamanager import DialogueDataManager, DialogueDataManagerConfig
from dialogue_nerfstudio.nerf.geometry_priors import person_proxy
from dialogue_nerfstudio.nerf.hull import visual_hull
from dialogue_nerfstudio.nerf.memory import keep_freed_memory
from dialogue_nerfstudio.nerf.model import DialogueModelConfig
from dialogue_nerfstudio.nerf.shared_step import COUNTS, SharedSteps, choose_processes
from dialogue_nerfstudio.nerf.user_errors import exit_on_user_error

HULL_FRAMES = 64
"""Training frames that the visual hulls are carved from."""


@dataclass
class DialoguePipelineConfig(VanillaPipelineConfig):
    """Datamanager and model of a conversation."""

    _target: Type = field(default_factory=lambda: DialoguePipeline)
    datamanager: DialogueDataManagerConfig = field(default_factory=DialogueDataManagerConfig)
    """Where rays come from."""
    model: AvatarModelConfig = field(default_factory=DialogueModelConfig)
    """The avatars."""
    processes: Optional[int] = 1
    """Processes that share a training step on a CPU, each with a part of its rays; None for one a core where that pays
    (Linux, up to four, no fewer than 256 rays each). They are forked, which not every library's threads can stand (a
    viewer's, for instance), so that it has to be asked for."""

    def setup(self, **kwargs: Any) -> "DialoguePipeline":
        """What nerfstudio's commands call; a user error ends them with one sentence. From Python use the class."""
        with exit_on_user_error():
            return super().setup(**kwargs)


class DialoguePipeline(VanillaPipeline):
    """nerfstudio's pipeline, with strict loading."""

    datamanager: DialogueDataManager
    config: DialoguePipelineConfig

    def __init__(
        self,
        config: DialoguePipelineConfig,
        device: Union[torch.device, str],
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Optional[GradScaler] = None,
    ):
        if torch.device(device).type == "cpu":
            keep_freed_memory()
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
        self._shared_steps: Optional[SharedSteps] = None
        if test_mode == "val" and self.model.culls:
            self._carve()

    def load_pipeline(self, loaded_state: Dict[str, Any], step: int) -> None:
        """What nerfstudio's commands call; a user error ends them with one sentence."""
        with exit_on_user_error():
            self.load_strictly(loaded_state, step)

    def load_strictly(self, loaded_state: Mapping[str, Any], step: int) -> None:
        """Loads every parameter or refuses; the base class would drop what does not fit and render noise.

        Raises:
            DialogueError: the checkpoint is of other participants, another grid or kernel, other sizes, or no
                checkpoint of this method.
        """
        state = {key.removeprefix("module."): value for key, value in loaded_state.items()}
        model_state = {
            key.removeprefix("_model.").removeprefix("module."): value
            for key, value in state.items()
            if key.startswith("_model.")
        }
        self.model.check_compatible(model_state.get("_extra_state"))
        self.model.update_to_step(step)
        try:
            self.model.load_state_dict(model_state, strict=True)
        except RuntimeError as error:
            difference = next(line.strip() for line in str(error).splitlines()[1:] if line.strip())
            raise DialogueError(
                f"the checkpoint does not fit this configuration ({difference}); load the config.yml that was saved "
                "with it."
            ) from error

    def get_train_loss_dict(self, step: int) -> Tuple[Any, Dict[str, Any], Dict[str, Any]]:
        with exit_on_user_error():
            if self._shared_steps is None and self.num_processes > 1:
                self._shared_steps = SharedSteps(self, self.num_processes)
            if self._shared_steps is not None and not self._shared_steps.closed:
                return self._shared_steps.step(step)
            return super().get_train_loss_dict(step)

    @property
    def num_processes(self) -> int:
        """How many processes share a training step.

        Raises:
            DialogueError: more are asked for than can be.
        """
        rays = self.config.datamanager.train_num_rays_per_batch
        return choose_processes(self.config.processes, self.device, self.world_size, rays)

    def weighted_losses(
        self, step: int
    ) -> Tuple[Dict[str, Any], Dict[str, Tensor], Dict[str, float], Dict[str, Tensor], float]:
        """The training step of this process's share of the rays.

        Returns:
            outputs, losses, the weight of each loss in the whole batch's (see nerf/shared_step.py), metrics, and the
            number of rays.
        """
        bundle, batch = self.model.share.cut(*self.datamanager.next_train(step))
        outputs = self.model(bundle)
        metrics = self.model.get_metrics_dict(outputs, batch)
        losses = self.model.get_loss_dict(outputs, batch, metrics)
        rays = float(len(bundle))
        weights = {name: float(outputs[COUNTS[name]]) if COUNTS.get(name) in outputs else rays for name in losses}
        return outputs, losses, weights, metrics, rays

    def end_processes(self) -> None:
        """Ends the processes that share training steps; the next step starts them again."""
        if self._shared_steps is not None:
            self._shared_steps.close()
            self._shared_steps = None

    def get_average_eval_image_metrics(
        self, step: Optional[int] = None, output_path: Optional[Path] = None, get_std: bool = False
    ) -> Dict[str, Any]:
        with exit_on_user_error():
            return super().get_average_eval_image_metrics(step, output_path, get_std)

    def _carve(self) -> None:
        """Gives the model the visual hulls of the training frames and, where wanted, the proxies of the bodies."""
        conversation, resolution = self.datamanager.dataparser.conversation, self.config.model.occupancy.resolution
        priors = self.config.model.geometry
        probes = conversation.train_frames[:: max(1, len(conversation.train_frames) // HULL_FRAMES)]
        identity = np.eye(4)[:3]
        hulls, volumes = [], []
        for person, store in zip(conversation.participants, self.datamanager.stores, strict=True):
            poses = [_head_transform(person.motion.head_pose[frame]) for frame in probes]
            labels = [store.labels[frame] for frame in probes]
            head = visual_hull(person.head_box, resolution, person.camera, zip(poses, labels, strict=True), (HEAD,))
            # A proxy says where a hidden neck is; without one the torso ends where the head hides it.
            body = (TORSO, NECK, HEAD) if priors.enabled else (TORSO, NECK)
            torso = visual_hull(
                person.torso_box,
                resolution,
                person.camera,
                ((identity, label) for label in labels),
                body,
                # A proxy goes on below the picture.
                keep_below=priors.enabled,
            )
            hulls.append((torch.from_numpy(head), torch.from_numpy(torso)))
            if priors.enabled:
                frames = list(zip(poses, labels, strict=True))
                volumes.append(person_proxy(priors, person.camera, person.head_box, person.torso_box, frames))
        if priors.enabled:
            cameras = [person.camera for person in conversation.participants]
            self.model.set_proxies(volumes, cameras)
        for index, (head, torso) in enumerate(hulls):
            self.model.carve(index, head, torso)


def _head_transform(head_pose: Float[np.ndarray, "6"]) -> Float[np.ndarray, "3 4"]:
    rotation = Rotation.from_rotvec(head_pose[:3].astype(np.float64)).as_matrix()
    return np.concatenate([rotation, head_pose[3:, None]], axis=1)
