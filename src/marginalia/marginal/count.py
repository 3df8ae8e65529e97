"""Counts: many discretes that are read only through a sum of whole numbers.

`y ~ Normal(z.sum(), 1)` over a thousand binary z has 2^1000 joint states but 1001 values of the sum. The sum becomes a
discrete of its own, whose distribution is the convolution of its parts: O(n S K) for n parts with K states and S values
of the sum. Weighted sums are the same as long as the weights are known whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.lanes.sums import Count
from marginalia.marginal.graph import Batch, Graph
from marginalia.marginal.pieces import Piece, collect, pieces_of


@dataclass(frozen=True, eq=False)
class Counted:
    """Sums whose parts can be convolved: all parts of a sum meet the same other discretes, and nothing else.

    `shared[j, e]` is the j-th discrete that the parts of sum e all meet; the message goes to (the sum, the shared).
    """

    count: Count
    shared: np.ndarray
    shared_states: tuple[int, ...]
    parent_sizes: np.ndarray
    pieces: tuple[Piece, ...]
    message: int

    @property
    def variables(self) -> np.ndarray:
        """The parts, which are gone afterwards."""
        return self.count.parents[self.count.parents >= 0]

    @property
    def clique(self) -> int:
        return self.count.states * int(np.prod(self.shared_states, dtype=np.int64))

    @property
    def elements(self) -> int:
        return int(self.variables.size)

    @property
    def scope(self) -> np.ndarray:
        return np.concatenate([self.count.identities[None], self.shared])


def find_counted(
    graph: Graph, live: dict[int, Batch], waiting: list[Count], first: np.ndarray, other: np.ndarray, message: int
) -> Counted | None:
    """The first sum that can be convolved now, or None: "mine" when its parts are otherwise alike and apart."""
    starts = np.searchsorted(first, np.arange(graph.n + 1))
    in_sums = np.bincount(
        np.concatenate([c.parents[c.parents >= 0] for c in waiting]) if waiting else np.zeros(0, int),
        minlength=graph.n,
    )
    for count in waiting:
        parts = count.parents[count.parents >= 0]
        if (in_sums[parts] > 1).any():
            continue
        shared = [_met(row[row >= 0], starts, other) for row in count.parents]
        if any(meets is None or set(meets) & set(count.identities.tolist()) for meets in shared):
            continue  # parts that meet each other, or their own sum in some other factor
        if len({len(meets) for meets in shared if meets is not None}) != 1:
            continue
        adjacent = np.asarray(shared, np.int64).reshape(len(shared), -1).T
        sizes = graph.sizes[adjacent]
        if sizes.size and (sizes != sizes[:, :1]).any():
            continue
        shape = tuple(int(k) for k in sizes[:, 0]) if len(adjacent) else ()
        flat = count.parents.reshape(-1)
        each = np.repeat(adjacent, count.parents.shape[1], axis=1)
        pieces = pieces_of(graph.n, live, flat, each)
        own_sizes = np.where(count.parents >= 0, graph.sizes[count.parents], 1)
        return Counted(count, adjacent, shape, own_sizes, pieces, message)
    return None


def _met(parts: np.ndarray, starts: np.ndarray, other: np.ndarray) -> list[int] | None:
    """The discretes that some part of a sum meets, None where parts meet each other.

    Parts that meet nothing else may stand beside parts that meet the shared discretes.
    """
    met = {int(u) for v in parts for u in other[starts[v] : starts[v + 1]]}
    return None if met & set(parts.tolist()) else sorted(met)


@dataclass(frozen=True, eq=False)
class Convolved:
    """What the convolution leaves: the distributions of the partial sums, and the parts' own tables."""

    partial: Any
    tables: Any


def convolve(
    counted: Counted, batches: dict[int, Any], semiring: Callable[[Any], Any], unary: Any = None
) -> tuple[Any, Convolved]:
    """The message of the parts to (sum, shared...): a table (S, shared..., sums), and what is needed to go back."""
    count = counted.count
    sums, width = count.parents.shape
    k, shape = count.parent_states, counted.shared_states
    table = collect(counted.pieces, (k, *shape), sums * width, batches)
    table = jnp.broadcast_to(table, (*table.shape[:-1], sums * width))
    if unary is not None:
        own = unary[np.maximum(count.parents.reshape(-1), 0), :k].T
        table = table + own.reshape((k, *(1,) * len(shape), sums * width))
    # States beyond a part's own support, and all but one of a position without a part, are impossible.
    possible = np.arange(k)[:, None] < counted.parent_sizes.reshape(-1)
    possible = possible.reshape((k, *(1,) * len(shape), sums * width))
    table = jnp.where(possible, jnp.where(count.parents.reshape(-1) < 0, 0.0, table), -jnp.inf)
    tables = jnp.moveaxis(table.reshape((*table.shape[:-1], sums, width)), -1, 0)  # (n, K, shared..., sums)
    start = np.full((count.states, sums), -np.inf)
    start[count.offset, np.arange(sums)] = 0.0
    begin = jnp.broadcast_to(
        jnp.asarray(start).reshape((count.states, *(1,) * len(shape), sums)), (count.states, *shape, sums)
    )
    lifted = jnp.asarray(np.moveaxis(count.parts - count.parts.min(-1, keepdims=True), 1, 0))  # (n, sums, K)

    def step(partial: Any, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
        own, part = inputs
        return semiring(_joint(partial, own, part)), partial

    last, partial = jax.lax.scan(step, begin, (tables, lifted))
    return last, Convolved(partial, tables)


def _joint(partial: Any, own: Any, part: Any) -> Any:
    """(K, S, shared..., sums): log weight of state k of a part together with the sum reaching s."""
    states = partial.shape[0]
    before = jnp.arange(states)[None, :, None] - part.T[:, None, :]  # (K, S, sums)
    shape = (*before.shape[:2], *(1,) * (partial.ndim - 2), before.shape[-1])
    index = jnp.clip(before, 0, states - 1).reshape(shape)
    reached = jnp.take_along_axis(partial[None], index, axis=1)
    return jnp.where(before.reshape(shape) >= 0, reached, -jnp.inf) + own[:, None]


def deconvolve(counted: Counted, convolved: Convolved, states: Any, choose: Callable[[Any, Any], Any]) -> Any:
    """Choose the parts' states given the sums and the shared discretes, from the last part to the first."""
    count = counted.count
    sums, width = count.parents.shape
    at = tuple(states[u] for u in counted.shared)
    position = jnp.arange(sums)
    lifted = jnp.asarray(np.moveaxis(count.parts - count.parts.min(-1, keepdims=True), 1, 0))

    def step(total: Any, inputs: tuple[Any, Any, Any, Any]) -> tuple[Any, Any]:
        partial, own, part, i = inputs
        joint = _joint(partial, own, part)
        chosen = choose(joint[(slice(None), total, *at, position)], i)
        return total - jnp.take_along_axis(part, chosen[:, None], axis=1)[:, 0], chosen

    begin = states[count.identities].astype(lifted.dtype)
    inputs = (convolved.partial, convolved.tables, lifted, jnp.arange(width))
    _, found = jax.lax.scan(step, begin, inputs, reverse=True)
    inside = count.parents >= 0
    return states.at[count.parents[inside]].set(found.T[inside].astype(states.dtype))
