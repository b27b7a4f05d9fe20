"""Positional encoding: sines and cosines of a position at octaves, what NeRFs read space with before hash grids.

Convention: γ(p) of [..., D] is [..., 2 D L], octave after octave, the sines of all dimensions before the cosines.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def sinusoids(values: Float[Tensor, "*batch dims"], num_octaves: int) -> Float[Tensor, "*batch encoded"]:
    """γ(p) = (sin 2⁰πp, cos 2⁰πp, sin 2¹πp, cos 2¹πp, …), DialogueNeRF equation 2."""
    octaves = torch.pi * 2.0 ** torch.arange(num_octaves, device=values.device, dtype=values.dtype)
    angles = values.unsqueeze(-2) * octaves[:, None]
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class FrequencyEncoding(nn.Module):
    """γ of a unit box carried to [−1, 1]; it has no parameters.

    Args:
        num_octaves: L; 10 in NeRF and DialogueNeRF's renderer.
    """

    kernel = "torch"

    def __init__(self, num_octaves: int):
        super().__init__()
        self.num_octaves = num_octaves

    @property
    def out_dim(self) -> int:
        """Number of features per position."""
        return 6 * self.num_octaves

    def forward(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n features"]:
        """γ(2p − 1)."""
        return sinusoids(2.0 * positions - 1.0, self.num_octaves)
