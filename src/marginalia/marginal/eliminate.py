"""Carry out an elimination plan on tables of log-factors.

It never sees a model: only tables and the plan. The semiring is an argument: log-sum-exp gives the density, the
maximum gives the most probable assignment, and both go back through the same tables for draws and labels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.lanes.run import places
from marginalia.marginal.chain import Chains, backward, forward
from marginalia.marginal.count import Counted, convolve, deconvolve
from marginalia.marginal.graph import Graph, Source
from marginalia.marginal.pieces import collect, select
from marginalia.marginal.plan import Group, Plan
from marginalia.marginal.semiring import Semiring, log_sum


@dataclass(frozen=True, eq=False)
class Eliminated:
    """log Z of every connected component, and the tables needed to go back."""

    log_z: Any
    tables: tuple[tuple[Any, ...], ...]


def eliminate(
    plan: Plan,
    factors: Sequence[tuple[Any, tuple[int, ...]]],
    semiring: Semiring = log_sum,
    unary: Any = None,
) -> Eliminated:
    """Sum out all discretes.

    `factors` holds, per factor, its table (lanes first, value axes possibly of length one) and the value's shape.
    `unary`, of shape (number of discretes, largest support), is added to each discrete's table: the gradient of
    log Z with respect to it is the table of marginal probabilities.
    """
    graph = plan.graph
    if unary is not None:
        # Sums that became discretes of their own come after the program's, with supports of their own.
        unary = jnp.pad(unary, [(0, graph.n - len(unary)), (0, max(int(graph.sizes.max()) - unary.shape[1], 0))])
    batches: dict[int, Any] = {
        i: cut(factors[b.source.factor], b.source) for i, b in enumerate(graph.batches) if b.source is not None
    }
    kept: list[tuple[Any, ...]] = []
    roots: list[Any] = []
    for groups in plan.rounds:
        tables: list[Any] = []
        for group in groups:
            if isinstance(group, Chains):
                log_z_, passed = forward(group, batches, semiring, unary)
                roots.append(log_z_)
                tables.append(passed)
                continue
            if isinstance(group, Counted):
                batches[group.message], convolved = convolve(group, batches, semiring, unary)
                tables.append(convolved)
                continue
            table = collect(group.pieces, (group.states, *group.neighbour_states), group.elements, batches)
            if unary is not None:
                table = table + _unary(group, unary)
            tables.append(table)
        for group, table in zip(groups, tables, strict=True):
            if isinstance(group, Chains | Counted):
                continue
            reduced = semiring(table)
            if group.message is None:
                roots.append(jnp.broadcast_to(reduced, (group.elements,)))
            else:
                batches[group.message] = reduced
        kept.append(tuple(tables))
    if not roots:
        log_z = jnp.zeros((0,))
    else:
        found = roots[0] if len(roots) == 1 else jnp.concatenate(roots)
        log_z = found if plan.ordered else found[np.argsort(np.asarray(plan.root_components))]
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
        if kind < 0:
            table = table[(slice(None),) * place + (-1 - kind,)]
        elif kind != lane:
            first = axes.index(kind)
            size = min(table.shape[first], table.shape[place])
            table = jax.lax.slice_in_dim(jax.lax.slice_in_dim(table, 0, size, axis=first), 0, size, axis=place)
            table = jnp.moveaxis(jnp.diagonal(table, axis1=first, axis2=place), -1, first)
        else:
            continue
        axes.remove(lane)
    return table


def _unary(group: Group, unary: Any) -> Any:
    own = unary[places(group.variables), : group.states].T
    return own.reshape((group.states, *(1 for _ in group.neighbour_states), group.elements))


def _choose_in_loop(choose: Callable[[Any, tuple[Any, ...]], Any], r: int, g: int, table: Any, t: Any) -> Any:
    return choose(table, (r, g, t))


def go_back(plan: Plan, eliminated: Eliminated, choose: Callable[[Any, tuple[Any, ...]], Any]) -> Any:
    """States of all discretes, chosen in the reverse of the elimination order.

    `choose(table, place)` picks a state along the first axis of (states, count), given that all neighbours have been
    chosen; `place` is a tuple of integers, a different one at every call.
    """
    states = jnp.zeros((plan.graph.n,), jnp.int32)
    for r in range(len(plan.rounds) - 1, -1, -1):
        for g, group in enumerate(plan.rounds[r]):
            table = eliminated.tables[r][g]
            if isinstance(group, Chains):
                states = backward(group, table, states, functools.partial(_choose_in_loop, choose, r, g))
                continue
            if isinstance(group, Counted):
                states = deconvolve(group, table, states, functools.partial(_choose_in_loop, choose, r, g))
                continue
            if len(group.neighbours):
                at = jnp.arange(group.elements) if table.shape[-1] > 1 else jnp.zeros((group.elements,), int)
                index = (slice(None), *[states[u] for u in group.neighbours], at)
                table = table[index]
            else:
                table = jnp.broadcast_to(table, (group.states, group.elements))
            states = states.at[places(group.variables)].set(choose(table, (r, g)).astype(jnp.int32))
    return states


def constants_of(
    graph: Graph, factors: Sequence[tuple[Any, tuple[int, ...]]]
) -> list[tuple[int, np.ndarray | None, Any]]:
    """Elements of factors with lanes that read no discrete after all: (factor, elements, their values)."""
    sources = [b.source for b in graph.batches if len(b.scope) == 0 and b.source is not None]
    return [(s.factor, s.elements, cut(factors[s.factor], s)) for s in sources]
