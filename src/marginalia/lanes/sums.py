"""Sums of many discretes as discretes of their own.

`y ~ Normal(z.sum(), 1)` over a thousand binary z has 2^1000 joint states but 1001 values of the sum: where the parts
are known whole numbers, the sum becomes a discrete, and what reads it has one table axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from marginalia.lanes import bounds
from marginalia.lanes.value import Lane, Value

COUNT_FROM = 2**10
"""Joint states of the parts from which a sum is counted; below, it is written out, which serves every structure."""


@dataclass(frozen=True, eq=False)
class Count:
    """Sums that are discretes of their own.

    Sum e has identity `first` + e and the values `low`, ..., `low` + `states` - 1; it is `offset[e]` + `low` + the
    contributions `parts[e, i, state]` of the discretes `parents[e, i]` (-1: no part).
    """

    first: int
    low: int
    states: int
    parents: np.ndarray
    parts: np.ndarray
    offset: np.ndarray
    parent_states: int

    @property
    def identities(self) -> np.ndarray:
        return self.first + np.arange(len(self.parents))


@dataclass
class Register:
    """What is met while a program is read: its sums (the same sum met twice is one discrete), and its arithmetic."""

    first: int
    counts: list[Count] = field(default_factory=list)
    closed: bool = False
    """A closed register takes no sums: they are written out instead."""
    computed: int = 0
    """Numbers computed on the way to the tables, one for each entry of each intermediate table."""

    def add(self, parents: np.ndarray, parts: np.ndarray, constant: np.ndarray) -> Count:
        """`parts` (sums, discretes, states): contributions; `constant` (sums,): what no discrete contributes."""
        low = int((parts.min(-1).sum(-1) + constant).min())
        high = int((parts.max(-1).sum(-1) + constant).max())
        offset = parts.min(-1).sum(-1) + constant - low
        for known in self.counts:
            if (
                known.low == low
                and known.parts.shape == parts.shape
                and np.array_equal(known.parents, parents)
                and np.array_equal(known.parts, parts)
                and np.array_equal(known.offset, offset)
            ):
                return known
        count = Count(self.first, low, high - low + 1, parents, parts, offset, parts.shape[-1])
        self.first += len(parents)
        self.counts.append(count)
        return count


def merge_parts(ids: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parts of each sum with every discrete once, and what fixed states contribute.

    `ids` (sums, positions), `parts` (sums, positions, states). Negative identities are fixed states.
    """
    fixed = ids < 0
    state = np.where(fixed, -1 - ids, 0)
    chosen = np.take_along_axis(parts, state[..., None], axis=-1)[..., 0]
    constant = np.where(fixed, chosen, 0).sum(-1)
    order = np.argsort(np.where(fixed, np.iinfo(np.int32).max, ids), axis=-1, kind="stable")
    ids = np.take_along_axis(np.where(fixed, -1, ids), order, axis=-1)
    parts = np.take_along_axis(np.where(fixed[..., None], 0, parts), order[..., None], axis=1)
    repeated = (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] >= 0)
    for i in range(ids.shape[1] - 1, 0, -1):
        again = repeated[:, i - 1]
        parts[again, i - 1] += parts[again, i]
        parts[again, i] = 0
        ids[again, i] = -1
    return ids, parts, constant


def count_sum(value: Value, axes: tuple[int, ...], register: Register | None) -> Value | None:
    """A sum over many discretes as a discrete of its own, or None where its parts are not known whole numbers."""
    if register is None or register.closed or len(value.lanes) != 1 or not isinstance(value.array, np.ndarray):
        return None
    (lane,) = value.lanes
    varying = [a for a in axes if lane.varies(a)]
    width = math.prod(value.shape[a] for a in axes)
    if not varying or lane.size ** min(width, 64) < COUNT_FROM:
        return None
    table = value.array
    if table.dtype.kind not in "iub" and not (np.isfinite(table).all() and (table == np.round(table)).all()):
        return None
    kept = [a for a in range(value.rank) if a not in axes]
    shape = tuple(value.shape[a] for a in kept)
    order = [*kept, *axes]
    ids = np.broadcast_to(lane.ids, value.shape).transpose(order).reshape((-1, width))
    full = np.broadcast_to(table, (lane.size, *value.shape)).transpose([0, *[1 + a for a in order]])
    parts = np.moveaxis(full.reshape((lane.size, -1, width)), 0, -1).astype(np.int64)
    parents, merged, constant = merge_parts(ids.copy(), parts)
    if (merged.max(-1) - merged.min(-1)).sum(-1).max() + 1 > bounds.current().max_states:
        return None
    count = register.add(parents, merged, constant)
    own = Lane(count.identities.astype(np.int32).reshape(shape), count.states)
    states = np.arange(count.low, count.low + count.states).astype(table.dtype if table.dtype.kind != "b" else np.int64)
    return Value(states.reshape((-1,) + (1,) * len(shape)), shape, (own,))
