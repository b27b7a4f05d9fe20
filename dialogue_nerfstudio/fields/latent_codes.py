"""Latent codes z_shape and z_app: what tells one participant's head or torso from another's in a shared network.

DialogueNeRF section 4.2, "Individual Condition": z_shape acts on density and colour, z_app on colour only.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LatentCodes(nn.Module):
    """z_shape and z_app of every participant, for one body part; learned from a normal start.

    Args:
        num_participants: rows.
        size: width of each code.
    """

    def __init__(self, num_participants: int, size: int):
        super().__init__()
        self.size = size
        self.shape = nn.Parameter(torch.randn(num_participants, size))
        self.appearance = nn.Parameter(torch.randn(num_participants, size))

    def of(self, participant: int) -> "tuple[Float[Tensor, ' size'], Float[Tensor, ' size']]":
        """(z_shape, z_app) of a participant."""
        return self.shape[participant], self.appearance[participant]
