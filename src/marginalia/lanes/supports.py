"""The supports of discretes whose bounds are computed from other discretes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from marginalia.errors import Refusal, compose
from marginalia.jaxpr.reads import dependencies
from marginalia.lanes.interpret import force, run_closed
from marginalia.lanes.value import Lane, Value, materialize, plain

type Bounds = tuple[np.ndarray, np.ndarray]

MAX_ROUNDS = 256
"""How often bounds that depend on each other along a loop are computed again."""


def bounds_over_states(
    bounds: Callable[[list[Any], list[Any]], list[Any]],
    shapes: Sequence[tuple[int, ...]],
    known: Sequence[Bounds | None],
    wanted: Sequence[int],
    latents: Sequence[tuple[int, ...]],
) -> list[Bounds | None]:
    """The smallest lower and the largest upper bound of each element of the `wanted` discretes, over all states.

    `bounds(values of the discretes, continuous values)` gives both bounds of each of the wanted, one after the other,
    as JAX arrays; `shapes` and `known` are of all discretes. None where a bound depends on a continuous latent, for
    then no bound is known before the run.

    Along a loop, bounds may depend on those of the step before. What is searched is a fixed point: no element reads
    itself or a later one, so there is only one, wherever the search begins.

    Raises:
        Refusal: The bounds go on changing from step to step of a long loop.
    """
    whole = [jax.ShapeDtypeStruct(shape, jnp.result_type(int)) for shape in shapes]
    real = [jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for shape in latents]
    closed = jax.make_jaxpr(bounds)(whole, real)
    able = _bounded(closed, len(shapes), known, wanted)
    now = {i: (np.zeros(shapes[i], int), np.zeros(shapes[i], int)) for i in wanted}
    for count in range(MAX_ROUNDS):
        # All elements of a site as wide as any: in most loops nothing changes along time but the first step.
        tried = {i: _hulls(pair) for i, pair in now.items()} if count < 3 else now
        found = _once(closed, shapes, {**dict(enumerate(known)), **tried}, wanted, latents)
        if all(np.array_equal(a, b) for i in able for a, b in zip(found[i], tried[i], strict=True)):
            return [found[i] if i in able else None for i in wanted]
        now = found
    raise Refusal(
        compose(
            "the bounds of a discrete go on changing along a loop",
            expected=f"bounds that are known after {MAX_ROUNDS} steps",
            remedy="give it bounds that do not grow from step to step, such as a largest count that is a number: "
            "`jnp.minimum(n, 50)`.",
        )
    )


def _bounded(closed: core.ClosedJaxpr, count: int, known: Sequence[Bounds | None], wanted: Sequence[int]) -> set[int]:
    """Those of the wanted whose bounds depend on discretes with bounds alone."""
    reads = dependencies(closed.jaxpr)
    able = set(wanted)
    while True:
        less = {
            i
            for place, i in enumerate(wanted)
            if i in able
            and all(j < count and (known[j] is not None or j in able) for j in reads[2 * place] | reads[2 * place + 1])
        }
        if less == able:
            return able
        able = less


def _hulls(pair: Bounds) -> Bounds:
    low, high = pair
    return np.full_like(low, low.min()), np.full_like(high, high.max())


def _once(
    closed: core.ClosedJaxpr,
    shapes: Sequence[tuple[int, ...]],
    now: dict[int, Bounds | None],
    wanted: Sequence[int],
    latents: Sequence[tuple[int, ...]],
) -> dict[int, Bounds]:
    inputs: list[Any] = []
    start = 0
    for i, shape in enumerate(shapes):
        pair = now[i]
        assert pair is not None
        low, high = (np.broadcast_to(end, shape) for end in pair)
        count = math.prod(shape)
        ids = np.arange(start, start + count, dtype=np.int32).reshape(shape)
        start += count
        states = np.arange(low.min(), high.max() + 1).reshape((-1,) + (1,) * len(shape))
        table = states if np.ptp(low) == 0 and np.ptp(high) == 0 else np.clip(states, low, high)
        inputs.append(Value(table.astype(jnp.result_type(int)), shape, (Lane(ids, len(states)),)))
    inputs += [plain(np.zeros(shape)) for shape in latents]
    ends = [materialize(force(node)) for node in run_closed(closed, inputs)]
    found = {}
    for place, i in enumerate(wanted):
        first, last = ends[2 * place : 2 * place + 2]
        least = np.asarray(first.array).min(axis=tuple(range(len(first.lanes))))
        most = np.asarray(last.array).max(axis=tuple(range(len(last.lanes))))
        found[i] = np.broadcast_to(least, shapes[i]), np.broadcast_to(most, shapes[i])
    return found
