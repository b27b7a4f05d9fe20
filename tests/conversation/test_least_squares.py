"""Bounded least squares: the conditions of an optimum hold, with one bound for all or one for each unknown."""

import numpy as np
import pytest

from dialogue_nerfstudio.conversation.least_squares import bounded_least_squares


def test_bounded_least_squares_meets_the_optimality_conditions():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((50, 12, 6))
    hessian, gradient = np.swapaxes(a, 1, 2) @ a, rng.standard_normal((50, 6)) * 3
    solution = bounded_least_squares(hessian, gradient, 0.0, 0.5, sweeps=2000)
    slope = np.einsum("bij,bj->bi", hessian, solution) - gradient
    inside = (solution > 1e-9) & (solution < 0.5 - 1e-9)
    assert np.abs(slope[inside]).max() < 1e-2
    assert slope[solution <= 1e-9].min() > -1e-2
    assert slope[solution >= 0.5 - 1e-9].max() < 1e-2


def test_each_unknown_may_have_a_bound_of_its_own():
    hessian, gradient = np.eye(3)[None], np.array([[2.0, 2.0, -2.0]])
    solution = bounded_least_squares(hessian, gradient, 0.0, np.array([0.5, 1.5, 1.0]))
    np.testing.assert_allclose(solution, [[0.5, 1.5, 0.0]])


def test_a_solution_does_not_depend_on_those_beside_it():
    rng = np.random.default_rng(1)
    a = rng.standard_normal((20, 12, 6)) * np.linspace(0.1, 1, 20)[:, None, None]
    hessian, gradient = np.swapaxes(a, 1, 2) @ a, rng.standard_normal((20, 6)) * 3
    whole = bounded_least_squares(hessian, gradient, 0.0, 0.5)
    alone = [bounded_least_squares(hessian[i : i + 1], gradient[i : i + 1], 0.0, 0.5)[0] for i in range(20)]
    np.testing.assert_allclose(whole, alone, atol=1e-12)


def test_one_hessian_may_stand_for_all():
    rng = np.random.default_rng(2)
    a, gradient = rng.standard_normal((12, 6)), rng.standard_normal((20, 6)) * 3
    hessian = (a.T @ a)[None]
    shared = bounded_least_squares(hessian, gradient, 0.0, 0.5)
    np.testing.assert_allclose(shared, bounded_least_squares(np.repeat(hessian, 20, 0), gradient, 0.0, 0.5), atol=1e-9)
    with pytest.raises(ValueError, match="3 Hessians do not fit 20"):
        bounded_least_squares(np.repeat(hessian, 3, 0), gradient, 0.0, 0.5)
