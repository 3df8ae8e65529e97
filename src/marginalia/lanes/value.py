"""Values of a program that may read discretes: a table per lane, and which element each lane is.

A program's value of shape S that reads discretes is held as a table with one leading axis per *lane*. A lane says,
for every element of S, which element of which discrete it stands for (an identity, negative for none); walking along
the lane's axis of the table walks through the states of that discrete. So `mu[z]` over a million rows has one lane
(row i reads z[i]) and its table is `mu` itself, K numbers: along the rows nothing changes, and an axis along which
nothing changes is held with length one ("collapsed"). `trans[z[:-1], z[1:]]` has two lanes and a K x K table.

Nothing here depends on plates or on the meaning of a tensor's position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.jaxpr.known import Lazy
from marginalia.lanes.bounds import current, refuse_wide
from marginalia.lanes.run import Ids, Run

MOST_READ = 64
"""No table has an axis for so many discretes: even of two states each they would be too many."""

type Array = jax.Array | np.ndarray


@dataclass(frozen=True, eq=False)
class Lane:
    """Which element of the discretes each element of a value reads through one table axis.

    `ids` has the rank of the value, its axes of length one where the identity does not change. A negative identity
    means no discrete: -1 - s stands for the fixed state s of the table axis. Many that follow one another are `held`
    as a run, and are written out only when `ids` is asked for.
    `size` is the length of the table axis: the largest support met along the lane.
    """

    held: Ids
    size: int

    @cached_property
    def ids(self) -> np.ndarray:
        return np.asarray(self.held)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.held.shape

    def same(self, other: Lane) -> bool:
        """Whether both lanes stand for the same elements everywhere."""
        if self.size != other.size or self.shape != other.shape:
            return False
        if self.held is other.held:
            return True
        if isinstance(self.held, Run) and isinstance(other.held, Run):
            return self.held == other.held
        return np.array_equal(self.ids, other.ids)

    def varies(self, axis: int) -> bool:
        return self.shape[axis] > 1

    def reshaped(self, shape: tuple[int, ...]) -> Lane:
        return Lane(self.held.reshape(shape), self.size)

    def without(self, axes: Sequence[int]) -> Lane:
        """The lane of a value that has lost axes along which it does not change."""
        assert all(self.shape[axis] == 1 for axis in axes)
        return self.reshaped(tuple(n for axis, n in enumerate(self.shape) if axis not in axes))


@dataclass(frozen=True, eq=False)
class Value:
    """A table of shape (sizes of the lanes..., axes of the value: full or collapsed to one)."""

    array: Array
    shape: tuple[int, ...]
    lanes: tuple[Lane, ...] = ()
    known: Lazy | None = field(default=None, repr=False)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def physical(self) -> tuple[int, ...]:
        """Lengths of the value's own axes as they are held: 1 where nothing changes."""
        return tuple(self.array.shape[len(self.lanes) :])

    def is_plain(self) -> bool:
        """No lanes and nothing collapsed: an ordinary array."""
        return not self.lanes and tuple(self.array.shape) == self.shape

    def lane_varies(self, axis: int) -> bool:
        return any(lane.varies(axis) for lane in self.lanes)


def plain(array: Array, known: Lazy | None = None) -> Value:
    return Value(array, tuple(np.shape(array)), (), known)


def constant(array: np.ndarray) -> Value:
    array = np.asarray(array)
    return Value(array, array.shape, (), Lazy(lambda: array))


def namespace(*arrays: Array) -> Any:
    """NumPy while everything is small and known, so that nothing is compiled for it; JAX otherwise."""
    return np if all(isinstance(a, np.ndarray) for a in arrays) else jnp


def broadcast(array: Any, shape: tuple[int, ...]) -> Any:
    array = np.asarray(array) if isinstance(array, Run) and array.shape != shape else array
    return array if tuple(array.shape) == shape else namespace(array).broadcast_to(array, shape)


def materialize(value: Value, axes: Sequence[int] | None = None) -> Value:
    """Hold the given axes (all by default) at their full length."""
    n = len(value.lanes)
    axes = range(value.rank) if axes is None else axes
    target = list(value.array.shape)
    for axis in axes:
        target[n + axis] = value.shape[axis]
    return replace(value, array=broadcast(value.array, tuple(target)))


