"""Structural primitives: what they do to a value they do to the identities of its lanes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.jaxpr import constants
from marginalia.lanes.interpret import fold, generic, rule
from marginalia.lanes.value import (
    Array,
    Lane,
    Value,
    aligned,
    broadcast,
    explode,
    insert_axis,
    materialize,
    namespace,
    plain,
    take,
)


def on_axes(value: Value, shape: tuple[int, ...], act: Callable[[Any, int], Any], *, runs: bool = False) -> Value:
    """Apply a structural operation to the table and to the identities alike.

    `act(array, n)` acts on an array whose value axes start at position n; on a run too where it is made for `runs`.
    """
    array = act(value.array, len(value.lanes))
    lanes = tuple(Lane(act(lane.held if runs else lane.ids, 0), lane.size) for lane in value.lanes)
    return Value(array, shape, lanes)


@rule("broadcast_in_dim")
def _broadcast_in_dim(equation: Any, values: list[Value]) -> list[Value]:
    (value, *_) = values
    shape = tuple(equation.params["shape"])
    places = equation.params["broadcast_dimensions"]

    def act(array: Any, n: int) -> Any:
        target = [1] * len(shape)
        for axis, place in enumerate(places):
            target[place] = array.shape[n + axis]
        return array.reshape(array.shape[:n] + tuple(target))

    return [on_axes(value, shape, act, runs=True)]


@rule("squeeze")
def _squeeze(equation: Any, values: list[Value]) -> list[Value]:
    (value,) = values
    axes = equation.params["dimensions"]
    shape = tuple(n for i, n in enumerate(value.shape) if i not in axes)

    def act(array: Any, n: int) -> Any:
        return array.reshape(array.shape[:n] + tuple(s for i, s in enumerate(array.shape[n:]) if i not in axes))

    return [on_axes(value, shape, act, runs=True)]


@rule("expand_dims")
def _expand_dims(equation: Any, values: list[Value]) -> list[Value]:
    (value,) = values
    shape = tuple(equation.outvars[0].aval.shape)
    axes = equation.params["dimensions"]
    return [
        on_axes(
            value,
            shape,
            lambda a, n: namespace(a).expand_dims(a, tuple(n + i for i in axes)),
        )
    ]


@rule("tile")
def _tile(equation: Any, values: list[Value]) -> list[Value]:
    (value,) = values
    shape = tuple(equation.outvars[0].aval.shape)
    reps = (1,) * (len(shape) - len(equation.params["reps"])) + tuple(equation.params["reps"])
    new = len(shape) - value.rank

    def act(array: Any, n: int) -> Any:
        array = array.reshape(array.shape[:n] + (1,) * new + array.shape[n:])
        # What does not change along an axis is held once, however often it is repeated.
        times = [r if size > 1 else 1 for r, size in zip(reps, array.shape[n:], strict=True)]
        return namespace(array).tile(array, (1,) * n + tuple(times))

    return [on_axes(value, shape, act)]


@rule("transpose")
def _transpose(equation: Any, values: list[Value]) -> list[Value]:
    (value,) = values
    order = equation.params["permutation"]
    shape = tuple(value.shape[i] for i in order)
    return [on_axes(value, shape, lambda a, n: a.transpose([*range(n), *[n + i for i in order]]), runs=True)]


@rule("reshape")
def _reshape(equation: Any, values: list[Value]) -> list[Value]:
    value = values[0]
    shape = tuple(equation.params["new_sizes"])
    if equation.params.get("dimensions") is not None:
        return generic(equation, values)
    blocks = reshape_blocks(value.shape, shape)
    return [on_axes(value, shape, lambda a, n: reshape_held(a, n, value.shape, shape, blocks), runs=True)]


def reshape_blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Groups of old and new axes with equal products, as small as possible."""
    if 0 in old:
        return [(list(range(len(old))), list(range(len(new))))]
    blocks = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = [], []
        size_a = size_b = 1
        if i < len(old):
            a.append(i)
            size_a = old[i]
            i += 1
        if j < len(new) and not (size_a == 1 and new[j] != 1):
            b.append(j)
            size_b = new[j]
            j += 1
        while size_a != size_b:
            if size_a < size_b:
                a.append(i)
                size_a *= old[i]
                i += 1
            else:
                b.append(j)
                size_b *= new[j]
                j += 1
        blocks.append((a, b))
    return blocks


