"""Head field: density and colour of every participant's head, moved by audio or expression and by the eyes.

Conventions: positions are metres in head space, directions unit vectors in head space; samples lie frame after frame
(`counts`), and `rays[i]` is the row of sample i in per-ray tables. Density is 1/m, colour 0 … 1.
"""

from dataclasses import dataclass, field
from typing import Optional, Sequence, Tuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dialogue_nerfstudio.encodings.hash_grid import HashGridConfig
from dialogue_nerfstudio.encodings.precision import half_while_rendering
from dialogue_nerfstudio.encodings.spatial import EncodingName
from dialogue_nerfstudio.fields.conditioning import (
    DIRECTION_SIZE,
    direction_encoding,
    exponential_density,
    frame_matmul,
    hidden_layers,
)
from dialogue_nerfstudio.fields.frame_mlp import MlpKernelName, frame_mlp
from dialogue_nerfstudio.fields.latent_codes import LatentCodes
from dialogue_nerfstudio.fields.participant_grids import GridSharing, ParticipantGrids
from dialogue_nerfstudio.fields.signal_encoder import HeadSignal


@dataclass
class HeadFieldConfig:
    """The head field's size; the defaults suit a CPU."""

    grid: HashGridConfig = field(default_factory=HashGridConfig)
    """The hash grid over the head's box."""
    encoding: EncodingName = "grid"
    """What reads space: one hash grid, or a tri-plane of three (ER-NeRF, section 3.2), each of that size."""
    hidden_width: int = 32
    """Units of each hidden layer."""
    density_layers: int = 2
    """Hidden layers of the density network."""
    colour_layers: int = 1
    """Hidden layers of the colour network."""
    geometry_features: int = 16
    """Features handed from the density to the colour network."""
    latent_size: int = 8
    """Width of z_shape and of z_app."""
    face_regions: int = 4
    """Regions that region attention tells apart for the face code."""
    eye_regions: int = 2
    """Regions that it tells apart for the code of blink and gaze."""
    region_attention: bool = True
    """Whether there is region attention (ER-NeRF, section 3.3); else the signal acts alike everywhere."""
    mlp_kernel: MlpKernelName = "auto"
    """auto computes the density network in one fused Triton kernel on CUDA with mixed precision, else with torch."""
    view_dependent: bool = False
    """Whether colour depends on the direction it is seen from, as published. Off (its weights stay zero), because one
    camera saw few directions, and from others the dependence is a guess: at 30° faces turned pale."""
    half_inference: bool = True
    """On CUDA, whether networks run in float16 while rendering, as RAD-NeRF's --fp16; positions stay float32."""
    initial_density: float = 3.0
    """Density of the untrained field, 1/m: about half of the light passes a head's depth of it."""


