"""Gaussians over latent sequences: priors with and without memory in time, and posteriors that keep it.

Conventions. A latent sequence is `[B, D, T]`: D dimensions, independent of one another, of T frames; times and length
scales are in frames. A prior's covariance over a window of T frames is K = L Lᵀ, one [T, T] matrix a dimension, zero
mean. Posteriors are written in the prior's own coordinates u = L⁻¹ z, in which the prior is N(0, I).
"""

from dataclasses import dataclass
from typing import Optional, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


def cauchy_covariance(
    times: Float[Tensor, " T"], length_scale: float, sigma: float = 1.0, jitter: float = 1e-3
) -> Float[Tensor, "T T"]:
    """k(t, t′) = σ² / (1 + (t − t′)² / ℓ²) + jitter · [t = t′], the Cauchy kernel of DFA-NeRF eq. 7 (Fortuin 2020).

    It mixes squared-exponential kernels of all length scales, so that it falls off slowly: what a person does now still
    tells a little of what they do several ℓ later.
    """
    gaps = times[:, None] - times[None, :]
    return sigma**2 / (1.0 + (gaps / length_scale).square()) + jitter * torch.eye(len(times), dtype=times.dtype)


class TemporalPrior(nn.Module):
    """p(z) over windows of any length (DFA-NeRF eq. 7): a Gaussian process, or independent frames.

    Factors are computed once for each window length and kept.

    Args:
        length_scales: ℓ of the latent dimensions, frames, dealt out in turn; None for the plain VAE's N(0, I).
        num_dimensions: D.
    """

    length_scales: Optional[Tensor]

    def __init__(self, length_scales: Optional[Sequence[float]], num_dimensions: int):
        super().__init__()
        self.num_dimensions = num_dimensions
        scales = None
        if length_scales is not None:
            scales = torch.tensor([length_scales[d % len(length_scales)] for d in range(num_dimensions)])
        self.register_buffer("length_scales", scales)
        self._factors: dict[tuple[int, str, torch.dtype], tuple[Tensor, Tensor]] = {}

    def covariance(self, num_frames: int) -> Float[Tensor, "D T T"]:
        """K of each dimension, in double precision."""
        times = torch.arange(num_frames, dtype=torch.float64)
        if self.length_scales is None:
            return torch.eye(num_frames, dtype=torch.float64).expand(self.num_dimensions, -1, -1)
        return torch.stack([cauchy_covariance(times, scale) for scale in self.length_scales.tolist()])

    def factor(self, num_frames: int, like: Tensor) -> Float[Tensor, "D T T"]:
        """L of K = L Lᵀ, with the device and precision of `like`; factored in double precision."""
        key = (num_frames, str(like.device), like.dtype)
        scales = like.new_zeros(0) if self.length_scales is None else self.length_scales
        made_of, factor = self._factors.get(key, (None, None))
        # A checkpoint, or a fit, may have brought other length scales.
        if made_of is None or not torch.equal(made_of, scales):
            factor = torch.linalg.cholesky(self.covariance(num_frames)).to(like)
            self._factors[key] = (scales.clone(), factor)
        return factor

    def posterior(
        self,
        target: Float[Tensor, "B D T"],
        precision: Float[Tensor, "B D T"],
    ) -> "LatentGaussian":
        """What is known of z once y_t = z_t + noise of variance 1 / λ_t was seen at every frame.

        This is how encoders speak here: they name a target y and how much they trust it, λ, frame by frame, and
        Gaussian regression makes q(z|h) = N(μ, K) of it (eq. 4 and 5), with a full covariance over time:
        K = (K_p⁻¹ + Λ)⁻¹, μ = K Λ y. λ = 0 says nothing of that frame: all 0, the posterior is the prior.
        Fortuin's GP-VAE has a free mean and a banded precision instead; this form has fewer outputs, its samples
        are smooth wherever the prior is, what two encoders know simply adds up, and its KL is exact.

        Args:
            target, precision: y and λ.
        """
        return LatentGaussian(self.factor(target.shape[-1], target), precision * target, precision)

    def sample(self, batch: int, num_frames: int, noise: torch.Generator, like: Tensor) -> Float[Tensor, "B D T"]:
        """Sequences from p(z)."""
        white = torch.randn(batch, self.num_dimensions, num_frames, generator=noise).to(like)
        return torch.einsum("dts,bds->bdt", self.factor(num_frames, like), white)


