"""Torso field: density and colour of every participant's neck and shoulders, carried along by the head's pose.

Conventions: positions are metres in person space; samples lie frame after frame (`counts`); et is the head's Euler
angles (rad) and translation (m), one row a frame. Density is 1/m, colour 0 … 1.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dialogue_nerfstudio.conversation.motion import SWAY_SIZE
from dialogue_nerfstudio.encodings.hash_grid import HashGridConfig
from dialogue_nerfstudio.encodings.precision import half_while_rendering
from dialogue_nerfstudio.encodings.spatial import EncodingName
from dialogue_nerfstudio.fields.conditioning import (
    exponential_density,
    frame_matmul,
    frequency_encoding,
    frequency_encoding_size,
    hidden_layers,
)
from dialogue_nerfstudio.fields.deformation import Deformation, DeformationConfig
from dialogue_nerfstudio.fields.latent_codes import LatentCodes
from dialogue_nerfstudio.fields.participant_grids import GridSharing, ParticipantGrids

RIGID_SWAY_SIZE = 3
"""Right, up and roll of the shoulders: what avatars know that were trained before widths were measured."""


@dataclass
class TorsoFieldConfig:
    """The torso field's size; the defaults suit a CPU."""

    grid: HashGridConfig = field(default_factory=HashGridConfig)
    """The hash grid over the torso's box."""
    encoding: EncodingName = "grid"
    """What reads space: one hash grid, or a tri-plane of three (ER-NeRF, section 3.2), each of that size."""
    deformation: DeformationConfig = field(default_factory=DeformationConfig)
    """The deformation field."""
    deform: bool = True
    """Whether there is a deformation field (off for the paper's ablation, figure 9)."""
    pose_frequencies: int = 1
    """Octaves of γ(et); fewer than the paper's, because a clip of seconds shows few poses."""
    pose_appearance: bool = False
    """Whether γ(et) also acts on density and colour directly, as published. Off, because the field then explains
    movement by blending looks instead of moving: 21 against 27 dB on the simulated sample's held-out frames."""
    pose_history: int = 0
    """Frames of the past whose mean pose joins et, for bodies that follow with a delay. 0, as in the paper, is
    better on real recordings of seconds (12 cost one 0.8 dB, and gained 1.4 dB on a simulated one)."""
    sway: bool = True
    """Whether what shoulders do beyond following the head (`Motion.sway`, where the recording was measured) joins et.
    At 256 pixels the body of a real person moved by half a pixel that no function of the head's pose knew, which
    blurred collars in training and displaced them in new frames; ours."""
    sway_size: int = SWAY_SIZE
    """How many of the sway's numbers: all, or the rigid three."""
    hidden_width: int = 32
    """Units of each hidden layer."""
    hidden_layers: int = 2
    """Hidden layers between the grid and density and colour."""
    latent_size: int = 8
    """Width of z_shape and of z_app."""
    half_inference: bool = True
    """On CUDA, whether networks run in float16 while rendering, as RAD-NeRF's --fp16; positions stay float32."""
    initial_density: float = 3.0
    """Density of the untrained field, 1/m."""

    def __setstate__(self, state: Dict[str, Any]) -> None:
        """Configurations saved before there was sway, or before it had its present numbers, belong to avatars that know
        none, or the rigid ones."""
        self.__dict__.update({**TorsoFieldConfig(sway=False, sway_size=RIGID_SWAY_SIZE).__dict__, **state})

    @property
    def pose_size(self) -> int:
        """Width of et with all that joins it."""
        return 6 + (6 if self.pose_history > 0 else 0) + (self.sway_size if self.sway else 0)


class TorsoField(nn.Module):
    """D(γ(x), γ(et)) → x′; grid(x′) ⊕ γ(et) ⊕ z_shape → σ, features; z_app → colour (DialogueNeRF section 4.2).

    Cloth hardly reflects, so colour does not depend on the direction.
    """

    def __init__(self, config: TorsoFieldConfig, sharing: GridSharing, boxes: Float[Tensor, "p 2 3"]):
        super().__init__()
        self.config = config
        width = config.hidden_width
        self.codes = LatentCodes(len(boxes), config.latent_size)
        self.grid = ParticipantGrids(config.grid, sharing, boxes, config.encoding)
        condition_size = frequency_encoding_size(config.pose_size, config.pose_frequencies)
        if config.deform:
            self.deformation = Deformation(
                config.deformation, config.pose_size, condition_size + config.latent_size, len(boxes)
            )
        self.input_layer = nn.Linear(self.grid.out_dim, width, bias=False)
        appearance_size = condition_size if config.pose_appearance else 0
        self.condition_layer = nn.Linear(appearance_size + config.latent_size, width)
        self.hidden = nn.Sequential(*hidden_layers(width, config.hidden_layers))
        self.density_output = nn.Linear(width, 1)
        self.colour_code = nn.Linear(config.latent_size, 3)
        self.colour_output = nn.Linear(width, 3, bias=False)

    @half_while_rendering
    def density(
        self,
        positions: Float[Tensor, "n 3"],
        participant: int,
        et: Float[Tensor, "num_frames pose"],
        counts: Sequence[int],
    ) -> Tuple[Float[Tensor, " n"], Float[Tensor, "n width"], Float[Tensor, "n 3"]]:
        """(density, geometry features, deformation) of samples; the deformation is x′ − x in halves of the torso's box.

        Args:
            positions: metres in person space.
            participant: whose torso.
            et: the head's Euler angles and translation, each scaled to about [−½, ½], one row a frame: [6] of now,
                with `pose_history` [6] of lately, and with `sway` [sway_size] of what the shoulders do by themselves.
            counts: samples of each frame.
        """
        condition = frequency_encoding(et, self.config.pose_frequencies)
        unit = self.grid.normalise(positions, participant)
        shape_code, _ = self.codes.of(participant)
        num_frames = et.shape[0]
        shape = shape_code.expand(num_frames, -1)
        both = torch.cat([condition, shape], dim=-1)
        shift = torch.zeros_like(unit)
        if self.config.deform:
            shift = self.deformation(2.0 * unit - 1.0, et, both, counts, participant)
        features = self.grid(unit + 0.5 * shift, participant)
        constant = self.condition_layer(both if self.config.pose_appearance else shape)
        matrices = torch.cat([self.input_layer.weight.t().expand(num_frames, -1, -1), constant.unsqueeze(1)], dim=1)
        inputs = torch.cat([features, features.new_ones(features.shape[0], 1)], dim=-1)
        hidden = self.hidden(frame_matmul(inputs, matrices, counts))
        density = exponential_density(self.density_output(hidden)[:, 0], self.config.initial_density)
        return density, hidden, shift

    @half_while_rendering
    def colour(
        self,
        geometry: Float[Tensor, "n width"],
        participant: int,
        appearance: Optional[Float[Tensor, "n latent"]] = None,
    ) -> Float[Tensor, "n 3"]:
        """Colour of samples, from what `density` returned.

        Args:
            appearance: what each sample's frame adds to z_app; None for nothing.
        """
        _, code = self.codes.of(participant)
        if appearance is not None:
            code = code + appearance
        return torch.sigmoid(self.colour_output(geometry) + self.colour_code(code))
