"""Chains: sequences in which each discrete meets only a few before it, summed by one pass along the sequence.

Found from the factor graph alone, in an order in which every factor spans at most `lag` + 1 neighbours in the
sequence: a loop over named sites, `z[1:]` given `z[:-1]`, NumPyro's `scan`, lags of two and more, sequences of
unequal length. The pass carries a table over the last `lag` discretes, so its work is O(T K^(lag + 1)) and its compiled
program does not grow with T (the forward recursion; Rabiner 1989, section III.A).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, reverse_cuthill_mckee

from marginalia.lanes import bounds
from marginalia.marginal.graph import Batch, Graph
from marginalia.marginal.pieces import Piece, collect
from marginalia.marginal.scaled import log_z
from marginalia.marginal.semiring import log_sum

SHORTEST = 8
"""Sequences shorter than this are left to the general elimination, which does as well."""

WIDEST = 4
"""The longest lag that is looked for."""

LONG = 25_000
"""Products of one pass from which on linear space saves more time than it takes to compile."""


@dataclass(frozen=True, eq=False)
class Chains:
    """Sequences of equal support and lag, side by side: `order[b, t]` is a discrete, -1 beyond a sequence's end.

    `pieces` go into one table over (the `lag` discretes before, the discrete itself) per place: slot b * T + t.
    """

    order: np.ndarray
    states: int
    lag: int
    pieces: tuple[Piece, ...]

    @property
    def length(self) -> int:
        return self.order.shape[1]

    @property
    def variables(self) -> np.ndarray:
        return self.order[self.order >= 0]

    @property
    def clique(self) -> int:
        return self.states ** (self.lag + 1)

    @property
    def elements(self) -> int:
        return int((self.order >= 0).sum())


def find_chains(
    graph: Graph, live: dict[int, Batch], remaining: np.ndarray, ready: np.ndarray, first: np.ndarray, other: np.ndarray
) -> list[Chains]:
    """The components of what remains that are chains: "mine", or an empty list."""
    links = coo_matrix((np.ones(len(first), np.int8), (first, other)), shape=(graph.n, graph.n)).tocsr()
    _, label = connected_components(links, directed=False)
    order_by_label = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[order_by_label], np.arange(label.max() + 2))
    members = np.bincount(label[remaining], minlength=label.max() + 1)
    lags, least = _lags(label, order_by_label, starts, first, other)
    # Of each component at once, since there may be as many as rows: most that are no chain have too many neighbours.
    possible = np.flatnonzero((members >= SHORTEST * np.maximum(least, 1)) & (least <= WIDEST))
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for component in possible:
        ids = order_by_label[starts[component] : starts[component + 1]]
        ids = ids[remaining[ids]]
        if not ready[ids].all():
            continue
        states = graph.sizes[ids]
        if (states != states[0]).any():
            continue
        lag = int(lags[component])
        if lag > max(least[component], 1):
            ids, lag = _in_sequence(links, ids, lag)
        if lag > WIDEST or len(ids) < SHORTEST * lag:
            continue
        if int(states[0]) ** (lag + 1) > bounds.current().max_states:
            continue
        found.setdefault((int(states[0]), lag), []).append(ids)
    chains = []
    for (states_, lag), sequences in found.items():
        longest = max(len(s) for s in sequences)
        order = np.full((len(sequences), longest), -1, np.int64)
        for b, sequence in enumerate(sequences):
            order[b, : len(sequence)] = sequence
        pieces = _pieces(graph.n, live, order, lag)
        chains.append(Chains(order, states_, lag, pieces))
    return chains


def _lags(
    label: np.ndarray, order_by_label: np.ndarray, starts: np.ndarray, first: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each component, how far neighbours lie apart in the program's own order, and how far at least in any order.

    One with d neighbours has one of them at least d / 2 places away.
    """
    place = np.empty(len(label), np.int64)
    place[order_by_label] = np.arange(len(label)) - np.repeat(starts[:-1], np.diff(starts))
    lags = np.zeros(len(starts) - 1, np.int64)
    np.maximum.at(lags, label[first], np.abs(place[first] - place[other]))
    least = np.zeros(len(starts) - 1, np.int64)
    np.maximum.at(least, label, -(-np.bincount(first, minlength=len(label)) // 2))
    return lags, least


def _in_sequence(links: Any, ids: np.ndarray, lag: int) -> tuple[np.ndarray, int]:
    """The discretes of a component in an order of smaller lag, the reverse Cuthill-McKee order, or as they are."""
    own = links[ids][:, ids].tocoo()
    order = reverse_cuthill_mckee(own.tocsr(), symmetric_mode=True)
    place = np.empty(len(ids), np.int64)
    place[order] = np.arange(len(ids))
    other = int(np.abs(place[own.row] - place[own.col]).max())
    return (ids[order], other) if other < lag else (ids, lag)


def _pieces(n: int, live: dict[int, Batch], order: np.ndarray, lag: int) -> tuple[Piece, ...]:
    """Every factor of the chains goes to the place of its last discrete."""
    place = np.full(n + 1, -1, np.int64)
    inside = order >= 0
    flat = np.arange(order.size).reshape(order.shape)
    place[order[inside]] = flat[inside]
    pieces: list[Piece] = []
    for index, batch in live.items():
        at = place[batch.scope]
        elements = np.flatnonzero((at >= 0).all(axis=0)) if len(at) else np.zeros(0, int)
        if not len(elements):
            continue
        at = at[:, elements]
        last = at.max(axis=0)
        axes = lag - (last - at)
        kinds, which = np.unique(axes, axis=1, return_inverse=True)
        which = which.reshape(-1)
        for k in range(kinds.shape[1]):
            own = elements[which == k]
            slots = last[which == k]
            aligned = len(slots) == order.size and np.array_equal(slots, np.arange(order.size))
            pieces.append(
                Piece(
                    index,
                    None if len(own) == batch.scope.shape[1] else own,
                    tuple(int(a) for a in kinds[:, k]),
                    None if aligned else slots,
                )
            )
    return tuple(pieces)


@dataclass(frozen=True, eq=False)
class Passed:
    """What the forward pass leaves: the table entering each step, and the tables of the steps."""

    entering: Any
    steps: Any
    last: Any


def forward(
    chains: Chains, batches: dict[int, Any], semiring: Callable[[Any], Any], unary: Any = None
) -> tuple[Any, Passed]:
    """log Z of every sequence, and what is needed to go back.

    `semiring` reduces the first axis of a log table.
    """
    k, lag = chains.states, chains.lag
    b, t = chains.order.shape
    known = _one_transition(chains, batches, unary) if semiring is log_sum else None
    table = collect(chains.pieces, (k,) * (lag + 1), b * t, batches)
    table = jnp.broadcast_to(table, (*table.shape[:-1], b * t))
    if unary is not None:
        own = unary[np.maximum(chains.order.reshape(-1), 0), :k].T
        own = jnp.where(chains.order.reshape(-1) >= 0, own, 0.0)
        table = table + own.reshape((*(1,) * lag, k, b * t))
    steps = jnp.moveaxis(table.reshape((*table.shape[:-1], b, t)), -1, 0)  # (T, K, ..., K, B)
    valid = jnp.asarray(chains.order >= 0).T  # (T, B)
    # Before a sequence starts there are no earlier discretes: state 0 stands for each of them.
    start = jnp.full((k,) * lag + (b,), -jnp.inf, table.dtype).at[(0,) * lag].set(0.0)

    def step(carry: Any, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
        own, here = inputs
        reached = semiring(carry[..., None, :] + own)
        return jnp.where(here, reached, carry), carry

    last, entering = jax.lax.scan(step, start, (steps, valid))
    # What goes back through the sequence needs the pass above; where only log Z is asked for, XLA drops it.
    total = semiring(last.reshape((-1, b))) if known is None else log_z(*known)
    return total, Passed(entering, steps, last)


def _one_transition(chains: Chains, batches: dict[int, Any], unary: Any) -> tuple[Any, Any, Any] | None:
    """Start, transition and emissions of sequences of equal length that move by one table, None for others."""
    k, (b, t) = chains.states, chains.order.shape
    if chains.lag != 1 or (chains.order < 0).any() or b * (t - 1) * k * k < LONG:
        return None
    later = np.tile(np.arange(t) > 0, b)
    own, transition = [], jnp.zeros((k, k))
    for piece in chains.pieces:
        if 0 not in piece.axes:
            own.append(piece)
            continue
        table = collect([replace(piece, slots=None)], (k, k), 1, batches)
        slots = np.arange(b * t) if piece.slots is None else piece.slots
        if table.shape[-1] != 1 or not np.array_equal(np.bincount(slots, minlength=b * t), later):
            return None
        transition = transition + table[..., 0]
    emission = jnp.broadcast_to(collect(own, (1, k), b * t, batches), (1, k, b * t))[0]
    if unary is not None:
        emission = emission + unary[chains.order.reshape(-1), :k].T
    emission = emission.reshape((k, b, t)).transpose((2, 0, 1))
    return emission[0], transition, emission[1:]


def backward(chains: Chains, passed: Passed, states: Any, choose: Callable[[Any, Any], Any]) -> Any:
    """Choose all states from the last to the first; `choose(table, t)` picks along the first axis of (K, B)."""
    k, lag = chains.states, chains.lag
    b, t = chains.order.shape
    flat = passed.last.reshape((-1, b))
    end = choose(flat, t)
    window = jnp.stack(jnp.unravel_index(end, (k,) * lag))  # (lag, B): the last `lag` states of each sequence

    def step(window: Any, inputs: tuple[Any, Any, Any, Any]) -> tuple[Any, Any]:
        entering, own, here, at = inputs
        # The discrete leaving the window on the left is chosen given the window.
        joint = entering[..., None, :] + own
        index = (slice(None), *[window[i] for i in range(lag)], jnp.arange(b))
        chosen = choose(joint[index], at)
        moved = jnp.concatenate([chosen[None], window[:-1]], axis=0)
        return jnp.where(here, moved, window), window[-1]

    valid = jnp.asarray(chains.order >= 0).T
    _, found = jax.lax.scan(step, window, (passed.entering, passed.steps, valid, jnp.arange(t)), reverse=True)
    inside = chains.order >= 0
    return states.at[chains.order[inside]].set(found.T[inside].astype(states.dtype))