def reshape_held(
    array: Any, n: int, old: tuple[int, ...], new: tuple[int, ...], blocks: list[tuple[list[int], list[int]]]
) -> Any:
    """Reshape an array some of whose axes are collapsed; only blocks that are partly held are spread out."""
    spread = list(array.shape)
    target = [1] * len(new)
    for a, b in blocks:
        if all(array.shape[n + i] == 1 for i in a) and math.prod(old[i] for i in a) > 0:
            continue
        for i in a:
            spread[n + i] = old[i]
        for j in b:
            target[j] = new[j]
    return broadcast(array, tuple(spread)).reshape(array.shape[:n] + tuple(target))


@rule("rev")
def _reverse(equation: Any, values: list[Value]) -> list[Value]:
    (value,) = values
    axes = equation.params["dimensions"]

    def act(array: Any, n: int) -> Any:
        index = [slice(None)] * array.ndim
        for axis in axes:
            index[n + axis] = slice(None, None, -1)
        return array[tuple(index)]

    return [on_axes(value, value.shape, act)]


@rule("slice")
def _slice(equation: Any, values: list[Value]) -> list[Value]:
    (value,) = values
    p = equation.params
    steps = p["strides"] or (1,) * value.rank
    return [slice_value(value, p["start_indices"], p["limit_indices"], steps)]


