"""R-hat and effective sample sizes of many quantities at once.

Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), "Rank-normalization, folding, and localization: an improved
R-hat for assessing convergence of MCMC". The numbers are those of ArviZ, which is the oracle of the tests; to import it
costs more than to sample the posterior of a small mixture.
"""

from __future__ import annotations

import numpy as np
from scipy import fft
from scipy.special import ndtri

FEWEST_DRAWS = 4
TAILS = (0.05, 0.95)
MOST_NUMBERS = 4_000_000  # draws that are looked at side by side


def convergence(draws: np.ndarray) -> np.ndarray:
    """R-hat, bulk and tail effective sample size of quantities `(chain, draw, n)`: `(3, n)`.

    Not a number: what never changes, or is not finite; R-hat of a single chain; all of fewer than four draws.
    """
    chains, length, count = draws.shape
    table = np.full((3, count), np.nan)
    if length < FEWEST_DRAWS:
        return table
    usable = _usable(draws)
    at_once = max(1, MOST_NUMBERS // (chains * length))
    for i in range(0, len(usable), at_once):
        own = usable[i : i + at_once]
        values = draws[:, :, own]
        halves = split(values)
        ranked = normal_scores(halves)
        if chains > 1:
            table[0, own] = _larger(_rhat(ranked), _rhat(normal_scores(_folded(halves))))
        table[1, own] = effective(ranked)
        bounds = np.quantile(values, TAILS, axis=(0, 1))
        table[2, own] = np.min([effective(split(values <= bound)) for bound in bounds], axis=0)
    return table


def nested_rhat(draws: np.ndarray, superchains: int) -> np.ndarray:
    """Nested R-hat of quantities `(chain, draw, n)`, chains of one superchain next to each other: `(n,)`.

    Not a number: what never changes, or is not finite; all of fewer than four draws.

    Margossian et al. (2024), "Nested R-hat", equations 4 to 8, of split chains, ranked and folded as above.
    """
    out = np.full(draws.shape[2], np.nan)
    usable = _usable(draws)
    # Nothing changes where the one weight of a mixture of one component is all there is.
    if draws.shape[1] < FEWEST_DRAWS or not len(usable):
        return out
    halves = split(draws[:, :, usable])
    out[usable] = _larger(*(_nested(normal_scores(x), superchains) for x in (halves, _folded(halves))))
    return out


def _usable(draws: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.flatnonzero((np.ptp(draws, axis=(0, 1)) > 0) & np.isfinite(draws).all(axis=(0, 1)))


def split(draws: np.ndarray) -> np.ndarray:
    """Each chain as two: its first half, then, after all first halves, its second."""
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def normal_scores(draws: np.ndarray) -> np.ndarray:
    """Normal quantiles in the place of ranks among all draws of all chains; of Blom's (1958) kind."""
    count = draws.shape[0] * draws.shape[1]
    ranks = np.stack([_ranks(column) for column in draws.reshape(count, -1).T], axis=1)
    return np.asarray(ndtri((ranks - 0.375) / (count + 0.25))).reshape(draws.shape)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, of equal values their average; SciPy's are in a package that takes long to import."""
    order = np.argsort(values)
    first = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    ends = np.append(first[1:], len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((first + 1 + ends) / 2, ends - first)
    return ranks


def _folded(draws: np.ndarray) -> np.ndarray:
    return np.abs(draws - np.median(draws, axis=(0, 1)))


def _larger(ranked: np.ndarray, folded: np.ndarray) -> np.ndarray:
    """Of the two kinds; folded, a quantity of two values may be constant."""
    return np.fmax(ranked, folded)


def _rhat(draws: np.ndarray) -> np.ndarray:
    length = draws.shape[1]
    between = length * draws.mean(axis=1).var(axis=0, ddof=1)
    within = draws.var(axis=1, ddof=1).mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt((between / within + length - 1) / length)


def _nested(halves: np.ndarray, superchains: int) -> np.ndarray:
    # The two halves of a chain belong to its superchain: (halves, superchains, chains, n).
    shape = (2, superchains, -1, halves.shape[2])
    means = halves.mean(axis=1).reshape(shape).swapaxes(0, 1).reshape(superchains, -1, halves.shape[2])
    spreads = halves.var(axis=1, ddof=1).reshape(shape).mean(axis=(0, 2))
    between = means.mean(axis=1).var(axis=0, ddof=1)
    within = (spreads + means.var(axis=1, ddof=1)).mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(1 + between / within)


def effective(draws: np.ndarray) -> np.ndarray:
    """Effective sample sizes of `(chain, draw, n)`, by Geyer's (1992) initial monotone sequence: `(n,)`."""
    draws = np.asarray(draws, float)
    chains, length, _ = draws.shape
    total = chains * length
    covariance = _autocovariances(draws).mean(axis=0)
    within = covariance[0] * length / (length - 1)
    overall = covariance[0] + (draws.mean(axis=1).var(axis=0, ddof=1) if chains > 1 else 0.0)
    constant = np.ptp(draws, axis=(0, 1)) < np.finfo(float).resolution
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = 1 - (within - covariance) / overall
        correlation[0] = 1.0
        pairs = correlation[: 2 * (length // 2)].reshape(length // 2, 2, -1)
        sums = pairs.sum(axis=1)
        # The sequence ends before the first pair that is not positive, or before the last that there is.
        last = max(0, (length - 1) // 2 - 1)
        ends = sums[: last + 1] <= 0
        ends[last] = True
        end = ends.argmax(axis=0)
        kept = np.arange(len(sums))[:, None] < end
        monotone = np.minimum.accumulate(np.where(kept, sums, np.inf), axis=0)
        each = np.arange(draws.shape[2])
        even = pairs[end, 0, each]
        # Half of the pair after it is a little more than nothing.
        more = np.where((sums[end, each] >= 0) & (end > 0), even, np.maximum(even, 0))
        times = -1 + 2 * np.where(kept, monotone, 0.0).sum(axis=0) + more
    found = total / np.maximum(times, 1 / np.log10(total))
    return np.where(constant, float(total), found)


def _autocovariances(draws: np.ndarray) -> np.ndarray:
    length = draws.shape[1]
    padded = fft.next_fast_len(2 * length, real=True)
    transformed = fft.rfft(draws - draws.mean(axis=1, keepdims=True), padded, axis=1)
    power = transformed.real**2 + transformed.imag**2
    return np.asarray(fft.irfft(power, padded, axis=1))[:, :length] / length
