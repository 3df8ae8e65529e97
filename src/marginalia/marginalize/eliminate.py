"""Carry out an elimination plan on tables of log-factors.

It never sees a model: only tables and the plan. The semiring is an argument: log-sum-exp gives the density, the
maximum gives the most probable assignment, and both go back through the same tables for draws and labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.marginalize.graph import Graph, Source
from marginalia.marginalize.plan import Group, Piece, Plan

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


@dataclass(frozen=True, eq=False)
class Eliminated:
    """log Z of every connected component, and the tables needed to go back."""

    log_z: Any
    tables: tuple[tuple[Any, ...], ...]


def eliminate(plan: Plan, factors: Sequence[tuple[Any, tuple[int, ...]]], semiring: Semiring = log_sum,
              unary: Any = None) -> Eliminated:
    """Sum out all discretes.

    `factors` holds, per factor, its table (lanes first, value axes possibly of length one) and the value's shape.
    `unary`, of shape (number of discretes, largest support), is added to each discrete's table: the gradient of
    log Z with respect to it is the table of marginal probabilities.
    """
    graph = plan.graph
    batches: dict[int, Any] = {
        i: cut(factors[b.source.factor], b.source) for i, b in enumerate(graph.batches) if b.source is not None
    }
    kept, roots = [], []
    for groups in plan.rounds:
        tables = []
        for group in groups:
            table = _collect(group, batches)
            if unary is not None:
                table = table + _unary(group, unary)
            tables.append(table)
        for group, table in zip(groups, tables, strict=True):
            reduced = semiring(table)
            if group.message is None:
                roots.append(jnp.broadcast_to(reduced, (group.count,)))
            else:
                batches[group.message] = reduced
        kept.append(tuple(tables))
    if not roots:
        log_z = jnp.zeros((0,))
    else:
        found = roots[0] if len(roots) == 1 else jnp.concatenate(roots)
        log_z = found if plan.ordered else found[np.argsort(plan.root_components)]
    return Eliminated(log_z, tuple(kept))


def cut(factor: tuple[Any, tuple[int, ...]], source: Source) -> Any:
    """A batch's table, (states of each kept lane..., elements or 1), out of its factor's."""
    table, shape = factor
    lanes = len(source.pattern)
    held = table.shape[lanes:]
    if all(n == 1 for n in held):
        table = table.reshape((*table.shape[:lanes], 1))
    else:
        table = jnp.broadcast_to(table, (*table.shape[:lanes], *shape)).reshape((*table.shape[:lanes], -1))
        if source.elements is not None:
            table = select(table, source.elements)
    axes = list(range(lanes))
    for lane in range(lanes - 1, -1, -1):
        kind = source.pattern[lane]
        place = axes.index(lane)
        if kind == -1:
            table = table[(slice(None),) * place + (0,)]
        elif kind != lane:
            first = axes.index(kind)
            size = min(table.shape[first], table.shape[place])
            table = jax.lax.slice_in_dim(jax.lax.slice_in_dim(table, 0, size, axis=first), 0, size, axis=place)
            table = jnp.moveaxis(jnp.diagonal(table, axis1=first, axis2=place), -1, first)
        else:
            continue
        axes.remove(lane)
    return table


def select(table: Any, elements: np.ndarray) -> Any:
    """Chosen positions of the last axis, as a slice where they are consecutive."""
    if table.shape[-1] == 1:
        return table
    start, stop = int(elements[0]), int(elements[-1]) + 1
    if stop - start == len(elements) and (np.diff(elements) == 1).all():
        return table[..., start:stop]
    return table[..., elements]


def _collect(group: Group, batches: dict[int, Any]) -> Any:
    """The table of a group: all that its discretes take part in, added up, (states, neighbours' states..., count)."""
    extent = (group.states, *group.neighbour_states)
    total: Any = jnp.zeros((*(1 for _ in extent), 1))
    scattered: dict[tuple[int, ...], list[tuple[Any, np.ndarray]]] = {}
    for piece in group.pieces:
        table = _arranged(piece, batches[piece.batch], extent)
        if piece.slots is None:
            total = total + table
        elif table.shape[-1] == 1:
            total = total + _repeated(table, piece.slots, group.count)
        else:
            scattered.setdefault(tuple(table.shape[:-1]), []).append((table, piece.slots))
    for parts in scattered.values():
        table = jnp.concatenate([t for t, _ in parts], axis=-1) if len(parts) > 1 else parts[0][0]
        slots = np.concatenate([s for _, s in parts])
        total = total + segment_sum(table, slots, group.count)
    return jnp.broadcast_to(total, (*extent, total.shape[-1]))


def _arranged(piece: Piece, table: Any, extent: tuple[int, ...]) -> Any:
    """A piece's table with its axes in the group's order, cut to the supports, of length one where it reads nothing."""
    if piece.elements is not None:
        table = select(table, piece.elements)
    order = sorted(range(len(piece.axes)), key=lambda i: piece.axes[i])
    table = table.transpose([*order, table.ndim - 1])
    sizes = [extent[piece.axes[i]] for i in order]
    table = table[tuple(slice(0, n) for n in sizes)]
    shape = [1] * len(extent)
    for i, n in zip(order, sizes, strict=True):
        shape[piece.axes[i]] = n
    return table.reshape((*shape, table.shape[-1]))


def _repeated(table: Any, slots: np.ndarray, count: int) -> Any:
    """One table added at many slots, possibly several times at one."""
    times = np.bincount(slots, minlength=count)
    if (times == times[0]).all():
        return table if times[0] == 1 else table * int(times[0])
    return jnp.where(times > 0, table * np.maximum(times, 1), 0.0)


def segment_sum(table: Any, slots: np.ndarray, count: int) -> Any:
    """Sum the elements (last axis) that share a slot."""
    order = np.argsort(slots, kind="stable")
    times = np.bincount(slots, minlength=count)
    if len(slots) == count * times[0] and (times == times[0]).all():
        if not np.array_equal(order, np.arange(len(order))):
            table = table[..., order]
        return table.reshape((*table.shape[:-1], count, int(times[0]))).sum(-1)
    return jnp.zeros((*table.shape[:-1], count), table.dtype).at[..., slots].add(table)


def _unary(group: Group, unary: Any) -> Any:
    own = unary[group.variables, : group.states].T
    return own.reshape((group.states, *(1 for _ in group.neighbour_states), group.count))


def go_back(plan: Plan, eliminated: Eliminated, choose: Callable[[Any, int, int], Any]) -> Any:
    """States of all discretes, chosen in the reverse of the elimination order.

    `choose(table, round, group)` picks a state along the first axis of (states, count), given that all neighbours
    have been chosen.
    """
    states = jnp.zeros((plan.graph.n,), jnp.int32)
    for r in range(len(plan.rounds) - 1, -1, -1):
        for g, group in enumerate(plan.rounds[r]):
            table = eliminated.tables[r][g]
            if len(group.neighbours):
                at = jnp.arange(group.count) if table.shape[-1] > 1 else jnp.zeros((group.count,), int)
                index = (slice(None), *[states[u] for u in group.neighbours], at)
                table = table[index]
            else:
                table = jnp.broadcast_to(table, (group.states, group.count))
            states = states.at[group.variables].set(choose(table, r, g).astype(jnp.int32))
    return states


def constants_of(graph: Graph, factors: Sequence[tuple[Any, tuple[int, ...]]]) -> list[tuple[int, np.ndarray | None, Any]]:
    """Elements of factors with lanes that read no discrete after all: (factor, elements, their values)."""
    found = []
    for batch in graph.batches:
        if len(batch.scope) == 0 and batch.source is not None:
            found.append((batch.source.factor, batch.source.elements, cut(factors[batch.source.factor], batch.source)))
    return found
