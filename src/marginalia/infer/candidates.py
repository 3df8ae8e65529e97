"""Points from which an optimisation may start: prior draws, and guesses from clusters of the data."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpyro.distributions import constraints

from marginalia.infer.problem import Problem, key_data

CLUSTER_ROWS = 2000  # rows of the data that are looked at
KEEP = 0.8  # chance that a guess from the data replaces the prior draw of a site
JITTER = 0.3  # how far a guess is shaken, in spreads and on log scales
LARGEST = 1e8  # a coordinate beyond this, of a latent that has a bound, is no start; a location may be as large


@dataclass(frozen=True)
class Clusters:
    """One random clustering of one observed array: centres and spreads `(K, D)`, shares `(K,)`."""

    centres: np.ndarray
    spreads: np.ndarray
    shares: np.ndarray
    tail: tuple[int, ...]


class CandidateMaker:
    """Draws candidates for one problem; compiled once, called as often as needed."""

    def __init__(self, problem: Problem, rng: np.random.Generator) -> None:
        self._problem = problem
        self._rng = rng
        program = problem.marginal.program
        self._latents = dict(program.latents)
        self._sizes = sorted({len(site.values) for site in program.discretes.values() if len(site.values) > 1})
        self._arrays = [rows for site in program.observed.values() if (rows := _rows(site.value)) is not None]
        self._sites = [
            name for name, site in self._latents.items() if self._guess_is_possible(tuple(site.shape), site.support)
        ]

    @functools.cached_property
    def _largest(self) -> np.ndarray:
        """Of each coordinate, the size from which on it is no start."""
        shapes = self._problem.shapes
        each = [np.inf if kind_of(self._latents[name].support)[0] == "real" else LARGEST for name in shapes]
        return np.repeat(each, [math.prod(shape) for shape in shapes.values()])

    def draw(self, count: int) -> np.ndarray:
        """`count` unconstrained points `(count, dimension)`; every second one is guided by the data."""
        params = {n: np.array(v) for n, v in self._problem.kernel.draw_prior(key_data(self._rng, count)).items()}
        for i in range(1, count, 2):
            for name, value in self._guess().items():
                params[name][i] = value
        points = self._problem.unconstrain(params)
        with np.errstate(invalid="ignore"):
            return points[np.all(np.abs(points) < self._largest, axis=1)]

    def _guess_is_possible(self, shape: tuple[int, ...], support: Any) -> bool:
        kind, _, _ = kind_of(support)
        if not self._arrays or kind == "other":
            return False
        return (kind == "positive" and shape == ()) or any(k in shape for k in self._sizes)

    def _guess(self) -> dict[str, np.ndarray]:
        """Values for some latents from one random clustering of each observed array."""
        rng = self._rng
        out: dict[str, np.ndarray] = {}
        increasing = bool(rng.random() < 0.5)
        increasing |= any(kind_of(self._latents[name].support)[0] == "ordered" for name in self._sites)
        found = [clustering(rows, k, rng, increasing) for rows in self._arrays for k in self._sizes if len(rows) >= k]
        if not found:
            return out
        as_centre = bool(rng.random() < 0.35)  # a positive latent may be a location too (a rate, say)
        for name in self._sites:
            if rng.random() > KEEP:
                continue
            for at in rng.permutation(len(found)):
                site = self._latents[name]
                value = _value_for(found[at], tuple(site.shape), site.support, as_centre)
                if value is not None:
                    out[name] = value
                    break
        return out


def clustering(rows: np.ndarray, k: int, rng: np.random.Generator, increasing: bool) -> Clusters:
    """k-means++ seeds (Arthur and Vassilvitskii 2007) and up to two Lloyd steps on rows `(N, D)`."""
    tail = rows.shape[1:]
    if len(rows) > CLUSTER_ROWS:
        rows = rows[rng.choice(len(rows), CLUSTER_ROWS, replace=False)]
    flat = rows.reshape(len(rows), -1)
    largest = np.maximum(np.abs(flat).max(axis=0), np.finfo(float).tiny)
    spread = (flat / largest).std(axis=0) * largest  # so that no square is too large for a number
    overall = np.where(spread > 0, spread, 1.0)
    scaled = flat / overall
    centres = scaled[rng.integers(len(scaled))][None]
    for _ in range(k - 1):
        distance = _distances(scaled, centres).min(axis=1)
        total = distance.sum()
        chance = distance / total if total > 0 else None
        centres = np.vstack([centres, scaled[rng.choice(len(scaled), p=chance)]])
    for _ in range(int(rng.integers(3))):
        nearest = _distances(scaled, centres).argmin(axis=1)
        centres = np.stack(
            [scaled[nearest == j].mean(axis=0) if np.any(nearest == j) else centres[j] for j in range(k)]
        )
    nearest = _distances(scaled, centres).argmin(axis=1)
    if increasing:
        order = np.argsort(centres[:, 0])
        centres, nearest = centres[order], np.argsort(order)[nearest]
    counts = np.bincount(nearest, minlength=k)
    residual = (scaled - centres[nearest]) ** 2
    pooled = np.sqrt(residual.mean(axis=0)) + 1e-3
    sums = np.stack([residual[nearest == j].sum(axis=0) for j in range(k)])
    # A cluster of few rows borrows the common spread: no component starts on the way to collapse.
    spreads = np.sqrt((sums + 2 * pooled**2) / (counts[:, None] + 2))
    shares = (counts + 1.0) * np.exp(JITTER * rng.normal(size=k))
    # Shaken, so that starts from one clustering are not all the same; the order of the centres may stay.
    shaken = centres + JITTER * spreads * rng.normal(size=centres.shape)
    if not increasing or np.all(np.diff(shaken[:, 0]) > 0):
        centres = shaken
    spreads = spreads * np.exp(JITTER * rng.normal(size=spreads.shape))
    return Clusters(centres * overall, spreads * overall, shares / shares.sum(), tail)


def _distances(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return ((rows[:, None, :] - centres[None]) ** 2).sum(axis=2)


def _rows(value: Any) -> np.ndarray | None:
    """An observed array as finite float rows `(N,)` or `(N, D)`, or None where clusters make no sense."""
    rows = np.asarray(value)
    if rows.ndim not in (1, 2) or rows.dtype.kind not in "fiub" or rows.size == 0:
        return None
    rows = rows.astype(float)
    rows = rows[np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)]
    return rows if len(rows) > 1 else None


def kind_of(support: Any) -> tuple[str, float, float]:
    """What a support says about the role of a latent: a word, and bounds where there are any."""
    base = support
    while hasattr(base, "base_constraint"):
        base = base.base_constraint
    if base is constraints.real:
        return "real", -np.inf, np.inf
    if base is constraints.ordered_vector:
        return "ordered", -np.inf, np.inf
    if base is constraints.simplex:
        return "simplex", 0.0, 1.0
    lower, upper = _bound(base, "lower_bound"), _bound(base, "upper_bound")
    if base is constraints.softplus_positive or (lower == 0 and upper is None):
        return "positive", 0.0, np.inf
    if lower is not None and upper is not None:
        return "interval", lower, upper
    return "other", np.nan, np.nan


def _bound(support: Any, name: str) -> float | None:
    """A bound of a support where it is one known number."""
    value = getattr(support, name, None)
    if value is None or isinstance(value, jax.core.Tracer) or np.ndim(value) > 0:
        return None
    return float(value)


def _value_for(found: Clusters, shape: tuple[int, ...], support: Any, as_centre: bool) -> np.ndarray | None:
    """A value of the given shape and support from the clusters, or None where the two do not fit."""
    kind, low, high = kind_of(support)
    k = len(found.shares)
    centres = found.centres.reshape(k, *found.tail)
    spreads = found.spreads.reshape(k, *found.tail)
    if kind == "simplex":
        return np.broadcast_to(found.shares, shape) if shape[-1:] == (k,) else None
    if kind == "positive":
        if shape == ():
            return np.asarray(np.sqrt((found.spreads**2).mean()))
        if as_centre and np.all(centres > 0):
            return _lay(centres, shape)
        value = _lay(spreads, shape)
        return _lay(found.spreads.mean(axis=1), shape) if value is None else value
    value = _lay(centres, shape)
    if value is not None and kind == "interval":
        margin = 0.02 * (high - low)
        value = np.clip(value, low + margin, high - margin)
    if value is not None and kind == "ordered" and np.any(np.diff(value, axis=-1) <= 0):
        return None
    return value


def _lay(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """`(K, *tail)` in the shape of a site that has the component axis first or last."""
    if shape == value.shape:
        return value
    if shape == (*value.shape[1:], value.shape[0]):
        return np.moveaxis(value, 0, -1)
    return value.reshape(shape) if shape in ((*value.shape, 1), (1, *value.shape)) else None
