"""The torso's deformation field D: where a point of person space lies in the torso's canonical space.

Conventions: positions are normalised to [−1, 1] in the torso's box; conditions are one row a frame. D starts as the
identity: its last layer is zero.
"""

from dataclasses import dataclass
from typing import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dialogue_nerfstudio.encodings.precision import full_precision
from dialogue_nerfstudio.fields.conditioning import (
    frame_matmul,
    frequency_encoding,
    frequency_encoding_size,
    hidden_layers,
)


@dataclass
class DeformationConfig:
    """The deformation field's size."""

    position_frequencies: int = 3
    """Octaves of γ(x); few, because cloth and shoulders move smoothly."""
    hidden_width: int = 32
    """Units of each hidden layer."""
    hidden_layers: int = 2
    """Hidden layers."""


class Deformation(nn.Module):
    """D in x′ = x + D(γ(x), γ(et)), DialogueNeRF section 4.2, "Deformation Field for Torso" (after Nerfies).

    D = A(et) [x ‖ 1] + MLP(γ(x), γ(et), z_shape): the affine part, a linear function of the pose, finds how the body as
    a whole follows the head within few steps and extrapolates calmly; the network adds what bends. The products with
    the condition are taken once a frame.

    Each participant has an A of their own (72 numbers), and z_shape joins γ(et); ours. Poses are scaled by what each
    recording shows of them, and bodies follow heads by different shares, so that one A for all moves everybody wrongly:
    it cost two people trained together 0.8 dB of the torso's surroundings.

    Args:
        config: the size.
        pose_size: numbers of et.
        condition_size: numbers of γ(et) and z_shape together.
        num_participants: whose bodies they are.
    """

    def __init__(self, config: DeformationConfig, pose_size: int, condition_size: int, num_participants: int):
        super().__init__()
        self.config = config
        self.affine = nn.Parameter(torch.zeros(num_participants, pose_size, 12))
        encoded = frequency_encoding_size(3, config.position_frequencies)
        self.position_layer = nn.Linear(encoded, config.hidden_width, bias=False)
        self.condition_layer = nn.Linear(condition_size, config.hidden_width)
        self.hidden = nn.Sequential(*hidden_layers(config.hidden_width, config.hidden_layers))
        self.output_layer = nn.Linear(config.hidden_width, 3)
        nn.init.zeros_(self.output_layer.weight)
        nn.init.zeros_(self.output_layer.bias)

    def forward(
        self,
        positions: Float[Tensor, "num_samples 3"],
        pose: Float[Tensor, "num_frames pose_size"],
        condition: Float[Tensor, "num_frames condition_size"],
        counts: Sequence[int],
        participant: int,
    ) -> Float[Tensor, "num_samples 3"]:
        """How far every sample's canonical position lies from it, in the units of `positions`.

        Args:
            positions: in [−1, 1], the samples of frame 0 first.
            pose: et, one row a frame.
            condition: γ(et) and z_shape, one row a frame.
            counts: samples of each frame.
            participant: whose body it is.
        """
        # Out of autocast: float16 would round the canonical position to a raster coarser than a training step moves it.
        with full_precision(positions):
            own = self.position_layer.weight.dtype
            return self._shift(positions.to(own), pose.to(own), condition.to(own), counts, participant)

    def _shift(
        self,
        positions: Float[Tensor, "num_samples 3"],
        pose: Float[Tensor, "num_frames pose_size"],
        condition: Float[Tensor, "num_frames condition_size"],
        counts: Sequence[int],
        participant: int,
    ) -> Float[Tensor, "num_samples 3"]:
        encoded = frequency_encoding(positions, self.config.position_frequencies)
        ones = encoded.new_ones(encoded.shape[0], 1)
        weights = torch.cat(
            [
                self.position_layer.weight.t().expand(condition.shape[0], -1, -1),
                self.condition_layer(condition).unsqueeze(1),
            ],
            dim=1,
        )
        hidden = self.hidden(frame_matmul(torch.cat([encoded, ones], dim=-1), weights, counts))
        affine = (pose @ self.affine[participant]).view(-1, 4, 3)
        return frame_matmul(torch.cat([positions, ones], dim=-1), affine, counts) + self.output_layer(hidden)
