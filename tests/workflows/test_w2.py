"""W2: three Gaussians apart, with hard constraints as factors of -inf; nobody gives initial values.

The truth is computed here by importance sampling in NumPy, and the published answer is compared with it. All
comparisons are in combined Monte Carlo standard errors.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import weighing
from scipy import special
from weighing import SIGMAS

import marginalia as mg
from marginalia.predict import predict

pytestmark = pytest.mark.xdist_group("w2")

DATA = Path(__file__).parent.parent / "data" / "three_apart.csv"
# weights, means, standard deviations, from left to right
PUBLISHED = [0.184, 0.306, 0.510, -0.12, 9.70, 20.03, 2.89, 2.01, 4.38]
PUBLISHED_SD = [0.013, 0.022, 0.022, 0.27, 0.17, 0.31, 0.22, 0.16, 0.23]
DIGITS = [0.001] * 3 + [0.01] * 6
METHODS = ["auto", "nuts", "laplace", "ensemble", mg.SMC(chains=8), "metropolis", "slice"]


def model(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.full(3, 2.0)))
    numpyro.factor("none is small", jnp.where(p.min() < 0.1, -jnp.inf, 0.0))
    with numpyro.plate("component", 3):
        mu = numpyro.sample("mu", dist.Normal(jnp.array([0.0, 10.0, 20.0]), 5))
        sd = numpyro.sample("sd", dist.HalfCauchy(5.0))
    numpyro.factor("increasing", jnp.where((mu[1:] > mu[:-1]).all(), 0.0, -jnp.inf))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(p))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]), obs=y)


@functools.cache
def points() -> np.ndarray:
    return np.loadtxt(DATA, skiprows=1)


def log_weights(u: np.ndarray) -> np.ndarray:
    logits = np.column_stack([u[:, :2], np.zeros(len(u))])
    return logits - special.logsumexp(logits, axis=1, keepdims=True)


def log_posterior(u: np.ndarray) -> np.ndarray:
    """Of two logits of the weights, three means and three log scales, with the Jacobian; `(S, 8)` to `(S,)`."""
    log_p, mu, log_sd = log_weights(u), u[:, 2:5], u[:, 5:]
    away = (points()[None, :, None] - mu[:, None]) / np.exp(log_sd)[:, None]
    terms = (log_p - log_sd)[:, None] - 0.5 * away**2
    top = terms.max(-1)
    rows = (top + np.log(np.exp(terms - top[..., None]).sum(-1))).sum(1)
    prior = 2 * log_p.sum(1) - 0.5 * (((mu - [0, 10, 20]) / 5) ** 2).sum(1)
    prior += (log_sd - np.log1p(np.exp(2 * log_sd) / 25)).sum(1)
    allowed = (np.diff(mu, axis=1) > 0).all(1) & (log_p.min(1) >= np.log(0.1))
    return np.where(allowed, rows + prior, -np.inf)


@functools.cache
def truth() -> weighing.Truth:
    start = np.array([-1.0, -0.5, 0, 10, 20, 1, 0.7, 1.5])
    mode = weighing.peak(log_posterior, start)
    found, log_ratio = weighing.importance(log_posterior, mode, 30_000, seed=1)
    values = np.column_stack([np.exp(log_weights(found)), found[:, 2:5], np.exp(found[:, 5:])])
    return weighing.weighed(values, log_ratio)


def sorted_draws(fit: mg.Fit) -> np.ndarray:
    """(chain, draw, 9), as they are: the labels are told apart by the constraint."""
    return np.concatenate([fit.draws[name] for name in ("p", "mu", "sd")], axis=-1)


def test_prediction_says_what_becomes_of_the_factors() -> None:
    """They are not applied, and replicates at the answer cover the data."""
    assert points().shape == (1000,)
    point = {"p": PUBLISHED[:3], "mu": PUBLISHED[3:6], "sd": PUBLISHED[6:]}
    out = predict(
        mg.marginalize(model, points()).program,
        {name: np.broadcast_to(value, (1, 50, 3)) for name, value in point.items()},
        (points(),),
        {},
        random_seed=1,
    )
    assert out.attrs["factors"].startswith("not applied: none is small, increasing; what they say of the parameters")
    for statistic in (np.mean, np.std):
        replicated = statistic(out["y"].values[0], axis=1)
        assert abs(statistic(points()) - replicated.mean()) < SIGMAS * replicated.std()


@pytest.mark.slow
def test_the_published_answer_is_the_truth() -> None:
    assert np.all(truth().agrees(PUBLISHED, PUBLISHED_SD, DIGITS) < SIGMAS), truth()
    assert np.abs(truth().sd / PUBLISHED_SD - 1).max() < SIGMAS / np.sqrt(2 * 2000) + 0.04  # and two digits


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_gives_the_answer_and_has_nothing_to_complain_of(method) -> None:
    fit = mg.fit(model, points(), method=method, random_seed=1, progressbar=False)
    assert fit.status == ()
    assert fit.draws["p"].min() >= 0.1
    assert np.all(np.diff(fit.draws["mu"], axis=-1) > 0)
    for what, score in weighing.scores(sorted_draws(fit), truth(), runs=fit.method == "smc").items():
        assert np.abs(score).max() < SIGMAS, (what, score)
