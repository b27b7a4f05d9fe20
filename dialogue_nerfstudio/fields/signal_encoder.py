"""Signal encoder: what a frame's head is conditioned on, from audio or expression by role, and from the eyes.

Conventions: one row a frame. `from_audio[f]` says whether audio (a speaker) or expression (a listener) moves the face
of frame f; blink and gaze reach both.
"""

from dataclasses import dataclass, field
from typing import Optional

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dialogue_nerfstudio.fields.audio_net import AudioNet, AudioNetConfig

EYES_SIZE = 6
"""Blink (left, right) and gaze (left yaw, left pitch, right yaw, right pitch)."""

GAZE_SCALE = 3.0
"""A gaze of a third of a radian counts as one, so that blink and gaze have the same size."""


@dataclass
class SignalEncoderConfig:
    """Sizes of the codes that move a head."""

    audio: AudioNetConfig = field(default_factory=AudioNetConfig)
    """The audio net; its code size is the width of the face code."""
    expression_width: int = 64
    """Hidden units between expression coefficients and the face code."""
    eyes_size: int = 16
    """Width of the code of blink and gaze."""
    separate_eyes: bool = True
    """Whether that code reaches the head as one of its own, with regions of its own (ER-NeRF, RAD-NeRF); else it is
    mixed into the face code."""

    @property
    def eyes_code_size(self) -> int:
        """Width of the eyes' own code; 0 where it is mixed in."""
        return self.eyes_size if self.separate_eyes else 0


@dataclass
class HeadSignal:
    """The conditions of a batch's frames."""

    face: Float[Tensor, "num_frames face"]
    """Code of lips, jaw, cheeks and brows: from audio or from expression."""
    eyes: Float[Tensor, "num_frames eyes"]
    """Code of blink and gaze; no columns where it is mixed into the face code."""
    appearance: Optional[Float[Tensor, "num_frames latent"]] = None
    """What each frame adds to z_app; None for nothing."""


class SignalEncoder(nn.Module):
    """DialogueNeRF section 4.2, "Multi-modal Signal Variation": audio for who speaks, expression for who listens.

    The personal residual means something else on every face, so its first layer is one matrix a participant.
    """

    def __init__(
        self,
        config: SignalEncoderConfig,
        num_participants: int,
        expression_size: int,
        residual_size: int,
        silence: Optional[Float[Tensor, "..."]] = None,
    ):
        super().__init__()
        self.config = config
        self.audio_net = AudioNet(config.audio, silence)
        self.expression_layer = nn.Linear(expression_size, config.expression_width)
        self.residual_layers = nn.Parameter(0.1 * torch.randn(num_participants, residual_size, config.expression_width))
        self.expression_output = nn.Sequential(nn.ReLU(), nn.Linear(config.expression_width, config.audio.code_size))
        self.eyes_net = nn.Sequential(
            nn.Linear(EYES_SIZE, config.eyes_size), nn.ReLU(), nn.Linear(config.eyes_size, config.eyes_size)
        )
        if not config.separate_eyes:
            self.eyes_to_face = nn.Linear(config.eyes_size, config.audio.code_size, bias=False)

    def forward(
        self,
        participant: int,
        frames: Int[Tensor, " num_frames"],
        from_audio: Bool[Tensor, " num_frames"],
        audible: Bool[Tensor, " num_frames"],
        audio: Float[Tensor, "num_all ..."],
        expression: Float[Tensor, "num_frames expression"],
        residual: Float[Tensor, "num_frames residual"],
        blink: Float[Tensor, "num_frames 2"],
        gaze: Float[Tensor, "num_frames 4"],
    ) -> HeadSignal:
        """The conditions of `frames` of one participant; the audio net runs for frames driven by audio only.

        Args:
            audible: whether the sound is this participant's; where it is not, the audio net hears silence.
        """
        hidden = self.expression_layer(expression) + residual @ self.residual_layers[participant]
        face = self.expression_output(hidden)
        if bool(from_audio.any()):
            rows = from_audio.nonzero().squeeze(1)
            face = face.index_copy(0, rows, self.audio_net(audio, frames[rows], audible[rows]).to(face.dtype))
        eyes = self.eyes_net(torch.cat([blink, gaze * GAZE_SCALE], dim=-1))
        if not self.config.separate_eyes:
            return HeadSignal(face=face + self.eyes_to_face(eyes), eyes=eyes[:, :0])
        return HeadSignal(face=face, eyes=eyes)
