"""Pose refinement: small corrections of tracked head poses, learned from the pictures.

Conventions: x_person = R x_head + t; a correction (ω, v) makes it R exp(ω) x_head + t + v, ω in radians in head space,
v in metres in person space.
"""

from dataclasses import dataclass
from typing import Tuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dialogue_nerfstudio.encodings.precision import full_precision
from dialogue_nerfstudio.fields.frame_codes import FrameCodes
from dialogue_nerfstudio.rendering.rays import axis_angle_to_matrix

UNIT = 0.01
"""Radians, and metres, of a parameter of one: Adam moves parameters by its learning rate whatever their meaning."""


@dataclass
class PoseRefinementConfig:
    """Which corrections are learned."""

    per_frame: bool = False
    """A correction for each training frame, zero on average and zero on every other frame, against the tracker's
    noise blurring the head (BARF, Lin et al. 2021, with a tracked start)."""
    by_signal: bool = True
    """A correction linear in the tracked pose and, where it moves the face, the expression, against the tracker's bias
    (a jaw that opens pulls the pose along); it also holds on held-out and driven frames."""
    coefficient: float = 1e-3
    """Mean squared correction, in hundredths of a radian and centimetres, in the loss."""

    @property
    def enabled(self) -> bool:
        """Whether there is any correction."""
        return self.per_frame or self.by_signal


class PoseRefinement(nn.Module):
    """Learned corrections of every participant's head poses; the start is none.

    Args:
        config: which corrections.
        num_participants: of the conversation.
        train_frames: the frames that are trained on.
        signal_size: width of the signals that the linear correction depends on.
    """

    def __init__(
        self, config: PoseRefinementConfig, num_participants: int, train_frames: Bool[Tensor, " T"], signal_size: int
    ):
        super().__init__()
        self.frame_codes = FrameCodes(num_participants, train_frames, 6) if config.per_frame else None
        self.linear = nn.Parameter(torch.zeros(num_participants, signal_size, 6)) if config.by_signal else None

    def forward(
        self, participant: int, frames: Int[Tensor, " F"], signals: Float[Tensor, "F signals"]
    ) -> Float[Tensor, "F 6"]:
        """Corrections ω ‖ v in units of `UNIT`.

        Args:
            participant: whose.
            frames: of the recording; looked up in training only, where a timeline is the recording.
            signals: of the frames, each about zero on average and of size one.
        """
        correction = signals.new_zeros(len(frames), 6)
        if self.frame_codes is not None and self.training:
            correction = correction + self.frame_codes(participant, frames)
        if self.linear is not None:
            with full_precision(signals):
                correction = correction + signals.float() @ self.linear[participant]
        return correction


def corrected(
    rotation: Float[Tensor, "F 3 3"], translation: Float[Tensor, "F 3"], correction: Float[Tensor, "F 6"]
) -> Tuple[Float[Tensor, "F 3 3"], Float[Tensor, "F 3"]]:
    """Head poses with corrections ω ‖ v (in units of `UNIT`) applied."""
    turn, move = (UNIT * correction).split(3, dim=-1)
    with full_precision(rotation):
        return rotation @ axis_angle_to_matrix(turn), translation + move