def full_ids(lane: Lane, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(lane.ids, shape)


def unite(values: Sequence[Value]) -> tuple[Lane, ...]:
    """All lanes of several values of one shape, each once."""
    lanes: list[Lane] = []
    for value in values:
        for lane in value.lanes:
            if not any(lane.same(other) for other in lanes):
                lanes.append(lane)
    return tuple(lanes)


def table_over(value: Value, lanes: tuple[Lane, ...]) -> Array:
    """The value's table with its axes in the order of `lanes`, length one where it does not read a lane."""
    position = [next(i for i, lane in enumerate(lanes) if lane.same(own)) for own in value.lanes]
    own = len(value.lanes)
    order = sorted(range(own), key=lambda i: position[i])
    array = value.array
    if order != list(range(own)):
        array = array.transpose([*order, *range(own, array.ndim)])
    sizes = [1] * len(lanes)
    for i in order:
        sizes[position[i]] = value.lanes[i].size
    shape = (*sizes, *value.physical)
    return array if tuple(array.shape) == shape else array.reshape(shape)


def lift(value: Value, rank: int) -> Value:
    """A scalar seen as a value of higher rank with every axis collapsed (scalars meet arrays in a few primitives)."""
    if value.rank == rank:
        return value
    assert value.rank == 0
    lanes = tuple(lane.reshaped((1,) * rank) for lane in value.lanes)
    return Value(value.array.reshape(value.array.shape + (1,) * rank), (1,) * rank, lanes, None)


def aligned(values: Sequence[Value], shape: tuple[int, ...]) -> tuple[tuple[Lane, ...], list[Array]]:
    """Tables of several values over their united lanes, broadcast to one common shape."""
    values = [lift(v, len(shape)) for v in values]
    lanes = unite(values)
    if too_wide(lanes, [v.physical for v in values]) and few_in_all(lanes):
        # Lanes that stand for other discretes at each position may yet read few in all: `cumsum(z) + z`.
        values = [explode(v, range(v.rank)) for v in values]
        lanes = unite(values)
    guard(lanes, shape, [v.physical for v in values])
    tables = [table_over(v, lanes) for v in values]
    common = np.broadcast_shapes(*[tuple(t.shape) for t in tables])
    if not all(isinstance(t, np.ndarray) for t in tables):
        # A constant repeated in NumPy would be written out in the compiled program.
        tables = [t if tuple(t.shape) == common else jnp.asarray(t) for t in tables]
    return lanes, [broadcast(t, common) for t in tables]


def too_wide(lanes: tuple[Lane, ...], physicals: Sequence[tuple[int, ...]]) -> bool:
    """Whether a table would be refused."""
    states = math.prod(lane.size for lane in lanes)
    held = math.prod(np.broadcast_shapes(*physicals)) if physicals else 1
    return states > current().max_states or states * max(held, 1) > current().max_numbers


def few_in_all(lanes: tuple[Lane, ...]) -> bool:
    """Whether lanes that change along positions stand for so few discretes that all of these may be read at once."""
    if all(math.prod(lane.shape) == 1 for lane in lanes) or any(isinstance(lane.held, Run) for lane in lanes):
        return False
    sizes = {int(i): lane.size for lane in lanes for i in np.unique(lane.ids)[-MOST_READ:] if i >= 0}
    return len(sizes) < MOST_READ and math.prod(sizes.values()) <= current().max_states


def guard(lanes: tuple[Lane, ...], shape: tuple[int, ...], physicals: Sequence[tuple[int, ...]]) -> None:
    """Refuse a table that is too large before anything is computed."""
    states = math.prod(lane.size for lane in lanes)
    held = math.prod(np.broadcast_shapes(*physicals)) if physicals else 1
    refuse_wide(lanes, states, states * max(held, 1))


def take(value: Value, axis: int, index: int) -> Value:
    """One position along an axis, the axis dropped."""
    n = len(value.lanes)
    at = 0 if value.physical[axis] == 1 else index
    array = value.array[(slice(None),) * (n + axis) + (at,)]
    shape = value.shape[:axis] + value.shape[axis + 1 :]
    lanes = []
    fixed: list[tuple[int, int]] = []
    for i, lane in enumerate(value.lanes):
        ids = np.asarray(lane.ids[(slice(None),) * axis + (index if lane.varies(axis) else 0,)])
        if ids.size == 1 and int(ids.reshape(-1)[0]) < 0:
            fixed.append((i, -1 - int(ids.reshape(-1)[0])))
        else:
            lanes.append(Lane(ids, lane.size))
    for i, state in reversed(fixed):
        array = array[(slice(None),) * i + (state,)]
    return merge_equal_lanes(Value(array, shape, tuple(lanes)))


def merge_equal_lanes(value: Value) -> Value:
    """Two lanes that stand for the same elements become one: the diagonal of their axes."""
    for i, first in enumerate(value.lanes):
        for j in range(i + 1, len(value.lanes)):
            if first.same(value.lanes[j]):
                array = namespace(value.array).diagonal(value.array, axis1=i, axis2=j)
                array = namespace(array).moveaxis(array, -1, i)
                lanes = tuple(lane for k, lane in enumerate(value.lanes) if k != j)
                return merge_equal_lanes(Value(array, value.shape, lanes))
    return value


def insert_axis(value: Value, axis: int) -> Value:
    n = len(value.lanes)
    shape = value.shape[:axis] + (1,) + value.shape[axis:]
    array = value.array.reshape(value.array.shape[: n + axis] + (1,) + value.array.shape[n + axis :])
    lanes = tuple(lane.reshaped((*lane.shape[:axis], 1, *lane.shape[axis:])) for lane in value.lanes)
    return Value(array, shape, lanes)


def foresee(value: Value, axes: Sequence[int]) -> None:
    """Refuse at once, with all that would be read together, what positions along `axes` as lanes would exceed."""
    axes = [axis for axis in axes if value.lane_varies(axis)]
    if not axes:
        return
    sizes: dict[int, int] = {}
    for lane in value.lanes:
        # One position of the other axes stands for all: the first.
        at = tuple(slice(None) if axis in axes else slice(0, 1) for axis in range(value.rank))
        for identity in np.unique(lane.ids[at]):
            if identity >= 0:
                sizes[int(identity)] = lane.size
    states = math.prod(sizes.values())
    lanes = tuple(Lane(np.asarray([identity]), size) for identity, size in sizes.items())
    refuse_wide(lanes, states, states)


def explode(value: Value, axes: Sequence[int]) -> Value:
    """The same value with no lane changing along the given axes: a lane per position instead.

    This is what makes any operation exact that mixes positions (sums, maxima, sorts, linear algebra): its table grows
    with the number of states of everything along the axes, which is guarded.
    """
    foresee(value, axes)
    for axis in axes:
        if not value.lane_varies(axis):
            continue
        parts = [take(value, axis, i) for i in range(value.shape[axis])]
        lanes, tables = aligned(parts, parts[0].shape)
        array = namespace(*tables).stack(tables, axis=len(lanes) + axis)
        lifted = tuple(Lane(np.expand_dims(lane.ids, axis), lane.size) for lane in lanes)
        value = Value(array, value.shape, lifted)
    return value
