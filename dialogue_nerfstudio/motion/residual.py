"""What of a motion cannot be predicted, as a vector autoregressive process: learned from what a predictor missed, and
sampled frame by frame so that generated people are never frozen.

Conventions. z_t is a residual of D columns in units of its expected deviation; lag covariances are
C_l = E[z_t z_{t−l}ᵀ], l = 0 … p.
"""

from typing import Tuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def lag_covariances(z: Float[Tensor, "B T D"], order: int) -> Float[Tensor, "lags D D"]:
    """C_0 … C_order of stretches of residuals.

    Every lag is divided by the same number of frames, so that the process fitted to them is stable.
    """
    frames = z.shape[1]
    return torch.stack([torch.einsum("bti,btj->ij", z[:, lag:], z[:, : frames - lag]) for lag in range(order + 1)]) / (
        z.shape[0] * frames
    )


def fit_process(
    covariances: Float[np.ndarray, "lags D D"], ridge: float = 1e-4
) -> Tuple[Float[np.ndarray, "D pD"], Float[np.ndarray, "D D"]]:
    """The process z_t = Σ A_l z_{t−l} + L ε_t with these covariances (Yule–Walker).

    Args:
        covariances: C_0 … C_p.
        ridge: share of the variance that counts as noise, without which very smooth motion has no solution.

    Returns:
        ([A_1 … A_p], L).
    """
    covariances = covariances.astype(np.float64).copy()
    order = len(covariances) - 1
    covariances[0] += ridge * np.diag(np.diag(covariances[0]).clip(1e-12))

    def lag(l: int) -> np.ndarray:  # noqa: E741
        return covariances[l] if l >= 0 else covariances[-l].T

    # Σ_l A_l C_{m−l} = C_m for m = 1 … p.
    toeplitz = np.block([[lag(m - l) for m in range(1, order + 1)] for l in range(1, order + 1)])  # noqa: E741
    right = np.concatenate([covariances[m] for m in range(1, order + 1)], axis=1)
    transition = np.linalg.solve(toeplitz.T, right.T).T
    noise = covariances[0] - transition @ np.concatenate([covariances[m].T for m in range(1, order + 1)], axis=0)
    values, vectors = np.linalg.eigh((noise + noise.T) / 2)
    return transition, vectors * np.sqrt(values.clip(0.0))


class ResidualProcess:
    """The process of P people, running.

    Args:
        transition, noise: what `fit_process` gives.
        history: the last residuals of each person, the newest first.
    """

    def __init__(
        self,
        transition: Float[np.ndarray, "D pD"],
        noise: Float[np.ndarray, "D D"],
        history: Float[np.ndarray, "P p D"],
    ):
        self._transition, self._noise = transition.T, noise.T
        self._people, self._order, self._size = history.shape
        self._state = history.reshape(self._people, -1).astype(np.float64)

    def advance(self, innovations: Float[np.ndarray, "P n D"]) -> Float[np.ndarray, "P n D"]:
        """The next n residuals; innovations are white with unit variance, or zero for the most likely course."""
        shaped = innovations @ self._noise
        out = np.empty_like(shaped)
        for frame in range(shaped.shape[1]):
            out[:, frame] = self._state @ self._transition + shaped[:, frame]
            self._state[:, self._size :] = self._state[:, : -self._size].copy()
            self._state[:, : self._size] = out[:, frame]
        return out
