"""The method `dialogue-nerf` as nerfstudio finds it, with sizes chosen here, by device, and saved with a run."""

import torch
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.plugins.types import MethodSpecification

from dialogue_nerfstudio.encodings.hash_grid import HashGridConfig
from dialogue_nerfstudio.fields.audio_net import AudioNetConfig
from dialogue_nerfstudio.fields.deformation import DeformationConfig
from dialogue_nerfstudio.fields.head_field import HeadFieldConfig
from dialogue_nerfstudio.fields.signal_encoder import SignalEncoderConfig
from dialogue_nerfstudio.fields.torso_field import TorsoFieldConfig
from dialogue_nerfstudio.nerf.datamanager import DialogueDataManagerConfig
from dialogue_nerfstudio.nerf.dataparser import ConversationDataParserConfig
from dialogue_nerfstudio.nerf.model import DialogueModelConfig
from dialogue_nerfstudio.nerf.pipeline import DialoguePipelineConfig
from dialogue_nerfstudio.nerf.trainer import DialogueTrainerConfig, FusedAdamConfig, RunDecayConfig
from dialogue_nerfstudio.rendering.occupancy import OccupancyGridConfig


def cpu_pipeline() -> DialoguePipelineConfig:
    """Sizes for a laptop: 128 pixels, small networks, minutes of training."""
    return DialoguePipelineConfig(
        datamanager=DialogueDataManagerConfig(dataparser=ConversationDataParserConfig(resolution=128)),
        model=DialogueModelConfig(),
    )


def cuda_pipeline() -> DialoguePipelineConfig:
    """Sizes for a GPU: 512 pixels."""
    return DialoguePipelineConfig(
        datamanager=DialogueDataManagerConfig(
            dataparser=ConversationDataParserConfig(resolution=512),
            train_num_rays_per_batch=16384,
            eval_num_rays_per_batch=16384,
            frames_per_batch=32,
        ),
        model=DialogueModelConfig(
            eval_num_rays_per_chunk=1 << 17,
            head=HeadFieldConfig(
                grid=HashGridConfig(num_levels=12, log2_hashmap_size=19, max_resolution=1024),
                hidden_width=64,
                colour_layers=2,
                geometry_features=32,
                face_regions=8,
            ),
            torso=TorsoFieldConfig(
                grid=HashGridConfig(num_levels=12, log2_hashmap_size=18, max_resolution=1024),
                deformation=DeformationConfig(hidden_width=64, hidden_layers=3),
                hidden_width=64,
            ),
            signals=SignalEncoderConfig(audio=AudioNetConfig(base_width=32, residual_blocks=2, code_size=64)),
            head_samples=48,
            torso_samples=24,
            occupancy=OccupancyGridConfig(resolution=64, updates_to_forget=12),
        ),
    )


def method(cuda: bool) -> DialogueTrainerConfig:
    """The trainer's configuration for either kind of machine."""
    return DialogueTrainerConfig(
        method_name="dialogue-nerf",
        project_name="dialogue-nerfstudio",
        max_num_iterations=30000 if cuda else 3000,
        steps_per_save=1000,
        steps_per_eval_batch=500,
        steps_per_eval_image=500,
        steps_per_eval_all_images=1_000_000,
        mixed_precision=False,
        pipeline=cuda_pipeline() if cuda else cpu_pipeline(),
        optimizers={
            "grids": {"optimizer": FusedAdamConfig(lr=2e-2 if cuda else 6e-2), "scheduler": RunDecayConfig()},
            "networks": {"optimizer": FusedAdamConfig(lr=5e-3), "scheduler": RunDecayConfig()},
        },
        # Stock nerfstudio waits in the viewer when training ends, and a script would hang; ns-viewer opens the result.
        viewer=ViewerConfig(
            num_rays_per_chunk=1 << 17 if cuda else 16384,
            # All recorded cameras stand where the view starts; their pictures would hang in front of it.
            max_num_display_images=0,
            default_composite_depth=False,
            quit_on_train_completion=True,
        ),
        vis="viewer+tensorboard",
        machine=MachineConfig(device_type="cuda" if cuda else "cpu"),
    )


dialogue_nerf = MethodSpecification(
    config=method(torch.cuda.is_available()),
    description="Avatars of everybody in a conversation in one network, driven by audio, expression and pose.",
)