@dataclass
class LatentGaussian:
    """N(μ, K) over a window: the prior, and what was seen of each frame."""

    prior_factor: Float[Tensor, "D T T"]
    information: Float[Tensor, "B D T"]
    """Λ y, seen targets times their precision."""
    precision: Float[Tensor, "B D T"]
    """The diagonal of Λ."""

    def __post_init__(self) -> None:
        whitened = self.prior_factor.transpose(-1, -2)
        identity = torch.eye(self.precision.shape[-1]).to(self.precision)
        self._whitened_precision = (whitened * self.precision[..., None, :]) @ self.prior_factor + identity
        # A = I + Lᵀ Λ L = C Cᵀ is the precision of u; its eigenvalues are 1 or more, so that float32 suffices.
        self._root = torch.linalg.cholesky(self._whitened_precision)
        seen = torch.einsum("dst,bds->bdt", self.prior_factor, self.information)
        self._whitened_mean = torch.cholesky_solve(seen[..., None], self._root)[..., 0]

    def mean(self) -> Float[Tensor, "B D T"]:
        """μ."""
        return self._from_whitened(self._whitened_mean)

    def covariance(self) -> Float[Tensor, "B D T T"]:
        """K."""
        half = torch.linalg.solve_triangular(self._root, self.prior_factor.transpose(-1, -2), upper=False)
        return half.transpose(-1, -2) @ half

    def sample(self, white: Float[Tensor, "B D T"], scale: float = 1.0) -> Float[Tensor, "B D T"]:
        """μ + K^½ ε, the reparameterisation; `scale` of the deviation from the mean, 1 is the distribution itself.

        Args:
            white: ε, independent standard normal numbers.
        """
        deviation = torch.linalg.solve_triangular(self._root.transpose(-1, -2), white[..., None], upper=True)[..., 0]
        return self._from_whitened(self._whitened_mean + scale * deviation)

    def given(self, target: Float[Tensor, "B D T"], precision: Float[Tensor, "B D T"]) -> "LatentGaussian":
        """This distribution after more was seen: y_t = z_t + noise of variance 1 / λ_t."""
        return LatentGaussian(self.prior_factor, self.information + precision * target, self.precision + precision)

    def kl_to_prior(self) -> Float[Tensor, " B"]:
        """KL(q ‖ p) over all frames and dimensions (DFA-NeRF eq. 8, in the direction of the evidence bound), exact.

        ½ (tr A⁻¹ + mᵀ m − T + log det A), A the precision and m the mean of u.
        """
        inverse_root = torch.linalg.solve_triangular(self._root, self._identity(), upper=False)
        trace = inverse_root.square().sum((-1, -2))
        quadratic = self._whitened_mean.square().sum(-1)
        return 0.5 * (trace + quadratic - self.precision.shape[-1] + self._log_determinant()).sum(-1)

    def kl_to(self, other: "LatentGaussian") -> Float[Tensor, " B"]:
        """KL(self ‖ other) of two posteriors under one prior, over all frames and dimensions, exact.

        ½ (tr(A₂ A₁⁻¹) + (m₂ − m₁)ᵀ A₂ (m₂ − m₁) − T + log det A₁ − log det A₂), in u.
        """
        inverse_root = torch.linalg.solve_triangular(self._root, self._identity(), upper=False)
        ratio = inverse_root @ other._root
        gap = (other._whitened_mean - self._whitened_mean)[..., None]
        quadratic = (other._root.transpose(-1, -2) @ gap).square().sum((-1, -2))
        determinants = self._log_determinant() - other._log_determinant()
        return 0.5 * (ratio.square().sum((-1, -2)) + quadratic - self.precision.shape[-1] + determinants).sum(-1)

    def _identity(self) -> Float[Tensor, "T T"]:
        return torch.eye(self.precision.shape[-1]).to(self.precision)

    def _log_determinant(self) -> Float[Tensor, "B D"]:
        return 2.0 * self._root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _from_whitened(self, whitened: Float[Tensor, "B D T"]) -> Float[Tensor, "B D T"]:
        return torch.einsum("dts,bds->bdt", self.prior_factor, whitened)