class HeadField(nn.Module):
    """grid(x) ⊕ z_shape ⊕ gated signal → σ, features; direction ⊕ z_app ⊕ gated signal → colour.

    DialogueNeRF section 4.2 conditions colour and density on the signal; the gate over space is ER-NeRF's region
    attention: a weight for each region and sample multiplies the signal, here through a matrix a frame and region, so
    that the cost does not grow with the signal's width. The signal also adds to the first layer's weights, gated
    likewise: a learned product of signal and grid features. The gated sum alone left lips almost still for the first
    thousands of steps.
    """

    def __init__(
        self, config: HeadFieldConfig, sharing: GridSharing, boxes: Float[Tensor, "p 2 3"], face: int, eyes: int
    ):
        super().__init__()
        self.config = config
        # Without a code of their own (`SignalEncoderConfig.separate_eyes`) eyes need no regions either.
        self.eye_regions = config.eye_regions if eyes else 0
        width, regions = config.hidden_width, config.face_regions + self.eye_regions
        self.num_gates = regions + 1
        self.codes = LatentCodes(len(boxes), config.latent_size)
        self.grid = ParticipantGrids(config.grid, sharing, boxes, config.encoding)
        if config.region_attention:
            self.gate = nn.Sequential(nn.Linear(self.grid.out_dim, 16), nn.ReLU(), nn.Linear(16, self.num_gates))

        self.density_input = nn.Linear(self.grid.out_dim, width, bias=False)
        self.density_code = nn.Linear(config.latent_size, width)
        self.density_face = nn.Linear(face, config.face_regions * width, bias=False)
        self.density_eyes = nn.Linear(eyes, self.eye_regions * width, bias=False) if eyes else None
        self.density_modulation = nn.Linear(face + eyes, self.grid.out_dim * width, bias=False)
        # Four times torch's start, so that the signal's share of the first layer is not drowned by the grid's.
        self.density_modulation.weight.data *= 4.0
        self.density_hidden = nn.Sequential(
            *hidden_layers(width, config.density_layers), nn.Linear(width, 1 + config.geometry_features)
        )

        self.colour_input = nn.Linear(config.geometry_features, width, bias=False)
        self.colour_code = nn.Linear(config.latent_size, width)
        self.colour_direction = nn.Linear(DIRECTION_SIZE, width, bias=False)
        if not config.view_dependent:
            nn.init.zeros_(self.colour_direction.weight).requires_grad_(False)
        self.colour_face = nn.Linear(face, config.face_regions * width, bias=False)
        self.colour_eyes = nn.Linear(eyes, self.eye_regions * width, bias=False) if eyes else None
        self.colour_hidden = nn.Sequential(*hidden_layers(width, config.colour_layers), nn.Linear(width, 3))

    def gates(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n regions"]:
        """Region attention: how much each part of the signal matters at each sample, 0 … 1; last, how much it changes
        the first layer's weights."""
        if not self.config.region_attention:
            return features.new_ones(features.shape[0], self.num_gates)
        return torch.sigmoid(self.gate(features))

    def _signal_matrices(
        self, face_layer: nn.Linear, eyes_layer: Optional[nn.Linear], signal: HeadSignal
    ) -> Float[Tensor, "f r w"]:
        num_frames = signal.face.shape[0]
        face = face_layer(signal.face).view(num_frames, self.config.face_regions, -1)
        if eyes_layer is None:
            return face
        return torch.cat([face, eyes_layer(signal.eyes).view(num_frames, self.eye_regions, -1)], dim=1)

    @half_while_rendering
    def density(
        self, positions: Float[Tensor, "n 3"], participant: int, signal: HeadSignal, counts: Sequence[int]
    ) -> Tuple[Float[Tensor, " n"], Float[Tensor, "n geometry"], Float[Tensor, "n regions"]]:
        """(density, geometry features, gates) of samples.

        Args:
            positions: metres in head space.
            participant: whose head.
            signal: one row a frame.
            counts: samples of each frame.
        """
        features = self.grid(self.grid.normalise(positions, participant), participant)
        gates = self.gates(features)
        shape_code, _ = self.codes.of(participant)
        num_frames = signal.face.shape[0]
        modulation = self.density_modulation(torch.cat([signal.face, signal.eyes], dim=-1))
        matrices = torch.cat(
            [
                self.density_input.weight.t().expand(num_frames, -1, -1),
                modulation.view(num_frames, features.shape[-1], -1),
                self._signal_matrices(self.density_face, self.density_eyes, signal),
                self.density_code(shape_code).expand(num_frames, 1, -1),
            ],
            dim=1,
        )
        inputs = torch.cat(
            [features, features * gates[:, -1:], gates[:, :-1], gates.new_ones(gates.shape[0], 1)], dim=-1
        )
        output = frame_mlp(inputs, matrices, counts, self.density_hidden, self.config.mlp_kernel)
        return exponential_density(output[:, 0], self.config.initial_density), output[:, 1:], gates

    @half_while_rendering
    def colour(
        self,
        geometry: Float[Tensor, "n geometry"],
        gates: Float[Tensor, "n regions"],
        directions: Float[Tensor, "num_rays 3"],
        rays: Int[Tensor, " n"],
        participant: int,
        signal: HeadSignal,
        counts: Sequence[int],
    ) -> Float[Tensor, "n 3"]:
        """Colour of samples, from what `density` returned.

        Args:
            directions: of every ray, unit vectors in head space.
            rays: the ray of each sample.
        """
        _, appearance_code = self.codes.of(participant)
        num_frames = signal.face.shape[0]
        matrices = torch.cat(
            [
                self.colour_input.weight.t().expand(num_frames, -1, -1),
                self._signal_matrices(self.colour_face, self.colour_eyes, signal),
            ],
            dim=1,
        )
        per_ray = self.colour_direction(direction_encoding(directions)) + self.colour_code(appearance_code)
        inputs = torch.cat([geometry, gates[:, :-1]], dim=-1)
        if signal.appearance is not None:
            # The code's layer is linear, so what a frame adds to z_app is one more input, of one, to its matrix.
            added = signal.appearance @ self.colour_code.weight.t()
            matrices = torch.cat([matrices, added.unsqueeze(1)], dim=1)
            inputs = torch.cat([inputs, inputs.new_ones(inputs.shape[0], 1)], dim=-1)
        hidden = frame_matmul(inputs, matrices, counts) + per_ray.index_select(0, rays)
        return torch.sigmoid(self.colour_hidden(hidden))
