"""What a table of log-factors is reduced with: the sum over states, or the best of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

type Semiring = Callable[[Any], Any]


def log_sum(table: Any) -> Any:
    """log sum exp over the first axis; -inf where everything is impossible, with a zero gradient there."""
    top = jax.lax.stop_gradient(jnp.max(table, axis=0))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    total = jnp.sum(jnp.exp(table - top), axis=0)
    possible = total > 0
    return jnp.where(possible, jnp.log(jnp.where(possible, total, 1.0)) + top, -jnp.inf)


def log_max(table: Any) -> Any:
    """The largest over the first axis: the density of the best assignment."""
    return jnp.max(table, axis=0)
