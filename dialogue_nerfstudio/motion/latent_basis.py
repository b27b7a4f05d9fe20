"""The basis in which a prior of independent latent dimensions fits the latents: chosen again while they are learned.

Conventions. Latent sequences z are `[B, D, N]`. In a *fitting* basis W, z′ = W (z − mean), numbers have zero mean and
unit variance, and no two of them are correlated, neither at one time nor `LAG` tokens apart: whitening, then the
eigenvectors of the lagged covariance, slowest first (AMUSE, Tong et al. 1991). The networks around a latent space are
linear where they touch it, so that a change of basis changes nothing of what they reconstruct, and only makes the
divergence from the prior smaller; gradients would find that basis, too, but need thousands of steps.
"""

from dataclasses import dataclass
from typing import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

LAG = 2
"""Tokens."""
_MEMORY = 0.95
"""Share of the moments that a step keeps: those of about twenty steps count."""
_SMALLEST_VARIANCE = 1e-4
_SHORTEST, _LONGEST = 0.5, 20.0
"""Length scales, tokens: shorter ones are no memory, longer ones look all the same within a window."""


@dataclass
class LatentBasis:
    """A change of basis z′ = W (z − mean)."""

    mean: Float[Tensor, " D"]
    change: Float[Tensor, "D D"]
    """W."""
    memory: Float[Tensor, " D"]
    """Correlation of each new dimension with itself `LAG` tokens later."""

    def length_scales(self) -> Float[Tensor, " D"]:
        """ℓ (tokens) of the Cauchy kernel with that correlation: 1 / (1 + LAG² / ℓ²) = ρ."""
        memory = self.memory.clamp(1e-3, 1.0 - 1e-3)
        return (LAG * (memory / (1.0 - memory)).sqrt()).clamp(_SHORTEST, _LONGEST)


class LatentMoments(nn.Module):
    """Running mean and covariances of latents, kept with the model so that interrupted training goes on unchanged.

    Args:
        size: D.
    """

    weight: Tensor
    mean: Tensor
    products: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("products", torch.zeros(2, size, size, dtype=torch.float64))

    @torch.no_grad()
    def collect(self, latent: Float[Tensor, "B D N"]) -> None:
        """Counts a batch in."""
        values = latent.double()
        now, later = values[..., :-LAG], values[..., LAG:]
        products = torch.stack(
            [
                torch.einsum("bin,bjn->ij", one, other) / (one.shape[0] * one.shape[2])
                for one, other in ((values, values), (now, later))
            ]
        )
        for kept, new in ((self.weight, 1.0), (self.mean, values.mean((0, 2))), (self.products, products)):
            kept.mul_(_MEMORY).add_((1.0 - _MEMORY) * new)

    def forget(self) -> None:
        """Begins anew, as after a change of basis."""
        for kept in (self.weight, self.mean, self.products):
            kept.zero_()

    def fitting_basis(self) -> LatentBasis:
        """See the module's docstring.

        Raises:
            ValueError: nothing was collected.
        """
        if not self.weight > 0.0:
            raise ValueError("no latents were collected")
        mean = self.mean / self.weight
        covariance, lagged = self.products / self.weight - torch.outer(mean, mean)
        variances, axes = torch.linalg.eigh(covariance)
        whitening = axes / variances.clamp_min(_SMALLEST_VARIANCE).sqrt() @ axes.T
        memory, turn = torch.linalg.eigh(0.5 * whitening @ (lagged + lagged.T) @ whitening)
        return LatentBasis(mean, (turn.T @ whitening).flip(0), memory.flip(0))


@torch.no_grad()
def change_outputs(layer: nn.Linear, basis: LatentBasis) -> None:
    """Makes a layer that named targets z and their log precisions, D numbers each, name those of z′.

    Precisions change as if the noises of all dimensions had been equal; they are learned further.
    """
    size = len(basis.mean)
    weight, bias = layer.weight.double(), layer.bias.double()
    weight[:size] = basis.change @ weight[:size]
    bias[:size] = basis.change @ (bias[:size] - basis.mean)
    bias[size:] -= basis.change.square().sum(1).log()
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


@torch.no_grad()
def change_inputs(layers: Sequence[nn.Linear], basis: LatentBasis) -> None:
    """Makes layers that were given z give the same when given z′."""
    back = torch.linalg.inv(basis.change)
    for layer in layers:
        weight, bias = layer.weight.double(), layer.bias.double()
        layer.bias.copy_(bias + weight @ basis.mean)
        layer.weight.copy_(weight @ back)