def slice_value(value: Value, starts: Sequence[int], limits: Sequence[int], steps: Sequence[int]) -> Value:
    shape = tuple(-(-(b - a) // s) for a, b, s in zip(starts, limits, steps, strict=True))

    def act(array: Any, n: int) -> Any:
        index: list[slice] = [slice(None)] * n
        for axis, (a, b, s) in enumerate(zip(starts, limits, steps, strict=True)):
            collapsed = array.shape[n + axis] == 1 and shape[axis] > 0
            index.append(slice(None) if collapsed else slice(a, b, s))
        return array[tuple(index)]

    return without_empty_lanes(on_axes(value, shape, act, runs=True))


def without_empty_lanes(value: Value) -> Value:
    """Drop small lanes that stand for nothing any more."""
    if 0 in value.shape:
        array = value.array[(0,) * len(value.lanes)]
        return Value(array, value.shape)
    for i, lane in enumerate(value.lanes):
        if math.prod(lane.shape) <= 16 and (lane.ids < 0).all() and (lane.ids == lane.ids.flat[0]).all():
            array = value.array[(slice(None),) * i + (-1 - int(lane.ids.flat[0]),)]
            return without_empty_lanes(Value(array, value.shape, value.lanes[:i] + value.lanes[i + 1 :]))
    return value


@rule("split")
def _split(equation: Any, values: list[Value]) -> list[Value]:
    (value,) = values
    axis = equation.params["axis"]
    outputs, start = [], 0
    for size in equation.params["sizes"]:
        starts, stops = [0] * value.rank, list(value.shape)
        starts[axis], stops[axis] = start, start + size
        outputs.append(slice_value(value, starts, stops, [1] * value.rank))
        start += size
    return outputs


@rule("unstack")
def _unstack(equation: Any, values: list[Value]) -> list[Value]:
    (value,) = values
    if not value.lanes:
        arrays = constants.bind(equation.primitive, equation.params, materialize(value).array)
        return [plain(a) for a in arrays]
    axis = equation.params["axis"]
    return [take(value, axis, i) for i in range(value.shape[axis])]


@rule("concatenate")
def _concatenate(equation: Any, values: list[Value]) -> list[Value]:
    return [concatenate(values, equation.params["dimension"])]


@rule("stack")
def _stack(equation: Any, values: list[Value]) -> list[Value]:
    axis = equation.params["axis"]
    return [concatenate([insert_axis(v, axis) for v in values], axis)]


def concatenate(values: Sequence[Value], axis: int) -> Value:
    """Join values along an axis; their first lanes become one lane of mixed identities, and so on."""
    total = sum(v.shape[axis] for v in values)
    shape = values[0].shape[:axis] + (total,) + values[0].shape[axis + 1 :]
    values = [v for v in values if v.shape[axis] > 0]
    if len(values) == 1:
        return values[0]
    joined = _join_states(values, axis, shape)
    if joined is not None:
        return joined
    count = max(len(v.lanes) for v in values)
    sizes = [max((v.lanes[i].size for v in values if i < len(v.lanes)), default=1) for i in range(count)]
    tables, identities = [], []
    for value in values:
        value = materialize(value, [axis])
        array = value.array
        for i, size in enumerate(sizes):
            if i >= len(value.lanes):
                array = namespace(array).expand_dims(array, i)
            elif array.shape[i] < size:
                array = _repeat_last(array, i, size)
        tables.append(array)
    common = list(
        np.broadcast_shapes(
            *[t.shape[:count] + t.shape[count:][:axis] + (1,) + t.shape[count:][axis + 1 :] for t in tables]
        )
    )
    for i in range(len(tables)):
        common[count + axis] = tables[i].shape[count + axis]
        tables[i] = broadcast(tables[i], tuple(common))
    for i in range(count):
        columns = []
        for value in values:
            ids = value.lanes[i].ids if i < len(value.lanes) else np.full((1,) * value.rank, -1, np.int32)
            target = list(ids.shape)
            target[axis] = value.shape[axis]
            columns.append(np.broadcast_to(ids, target))
        spread = np.broadcast_shapes(*[c.shape[:axis] + (1,) + c.shape[axis + 1 :] for c in columns])
        columns = [np.broadcast_to(c, spread[:axis] + (c.shape[axis],) + spread[axis + 1 :]) for c in columns]
        identities.append(np.concatenate(columns, axis))
    array = namespace(*tables).concatenate(tables, axis=count + axis)
    return Value(array, shape, tuple(Lane(ids, size) for ids, size in zip(identities, sizes, strict=True)))


def _join_states(values: Sequence[Value], axis: int, shape: tuple[int, ...]) -> Value | None:
    """Join discretes with each other and with known constants: the table of states stays as it is.

    A constant (the start of a chain) becomes a fixed state, so that what is indexed by it stays one table.
    """
    laned = [v for v in values if v.lanes]
    if not laned or any(len(v.lanes) != 1 or not isinstance(v.array, np.ndarray) for v in laned):
        return None
    states = laned[0].array
    if states.size != len(states) or any(not np.array_equal(v.array.reshape(-1), states.reshape(-1)) for v in laned):
        return None
    columns = []
    for value in values:
        if value.lanes:
            columns.append(np.broadcast_to(value.lanes[0].ids, value.shape))
            continue
        if not isinstance(value.array, np.ndarray) and value.known is None:
            return None
        held = value.array if isinstance(value.array, np.ndarray) or value.known is None else value.known.get()
        constant = np.broadcast_to(held, value.shape)
        same = constant[..., None] == states.reshape(-1)
        if not same.any(-1).all():
            return None
        columns.append(-1 - np.argmax(same, axis=-1))
    ids = np.concatenate(columns, axis).astype(np.int32)
    return Value(states.reshape((-1,) + (1,) * len(shape)), shape, (Lane(ids, len(states)),))


def _repeat_last(array: Array, axis: int, size: int) -> Array:
    """Fill states beyond an element's own support; they are never read."""
    last = array[(slice(None),) * axis + (slice(-1, None),)]
    more = list(array.shape)
    more[axis] = size - array.shape[axis]
    return namespace(array).concatenate([array, broadcast(last, tuple(more))], axis=axis)


@rule("pad")
def _pad(equation: Any, values: list[Value]) -> list[Value]:
    value, filler = values
    config = equation.params["padding_config"]
    if filler.lanes or any(min(low, high, inner) < 0 for low, high, inner in config):
        return generic(equation, values)
    touched = [i for i, c in enumerate(config) if c != (0, 0, 0)]
    value = materialize(value, touched)
    n = len(value.lanes)
    array = jax.lax.pad(jnp.asarray(value.array), jnp.asarray(filler.array), [(0, 0, 0)] * n + list(config))
    lanes = []
    for lane in value.lanes:
        ids = lane.ids
        for axis in touched:
            low, high, inner = config[axis]
            target = list(ids.shape)
            target[axis] = value.shape[axis]
            ids = np.broadcast_to(ids, target)
            length = low + high + ids.shape[axis] + inner * max(ids.shape[axis] - 1, 0)
            wide = np.full(ids.shape[:axis] + (length,) + ids.shape[axis + 1 :], -1, np.int32)
            stop = length - high
            wide[(slice(None),) * axis + (slice(low, stop, inner + 1),)] = ids
            ids = wide
        lanes.append(Lane(ids, lane.size))
    return [Value(array, tuple(equation.outvars[0].aval.shape), tuple(lanes))]


# ---- reductions -------------------------------------------------------------------------------------------------

_REDUCTIONS = {
    "reduce_sum": "add",
    "reduce_prod": "mul",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_and": "and",
    "reduce_or": "or",
    "reduce_xor": "xor",
}


@rule(*_REDUCTIONS)
def _reduce(equation: Any, values: list[Value]) -> list[Value]:
    (value,) = values
    return [fold(_REDUCTIONS[equation.primitive.name], value, equation.params["axes"])]


@rule("argmax", "argmin")
def _arg_extreme(equation: Any, values: list[Value]) -> list[Value]:
    (value,) = values
    axes = equation.params["axes"]
    value = materialize(explode(value, axes), axes)
    n = len(value.lanes)
    params = {**equation.params, "axes": tuple(n + a for a in axes)}
    (array,) = constants.bind(equation.primitive, params, jnp.asarray(value.array))
    return [drop_axes(value, array, axes)]


def drop_axes(value: Value, array: Array, axes: Sequence[int]) -> Value:
    """The value with its axes gone, its lanes following."""
    lanes = tuple(lane.without(axes) for lane in value.lanes)
    return Value(array, tuple(n for i, n in enumerate(value.shape) if i not in axes), lanes)


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _cumulative(equation: Any, values: list[Value]) -> list[Value]:
    (value,) = values
    axis = equation.params["axis"]
    value = materialize(explode(value, [axis]), [axis])
    params = {**equation.params, "axis": len(value.lanes) + axis}
    (array,) = constants.bind(equation.primitive, params, jnp.asarray(value.array))
    return [Value(array, value.shape, value.lanes)]


@rule("sort")
def _sort(equation: Any, values: list[Value]) -> list[Value]:
    axis = equation.params["dimension"]
    values = [materialize(explode(v, [axis]), [axis]) for v in values]
    lanes, tables = aligned(values, values[0].shape)
    params = {**equation.params, "dimension": len(lanes) + axis}
    arrays = constants.bind(equation.primitive, params, *[jnp.asarray(t) for t in tables])
    return [Value(a, values[0].shape, lanes) for a in arrays]


@rule("top_k")
def _top_k(equation: Any, values: list[Value]) -> list[Value]:
    (value,) = values
    axis = equation.params.get("axis", value.rank - 1) % value.rank
    value = materialize(explode(value, [axis]), [axis])
    n = len(value.lanes)
    params = {**equation.params, **({"axis": n + axis} if "axis" in equation.params else {})}
    arrays = constants.bind(equation.primitive, params, jnp.asarray(value.array))
    shape = tuple(equation.outvars[0].aval.shape)
    return [Value(array, shape, value.lanes) for array in arrays]


@rule("call_hi_primitive")
def _search_sorted(equation: Any, values: list[Value]) -> list[Value]:
    """`jnp.searchsorted` and `jnp.digitize`: place by place where the edges are given; others have no rule."""
    inner = equation.params.get("_prim")
    among_given = type(inner).__name__ == "SearchSorted" and not values[0].lanes
    if not among_given or getattr(inner, "batch_dims", None) != 0:
        return generic(equation, values)
    edges, queries = values
    array = jnp.searchsorted(jnp.asarray(materialize(edges).array), jnp.asarray(queries.array), side=inner.side)
    return [Value(array.astype(equation.outvars[0].aval.dtype), queries.shape, queries.lanes)]
