"""Frame codes: a free vector for each training frame, for what the signals do not tell, zero everywhere else.

Conventions: P participants, T frames of the recording. Codes have mean zero over each participant's training frames, so
that the value of a frame that was not trained on, zero, is their mean.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class FrameCodes(nn.Module):
    """A learned vector a participant and training frame (Martin-Brualla et al. 2021, NeRF in the Wild, section 4.1),
    centred; the start is zero.

    Args:
        num_participants: P.
        train_frames: [T], the frames that have a code.
        size: width of a code.
    """

    def __init__(self, num_participants: int, train_frames: Bool[Tensor, " T"], size: int):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(num_participants, len(train_frames), size))
        self.register_buffer("trained", train_frames.clone(), persistent=False)

    def forward(self, participant: int, frames: Int[Tensor, " F"]) -> Float[Tensor, "F size"]:
        """The centred codes of frames of the recording; zero for frames that have none."""
        values, trained = self.values[participant], self.trained
        mean = values[trained].mean(dim=0)
        return torch.where(trained[frames, None], values[frames] - mean, 0.0)
