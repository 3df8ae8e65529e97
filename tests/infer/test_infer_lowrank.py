"""The metric of low rank: its coordinates, what draws and gradients tell, and the sampler that moves in them."""

from __future__ import annotations

import numpy as np
import pytest
from fake import assert_log_density, assert_moments, correlated_gaussian

from marginalia import infer
from marginalia.infer import lowrank, nuts
from marginalia.infer.options import NUTS
from marginalia.infer.problem import Problem
from marginalia.precision import float64

SIZE = 80


def stretched(rank: int = 2) -> np.ndarray:
    """The covariance of 80 parameters of different scales, of which a few combinations vary 100 times as much."""
    rng = np.random.default_rng(0)
    directions, _ = np.linalg.qr(rng.normal(size=(SIZE, rank)))
    scale = np.exp(rng.normal(size=SIZE))
    return (np.eye(SIZE) + 99 * directions @ directions.T) * scale * scale[:, None]


def whitened(frame: lowrank.Frame, covariance: np.ndarray) -> np.ndarray:
    """Eigenvalues of the covariance of `frame.inside(u)`, where u has `covariance`."""
    inside = np.stack([frame.inside(row) for row in np.eye(SIZE)], axis=1)
    return np.linalg.eigvalsh(inside @ covariance @ inside.T)


def test_out_and_inside_undo_each_other_and_gradients_follow():
    rng = np.random.default_rng(0)
    frame = lowrank.of_covariance(stretched())
    point, other = rng.normal(size=(2, SIZE))
    np.testing.assert_allclose(frame.inside(frame.out(point)), point, rtol=1e-10)
    # The gradient of v -> other . out(v) is the transpose of `out`, applied to `other`.
    np.testing.assert_allclose(frame.gradient(other) @ point, other @ frame.out(point), rtol=1e-10)


@pytest.mark.parametrize("draws", [200, 30])
def test_draws_and_gradients_tell_the_stretched_directions(draws):
    """From more draws than parameters the Gaussian's are found exactly, but for those that need no stretching."""
    covariance = stretched()
    points = np.random.default_rng(1).normal(size=(draws, SIZE)) @ np.linalg.cholesky(covariance).T
    gradients = -np.linalg.solve(covariance, points.T).T
    before = whitened(lowrank.Frame(np.sqrt(np.diag(covariance)), *lowrank.plain(SIZE)[1:]), covariance)
    after = whitened(lowrank.of_draws(points, gradients), covariance)
    assert before[-1] / before[0] > 100
    assert after[-1] / after[0] < (lowrank.ORDINARY**2 * 1.01 if draws > SIZE else 30)


@pytest.fixture(scope="module")
def gaussian():
    options = NUTS(draws=1000, tune=300, chains=3, starts=4, metric="low-rank")
    return infer.run(correlated_gaussian(), options, random_seed=11, progressbar=False)


def test_draws_have_the_moments_and_densities_of_the_target(gaussian):
    assert gaussian.draws["x"].shape == (3, 1000, 2)
    assert_moments(gaussian.draws["x"])
    assert_log_density(gaussian.stats["lp"], gaussian.draws["x"])
    assert gaussian.findings == ()


def test_the_metric_suits_the_number_of_parameters(monkeypatch):
    with float64():
        problem = Problem(correlated_gaussian(), jacobian=True)
    assert nuts.metric_of(problem, NUTS()) == "dense"
    monkeypatch.setattr(nuts, "MOST_DENSE", 1)
    assert nuts.metric_of(problem, NUTS()) == "low-rank"
    assert nuts.metric_of(problem, NUTS(metric="diagonal")) == "diagonal"
