"""The support of a discrete whose bounds are computed from other discretes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.jaxpr.reads import dependencies
from marginalia.lanes.interpret import force, run_closed
from marginalia.lanes.value import Lane, Value, materialize, plain


def bounds_over_parents(
    bounds: Callable[[list[Any], list[Any]], list[Any]],
    parents: Sequence[tuple[tuple[int, ...], np.ndarray]],
    latents: Sequence[tuple[int, ...]],
) -> tuple[np.ndarray, np.ndarray] | None:
    """The smallest lower and the largest upper bound of each element over all states of the parents.

    `bounds(parent values, continuous values)` gives both bounds as JAX arrays; `parents` holds shape and support of
    each discrete, `latents` the shapes of the continuous ones. None where a bound depends on a continuous latent, for
    then no bound is known before the run.
    """
    whole = [jax.ShapeDtypeStruct(shape, jnp.result_type(int)) for shape, _ in parents]
    real = [jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for shape in latents]
    closed = jax.make_jaxpr(bounds)(whole, real)
    if any(i >= len(parents) for read in dependencies(closed.jaxpr) for i in read):
        return None
    inputs, start = [], 0
    for shape, values in parents:
        count = int(np.prod(shape, dtype=np.int64))
        ids = np.arange(start, start + count, dtype=np.int32).reshape(shape)
        start += count
        states = np.asarray(values, jnp.result_type(int)).reshape((-1,) + (1,) * len(shape))
        inputs.append(Value(states, shape, (Lane(ids, len(values)),)))
    inputs += [plain(np.zeros(shape)) for shape in latents]
    low, high = (materialize(force(node)) for node in run_closed(closed, inputs))
    return (
        np.asarray(low.array).min(axis=tuple(range(len(low.lanes)))),
        np.asarray(high.array).max(axis=tuple(range(len(high.lanes)))),
    )
