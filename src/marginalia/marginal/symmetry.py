"""Whether a move of parameters leaves a program as it was: its supports, and its priors over the whole space.

Near a mode two priors may agree that differ far away: in a bound, in a tail, in a factor that forbids what no draw has
met. So supports are compared as they are, and densities at points of every size, from near zero to far beyond the data,
and around the program's own constants, where its branches lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core

from marginalia.marginal.free import free_terms

POINTS = 256
"""Points at which priors are compared."""

TOLERANCE = 3e-7
"""Of the sizes of all terms together: distributions that the user makes outside the program are rounded to float32."""

SIZES = (-2.0, 5.0)
"""Powers of ten between which values lie whose support has no end."""

MOST_CONSTANTS = 30

type Points = dict[str, np.ndarray]


def same_supports(program: Any, axes: Mapping[str, tuple[int, ...]], permutation: np.ndarray) -> bool:
    """Whether each site's support is the same, element by element, when its axes are permuted.

    A support that depends on other latents is left to the density.
    """
    for name, own in axes.items():
        site = program.latents[name]
        for leaf in jax.tree.leaves(site.support):
            bound = np.asarray(leaf)
            if bound.ndim == 0 or bound.ndim > len(site.shape):
                continue
            whole = np.broadcast_to(bound, site.shape)
            moved = whole
            for axis in own:
                moved = np.take(moved, permutation, axis=axis)
            if not np.array_equal(whole, moved):
                return False
    return True


def same_priors(kernel: Any, points: Points, moved: list[Points]) -> list[bool]:
    """For each of `moved`, whether its points have the same density as `points` by all that reads no discrete.

    A point that is impossible before and after says nothing.
    """
    terms = free_terms(kernel)
    before, size = _summed(terms(points))
    found = []
    for other in moved:
        after, _ = _summed(terms(other))
        with np.errstate(invalid="ignore"):  # inf - inf
            close = np.abs(after - before) <= TOLERANCE * (1 + size)
        neither = ~np.isfinite(before) & ~np.isfinite(after)
        found.append(bool((close | neither).all()))
    return found


def _summed(terms: Points) -> tuple[Any, Any]:
    if not terms:
        return np.zeros(1), np.zeros(1)
    values = np.stack(list(terms.values()))
    return values.sum(axis=0), np.abs(values).sum(axis=0)


def spread_out(program: Any, near: Points, rng: np.random.Generator) -> Points:
    """Points all over the space: `near` `{site: (n, *shape)}`, about half of whose numbers are replaced.

    Numbers on a half line or between two ends are replaced by others inside. Supports of other kinds keep theirs.
    """
    places = _around(program)
    out = {}
    for name, values in near.items():
        other = _anywhere(program.latents[name].support, np.shape(values), places, rng)
        out[name] = values if other is None else np.where(rng.random(np.shape(values)) < 0.5, other, values)
    return out


def _anywhere(support: Any, shape: tuple[int, ...], places: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Numbers of a support `(n, ...)`: of every size in one half of the points, at the places in the other."""
    base = support
    while hasattr(base, "base_constraint"):
        base = base.base_constraint
    low, high = getattr(base, "lower_bound", None), getattr(base, "upper_bound", None)
    real = type(base).__name__ in ("_Real", "_RealVector")
    if support is None or any(isinstance(end, jax.core.Tracer) for end in (low, high)):
        return None
    if not real and low is None and high is None:
        return None
    if low is not None and high is not None:
        return np.asarray(low) + (np.asarray(high) - np.asarray(low)) * rng.beta(0.7, 0.7, shape).clip(1e-4, 1 - 1e-4)
    away = 10.0 ** rng.uniform(*SIZES, shape)
    half = shape[0] // 2
    if len(places):
        # Each number meets each place, in an order of its own.
        turns = np.argsort(rng.random((len(places), *shape[1:])), axis=0)
        away[:half] = places[turns[np.arange(half) % len(places)]]
    if low is not None:
        return np.asarray(low) + away
    if high is not None:
        return np.asarray(high) - away
    return away * rng.choice([-1.0, 1.0], shape)


def _around(program: Any) -> np.ndarray:
    """Beside each number that is written in a program, and between each and the next: there its branches differ."""
    found = np.array(sorted(set(_constants(program.jaxpr.jaxpr))))
    found = found[np.linspace(0, len(found) - 1, min(len(found), MOST_CONSTANTS)).round().astype(int)]
    return np.concatenate([found * (1 - 1e-6), found * (1 + 1e-6), (found[1:] + found[:-1]) / 2])


def _constants(jaxpr: core.Jaxpr) -> Iterator[float]:
    """The numbers that are written in a program, as far as they are no mere arithmetic."""
    for equation in jaxpr.eqns:
        for atom in equation.invars:
            if isinstance(atom, core.Literal) and np.ndim(atom.val) == 0:
                value = abs(float(atom.val)) if np.isreal(atom.val) else np.nan
                if np.isfinite(value) and 1e-6 < value < 1e8:
                    yield value
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if isinstance(inner, core.Jaxpr):
                yield from _constants(inner)


def unmoved[T](kernel: Any, points: Points, candidates: list[T], moved: Callable[[Points, T], list[Points]]) -> list[T]:
    """Those candidates all of whose moves leave the priors as they are: a glance at two points, then at all."""
    for some in (2, None):
        part = {name: value[:some] for name, value in points.items()}
        candidates = [c for c in candidates if all(same_priors(kernel, part, moved(part, c)))]
    return candidates
