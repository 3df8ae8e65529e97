"""Small models whose posterior and evidence are known by quadrature or by simple Monte Carlo, in NumPy."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import special, stats

Y = np.random.default_rng(0).normal(size=20) * 1.3 + np.repeat([0.0, 3.0], 10)
X = np.linspace(-1.0, 1.0, 8)
Y_LINES = np.array([-1.9, 0.4, -0.8, 0.6, 0.3, 0.7, 1.6, 2.2])
SEEN = 25.0


def two_parameters(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    w = numpyro.sample("w", dist.Beta(2, 2))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(w))
        numpyro.sample("y", dist.Normal(jnp.where(z == 1, mu, 0.0), 1.3), obs=y)


@functools.cache
def two_parameters_truth() -> tuple[float, np.ndarray]:
    """Log evidence, and the posterior means of mu and w, on a grid."""
    mu = np.linspace(-25, 25, 2501)
    w = (np.arange(1000) + 0.5) / 1000
    away, near = stats.norm.logpdf(Y[:, None], mu, 1.3), stats.norm.logpdf(Y, 0, 1.3)[:, None]
    logs = np.array(
        [np.logaddexp(np.log(p) + away, np.log1p(-p) + near).sum(0) + stats.beta.logpdf(p, 2, 2) for p in w]
    )
    logs += stats.norm.logpdf(mu, 0, 5)
    evidence = float(special.logsumexp(logs) + np.log(mu[1] - mu[0]) - np.log(len(w)))
    density = special.softmax(logs)
    return evidence, np.array([(density * mu).sum(), (density * w[:, None]).sum()])


def five_parameters(x, y):
    slope = numpyro.sample("slope", dist.Normal(0, 2).expand([2]))
    level = numpyro.sample("level", dist.Normal(0, 1))
    w = numpyro.sample("w", dist.Beta(2, 2))
    sd = numpyro.sample("sd", dist.LogNormal(-0.5, 0.5))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(w))
        numpyro.sample("y", dist.Normal(level + slope[z] * x, sd), obs=y)


@functools.cache
def five_parameters_truth(draws: int = 200_000) -> tuple[float, float]:
    """Log evidence by simple Monte Carlo over the prior, and its standard error."""
    rng = np.random.default_rng(1)
    slope, level = rng.normal(0, 2, (draws, 2)), rng.normal(0, 1, draws)
    w, sd = rng.beta(2, 2, draws), np.exp(rng.normal(-0.5, 0.5, draws))
    logs = np.zeros(draws)
    for x, y in zip(X, Y_LINES, strict=True):
        parts = stats.norm.logpdf(y, level[:, None] + slope * x, sd[:, None])
        logs += np.logaddexp(np.log1p(-w) + parts[:, 0], np.log(w) + parts[:, 1])
    value = special.logsumexp(logs) - np.log(draws)
    return float(value), float(np.std(np.exp(logs - value)) / np.sqrt(draws))


def two_modes(y):
    theta = numpyro.sample("theta", dist.Normal(0, 4))
    numpyro.sample("y", dist.Normal((theta + 1.0) ** 2, 2.0), obs=y)


@functools.cache
def two_modes_truth() -> tuple[float, float]:
    """Log evidence and the weight of the mode at 4 (the other one is at -6)."""
    theta = np.linspace(-15, 15, 300_001)
    logs = stats.norm.logpdf(theta, 0, 4) + stats.norm.logpdf(SEEN, (theta + 1) ** 2, 2)
    return float(special.logsumexp(logs) + np.log(theta[1] - theta[0])), float(special.softmax(logs)[theta > -1].sum())
