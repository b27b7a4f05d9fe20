"""Dialogue pipeline: datamanager and model together, and checkpoints that load completely or not at all."""

from dataclasses import dataclass, field
from typing import Any, Dict, Literal, Optional, Type

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch.cuda.amp.grad_scaler import GradScaler

from dialogue_nerfstudio.conversation.video import HEAD, NECK, TORSO
from dialogue_nerfstudio.nerf.datamanager import DialogueDataManager, DialogueDataManagerConfig
from dialogue_nerfstudio.nerf.hull import visual_hull
from dialogue_nerfstudio.nerf.model import DialogueModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig

HULL_FRAMES = 64
"""Training frames that the visual hulls are carved from."""


@dataclass
class DialoguePipelineConfig(VanillaPipelineConfig):
    """Datamanager and model of a conversation."""

    _target: Type = field(default_factory=lambda: DialoguePipeline)
    datamanager: DialogueDataManagerConfig = field(default_factory=DialogueDataManagerConfig)
    """Where rays come from."""
    model: DialogueModelConfig = field(default_factory=DialogueModelConfig)
    """The avatars."""


class DialoguePipeline(VanillaPipeline):
    """nerfstudio's pipeline, with strict loading."""

    datamanager: DialogueDataManager
    config: DialoguePipelineConfig

    def __init__(
        self,
        config: DialoguePipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Optional[GradScaler] = None,
    ):
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
        if test_mode == "val":
            self._carve()

    def _carve(self) -> None:
        """Gives the model the visual hulls of the training frames."""
        conversation, resolution = self.datamanager.dataparser.conversation, self.config.model.occupancy.resolution
        probes = conversation.train_frames[:: max(1, len(conversation.train_frames) // HULL_FRAMES)]
        identity = np.eye(4)[:3]
        for index, (person, store) in enumerate(zip(conversation.participants, self.datamanager.stores)):
            poses = [_head_transform(person.motion.head_pose[frame]) for frame in probes]
            labels = [store.labels[frame] for frame in probes]
            head = visual_hull(person.head_box, resolution, person.camera, zip(poses, labels), (HEAD,))
            torso = visual_hull(
                person.torso_box, resolution, person.camera, ((identity, label) for label in labels), (TORSO, NECK)
            )
            self.model.carve(index, torch.from_numpy(head), torch.from_numpy(torso))


def _head_transform(head_pose: Float[np.ndarray, "6"]) -> Float[np.ndarray, "3 4"]:
    rotation = Rotation.from_rotvec(head_pose[:3].astype(np.float64)).as_matrix()
    return np.concatenate([rotation, head_pose[3:, None]], axis=1)
