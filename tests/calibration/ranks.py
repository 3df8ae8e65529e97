"""Ranks of the truth among posterior draws, and whether they are uniform.

Draw parameters from the prior, data from these, and the posterior of the data: the rank of a quantity's true value
among L independent posterior draws is then uniform on 0, ..., L (Cook, Gelman and Rubin 2006; Talts, Betancourt,
Simpson, Vehtari and Gelman 2018). Uniformity is judged by simultaneous confidence bands of the empirical distribution
function (Säilynoja, Bürkner and Vehtari 2022): each of its values is binomial, and the pointwise level is set so that
the whole function stays inside with the stated probability.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy import stats

DRAWS = 99
SIMULATIONS = 20_000


def thinned(draws: dict[str, np.ndarray], kept: int = DRAWS) -> dict[str, np.ndarray]:
    """`kept` draws `(kept, *shape)`, evenly spaced over all chains of draws `(chain, draw, *shape)`."""
    joined = {name: np.asarray(v).reshape(-1, *np.shape(v)[2:]) for name, v in draws.items()}
    size = len(next(iter(joined.values())))
    rows = np.floor((np.arange(kept) + 0.5) * size / kept).astype(int)
    return {name: value[rows] for name, value in joined.items()}


def rank(truth: float, draws: np.ndarray) -> int:
    """How many of `draws` `(L,)` are below the truth."""
    return int(np.sum(draws < truth))


@functools.cache
def _null(count: int, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Chance of each value of the counting function, two-sided, `(kept, count + 1)`; and the least one when uniform.

    The counting function at i is the number of ranks of at most i, for i = 0, ..., kept - 1.
    """
    parts = (np.arange(kept) + 1) / (kept + 1)
    values = np.arange(count + 1)
    below = stats.binom.cdf(values, count, parts[:, None])
    above = stats.binom.sf(values - 1, count, parts[:, None])
    chance = np.minimum(1.0, 2 * np.minimum(below, above))
    rng = np.random.default_rng(0)
    counts = rng.multinomial(count, np.full(kept + 1, 1 / (kept + 1)), size=SIMULATIONS).cumsum(axis=1)[:, :-1]
    return chance, chance[np.arange(kept), counts].min(axis=1)


def counting(ranks: np.ndarray, kept: int = DRAWS) -> np.ndarray:
    """The number of ranks of at most i, for i = 0, ..., kept - 1."""
    return np.bincount(ranks, minlength=kept + 1).cumsum()[:-1]


def p_value(ranks: np.ndarray, kept: int = DRAWS) -> float:
    """The chance that uniform ranks leave narrower bands somewhere than these do; at least 1 / SIMULATIONS."""
    chance, null = _null(len(ranks), kept)
    worst = chance[np.arange(kept), counting(ranks, kept)].min()
    return float((1 + np.sum(null <= worst * (1 + 1e-9))) / (1 + SIMULATIONS))


def band(count: int, level: float = 0.95, kept: int = DRAWS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the counting function of `count` uniform ranks stays with probability `level`: parts, lowest, highest.

    Parts are (i + 1) / (kept + 1), the others are parts of `count`.
    """
    _, null = _null(count, kept)
    pointwise = np.quantile(null, 1 - level)
    parts = (np.arange(kept) + 1) / (kept + 1)
    low, high = (stats.binom.ppf(q, count, parts) for q in (pointwise / 2, 1 - pointwise / 2))
    return parts, low / count, high / count
