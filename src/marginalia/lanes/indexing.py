"""Reading and writing by index: where the index is a discrete, where the operand is one, and where both are."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.jaxpr import constants
from marginalia.lanes.interpret import generic, over_lanes, rule
from marginalia.lanes.structure import slice_value
from marginalia.lanes.value import (
    Lane,
    Value,
    explode,
    full_ids,
    guard,
    lift,
    materialize,
    merge_equal_lanes,
    namespace,
    plain,
    table_over,
    unite,
)


@rule("gather")
def _gather(equation: Any, values: list[Value]) -> list[Value]:
    operand, indices = values
    if operand.is_plain() and indices.is_plain():
        return [plain(o) for o in constants.bind(equation.primitive, equation.params, operand.array, indices.array)]
    layout = GatherLayout(equation, operand, indices)
    if indices.lanes:
        indices = materialize(explode(indices, [indices.rank - 1]), [indices.rank - 1])
    if any(operand.lane_varies(axis) for axis in layout.indexed):
        if indices.known is not None and not indices.lanes:
            return [_gather_identities(equation, layout, operand, indices)]
        operand = explode(operand, layout.indexed)
    direct = _gather_all_states(layout, operand, indices)
    return [merge_equal_lanes(direct if direct is not None else _gather_tables(equation, layout, operand, indices))]


class GatherLayout:
    """Where each axis of a gather's output comes from."""

    def __init__(self, equation: Any, operand: Value, indices: Value):
        d = equation.params["dimension_numbers"]
        self.numbers = d
        self.slice_sizes = tuple(equation.params["slice_sizes"])
        self.shape = tuple(equation.outvars[0].aval.shape)
        self.offset_places = list(d.offset_dims)
        self.batch_places = [i for i in range(len(self.shape)) if i not in d.offset_dims]
        gone = (*d.collapsed_slice_dims, *d.operand_batching_dims)
        self.offset_axes = [i for i in range(operand.rank) if i not in gone]
        # Axes whose position the index decides, in whole or in part.
        self.indexed = [
            i
            for i in range(operand.rank)
            if i not in d.operand_batching_dims and (i in d.start_index_map or self.slice_sizes[i] != operand.shape[i])
        ]
        # operand batching axis -> output place
        self.paired = {
            axis: self.batch_places[place]
            for axis, place in zip(d.operand_batching_dims, d.start_indices_batching_dims, strict=True)
        }

    def operand_ids(self, lane: Lane) -> Lane:
        """The lane of an operand that changes along no indexed axis, as the output sees it."""
        ids = lane.held
        target = [1] * len(self.shape)
        order: list[tuple[int, int]] = []
        for axis, place in zip(self.offset_axes, self.offset_places, strict=True):
            target[place] = ids.shape[axis]
            order.append((place, axis))
        for axis, place in self.paired.items():
            target[place] = ids.shape[axis]
            order.append((place, axis))
        kept = [axis for _, axis in sorted(order)]
        rest = [axis for axis in range(ids.ndim) if axis not in kept]
        return Lane(ids.transpose([*kept, *rest]).reshape(tuple(target)), lane.size)

    def index_ids(self, lane: Lane) -> Lane:
        """The lane of an index (its last axis dropped) as the output sees it."""
        target = [1] * len(self.shape)
        for place, size in zip(self.batch_places, lane.shape[:-1], strict=True):
            target[place] = size
        return lane.reshaped(tuple(target))


def _gather_all_states(layout: GatherLayout, operand: Value, indices: Value) -> Value | None:
    """`mu[z]`: the table over the states of z is mu itself, its axis moved; nothing is gathered."""
    d = layout.numbers
    table = indices.array
    if len(indices.lanes) != 1 or not isinstance(table, np.ndarray) or len(d.start_index_map) != 1:
        return None
    (axis,) = d.start_index_map
    if axis not in d.collapsed_slice_dims or table.size != table.shape[0]:
        return None
    if any(i != axis and layout.slice_sizes[i] != operand.shape[i] for i in layout.offset_axes):
        return None
    n = len(operand.lanes)
    if any(operand.physical[i] != 1 for i in d.operand_batching_dims) or any(i != axis for i in d.collapsed_slice_dims):
        return None
    states = table.reshape(-1)
    extent = operand.shape[axis]
    if states.size == 0 or states.min() < 0 or states.max() >= extent:
        return None
    array = materialize(operand, [axis]).array
    if not np.array_equal(states, np.arange(extent)):
        array = namespace(array).take(array, states, axis=n + axis)
    array = namespace(array).moveaxis(array, n + axis, n)
    held = [1] * len(layout.shape)
    for i, place in zip(layout.offset_axes, layout.offset_places, strict=True):
        held[place] = operand.physical[i]
    array = array.reshape((*array.shape[: n + 1], *held))
    lanes = (*[layout.operand_ids(lane) for lane in operand.lanes], layout.index_ids(indices.lanes[0]))
    return Value(array, layout.shape, lanes)


