"""What is known of families of distributions: one entry for each, in one table.

*Tails* are of families without a largest value: an upper bound of log P(x >= L). They hold for every parameter between
two ends, because these families are ordered by their parameters: Poisson and negative binomial variates grow
stochastically with rate and concentration, geometric ones as the probability of success falls.
*Peaks* are upper bounds of a log-probability or log-density over ranges of its parameters, for families where the
ranges of single operations bound too little (a binomial coefficient is a quotient of two factorials that both grow).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy import special

type Range = tuple[np.ndarray, np.ndarray]
"""The smallest and the largest value that each element of an array may have."""


@dataclass(frozen=True)
class Family:
    """One family: its distribution (and others that compute the same), and what bounds it.

    `parameters` gives the arrays that the bounds are computed from. `tail(start, *ranges)` bounds log P(x >= start)
    from above, `peak(value, *ranges)` the log-probability of `value`; None where no such bound is known.
    `positive(*ranges)` is log P(x >= 1) where the parameters make x largest. `loose` is by how much NumPyro's own
    probabilities may differ from the true ones, relatively.
    """

    kinds: tuple[type, ...]
    parameters: Callable[[Any], tuple[Any, ...]]
    tail: Callable[..., np.ndarray] | None = None
    positive: Callable[..., np.ndarray] | None = None
    peak: Callable[..., np.ndarray] | None = None
    loose: float = 1e-12


def _below_one(log: np.ndarray) -> np.ndarray:
    return np.minimum(np.where(np.isnan(log), 0.0, log), 0.0)


def _ended(log_first: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """The first probability of a tail and all that follow, each at most `ratio` times the one before; else 1."""
    falls = ratio < 1.0
    return _below_one(np.where(falls, log_first - np.log1p(-np.where(falls, ratio, 0.0)), 0.0))


def poisson_tail(start: float, rate: Range) -> np.ndarray:
    """Of neighbours' ratios rate / (k + 1), that at the start is the largest."""
    high = np.asarray(rate[1], float)
    with np.errstate(all="ignore"):
        first = special.xlogy(start, high) - high - special.gammaln(start + 1.0)
        return _ended(first, high / (start + 1.0))


def gamma_poisson_tail(start: float, concentration: Range, rate: Range) -> np.ndarray:
    """Of neighbours' ratios (k + concentration) / (k + 1) / (1 + rate), that at the start or that without end."""
    a, odds = np.asarray(concentration[1], float), np.asarray(rate[0], float)
    with np.errstate(all="ignore"):
        log_each, log_none = -np.log1p(odds), -np.log1p(1.0 / odds)
        choose = special.gammaln(start + a) - special.gammaln(a) - special.gammaln(start + 1.0)
        first = choose + start * log_each + a * log_none
        return _ended(first, np.exp(log_each) * np.maximum((start + a) / (start + 1.0), 1.0))


def geometric_tail(start: float, probs: Range) -> np.ndarray:
    with np.errstate(all="ignore"):
        return _below_one(start * np.log1p(-np.asarray(probs[0], float)))


def geometric_logits_tail(start: float, logits: Range) -> np.ndarray:
    return _below_one(-start * np.logaddexp(0.0, np.asarray(logits[0], float)))


def binomial_peak(value: np.ndarray, count: Range, probs: Range) -> np.ndarray:
    """The largest P(value | count, probs): beyond value / probs it falls as the count grows, before it rises."""
    with np.errstate(all="ignore"):
        few, many = (np.asarray(end, float) for end in count)
        low, high = (np.asarray(end, float) for end in probs)
        falls, rises = few * low >= value, many * high <= value
        found = np.where(falls, _binomial(value, few, low), np.where(rises, _binomial(value, many, high), 0.0))
        return np.where(many < value, -np.inf, _below_one(found))


def _binomial(value: np.ndarray, count: np.ndarray, probs: np.ndarray) -> np.ndarray:
    choose = special.gammaln(count + 1.0) - special.gammaln(value + 1.0) - special.gammaln(count - value + 1.0)
    slack = 1e-14 * np.abs(special.gammaln(count + 1.0))
    return choose + slack + special.xlogy(value, probs) + special.xlog1py(count - value, -probs)


def binomial_logits_peak(value: np.ndarray, count: Range, logits: Range) -> np.ndarray:
    return binomial_peak(value, count, (special.expit(logits[0]), special.expit(logits[1])))


def _by_tangent(value: Any, slopes: Any, starts: tuple[Any, ...], widths: tuple[Any, ...]) -> np.ndarray:
    """The largest value of a concave function in a box, from above: it lies below its tangent plane at a corner."""
    found = value
    for slope, start, width in zip(slopes, starts, widths, strict=True):
        found = found + np.where(width > 0, np.maximum(slope, 0.0) * width, 0.0)
        found = found + 1e-13 * np.abs(start) * (1.0 + np.abs(slope))
    return np.where(np.isnan(found), np.inf, found + 1e-12)


def gamma_peak(value: np.ndarray, concentration: Range, rate: Range) -> np.ndarray:
    """The log-density is concave in its natural parameters, of which the rate goes in with a minus."""
    with np.errstate(all="ignore"):
        a, b = np.asarray(concentration[0], float), np.asarray(rate[1], float)
        log_density = special.xlogy(a, b) - special.gammaln(a) + special.xlogy(a - 1.0, value) - b * value
        slopes = np.log(b) + np.log(value) - special.digamma(a), value - a / b
        return _by_tangent(log_density, slopes, (a, b), (concentration[1] - a, b - rate[0]))


