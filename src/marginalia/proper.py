"""Discrete distributions whose probabilities add up to 1, whatever they hang on."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from marginalia.tracing import peel

PROPER = (
    dist.BernoulliProbs,
    dist.BernoulliLogits,
    dist.BinomialProbs,
    dist.BinomialLogits,
    dist.BetaBinomial,
    dist.CategoricalLogits,
    dist.DiscreteUniform,
    dist.GammaPoisson,
    dist.GeometricProbs,
    dist.GeometricLogits,
    dist.NegativeBinomial2,
    dist.NegativeBinomialLogits,
    dist.NegativeBinomialProbs,
    dist.Poisson,
    dist.ZeroInflatedPoisson,
    dist.ZeroInflatedNegativeBinomial2,
)
"""Families whose probabilities add up to 1 if there is any value. Those of `CategoricalProbs` add up to what was given.
"""


def is_proper(fn: Any) -> bool:
    """Whether the probabilities of all values add up to 1, if there are values."""
    fn, mask = _plain(fn)
    return mask is None and type(fn) in PROPER


def room(fn: Any) -> Any:
    """An array that is negative where a proper distribution has no value at all; None if there always is one."""
    fn, _ = _plain(fn)
    if isinstance(fn, dist.DiscreteUniform):
        return jnp.asarray(fn.high) - jnp.asarray(fn.low)
    counted = isinstance(fn, dist.BinomialProbs | dist.BinomialLogits | dist.BetaBinomial)
    return jnp.asarray(fn.total_count) if counted else None


def _plain(fn: Any) -> tuple[Any, Any]:
    fn, mask = peel(fn)
    while isinstance(fn, dist.ExpandedDistribution):
        fn = fn.base_dist
    return fn, mask