def _gather_tables(equation: Any, layout: GatherLayout, operand: Value, indices: Value) -> Value:
    """Gather once per joint state of the lanes of operand and index, on the axes as they are held."""
    d = layout.numbers
    operand = materialize(operand, layout.indexed)
    indices = materialize(indices, [indices.rank - 1])
    for axis, place in zip(d.operand_batching_dims, d.start_indices_batching_dims, strict=True):
        if operand.physical[axis] != indices.physical[place]:
            operand, indices = materialize(operand, [axis]), materialize(indices, [place])
    sizes = tuple(
        1 if held == 1 and i not in layout.indexed else size
        for i, (size, held) in enumerate(zip(layout.slice_sizes, operand.physical, strict=True))
    )
    as_seen = [
        replace(operand, shape=layout.shape, lanes=tuple(layout.operand_ids(lane) for lane in operand.lanes)),
        replace(indices, shape=layout.shape, lanes=tuple(layout.index_ids(lane) for lane in indices.lanes)),
    ]
    lanes = unite(as_seen)
    tables = [_table_by_lanes(v, lanes) for v in as_seen]
    held = [indices.physical[i] for i in range(indices.rank - 1)]
    guard(lanes, layout.shape, [tuple(held)])
    params = {**equation.params, "slice_sizes": sizes}
    (array,) = over_lanes(functools.partial(constants.bind, equation.primitive, params), tables, len(lanes))
    return Value(array, layout.shape, lanes)


def _table_by_lanes(value: Value, lanes: tuple[Lane, ...]) -> Any:
    """`table_over` for a value whose own axes are not yet the output's."""
    bare = Value(value.array, value.shape, value.lanes)
    return table_over(bare, lanes)


def _gather_identities(equation: Any, layout: GatherLayout, operand: Value, indices: Value) -> Value:
    """`z[group]` with a known index: the identities are gathered as the values would be."""
    assert indices.known is not None
    index = np.asarray(indices.known.get())
    lanes = []
    complete = True
    for lane in operand.lanes:
        ids = full_ids(lane, operand.shape).astype(np.int32)
        gathered = _gather_known(equation, layout, ids, index)
        outside = gathered == _OUTSIDE
        complete = complete and not outside.any()
        lanes.append(Lane(np.where(outside, -1, gathered), lane.size))
    # Where nothing changes along any axis, only the identities move; the table stays as it is.
    n = len(operand.lanes)
    if all(size == 1 for size in operand.physical) and complete:
        array = operand.array.reshape(operand.array.shape[:n] + (1,) * len(layout.shape))
    else:
        array = _gather_with_leading(equation, layout, operand, index)
    return merge_equal_lanes(Value(array, layout.shape, tuple(lanes)))


_OUTSIDE = int(np.iinfo(np.int32).min)
"""Marks identities that an index out of range would have read."""


def _gather_with_leading(equation: Any, layout: GatherLayout, operand: Value, index: np.ndarray) -> Any:
    array = jnp.asarray(materialize(operand).array)

    def one(a: Any) -> list[Any]:
        return constants.bind(equation.primitive, equation.params, a, index)

    n = len(operand.lanes)
    flat = array.reshape((-1, *operand.shape))
    (gathered,) = jax.vmap(one)(flat)
    return gathered.reshape((*array.shape[:n], *layout.shape))