def beta_peak(value: np.ndarray, first: Range, second: Range) -> np.ndarray:
    """The log-density is concave in both parameters."""
    with np.errstate(all="ignore"):
        a, b = np.asarray(first[0], float), np.asarray(second[0], float)
        log_density = special.xlogy(a - 1.0, value) + special.xlog1py(b - 1.0, -value) - special.betaln(a, b)
        both = special.digamma(a + b)
        slopes = np.log(value) + both - special.digamma(a), np.log1p(-value) + both - special.digamma(b)
        return _by_tangent(log_density, slopes, (a, b), (first[1] - a, second[1] - b))


def normal_peak(value: np.ndarray, scale_tril: Range) -> np.ndarray:
    """Of a normal vector at its mean, wherever that is."""
    with np.errstate(all="ignore"):
        smallest = np.diagonal(np.maximum(scale_tril[0], 0.0), axis1=-2, axis2=-1)
        return -np.log(smallest).sum(-1) - 0.5 * smallest.shape[-1] * np.log(2 * np.pi)


def _poisson_positive(rate: Range) -> np.ndarray:
    return np.log(-np.expm1(-np.asarray(rate[1], float)))


def _gamma_poisson_positive(concentration: Range, rate: Range) -> np.ndarray:
    return np.log(-np.expm1(-np.asarray(concentration[1], float) * np.log1p(1.0 / np.asarray(rate[0], float))))


FAMILIES: list[Family] = [
    Family((dist.Poisson,), lambda fn: (fn.rate,), tail=poisson_tail, positive=_poisson_positive),
    Family(
        (dist.GammaPoisson, dist.NegativeBinomialLogits),
        lambda fn: (fn.concentration, fn.rate),
        tail=gamma_poisson_tail,
        positive=_gamma_poisson_positive,
        loose=1e-4,  # NumPyro computes its beta function by a series
    ),
    Family(
        (dist.GeometricProbs,),
        lambda fn: (fn.probs,),
        tail=geometric_tail,
        positive=lambda probs: geometric_tail(1.0, probs),
    ),
    Family(
        (dist.GeometricLogits,),
        lambda fn: (fn.logits,),
        tail=geometric_logits_tail,
        positive=lambda logits: geometric_logits_tail(1.0, logits),
    ),
    Family((dist.BinomialProbs,), lambda fn: (fn.total_count, fn.probs), peak=binomial_peak),
    Family((dist.BinomialLogits,), lambda fn: (fn.total_count, fn.logits), peak=binomial_logits_peak),
    Family((dist.Gamma,), lambda fn: (fn.concentration, fn.rate), peak=gamma_peak),
    Family((dist.MultivariateNormal,), lambda fn: (fn.scale_tril,), peak=normal_peak),
    Family((dist.Beta,), lambda fn: (fn.concentration1, fn.concentration0), peak=beta_peak),
]
"""A family of one's own is one more entry."""


def unexpanded(fn: Any) -> Any:
    while type(fn) is dist.ExpandedDistribution:
        fn = fn.base_dist
    return fn


def family_of(fn: Any) -> Family | None:
    """The entry of a distribution, if its probabilities are those of the table: a subclass may have others."""
    fn = unexpanded(fn)
    own: Any = getattr(type(fn), "log_prob", None)
    for family in FAMILIES:
        if isinstance(fn, family.kinds) and any(own is getattr(kind, "log_prob", None) for kind in family.kinds):
            return family
    return None


def gives_probabilities(fn: Any) -> bool:
    """Whether a discrete's log-probabilities are NumPyro's or a known family's, so that they are of probabilities."""
    inner = [getattr(fn, name, None) for name in ("base_dist", "component_distribution", "mixing_distribution")]
    parts = [x for x in [*inner, *(getattr(fn, "component_distributions", None) or ())] if x is not None]
    own = getattr(type(fn), "log_prob", None)
    known = getattr(own, "__module__", "").startswith("numpyro.") or family_of(fn) is not None
    return known and all(gives_probabilities(x) for x in parts)


@dataclass(frozen=True)
class Endless:
    """The family of a discrete without a largest value, and how often its zeros are taken out first (hurdles)."""

    family: Family
    base: Any
    hurdles: int

    def parameters(self) -> tuple[Any, ...]:
        return tuple(jnp.asarray(x, float) for x in self.family.parameters(self.base))

    def log_tail(self, start: float, ranges: tuple[Range, ...]) -> np.ndarray:
        """An upper bound of log P(x >= start), whatever the parameters in their ranges."""
        family = self.family
        assert family.tail is not None
        with np.errstate(all="ignore"):
            tail = family.tail(start, *ranges) + family.loose
            if self.hurdles and start > 1:
                # Without its zeros, x is x given x >= 1: it grows with the parameters as x does.
                assert family.positive is not None
                tail = tail - family.positive(*ranges)
            return _below_one(tail)


INFLATED = (dist.discrete.ZeroInflatedProbs, dist.discrete.ZeroInflatedLogits)
"""More zeros than the base has leave less in the tail."""
HURDLES = (dist.HurdleProbs, dist.HurdleLogits)
"""Zeros that are no longer the base's leave to the tail what the base's zeros had."""


def endless_of(fn: Any) -> Endless | None:
    """A distribution, or what it inflates, expands or cuts the zeros of, as one of those whose tails are known."""
    hurdles = 0
    while True:
        if isinstance(fn, INFLATED) and type(fn).log_prob in [kind.log_prob for kind in INFLATED]:
            fn = fn.base_dist
        elif isinstance(fn, HURDLES) and type(fn).log_prob in [kind.log_prob for kind in HURDLES]:
            fn, hurdles = fn.base_dist, hurdles + 1
        elif type(fn) is dist.ExpandedDistribution:
            fn = fn.base_dist
        else:
            break
    family = family_of(fn)
    if family is None or family.tail is None or hurdles > (family.positive is not None):
        return None
    return Endless(family, fn, hurdles)
