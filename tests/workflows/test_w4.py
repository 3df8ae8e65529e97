"""W4 (a): the full posterior of 100 000 points in the plane, against a truth that NumPy computes from its curvature."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import test_w4_advi as advi
import weighing
from scipy import optimize, special
from weighing import SIGMAS

import marginalia as mg

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("w4")]

PAIRS = 150


def model(y):
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.full(2, 0.1)))
    with numpyro.plate("component", 2):
        mu = numpyro.sample("mu", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("y", dist.MultivariateNormal(mu[z], jnp.eye(2)), obs=y)


def log_posterior(u: np.ndarray) -> np.ndarray:
    """Of (logit of the larger weight, two means), with the Jacobian; `(S, 5)` to `(S,)`."""
    log_w = -np.logaddexp(0, np.stack([-u[:, 0], u[:, 0]], axis=1))
    mu = u[:, 1:].reshape(-1, 2, 2)
    constant = log_w - 0.5 * (mu**2).sum(-1)
    rows = np.array(
        [np.logaddexp(*(c[:, None] + m @ advi.points().T)).sum() for c, m in zip(constant, mu, strict=True)]
    )
    return rows + 0.1 * log_w.sum(1) - 0.5 * (mu**2).sum((1, 2))


def slope(u: np.ndarray) -> np.ndarray:
    """By hand: that of the model with prior precision 0.1, and the rest of the precision."""
    return advi.slope(u) - np.array([0.0, *(0.9 * u[1:])])


@functools.cache
def truth() -> weighing.Truth:
    """Curvature at the mode, and what importance weights change about it, with draws in opposite pairs."""
    mode = optimize.root(slope, np.array([1.4, 1.0, 1.0, -1.0, -1.5])).x
    steps = 1e-5 * np.eye(5)
    precision = -np.array([(slope(mode + s) - slope(mode - s)) / 2e-5 for s in steps])
    covariance = np.linalg.inv(0.5 * (precision + precision.T))
    half = np.random.default_rng(1).multivariate_normal(np.zeros(5), covariance, size=PAIRS)
    away = np.concatenate([half, -half])
    gaussian = -0.5 * np.einsum("si,ij,sj->s", away, precision, away)
    weight = special.softmax(log_posterior(mode + away) - gaussian)

    def shift_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        change = (weight - 1 / len(weight))[:, None] * values
        pairs = change[:PAIRS] + change[PAIRS:]
        return pairs.sum(0), np.sqrt(PAIRS) * pairs.std(0)

    mean, mean_error = shift_of(away)
    square, square_error = shift_of(away**2)
    sd = np.sqrt(np.diag(covariance) + square - mean**2)
    return weighing.Truth(mode + mean, mean_error, sd, square_error / (2 * sd), 1 / float((weight**2).sum()))


def in_columns(fit: mg.Fit) -> np.ndarray:
    """(chain, draw, 5): the logit of the larger weight, then the means, the larger component first."""
    order = np.argsort(-fit.draws["pi"], axis=-1)
    pi = np.take_along_axis(fit.draws["pi"], order, axis=-1)
    mu = np.take_along_axis(fit.draws["mu"], order[..., None], axis=-2)
    return np.concatenate([special.logit(pi[..., :1]), mu.reshape(*mu.shape[:2], 4)], axis=-1)


def test_the_data_are_those_of_the_recipe() -> None:
    assert abs(advi.points().sum() - 110_424.52391273) < 1e-6


def test_the_published_answer_is_the_truth() -> None:
    mean = np.append(truth().mean[1:], special.expit(truth().mean[0]))
    error = advi.ANSWER_SD / np.sqrt(2000) + 0.00005
    assert np.all(np.abs(mean - advi.ANSWER) < SIGMAS * error), mean


@pytest.mark.parametrize("method", ["auto", "laplace"])
def test_a_method_gives_the_answer_and_has_nothing_to_complain_of(method: str) -> None:
    fit = mg.fit(model, advi.points(), method=method, random_seed=1, progressbar=False)
    assert fit.status == ()
    assert fit.method == "laplace"
    assert np.ptp(np.argmax(fit.draws["pi"], axis=-1)) == 0, "the labels switched"
    for what, score in weighing.scores(in_columns(fit), truth()).items():
        assert np.abs(score).max() < SIGMAS, (what, score)
