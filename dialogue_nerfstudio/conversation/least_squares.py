"""Least squares with bounds, for many small problems at once: coefficients of a face from where its points are."""

from typing import Union, no_type_check

import numba
import numpy as np
from jaxtyping import Float

Bound = Union[float, Float[np.ndarray, " n"]]

_TOLERANCE = 1e-4
"""Largest change of a sweep at which a solution is taken."""


def bounded_least_squares(
    hessian: Float[np.ndarray, "problems n n"],
    gradient: Float[np.ndarray, "batch n"],
    lower: Bound,
    upper: Bound,
    sweeps: int = 60,
) -> Float[np.ndarray, "batch n"]:
    """argmin ½ cᵀHc − gᵀc with lower ≤ c ≤ upper: the free minimum where it lies inside, else coordinate descent from
    there.

    Args:
        hessian: H of each problem, or one for all.
        gradient: g.
        lower, upper: bounds, of all unknowns or of each.
        sweeps: of coordinate descent, at most.

    Raises:
        ValueError: there are neither one nor as many H as g.
    """
    if len(hessian) not in (1, len(gradient)):
        raise ValueError(f"{len(hessian)} Hessians do not fit {len(gradient)} gradients")
    size = gradient.shape[1]
    lower, upper = (np.ascontiguousarray(np.broadcast_to(bound, size), np.float64) for bound in (lower, upper))
    if len(hessian) == 1:
        free = np.linalg.solve(hessian[0], gradient.T).T
    else:
        free = np.linalg.solve(hessian, gradient[..., None])[..., 0]
    solution = np.clip(free, lower, upper)
    outside = np.flatnonzero((solution != free).any(axis=1))
    if len(outside):
        own = hessian if len(hessian) == 1 else hessian[outside]
        solution[outside] = _coordinate_descent(
            np.ascontiguousarray(own, np.float64),
            np.ascontiguousarray(gradient[outside], np.float64),
            np.ascontiguousarray(solution[outside], np.float64),
            lower,
            upper,
            sweeps,
        )
    return solution


@numba.njit(cache=True)
@no_type_check
def _coordinate_descent(hessian, gradient, solution, lower, upper, sweeps):
    # Each problem stops by itself, so that its solution does not depend on which others are solved beside it.
    size = gradient.shape[1]
    slope = np.empty(size)
    for problem in range(len(gradient)):
        matrix, unknowns = hessian[problem if len(hessian) > 1 else 0], solution[problem]
        for row in range(size):
            slope[row] = -gradient[problem, row]
            for column in range(size):
                slope[row] += matrix[row, column] * unknowns[column]
        for _ in range(sweeps):
            largest = 0.0
            for row in range(size):
                wanted = unknowns[row] - slope[row] / matrix[row, row]
                step = min(max(wanted, lower[row]), upper[row]) - unknowns[row]
                if step != 0.0:
                    unknowns[row] += step
                    largest = max(largest, abs(step))
                    for column in range(size):
                        slope[column] += matrix[row, column] * step
            if largest < _TOLERANCE:
                break
    return solution
