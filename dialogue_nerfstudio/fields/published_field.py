"""The radiance field of DialogueNeRF's section 4.2 as published: positional encodings, one deep MLP, fixed codes.

Conventions: positions are metres in head space (head) or person space (torso), directions unit vectors in the same;
samples lie frame after frame (`counts`), and `rays[i]` is the row of sample i in per-ray tables. Density is 1/m, colour
0 … 1. Sizes that the paper does not print are those of DFA-NeRF's public renderer, which shares its structure.
"""

from dataclasses import dataclass, field
from typing import Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dialogue_nerfstudio.encodings.frequency import sinusoids
from dialogue_nerfstudio.fields.audio_net import AudioNet, AudioNetConfig, feature_encoder
from dialogue_nerfstudio.fields.conditioning import frame_matmul, frequency_encoding, frequency_encoding_size
from dialogue_nerfstudio.fields.signal_encoder import EYES_SIZE, GAZE_SCALE

HEAD_PART, TORSO_PART = 0, 1
"""Rows of a participant's codes."""

POSITION_SCALE = 0.5
"""Positions and directions are halved before their encoding (public renderer)."""


@dataclass
class PublishedFieldConfig:
    """Sizes of the published field."""

    position_octaves: int = 10
    """L of γ(x): public renderer."""
    direction_octaves: int = 4
    """L of γ(d): public renderer."""
    pose_octaves: int = 3
    """L of γ(et), which gives it 42 numbers: public renderer."""
    width: int = 256
    """Units of each layer: public renderer."""
    layers: int = 8
    """Layers before the density: public renderer."""
    skip: int = 4
    """The layer after which position, signal and shape code are added again: public renderer."""
    latent_size: int = 256
    """Width of z_shape and of z_app, drawn from N(0, 1) and never optimised: public renderer."""
    deformation_width: int = 64
    """Units of the deformation field's layers: public renderer."""
    deformation_layers: int = 5
    """The deformation field's hidden layers: public renderer."""
    audio: AudioNetConfig = field(
        default_factory=lambda: AudioNetConfig(base_width=32, residual_blocks=2, code_size=512)
    )
    """The encoder of Wav2Lip's size, 512 numbers a frame (section 4.1)."""
    audio_size: int = 64
    """Of those, by three layers, what conditions the head: DFA-NeRF's public code."""
    eyes_size: int = 32
    """Width of the code of blink and gaze beside it: DFA-NeRF's public code."""


@dataclass
class PublishedSignal:
    """The conditions of a batch's frames."""

    speaks: Bool[Tensor, " num_frames"]
    """Whether audio moves the face; else expression does."""
    speech: Float[Tensor, "num_frames speech"]
    """Audio and eye code, where somebody speaks; zeros elsewhere."""
    expression: Float[Tensor, "num_frames expression"]
    """Expression, blink and gaze, as measured."""


class PublishedAudioNet(AudioNet):
    """Wav2Lip-type code of each frame → 256 → 128 → the signal's width, smoothed over neighbours by attention."""

    def __init__(self, config: PublishedFieldConfig, silence: Optional[Float[Tensor, "..."]] = None):
        super().__init__(
            AudioNetConfig(config.audio.base_width, config.audio.residual_blocks, code_size=config.audio_size), silence
        )
        self.encoder = nn.Sequential(
            feature_encoder(config.audio, self.silence.shape),
            nn.Linear(config.audio.code_size, 256),
            nn.LeakyReLU(0.02),
            nn.Linear(256, 128),
            nn.LeakyReLU(0.02),
            nn.Linear(128, config.audio_size),
        )


class PublishedSignalEncoder(nn.Module):
    """Audio for who speaks, expression for who listens (section 4.2, "Multi-modal Signal Variation")."""

    def __init__(self, config: PublishedFieldConfig, silence: Optional[Float[Tensor, "..."]] = None):
        super().__init__()
        self.config = config
        self.audio_net = PublishedAudioNet(config, silence)
        self.eyes_net = nn.Sequential(
            nn.Linear(EYES_SIZE, 2 * config.eyes_size), nn.ReLU(), nn.Linear(2 * config.eyes_size, config.eyes_size)
        )

    def forward(
        self,
        frames: Int[Tensor, " num_frames"],
        from_audio: Bool[Tensor, " num_frames"],
        audible: Bool[Tensor, " num_frames"],
        audio: Float[Tensor, "num_all ..."],
        expression: Float[Tensor, "num_frames expression"],
        blink: Float[Tensor, "num_frames 2"],
        gaze: Float[Tensor, "num_frames 4"],
    ) -> PublishedSignal:
        """The conditions of `frames` of one participant; the audio net runs for frames driven by audio only."""
        eyes = torch.cat([blink, gaze * GAZE_SCALE], dim=-1)
        speech = expression.new_zeros(len(frames), self.config.audio_size + self.config.eyes_size)
        if bool(from_audio.any()):
            rows = from_audio.nonzero().squeeze(1)
            heard = self.audio_net(audio, frames[rows], audible[rows]).to(speech.dtype)
            speech = speech.index_copy(0, rows, torch.cat([heard, self.eyes_net(eyes[rows])], dim=-1))
        return PublishedSignal(from_audio, speech, torch.cat([expression, eyes], dim=-1))


