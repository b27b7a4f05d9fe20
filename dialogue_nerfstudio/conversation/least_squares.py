"""Least squares with bounds, for many small problems at once: coefficients of a face from where its points are."""

from typing import Union

import numpy as np
from jaxtyping import Float

Bound = Union[float, Float[np.ndarray, " n"]]


def bounded_least_squares(
    hessian: Float[np.ndarray, "batch n n"],
    gradient: Float[np.ndarray, "batch n"],
    lower: Bound,
    upper: Bound,
    sweeps: int = 60,
) -> Float[np.ndarray, "batch n"]:
    """argmin ½ cᵀHc − gᵀc with lower ≤ c ≤ upper: the free minimum where it lies inside, else coordinate descent from
    there."""
    size = gradient.shape[1]
    lower, upper = np.broadcast_to(lower, size), np.broadcast_to(upper, size)
    free = np.linalg.solve(hessian, gradient[..., None])[..., 0]
    solution = np.clip(free, lower, upper)
    outside = (solution != free).any(axis=1)
    if outside.any():
        solution[outside] = _coordinate_descent(
            hessian[outside], gradient[outside], solution[outside], lower, upper, sweeps
        )
    return solution


def _coordinate_descent(hessian, gradient, solution, lower, upper, sweeps) -> np.ndarray:
    # Each problem stops by itself, so that its solution does not depend on which others are solved beside it.
    solution, going = solution.copy(), np.arange(len(solution))
    for _ in range(sweeps):
        before, part, rows = solution[going], solution[going], hessian[going]
        for i in range(gradient.shape[1]):
            slope = gradient[going, i] - np.einsum("bn,bn->b", rows[:, i], part) + rows[:, i, i] * part[:, i]
            part[:, i] = np.clip(slope / rows[:, i, i], lower[i], upper[i])
        solution[going] = part
        going = going[np.abs(part - before).max(axis=1) >= 1e-4]
        if not len(going):
            break
    return solution
