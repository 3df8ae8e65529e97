"""W4 (b): 100 000 points, batches of 200, 1500 steps. The number of rows is known from the data.

A published run forgot it and got spreads 30 times too wide. The truth: the posterior of so many points is Gaussian,
with the curvature at the mode, by hand.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import optimize, special

import marginalia as mg

pytestmark = pytest.mark.slow

SIGMAS = 4.0
# larger component, smaller one, larger weight; and their sds
ANSWER = np.array([0.9975, 1.0042, -0.9963, -1.4876, 0.79993])
ANSWER_SD = np.array([0.0038, 0.0039, 0.0085, 0.0086, 0.0015])


def model(y):
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.full(2, 0.1)))
    with numpyro.plate("component", 2):
        mu = numpyro.sample("mu", dist.MultivariateNormal(jnp.zeros(2), precision_matrix=0.1 * jnp.eye(2)))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("y", dist.MultivariateNormal(mu[z], jnp.eye(2)), obs=y)


@functools.cache
def points() -> np.ndarray:
    """The next 100 000 rows of the random state that W3's 100 came from."""
    state = np.random.RandomState(123)

    def rows(count: int) -> np.ndarray:
        chosen = np.array([state.multinomial(1, [0.2, 0.8]) for _ in range(count)])
        both = [state.multivariate_normal(m, np.eye(2), size=count) for m in ([-1, -1.5], [1, 1])]
        return np.where(chosen[:, :1] == 1, both[0], both[1])

    rows(100)
    return rows(100_000)


def slope(u: np.ndarray) -> np.ndarray:
    """Of the log posterior of (logit of the larger weight, two means), by hand."""
    log_w = -np.logaddexp(0, np.array([-u[0], u[0]]))
    mu = u[1:].reshape(2, 2)
    away = points()[:, None] - mu
    r = special.softmax(log_w - 0.5 * (away**2).sum(-1), axis=-1)
    count, w = r.sum(0) + 0.1, np.exp(log_w)
    return np.array([count[0] * w[1] - count[1] * w[0], *((r[..., None] * away).sum(0) - 0.1 * mu).reshape(-1)])


@functools.cache
def truth() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mode, sds, and the sds of the best independent Gaussians, of (logit, means)."""
    mode = optimize.root(slope, np.array([1.4, 1.0, 1.0, -1.0, -1.5])).x
    steps = 1e-5 * np.eye(5)
    precision = -np.array([(slope(mode + s) - slope(mode - s)) / 2e-5 for s in steps])
    return mode, np.sqrt(np.diag(np.linalg.inv(precision))), 1 / np.sqrt(np.diag(precision))


@functools.cache
def fitted(family: str) -> mg.Fit:
    method = mg.ADVI(family=family, batch_size=200, steps=1500)
    return mg.fit(model, points(), method=method, random_seed=2, progressbar=False)


def test_the_data_are_those_of_the_recipe() -> None:
    assert abs(points().sum() - 110_424.52391273) < 1e-6


@pytest.mark.parametrize("family", ["mean-field", "full-rank"])
def test_means_and_spreads_are_those_of_all_rows(family: str) -> None:
    fit = fitted(family)
    mode, sd, conditional = truth()
    expected = sd if family == "full-rank" else conditional
    group = fit.data["approximation"]
    order, sign = [0, 3, 4, 1, 2], np.array([-1, 1, 1, 1, 1])  # components are numbered from left to right
    mean, spread = sign * group["mean"].values[order], np.sqrt(np.diag(group["covariance"].values))[order]
    error = SIGMAS * max(fit.result.info["error_of_iterates"], 0.01)
    assert np.all(np.abs(mean - mode) / sd < error), (mean, mode)
    assert np.all(np.abs(np.log(spread / expected)) < error), (spread, expected)
    assert fit.result.info["steps"] == 1500
    assert fit.status == ()


def test_the_answer() -> None:
    draws = fitted("full-rank").draws
    found = np.concatenate([draws["mu"][0][:, ::-1].reshape(-1, 4), draws["pi"][0][:, 1:]], axis=1)
    error = ANSWER_SD * np.sqrt(1 / 1000 + 1 / 2000)
    assert np.all(np.abs(found.mean(0) - ANSWER) < SIGMAS * error + 0.00005)
    assert np.all(np.abs(np.log(found.std(0) / ANSWER_SD)) < SIGMAS / np.sqrt(2000) + 0.00005 / ANSWER_SD)