def _gather_known(equation: Any, layout: GatherLayout, ids: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Gather identities by a known index; positions out of range are nobody's."""
    d = layout.numbers
    if len(d.start_index_map) == 1 and d.collapsed_slice_dims == d.start_index_map and not d.operand_batching_dims:
        (axis,) = d.start_index_map
        flat = index[..., 0]
        mode = equation.params["mode"]
        inside = (flat >= 0) & (flat < ids.shape[axis])
        picked = np.take(ids, np.clip(flat, 0, ids.shape[axis] - 1), axis=axis)
        if mode == jax.lax.GatherScatterMode.FILL_OR_DROP and not inside.all():
            shape = [1] * picked.ndim
            shape[axis : axis + flat.ndim] = flat.shape
            picked = np.where(inside.reshape(shape), picked, _OUTSIDE)
        # np.take puts the index axes in the place of the axis; XLA puts them at the batch places.
        sources = list(range(axis, axis + flat.ndim))
        return np.moveaxis(picked, sources, layout.batch_places)
    params = {**equation.params, "fill_value": _OUTSIDE}
    return constants.evaluate(equation.primitive, params, [ids, index])[0]


@rule("dynamic_slice")
def _dynamic_slice(equation: Any, values: list[Value]) -> list[Value]:
    operand, *starts = values
    sizes = equation.params["slice_sizes"]
    if not operand.lanes and not any(s.lanes for s in starts):
        return generic(equation, values)
    if all(s.known is not None and not s.lanes for s in starts):
        begin = [
            int(np.clip(int(s.known.get()), 0, n - size))
            for s, n, size in zip(starts, operand.shape, sizes, strict=True)
            if s.known is not None
        ]
        return [slice_value(operand, begin, [b + s for b, s in zip(begin, sizes, strict=True)], [1] * operand.rank)]
    cut = [i for i, size in enumerate(sizes) if size != operand.shape[i]]
    operand = explode(operand, cut)
    if any(operand.lane_varies(i) for i in range(operand.rank)):
        return generic(equation, [operand, *starts])
    full = materialize(operand)
    lifted = [Value(full.array, full.shape, tuple(Lane(lane.ids.reshape(()), lane.size) for lane in full.lanes))]
    lifted += [lift(s, 0) for s in starts]
    lanes = unite(lifted)
    tables = [table_over(v, lanes) for v in lifted]
    (array,) = over_lanes(functools.partial(constants.bind, equation.primitive, equation.params), tables, len(lanes))
    shape = tuple(sizes)
    own = tuple(Lane(lane.ids.reshape((1,) * len(shape)), lane.size) for lane in lanes)
    return [Value(array, shape, own)]


@rule("scatter", "dynamic_update_slice")
def _overwrite(equation: Any, values: list[Value]) -> list[Value]:
    """`x.at[i].set(v)` with a known place: the written positions take the identities of what is written."""
    written = _known_places(equation, values)
    if written is None:
        return generic(equation, values)
    operand, update, others = written
    count = max(len(operand.lanes), len(update.lanes))
    if count == 0:
        arrays = [materialize(v).array for v in values]
        return [plain(o) for o in constants.bind(equation.primitive, equation.params, *arrays)]
    sizes = [max(v.lanes[i].size for v in (operand, update) if i < len(v.lanes)) for i in range(count)]
    identities = []
    for i in range(count):
        old, new = (
            full_ids(v.lanes[i], v.shape) if i < len(v.lanes) else np.full(v.shape, -1, np.int32)
            for v in (operand, update)
        )
        arguments = _in_order(equation, old.astype(np.int32), new.astype(np.int32), others)
        identities.append(constants.evaluate(equation.primitive, equation.params, arguments)[0])
    tables = [_padded(materialize(v), sizes) for v in (operand, update)]

    def write(old: Any, new: Any) -> list[Any]:
        return constants.bind(equation.primitive, equation.params, *_in_order(equation, old, new, others))

    (array,) = over_lanes(write, tables, count)
    lanes = tuple(Lane(ids, size) for ids, size in zip(identities, sizes, strict=True))
    return [Value(array, operand.shape, lanes)]


def _known_places(equation: Any, values: list[Value]) -> tuple[Value, Value, list[np.ndarray]] | None:
    if equation.primitive.name == "scatter":
        operand, indices, update = values
        places: Sequence[Value] = [indices]
    else:
        operand, update, *places = values
    if any(p.known is None or p.lanes for p in places):
        return None
    return operand, update, [p.known.get() for p in places if p.known is not None]


def _in_order(equation: Any, old: Any, new: Any, others: list[np.ndarray]) -> list[Any]:
    return [old, others[0], new] if equation.primitive.name == "scatter" else [old, new, *others]


def _padded(value: Value, sizes: list[int]) -> Any:
    """A table with all lanes of the result, states beyond an element's own support repeated (never read)."""
    array = jnp.asarray(value.array)
    for i, size in enumerate(sizes):
        if i >= len(value.lanes):
            array = jnp.expand_dims(array, i)
        elif array.shape[i] < size:
            array = jnp.take(array, np.minimum(np.arange(size), array.shape[i] - 1), axis=i)
    return array
