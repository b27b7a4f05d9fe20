"""The methods as nerfstudio finds them: `dialogue-nerf`, `-large` and `-paper`, with sizes chosen here, by device, and
saved with a run."""

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
from dialogue_nerfstudio.nerf.published_model import PublishedModelConfig
from dialogue_nerfstudio.nerf.trainer import DialogueTrainerConfig, FusedAdamConfig, RunDecayConfig
from dialogue_nerfstudio.rendering.occupancy import OccupancyGridConfig


def cpu_pipeline() -> DialoguePipelineConfig:
    """Sizes for a laptop: 128 pixels, small networks, minutes of training."""
    return DialoguePipelineConfig(
        datamanager=DialogueDataManagerConfig(dataparser=ConversationDataParserConfig(resolution=128)),
        # A tri-plane for the head: at the same time a step, half a decibel more than a grid over space. An atlas:
        # 57 % of four people's parameters at the quality of separate models (docs/participants.md), with tri-planes.
        model=DialogueModelConfig(grid_sharing="atlas", head=HeadFieldConfig(encoding="tri-plane")),
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
            occupancy=OccupancyGridConfig(resolution=64, updates_to_forget=12, warm_up=4),
        ),
    )


def large_pipeline(cuda: bool) -> DialoguePipelineConfig:
    """Larger tables and networks, more samples; a CPU gets what one night is enough for."""
    levels, table, width = (16, 21, 128) if cuda else (12, 17, 64)
    return DialoguePipelineConfig(
        datamanager=DialogueDataManagerConfig(
            dataparser=ConversationDataParserConfig(resolution=512 if cuda else 256),
            train_num_rays_per_batch=16384 if cuda else 2048,
            eval_num_rays_per_batch=16384 if cuda else 2048,
            frames_per_batch=32 if cuda else 16,
        ),
        model=DialogueModelConfig(
            eval_num_rays_per_chunk=1 << 16 if cuda else 16384,
            head=HeadFieldConfig(
                grid=HashGridConfig(num_levels=levels, log2_hashmap_size=table, max_resolution=2048 if cuda else 512),
                hidden_width=width,
                density_layers=3,
                colour_layers=3,
                geometry_features=width // 2,
                latent_size=16,
                face_regions=16,
                eye_regions=4,
            ),
            torso=TorsoFieldConfig(
                grid=HashGridConfig(
                    num_levels=levels, log2_hashmap_size=table - 1, max_resolution=2048 if cuda else 512
                ),
                deformation=DeformationConfig(hidden_width=width, hidden_layers=4),
                hidden_width=width,
                hidden_layers=3,
                latent_size=16,
            ),
            signals=SignalEncoderConfig(
                audio=AudioNetConfig(base_width=32, residual_blocks=2, code_size=64),
                expression_width=128,
                eyes_size=32,
            ),
            head_samples=64 if cuda else 48,
            torso_samples=32 if cuda else 24,
            occupancy=OccupancyGridConfig(resolution=128 if cuda else 64, updates_to_forget=12, warm_up=4),
        ),
    )


def paper_pipeline(cuda: bool) -> DialoguePipelineConfig:
    """The published renderer; a CPU gets fewer rays and pixels, the network stays."""
    rays = 2048 if cuda else 256
    return DialoguePipelineConfig(
        datamanager=DialogueDataManagerConfig(
            dataparser=ConversationDataParserConfig(resolution=512 if cuda else 64),
            train_num_rays_per_batch=rays,
            eval_num_rays_per_batch=rays,
            # A step's rays are of one picture (AD-NeRF and DFA-NeRF), drawn evenly from it (section 5.1).
            frames_per_batch=1,
            face_share=0.0,
            mouth_share=0.0,
            eyes_share=0.0,
            border_share=0.0,
            picture_share=1.0,
        ),
        model=PublishedModelConfig(eval_num_rays_per_chunk=4096 if cuda else 1024),
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


def large_method(cuda: bool) -> DialogueTrainerConfig:
    """`dialogue-nerf` with larger grids and networks."""
    config = method(cuda)
    config.method_name = "dialogue-nerf-large"
    config.max_num_iterations = 60000 if cuda else 8000
    config.pipeline = large_pipeline(cuda)
    return config


def paper_method(cuda: bool) -> DialogueTrainerConfig:
    """DialogueNeRF's renderer as published: Adam at 2e-4 for 600,000 iterations of 2048 rays (section 5.1)."""
    config = method(cuda)
    config.method_name = "dialogue-nerf-paper"
    config.max_num_iterations = 600_000 if cuda else 3000
    config.steps_per_save = 10_000 if cuda else 500
    config.pipeline = paper_pipeline(cuda)
    # A tenth of the rate every 500,000 iterations: AD-NeRF's and DFA-NeRF's public code.
    config.optimizers = {
        "networks": {
            "optimizer": FusedAdamConfig(lr=2e-4, betas=(0.9, 0.999), eps=1e-8),
            "scheduler": RunDecayConfig(final_share=0.1 ** (600_000 / 500_000)),
        }
    }
    return config


dialogue_nerf = MethodSpecification(
    config=method(torch.cuda.is_available()),
    description="Avatars of everybody in a conversation in one network, driven by audio, expression and pose.",
)

dialogue_nerf_large = MethodSpecification(
    config=large_method(torch.cuda.is_available()),
    description="dialogue-nerf with larger grids and networks, for a GPU and hours.",
)

dialogue_nerf_paper = MethodSpecification(
    config=paper_method(torch.cuda.is_available()),
    description="The DialogueNeRF paper's renderer as published (positional encodings, deep MLPs): slow, to compare.",
)

METHODS = {spec.config.method_name: spec for spec in (dialogue_nerf, dialogue_nerf_large, dialogue_nerf_paper)}
"""By the name that ns-train knows."""
