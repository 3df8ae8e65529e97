"""Draws from a density that has no sampler: by listing its values, by inverting its distribution function, by NUTS."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to
from numpyro.infer.hmc import hmc
from numpyro.infer.util import ParamInfo

FIRST_NODES = 129
ROUNDS = 8
SPLIT, PARTS = 12, 8  # in each round so many cells are cut into so many parts
FARTHEST = 1e8  # the first nodes lie between minus this and this, dense around 0
NEAREST = 1e-2
UNRESOLVED = 0.7  # nats between a peak and its neighbours above which there may be more to it
LISTED = 4096  # values of a discrete without a largest one
CANDIDATES = 1024
SPREADS = (1.0, 3.0, 10.0, 100.0)
WARM_UP, STEPS, DEEPEST = 60, 20, 5


class Table(NamedTuple):
    """The distribution of a number, for each element of a batch.

    Attributes:
        values: `(n, *batch)`, increasing: the places between which a draw falls, or the values themselves.
        heights: The density at the places, in any unit; None for a list of values.
        cumulative: `(n or n - 1, *batch)`: the chance of a draw up to the end of each cell, or of each value.
        log_integral: `(*batch)`: of the density over its support; 0 where it is normalised and nothing was missed.
        back: From the places to the support.
    """

    values: Any
    heights: Any
    cumulative: Any
    log_integral: Any
    back: Callable[[Any], Any]

    def draw(self, key: Any, sample_shape: tuple[int, ...]) -> Any:
        """Draws of shape `sample_shape + batch`."""
        batch = jnp.shape(self.log_integral)
        chance = jax.random.uniform(key, sample_shape + batch, dtype=self.cumulative.dtype)
        flat = chance.reshape(-1, max(1, self.log_integral.size))
        cumulative, values = (part.reshape(part.shape[0], -1) for part in (self.cumulative, self.values))
        if self.heights is None:
            drawn = jax.vmap(_listed, in_axes=1, out_axes=1)(cumulative, values, flat)
        else:
            heights = self.heights.reshape(self.heights.shape[0], -1)
            drawn = jax.vmap(_inverted, in_axes=1, out_axes=1)(cumulative, values, heights, flat)
        return self.back(drawn.reshape(sample_shape + batch))


def _listed(cumulative: Any, values: Any, chance: Any) -> Any:
    return values[jnp.minimum(jnp.searchsorted(cumulative, chance, side="right"), len(values) - 1)]


def _inverted(cumulative: Any, values: Any, heights: Any, chance: Any) -> Any:
    """The places where the distribution function of a density that is linear between its nodes has these values."""
    cell = jnp.minimum(jnp.searchsorted(cumulative, chance, side="right"), len(cumulative) - 1)
    before = jnp.where(cell > 0, cumulative[cell - 1], 0.0)
    part = jnp.clip((chance - before) / jnp.maximum(cumulative[cell] - before, 1e-300), 0.0, 1.0)
    left, right = heights[cell], heights[cell + 1]
    total = jnp.maximum(left + right, 1e-300)
    # part * (left + right) / 2 = left * t + (right - left) * t^2 / 2, in the form that loses no digits
    root = jnp.sqrt(jnp.maximum(left**2 + (right - left) * part * (left + right), 0.0))
    place = jnp.where(left + root > 1e-150 * total, part * total / jnp.maximum(left + root, 1e-300), part)
    return values[cell] + jnp.clip(place, 0.0, 1.0) * (values[cell + 1] - values[cell])


def enumerated(log_prob: Callable[[Any], Any], support: Any, batch: tuple[int, ...]) -> Table:
    """All values of a discrete, or the first few thousand where there is no last one."""
    low = getattr(support, "lower_bound", 0)
    high = getattr(support, "upper_bound", 1 if not hasattr(support, "lower_bound") else None)
    known = not any(isinstance(bound, jax.core.Tracer) for bound in (low, high))
    count = LISTED if high is None or not known else int(jnp.max(jnp.asarray(high) - jnp.asarray(low))) + 1
    steps = jnp.arange(count).reshape(-1, *(1,) * len(batch))
    values = jnp.broadcast_to(steps + jnp.asarray(low), (count, *batch))
    logs = log_prob(values)
    logs = jnp.where(support(values) & (logs < jnp.inf), logs, -jnp.inf)  # NaN compares as false
    log_integral = jax.nn.logsumexp(logs, axis=0)
    cumulative = jnp.cumsum(jnp.exp(logs - log_integral), axis=0)
    return Table(values, None, cumulative, log_integral, lambda drawn: drawn)


def tabulated(log_prob: Callable[[Any], Any], support: Any, batch: tuple[int, ...]) -> Table:
    """The distribution function of a continuous number by adaptive quadrature, on its unconstrained scale.

    Round by round the cells that may hold most of the mass are cut, and before them those beside a peak that is not
    resolved yet, however low it seems. A peak of which no slope shows at the first nodes is missed: the integral
    tells, where the density is normalised.
    """
    transform = biject_to(support)
    size = math.prod(batch)

    def log_heights(places: Any) -> Any:
        """Of places `(size, n)`."""
        laid = jnp.moveaxis(places, 1, 0).reshape(-1, *batch)
        values = transform(laid)
        logs = log_prob(values) + transform.log_abs_det_jacobian(laid, values)
        logs = jnp.where(logs < jnp.inf, logs, -jnp.inf)
        return jnp.moveaxis(logs.reshape(-1, size), 0, 1)

    span = np.arcsinh(FARTHEST / NEAREST)
    first = jnp.broadcast_to(jnp.asarray(NEAREST * np.sinh(np.linspace(-span, span, FIRST_NODES))), (size, FIRST_NODES))
    spare = SPLIT * (PARTS - 1)
    # Nodes to come are copies of the last one until then: their cells have no width.
    places, logs = (
        jnp.concatenate([part, jnp.repeat(part[:, -1:], spare * ROUNDS, axis=1)], axis=1)
        for part in (first, log_heights(first))
    )

    rows = jnp.arange(size)[:, None]

    def cut(_: Any, known: tuple[Any, Any]) -> tuple[Any, Any]:
        places, logs = known
        _, chosen = jax.lax.top_k(_urgency(places, logs), SPLIT)
        chosen = jnp.sort(chosen, axis=1)
        left, right = (jnp.take_along_axis(places, chosen + side, axis=1) for side in (0, 1))
        parts = jnp.arange(1, PARTS) / PARTS
        new = (left[..., None] + (right - left)[..., None] * parts).reshape(size, spare)
        # Old nodes move up by what comes before them; the copies at the end are moved out.
        moved = jnp.cumsum(jnp.zeros(places.shape, int).at[rows, chosen + 1].set(PARTS - 1), axis=1)
        places_to = jnp.arange(places.shape[1]) + moved
        between = (chosen + jnp.arange(SPLIT) * (PARTS - 1))[..., None] + jnp.arange(1, PARTS)
        between = between.reshape(size, spare)

        def inserted(old: Any, added: Any) -> Any:
            return jnp.zeros_like(old).at[rows, places_to].set(old, mode="drop").at[rows, between].set(added)

        return inserted(places, new), inserted(logs, log_heights(new))

    places, logs = jax.lax.fori_loop(0, ROUNDS, cut, (places, logs))
    top = jnp.max(logs, axis=1, keepdims=True)
    heights = jnp.exp(logs - jnp.where(jnp.isfinite(top), top, 0.0))
    summed = jnp.cumsum(0.5 * (heights[:, 1:] + heights[:, :-1]) * jnp.diff(places, axis=1), axis=1)
    whole = summed[:, -1:]

    def back(part: Any) -> Any:
        return jnp.moveaxis(part, 0, 1).reshape(-1, *batch)

    return Table(back(places), back(heights), back(summed / whole), back(jnp.log(whole) + top)[0], transform)


def _urgency(places: Any, logs: Any) -> Any:
    """How much each cell wants to be cut: `(size, cells)`."""
    top = jnp.max(logs, axis=1, keepdims=True)
    relative = jnp.where(jnp.isfinite(logs), logs - jnp.where(jnp.isfinite(top), top, 0.0), -jnp.inf)
    width = jnp.diff(places, axis=1)
    mass = jnp.exp(jnp.maximum(relative[:, 1:], relative[:, :-1])) * width
    mass = mass / jnp.maximum(jnp.sum(mass, axis=1, keepdims=True), 1e-300)
    # Nodes beyond the ends, and a neighbour of density 0, are lower than any.
    fall = jnp.where(relative[:, 1:] == relative[:, :-1], 0.0, relative[:, 1:] - relative[:, :-1])
    edge = jnp.full((len(places), 1), jnp.inf)
    rising, falling = jnp.concatenate([edge, fall], axis=1), jnp.concatenate([-fall, edge], axis=1)
    peak = jnp.isfinite(relative) & (rising >= 0) & (falling >= 0)
    steep = jnp.abs(fall) > UNRESOLVED
    beside = (peak[:, 1:] | peak[:, :-1]) & steep & (width > 0)
    return jnp.where(beside, 1.0 + mass, mass)


def run_nuts(key: Any, log_prob: Callable[[Any], Any], support: Any, shape: tuple[int, ...]) -> Any:
    """One draw of a joint value of this shape by a short run of NUTS.

    It begins where importance resampling of wide candidates puts it, element by element, so that far modes get about
    their share; few candidates fall there in many dimensions, and then only the mode that was met is drawn from.
    """
    transform = biject_to(support)
    event = support.event_dim
    inner = transform.inverse_shape(shape[len(shape) - event :])
    lead = shape[: len(shape) - event]

    def log_height(places: Any) -> Any:
        values = transform(places)
        logs = log_prob(values) + transform.log_abs_det_jacobian(places, values)
        return jnp.where(logs < jnp.inf, logs, -jnp.inf)

    spread_key, noise_key, choice_key, walk_key = jax.random.split(key, 4)
    spreads = jnp.asarray(SPREADS)[jax.random.randint(spread_key, (CANDIDATES, *lead), 0, len(SPREADS))]
    wide = spreads.reshape(*spreads.shape, *(1,) * len(inner))
    candidates = wide * jax.random.normal(noise_key, (CANDIDATES, *lead, *inner))
    axes = tuple(range(1 + len(lead), candidates.ndim))
    squares = jnp.sum(candidates**2, axis=axes)
    size = math.prod(inner)
    proposals = jnp.stack([-0.5 * squares / s**2 - size * jnp.log(s) for s in SPREADS])
    weights = log_height(candidates) - jax.nn.logsumexp(proposals, axis=0)
    chosen = jax.random.categorical(choice_key, weights, axis=0)
    start = jnp.take_along_axis(candidates, chosen.reshape(1, *lead, *(1,) * len(inner)), axis=0)[0]

    def potential(places: Any) -> Any:
        return -jnp.sum(log_height(places))

    init, step = hmc(potential, algo="NUTS")
    value, slope = jax.value_and_grad(potential)(start)
    state = init(ParamInfo(start, value, slope), WARM_UP, max_tree_depth=DEEPEST, rng_key=walk_key)
    state = jax.lax.fori_loop(0, WARM_UP + STEPS, lambda _, now: step(now), state)
    return transform(state.z)
