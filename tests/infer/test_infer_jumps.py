"""Jumps between modes leave the posterior as it is, and chains visit each mode as often as it deserves."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from arviz_stats.base.array import array_stats
from fake import bimodal
from scipy.special import logsumexp

from marginalia import infer
from marginalia.infer import jumps, starts
from marginalia.infer.curvature import Curvature
from marginalia.infer.optimise import Optimiser
from marginalia.infer.options import NUTS, Ensemble
from marginalia.infer.progress import Silent
from marginalia.precision import float64

CENTRES = np.array([[0.0, 0.0], [2.5, -1.0]])
SPREADS = np.array([[[1.0, 0.0], [0.8, 0.5]], [[0.4, 0.0], [-0.5, 2.0]]])
SHARES = np.array([0.3, 0.7])
SKEW = 0.6


def _log_density(points: np.ndarray) -> np.ndarray:
    """Two modes, each a Gaussian bent along a parabola, so that the Gaussians that touch them are wrong."""
    parts = []
    for share, centre, root in zip(SHARES, CENTRES, SPREADS, strict=True):
        bent = points - centre
        bent = np.stack([bent[:, 0], bent[:, 1] - SKEW * (bent[:, 0] ** 2 - root[0, 0] ** 2)], axis=1)
        white = np.linalg.solve(root, bent.T).T
        parts.append(np.log(share / np.linalg.det(root)) - 0.5 * np.sum(white**2, axis=1))
    return logsumexp(parts, axis=0)


def _exact(count: int, rng: np.random.Generator) -> np.ndarray:
    which = rng.choice(2, size=count, p=SHARES)
    moves = np.einsum("nij,nj->ni", SPREADS[which], rng.normal(size=(count, 2)))
    moves[:, 1] += SKEW * (moves[:, 0] ** 2 - SPREADS[which, 0, 0] ** 2)
    return CENTRES[which] + moves


def _problem(shapes, values=()) -> SimpleNamespace:
    """A problem of sites with these shapes and discretes with so many values."""
    discretes = {f"z{i}": SimpleNamespace(values=np.arange(n)) for i, n in enumerate(values)}
    latents = {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}
    program = SimpleNamespace(latents=latents, discretes=discretes)
    dimension = sum(int(np.prod(shape)) for shape in shapes.values())
    return SimpleNamespace(shapes=shapes, dimension=dimension, marginal=SimpleNamespace(program=program))


def _weighed(evaluate, centres=CENTRES, roots=SPREADS) -> SimpleNamespace:
    both = zip(roots, centres, strict=True)
    every = [SimpleNamespace(point=c, curvature=Curvature(r @ r.T, r, 0.0), mass=1.0) for r, c in both]
    return SimpleNamespace(every=every, found=SimpleNamespace(optimiser=SimpleNamespace(evaluate=evaluate)))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_exact_draws_are_exact_draws_after_a_jump(seed):
    rng = np.random.default_rng(seed)
    move = jumps.Jumps(_problem({"x": (2,)}), _weighed(lambda x: (_log_density(x), np.zeros_like(x))))
    before = _exact(40_000, rng)
    after, values, _ = move(before, _log_density(before), np.zeros_like(before), rng)
    moved = np.any(after != before, axis=1)
    assert 0.1 < moved.mean() < 0.9
    np.testing.assert_allclose(values, _log_density(after))
    tested = [
        lambda x: x[:, 0] > 1.5,
        lambda x: x[:, 0],
        lambda x: x[:, 1],
        lambda x: x[:, 0] * x[:, 1],
        lambda x: x[:, 1] ** 2,
    ]
    for function in tested:
        change = function(after).astype(float) - function(before)
        assert abs(change.mean()) < 4 * change.std() / np.sqrt(len(change))


def test_there_and_back_is_where_one_was():
    move = jumps.Jumps(_problem({"x": (2,)}), _weighed(lambda x: (np.zeros(len(x)), np.zeros_like(x))))
    rng = np.random.default_rng(0)
    points = CENTRES[[0, 0, 1]] + 0.1 * rng.normal(size=(3, 2))
    there, _, slopes = move(points, np.full(3, -1e9), np.zeros((3, 2)), rng)
    assert np.array_equal(move.owners(there), [1, 1, 0])
    back, _, _ = move(there, np.full(3, -1e9), slopes, rng)
    np.testing.assert_allclose(back, points, atol=1e-12)


def test_components_in_other_places_and_effects_of_other_sign_are_found():
    """Where one mode is the other with means permuted and effects reflected, a jump does just that."""
    rng = np.random.default_rng(0)
    shapes = {"mu": (2, 3), "e": (5,), "m": ()}
    index = np.arange(6).reshape(2, 3)[:, [2, 0, 1]].ravel()
    copy = np.zeros((12, 12))
    copy[np.arange(6), index] = 1
    copy[6:, 6:] = -np.eye(6)
    root = np.linalg.cholesky(np.cov(rng.normal(size=(12, 40))))
    centre = 3 * rng.normal(size=12)
    weighed = _weighed(lambda x: (np.zeros(len(x)), x), [centre, copy @ centre], [root, copy @ root])
    move = jumps.Jumps(_problem(shapes, (3,)), weighed)
    points = centre + rng.normal(size=(4, 12)) @ root.T
    there, _, _ = move(points, np.full(4, -1e9), np.zeros((4, 12)), rng)
    np.testing.assert_allclose(there, points @ copy.T, atol=1e-9)


@pytest.mark.parametrize(
    "method", [NUTS(draws=500, tune=200, starts=16), Ensemble(500, 100, 4, 2, starts=16)], ids=type
)
def test_chains_visit_far_modes_as_often_as_they_deserve(method):
    result = infer.run(bimodal(0.3), method, random_seed=1, progressbar=False)
    low = (result.draws["x"] < 0).astype(float)
    error = array_stats.mcse(low, chain_axis=0, draw_axis=1, method="mean")
    assert error < 0.03
    assert abs(low.mean() - 0.3) < 4 * error
    assert result.findings == ()


def test_climbs_find_the_mode_whatever_the_units_of_a_coordinate():
    sizes = np.array([1e6, 1e-4, 1.0, 3e3])
    with float64():
        problem = SimpleNamespace(dimension=4)
        problem.evaluator = lambda x: (
            -np.log1p(0.5 * np.sum((x / sizes) ** 2, axis=1)),
            -(x / sizes**2) / (1 + 0.5 * np.sum((x / sizes) ** 2, axis=1))[:, None],
        )
        optimiser = Optimiser(problem, 100)
        begin = sizes * np.random.default_rng(0).normal(size=(8, 4))
        optimiser.scale = starts._sizes(begin)
        ends = optimiser.climb(begin, Silent())
    assert np.all(ends.log_density > -1e-10)
    assert np.all(np.abs(ends.points) < 1e-4 * sizes)
