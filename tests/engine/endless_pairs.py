"""Counts without end and what reads them: pairs of a family and a likelihood, many of them with a mode far away.

Each likelihood is a function of k that gives a distribution and its value, or a log-factor. The oracle sums its
log-probabilities over the first 40 000 values, with the prior by SciPy.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import stats
from scipy.special import logsumexp

MANY = np.arange(40_000)

PRIORS: dict[str, tuple[Any, Any]] = {
    "poisson 5": (lambda: dist.Poisson(5.0), lambda: stats.poisson.logpmf(MANY, 5.0)),
    "poisson 0.2": (lambda: dist.Poisson(0.2), lambda: stats.poisson.logpmf(MANY, 0.2)),
    "poisson 90": (lambda: dist.Poisson(90.0), lambda: stats.poisson.logpmf(MANY, 90.0)),
    "geometric": (lambda: dist.Geometric(0.3), lambda: stats.geom.logpmf(MANY + 1, 0.3)),
    "slow geometric": (lambda: dist.Geometric(0.02), lambda: stats.geom.logpmf(MANY + 1, 0.02)),
    "geometric logits": (lambda: dist.Geometric(logits=-1.0), lambda: stats.geom.logpmf(MANY + 1, 1 / (1 + np.e))),
    "zero-inflated": (
        lambda: dist.ZeroInflatedPoisson(0.4, 6.0),
        lambda: np.where(
            MANY == 0, np.logaddexp(np.log(0.4), np.log(0.6) - 6.0), np.log(0.6) + stats.poisson.logpmf(MANY, 6.0)
        ),
    ),
    "hurdle": (
        lambda: dist.HurdlePoisson(0.3, 2.0),
        lambda: np.where(
            MANY == 0, np.log(0.3), np.log(0.7) + stats.poisson.logpmf(MANY, 2.0) - np.log1p(-np.exp(-2.0))
        ),
    ),
}

LIKELIHOODS: dict[str, Any] = {
    # Textbooks'
    "thinned": lambda k: (dist.Binomial(k, 0.4), 6),
    "thinned, logits": lambda k: (dist.Binomial(k, logits=0.3), 3),
    "found at all": lambda k: (dist.Bernoulli(1 - 0.7**k), 1),
    "never found": lambda k: (dist.Binomial(5, 1 - 0.8**k), 0),
    "measured": lambda k: (dist.Normal(1.0 * k, 2.0), 9.0),
    "measured far off": lambda k: (dist.Normal(1.0 * k, 2.0), 150.0),
    "measured with growing errors": lambda k: (dist.Normal(1.0 * k, 0.5 + 0.1 * k), 9.0),
    "measured with shrinking errors": lambda k: (dist.Normal(0.0, 1 / jnp.sqrt(1.0 + k)), 0.4),
    "heavy tails": lambda k: (dist.StudentT(3.0, 1.0 * k, 1.0), 12.0),
    "on a log scale": lambda k: (dist.LogNormal(jnp.log1p(1.0 * k), 0.5), 8.0),
    "sum of gammas": lambda k: (dist.Gamma(1.0 + k, 0.7), 9.0),
    "precision by count": lambda k: (dist.Gamma(3.0, 0.2 + k), 0.6),
    "counts of counts": lambda k: (dist.Poisson(0.5 + 2.0 * k), 14),
    "counts on a log scale": lambda k: (dist.Poisson(jnp.exp(0.1 * k)), 4),
    "negative binomial counts": lambda k: (dist.NegativeBinomial2(0.5 + k, 2.0), 7),
    "times on a log scale": lambda k: (dist.Exponential(jnp.exp(0.2 * k - 9.0)), 3.0),
    "times that double": lambda k: (dist.Exponential(2.0 ** (k - 20.0)), 0.3),
    "beta": lambda k: (dist.Beta(1.0 + k, 2.0), 0.8),
    "logit of a count": lambda k: (dist.Bernoulli(logits=0.2 * k - 3.0), 0),
    "classes by count": lambda k: (dist.Categorical(logits=jnp.stack([0.3 * k, 0.0 * k, -0.2 * k], -1)), 2),
    "a table of means": lambda k: (dist.Normal(jnp.array([0.0, 3.0, -1.0, 8.0])[jnp.minimum(k, 3)], 1.0), 7.5),
    "seen or not": lambda k: jnp.where(k >= 3, 0.0, -jnp.inf),
    "discount": lambda k: -0.1 * k,
    "growth": lambda k: 0.1 * k,
    # With a mode far away
    "one of two": lambda k: (
        dist.MixtureSameFamily(
            dist.Categorical(jnp.array([0.5, 0.5])),
            dist.Normal(jnp.stack([1.0 * k, 0.0 * k], -1), jnp.array([0.01, 1.0])),
        ),
        97.0,
    ),
    "weights by count": lambda k: (
        dist.MixtureSameFamily(
            dist.Categorical(logits=jnp.stack([0.1 * k - 9.0, 0.0 * k], -1)),
            dist.Normal(jnp.array([40.0, 0.0]), jnp.array([0.1, 1.0])),
        ),
        40.0,
    ),
    "a general mixture": lambda k: (
        dist.MixtureGeneral(
            dist.Categorical(jnp.array([0.2, 0.8])), [dist.Normal(0.5 * k, 0.1), dist.StudentT(2.0, 0.0 * k, 1.0)]
        ),
        60.0,
    ),
    "one far bonus": lambda k: jnp.where(k == 200, 3000.0, 0.0),
    "a farther bonus": lambda k: jnp.where(k == 5000, 60_000.0, 0.0),
    "a narrow far table": lambda k: (dist.Gamma(2.0, jnp.where(k > 120, 1e-3, 1e3)), 1500.0),
    "a window": lambda k: jnp.where((k > 90) & (k < 95), 400.0, -1.0),
    "a rare remainder": lambda k: jnp.where(k % 97 == 0, 30.0, 0.0),
    "a wave": lambda k: 20.0 * jnp.sin(0.05 * k),
    "a narrow wave": lambda k: (dist.Normal(jnp.cos(0.01 * k), 0.001), -0.99),
    "a bump": lambda k: 500.0 * jnp.exp(-0.5 * ((k - 150.0) / 3.0) ** 2),
    "a hill of squares": lambda k: -0.05 * (k - 130.0) ** 2 + 900.0,
    "squared": lambda k: (dist.Normal((k - 80.0) ** 2, 1.0), 0.5),
    "a table's end": lambda k: jnp.where(k < 300, jnp.zeros(300).at[250].set(2000.0)[jnp.minimum(k, 299)], 0.0),
    "two scales": lambda k: (dist.Normal(0.0, jnp.where(k < 100, 1.0, 50.0)), 300.0),
    "infinite": lambda k: 0.01 * k**2,
    "without a bound": lambda k: jnp.exp(0.5 * k),
    "growth by logarithms": lambda k: 3.0 * jnp.log1p(k * 1.0),
    "a power": lambda k: (dist.Normal(jnp.sqrt(1.0 * k), 0.05), 9.0),
    "by cases": lambda k: jax.lax.select(k > 70, 50.0 * jnp.ones_like(k, float), jnp.zeros_like(k, float)),
    "log-sum": lambda k: jax.nn.logsumexp(jnp.stack([-((k - 100.0) ** 2) + 300.0, 0.0 * k], -1), axis=-1),
    "tail of a gamma": lambda k: jnp.log(jax.scipy.special.gammaincc(1.0 + k, 150.0) + 1e-300),
}
"""A value and its distribution, or a log-factor, by k."""


def exact(prior: str, likelihood: str) -> float:
    """The log of the sum over 40 000 values."""
    with jax.enable_x64(True), numpyro.validation_enabled(False):
        found = LIKELIHOODS[likelihood](jnp.asarray(MANY))
        terms = found[0].log_prob(found[1]) if isinstance(found, tuple) else found
        if isinstance(found, tuple) and isinstance(found[0], dist.BinomialProbs | dist.BinomialLogits):
            terms = jnp.where(jnp.asarray(found[0].total_count) >= found[1], terms, -jnp.inf)
        terms = np.where(np.isnan(terms), -np.inf, terms)  # exp(k / 10) is too large for a double: P = 0
        return float(logsumexp(PRIORS[prior][1]() + terms))


def program(prior: str, likelihood: str) -> Any:
    def model():
        k = numpyro.sample("k", PRIORS[prior][0]())
        found = LIKELIHOODS[likelihood](k)
        if isinstance(found, tuple):
            numpyro.sample("y", found[0], obs=jnp.asarray(found[1]))
        else:
            numpyro.factor("f", found)

    return model