class PublishedDeformation(nn.Module):
    """x′ = γ(x) + D(γ(x), γ(et)): "x′ has the same dimension as γ(x)" (section 4.2, "Deformation Field for Torso")."""

    def __init__(self, config: PublishedFieldConfig, position_size: int, pose_size: int):
        super().__init__()
        self.skip = config.skip
        width, layers = config.deformation_width, config.deformation_layers
        self.input = nn.Linear(position_size + pose_size, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1))
        self.again = nn.Linear(position_size, width)
        self.output = nn.Linear(width, position_size)

    def forward(
        self,
        position: Float[Tensor, "n encoded"],
        pose: Float[Tensor, "num_frames pose"],
        counts: Sequence[int],
    ) -> Float[Tensor, "n encoded"]:
        net = F.relu(_per_frame(self.input, position, pose, counts))
        for done, layer in enumerate(self.hidden, start=1):
            if done == self.skip:
                net = net + self.again(position)
            net = F.relu(layer(net))
        return position + self.output(net)


class PublishedField(nn.Module):
    """F: (γ(x) ⊕ signal, γ(d)) → (c, σ) of everybody's head and torso, told apart by codes (section 4.2, equation 3).

    With h₀ = W γ(x) ⊕ s + A z_shape and a skip after layer 4,

        h₁ = ReLU(h₀);  hᵢ₊₁ = ReLU(Wᵢ hᵢ) (+ W′ γ(x) ⊕ s + A′ z_shape where i + 1 = skip + 1)
        σ = ReLU(w · h);  c = sigmoid(V ReLU(U h + B z_app + E e + G γ(d)))

    A speaking head's signal s is its audio and eye code; a listening head has none, and its expression e acts on colour
    only; a torso's is γ(et), and its γ(x) is deformed. Head and torso share every layer but those that read inputs.

    Args:
        config: sizes.
        num_participants: rows of codes.
        expression_size: numbers of e.
    """

    codes: Float[Tensor, "participants parts kinds size"]

    def __init__(self, config: PublishedFieldConfig, num_participants: int, expression_size: int):
        super().__init__()
        self.config = config
        width, position, direction = config.width, 6 * config.position_octaves, 6 * config.direction_octaves
        speech, pose = config.audio_size + config.eyes_size, frequency_encoding_size(6, config.pose_octaves)
        self.register_buffer("codes", torch.randn(num_participants, 2, 2, config.latent_size))
        inputs = {"speaker": position + speech, "listener": position, "torso": position + pose}
        self.inputs = nn.ModuleDict({name: nn.Linear(size, width) for name, size in inputs.items()})
        self.again = nn.ModuleDict({name: nn.Linear(size, width) for name, size in inputs.items()})
        self.shape_input, self.shape_again = nn.Linear(config.latent_size, width), nn.Linear(config.latent_size, width)
        self.trunk = nn.ModuleList(nn.Linear(width, width) for _ in range(config.layers - 1))
        self.density_output = nn.Linear(width, 1)
        self.feature = nn.Linear(width, width)
        self.appearance = nn.Linear(config.latent_size, width)
        self.expression = nn.Linear(expression_size, width)
        self.direction = nn.Linear(direction, width)
        self.colour_output = nn.Linear(width, 3)
        self.deformation = PublishedDeformation(config, position, pose)

    def head_density(
        self, positions: Float[Tensor, "n 3"], participant: int, signal: PublishedSignal, counts: Sequence[int]
    ) -> Tuple[Float[Tensor, " n"], Float[Tensor, "n width"]]:
        """(density, features) of samples in head space."""
        encoded = sinusoids(POSITION_SCALE * positions, self.config.position_octaves)
        first, again = self._head_layers(self.inputs, signal), self._head_layers(self.again, signal)
        ones = torch.cat([encoded, encoded.new_ones(len(encoded), 1)], dim=-1)
        return self._density(
            frame_matmul(ones, first, counts), frame_matmul(ones, again, counts), participant, HEAD_PART
        )

    def torso_density(
        self,
        positions: Float[Tensor, "n 3"],
        participant: int,
        et: Float[Tensor, "num_frames 6"],
        counts: Sequence[int],
    ) -> Tuple[Float[Tensor, " n"], Float[Tensor, "n width"]]:
        """(density, features) of samples in person space.

        Args:
            et: the head's Euler angles (rad) and translation (m), one row a frame.
        """
        pose = frequency_encoding(et, self.config.pose_octaves)
        encoded = sinusoids(POSITION_SCALE * positions, self.config.position_octaves)
        encoded = self.deformation(encoded, pose, counts)
        first = _per_frame(self.inputs["torso"], encoded, pose, counts)
        again = _per_frame(self.again["torso"], encoded, pose, counts)
        return self._density(first, again, participant, TORSO_PART)

    def head_colour(
        self,
        features: Float[Tensor, "n width"],
        directions: Float[Tensor, "num_rays 3"],
        rays: Int[Tensor, " n"],
        ray_frames: Int[Tensor, " num_rays"],
        participant: int,
        signal: PublishedSignal,
    ) -> Float[Tensor, "n 3"]:
        """Colour of samples, from what `head_density` returned; `ray_frames` says which frame each ray shows."""
        listens = self.expression(signal.expression) * (~signal.speaks).unsqueeze(-1)
        return self._colour(features, directions, rays, participant, HEAD_PART, listens.index_select(0, ray_frames))

    def torso_colour(
        self,
        features: Float[Tensor, "n width"],
        directions: Float[Tensor, "num_rays 3"],
        rays: Int[Tensor, " n"],
        participant: int,
    ) -> Float[Tensor, "n 3"]:
        """Colour of samples, from what `torso_density` returned."""
        return self._colour(features, directions, rays, participant, TORSO_PART, None)

    def _head_layers(self, layers: nn.ModuleDict, signal: PublishedSignal) -> Float[Tensor, "f inputs width"]:
        """Each frame's matrix that reads [γ(x) ‖ 1]: a speaker's, with the signal multiplied in, or a listener's."""
        speaker, listener = layers["speaker"], layers["listener"]
        position = listener.in_features
        spoken = F.linear(signal.speech, speaker.weight[:, position:], speaker.bias)
        rows = torch.where(signal.speaks[:, None], spoken, listener.bias)
        weights = torch.where(signal.speaks[:, None, None], speaker.weight[:, :position].t(), listener.weight.t())
        return torch.cat([weights, rows.unsqueeze(1)], dim=1)

    def _density(
        self, first: Float[Tensor, "n width"], again: Float[Tensor, "n width"], participant: int, part: int
    ) -> Tuple[Float[Tensor, " n"], Float[Tensor, "n width"]]:
        shape_code = self.codes[participant, part, 0]
        net = F.relu(first + self.shape_input(shape_code))
        for done, layer in enumerate(self.trunk, start=1):
            net = F.relu(layer(net))
            if done == self.config.skip and done < len(self.trunk):
                net = net + again + self.shape_again(shape_code)
        return F.relu(self.density_output(net).squeeze(-1)), net

    def _colour(self, features, directions, rays, participant, part, per_ray_extra) -> Float[Tensor, "n 3"]:
        encoded = sinusoids(POSITION_SCALE * directions, self.config.direction_octaves)
        per_ray = self.direction(encoded) + self.appearance(self.codes[participant, part, 1])
        if per_ray_extra is not None:
            per_ray = per_ray + per_ray_extra
        return torch.sigmoid(self.colour_output(F.relu(self.feature(features) + per_ray.index_select(0, rays))))


def _per_frame(
    layer: nn.Linear,
    encoded: Float[Tensor, "n encoded"],
    condition: Float[Tensor, "num_frames condition"],
    counts: Sequence[int],
) -> Float[Tensor, "n width"]:
    """A layer of [encoded ‖ condition of the sample's frame], its second part multiplied once a frame."""
    size = encoded.shape[-1]
    constant = F.linear(condition, layer.weight[:, size:], layer.bias)
    matrices = torch.cat([layer.weight[:, :size].t().expand(len(constant), -1, -1), constant.unsqueeze(1)], dim=1)
    return frame_matmul(torch.cat([encoded, encoded.new_ones(len(encoded), 1)], dim=-1), matrices, counts)
