"""The motion methods as nerfstudio finds them: head poses, face codes, lips in step with sound, and sampled motion.

A further method is its model's config in `motion_method`, a `MethodSpecification` in `METHODS`, and an entry point in
pyproject.toml. This module is imported by every ns-* command: what it imports must always work.
"""

from typing import Dict, Optional

import torch
from nerfstudio.configs.base_config import LoggingConfig, ViewerConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.plugins.types import MethodSpecification

from dialogue_nerfstudio.motion.face_codes import FaceCodesConfig
from dialogue_nerfstudio.motion.gp_vae import GpVaeConfig
from dialogue_nerfstudio.motion.lip_sync import LipSyncConfig
from dialogue_nerfstudio.motion.model import MotionModelConfig
from dialogue_nerfstudio.motion.pose_tcn import PoseTcnConfig
from dialogue_nerfstudio.motion.tcn import TcnConfig
from dialogue_nerfstudio.motion.training.datamanager import MotionDataManagerConfig
from dialogue_nerfstudio.motion.training.pipeline import MotionPipelineConfig
from dialogue_nerfstudio.motion.training.trainer import MotionMachineConfig, MotionTrainerConfig
from dialogue_nerfstudio.nerf.trainer import RunDecayConfig


def motion_method(
    name: str,
    model: MotionModelConfig,
    *,
    steps: int,
    epochs: Optional[float] = None,
    learning_rate: float = 2e-3,
    final_share: float = 0.05,
    max_norm: Optional[float] = 1.0,
    windows_per_batch: int = 32,
    groups: Dict[str, float] = {"networks": 1.0},  # noqa: B006 - only read
) -> MotionTrainerConfig:
    """A motion method's configuration for the machine this runs on.

    Args:
        name: as ns-train knows it.
        model: the model's config.
        steps: of training.
        epochs: passes over the training frames, in place of `steps`.
        learning_rate: Adam's, at the start.
        final_share: what is left of it at the end, after an exponential decay.
        max_norm: to which gradients are clipped; None for not at all.
        windows_per_batch: of a step.
        groups: the names of the model's parameter groups, each with the factor of its learning rate.
    """
    cuda = torch.cuda.is_available()
    return MotionTrainerConfig(
        method_name=name,
        project_name="dialogue-nerfstudio",
        max_num_iterations=steps,
        epochs=epochs,
        steps_per_save=500,
        steps_per_eval_batch=100,
        # Motion has no pictures.
        steps_per_eval_image=10_000_000,
        steps_per_eval_all_images=500,
        mixed_precision=False,
        pipeline=MotionPipelineConfig(
            datamanager=MotionDataManagerConfig(windows_per_batch=windows_per_batch), model=model
        ),
        optimizers={
            group: {
                "optimizer": AdamOptimizerConfig(lr=learning_rate * factor, max_norm=max_norm),
                "scheduler": RunDecayConfig(final_share=final_share),
            }
            for group, factor in groups.items()
        },
        logging=LoggingConfig(steps_per_log=10),
        viewer=ViewerConfig(quit_on_train_completion=True),
        vis="tensorboard",
        machine=MotionMachineConfig(device_type="cuda" if cuda else "cpu"),
    )


dialogue_pose_tcn = MethodSpecification(
    config=motion_method("dialogue-pose-tcn", PoseTcnConfig(), steps=800, learning_rate=4e-3, windows_per_batch=8),
    description="Head poses of speaker and listener from sound and each other's poses (DialogueNeRF 4.1).",
)

dialogue_pose_tcn_paper = MethodSpecification(
    # Published: Adam at 5e-5, 200 epochs (section 5.1). Everything else is not: docs/motion.md.
    config=motion_method(
        "dialogue-pose-tcn-paper",
        PoseTcnConfig(
            tcn=TcnConfig(channels=64, levels=6, weight_norm=True, dropout=0.2),
            context=260,
            code_size=0,
            velocity_weight=0.0,
        ),
        steps=1,
        epochs=200,
        learning_rate=5e-5,
        final_share=1.0,
        max_norm=None,
        windows_per_batch=16,
    ),
    description="dialogue-pose-tcn with the DialogueNeRF paper's settings, as far as they are published.",
)

dialogue_face_codes = MethodSpecification(
    config=motion_method(
        "dialogue-face-codes", FaceCodesConfig(), steps=600, learning_rate=6e-3, windows_per_batch=16, max_norm=None
    ),
    description="A mouth code and an eye code of each face that do not move what is the other's (DFA-NeRF 3.2).",
)

dialogue_lip_sync = MethodSpecification(
    config=motion_method(
        "dialogue-lip-sync",
        LipSyncConfig(),
        steps=600,
        windows_per_batch=8,
        groups={"networks": 1.0, "face_codes": 3.0},
    ),
    description="Audio codes in step with lips, and mouths from sound (DFA-NeRF 3.3).",
)

dialogue_gp_vae = MethodSpecification(
    config=motion_method("dialogue-gp-vae", GpVaeConfig(), steps=1500, learning_rate=5e-3, windows_per_batch=16),
    description="Personal head motion and blinks from sound, sampled from a Gaussian process (DFA-NeRF 3.4).",
)

METHODS = {
    spec.config.method_name: spec
    for spec in (dialogue_pose_tcn, dialogue_pose_tcn_paper, dialogue_face_codes, dialogue_lip_sync, dialogue_gp_vae)
}
"""By the name that ns-train knows."""
