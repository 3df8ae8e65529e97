"""The evaluator: values, gradients and Hamiltonian paths as they are by hand, whatever the parts and threads."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from fake import correlated_gaussian, gaussian_mixture

from marginalia.infer import evaluator
from marginalia.infer.problem import Problem
from marginalia.precision import float64

Y = np.random.default_rng(0).normal(size=40)


@pytest.fixture(scope="module")
def problem():
    with float64():
        made = Problem(gaussian_mixture(Y, 2), jacobian=True)
        made.evaluator.follows = True
    return made


@pytest.fixture(autouse=True)
def in_double():
    with float64():
        yield


def by_hand(problem, points):
    one = jax.value_and_grad(lambda flat: problem.log_density(flat, problem.data))
    found = [one(point) for point in points]
    return np.array([v for v, _ in found]), np.stack([g for _, g in found])


@pytest.mark.parametrize("count", [1, 3, evaluator.SLOTS, 2 * evaluator.SLOTS + 5])
@pytest.mark.parametrize("paths", [False, True])
def test_values_and_gradients_are_those_of_the_density(problem, count, paths):
    own = problem.evaluator if paths else evaluator.Evaluator(problem)
    points = np.random.default_rng(1).normal(size=(count, problem.dimension))
    values, slopes = own(points)
    wanted, gradients = by_hand(problem, points[:20])
    np.testing.assert_allclose(values[:20], wanted, rtol=1e-12)
    np.testing.assert_allclose(slopes[:20], gradients, rtol=1e-10)
    np.testing.assert_array_equal(own.values(points), values)
    np.testing.assert_array_equal(own(points[-1:])[0], values[-1:])


def test_which_program_evaluates_points_does_not_depend_on_what_was_compiled_before(problem):
    """The two differ in the last digits, and a seed is to give the same draws in whatever order fits are made."""

    def other(*arguments):
        raise AssertionError("the program that follows paths")

    points = np.random.default_rng(1).normal(size=(3, problem.dimension))
    problem.evaluator(points)
    equal = Problem(problem.marginal, jacobian=True)
    equal.programs = {**problem.programs, "paths": other}
    equal.evaluator(points)
    assert "points" in equal.programs


def test_no_points_give_no_values(problem):
    values, slopes = problem.evaluator(np.empty((0, problem.dimension)))
    assert values.shape == (0,)
    assert slopes.shape == (0, problem.dimension)


def test_a_point_where_anything_is_not_finite_has_no_density():
    hard = Problem(gaussian_mixture(Y, 2, ordered_factor=True), jacobian=True)
    rng = np.random.default_rng(2)
    values, slopes = hard.evaluator(rng.normal(size=(30, hard.dimension)))
    assert 0 < np.isneginf(values).sum() < 30
    assert (slopes[np.isneginf(values)] == 0).all()
    assert np.isfinite(slopes).all()


def leapfrog(problem, point, momentum, step, leaps, root):
    for _ in range(leaps):
        momentum = momentum + 0.5 * step * by_hand(problem, [point])[1][0] @ root
        point = point + step * momentum @ root.T
        momentum = momentum + 0.5 * step * by_hand(problem, [point])[1][0] @ root
    return point, momentum


def test_paths_are_leapfrog_steps(problem):
    rng = np.random.default_rng(3)
    points, momenta = rng.normal(size=(2, 3, problem.dimension))
    root = np.linalg.cholesky(np.eye(problem.dimension) + 0.3)
    values, slopes = problem.evaluator(points)
    ends = problem.evaluator.leap(points, momenta, values, slopes, 0.05, 4, root)
    for i in range(3):
        point, momentum = leapfrog(problem, points[i], momenta[i], 0.05, 4, root)
        np.testing.assert_allclose(ends.points[i], point, rtol=1e-10)
        np.testing.assert_allclose(ends.momenta[i], momentum, rtol=1e-9)
    np.testing.assert_allclose(ends.values, by_hand(problem, ends.points)[0], rtol=1e-12)


def test_a_chain_goes_on_from_where_it_was_taken_to(problem):
    """Steps of a chain in one call are those of one path after the other; some are refused."""
    rng = np.random.default_rng(4)
    chains, steps = 3, 12
    points, momenta = rng.normal(size=(chains, problem.dimension)), rng.normal(size=(steps, chains, problem.dimension))
    uniforms, leaps, root = rng.random((steps, chains)), rng.integers(1, 6, size=steps), np.eye(problem.dimension)
    values, slopes = problem.evaluator(points)
    found = problem.evaluator.walk(points, momenta, values, slopes, uniforms, leaps, 0.25, root)
    assert 0 < found.taken.sum() < found.taken.size
    for s in range(steps):
        ends = problem.evaluator.leap(points, momenta[s], values, slopes, 0.25, int(leaps[s]), root)
        rise = 0.5 * (ends.momenta**2).sum(1) - ends.values - 0.5 * (momenta[s] ** 2).sum(1) + values
        taken = uniforms[s] < np.exp(-rise)
        np.testing.assert_array_equal(found.taken[s], taken)
        np.testing.assert_allclose(found.points[s], ends.points, rtol=1e-12)
        points = np.where(taken[:, None], ends.points, points)
        values, slopes = np.where(taken, ends.values, values), np.where(taken[:, None], ends.slopes, slopes)


def test_parts_and_threads_change_no_digit(problem, monkeypatch):
    points = np.random.default_rng(5).normal(size=(50, problem.dimension))
    values, slopes = problem.evaluator(points)
    monkeypatch.setattr(evaluator, "WORTH_THREADS", 0)
    monkeypatch.setattr(evaluator, "BLOCK_NUMBERS", 7 * problem.data_size)
    again, slopes_again = problem.evaluator(points)
    np.testing.assert_array_equal(values, again)
    np.testing.assert_array_equal(slopes, slopes_again)


def test_many_chains_of_steps_keep_the_distribution():
    """Exact invariance: draws from a Gaussian, moved by twenty steps of any size, are draws from it."""
    problem = Problem(correlated_gaussian(), jacobian=True)
    problem.evaluator.follows = True
    rng = np.random.default_rng(6)
    covariance = np.linalg.inv(-_hessian(problem))
    chains, steps = 400, 20
    mean = _mode(problem)
    points = rng.multivariate_normal(mean, covariance, size=chains)
    values, slopes = problem.evaluator(points)
    momenta, uniforms = rng.normal(size=(steps, chains, problem.dimension)), rng.random((steps, chains))
    size = np.sqrt(np.diag(covariance)).min()
    found = problem.evaluator.walk(
        points, momenta, values, slopes, uniforms, np.full(steps, 3), 0.6 * size, np.eye(problem.dimension)
    )
    assert 0.05 < found.taken.mean() < 0.999
    arrived = np.maximum.accumulate(np.where(found.taken, np.arange(1, steps + 1)[:, None], 0), axis=0)[-1]
    ends = np.concatenate([points[None], found.points])[arrived, np.arange(chains)]
    z = np.linalg.solve(np.linalg.cholesky(covariance), (ends - mean).T)
    error = np.abs(z.mean(axis=1)) * np.sqrt(chains)
    assert error.max() < 4
    assert (np.abs((z**2).mean(axis=1) - 1) * np.sqrt(chains / 2)).max() < 4


def _hessian(problem):
    return np.asarray(jax.hessian(lambda x: problem.log_density(x, problem.data))(np.zeros(problem.dimension)))


def _mode(problem):
    at_zero = np.asarray(jax.grad(lambda x: problem.log_density(x, problem.data))(np.zeros(problem.dimension)))
    return -np.linalg.solve(_hessian(problem), at_zero)
