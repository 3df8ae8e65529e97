"""Sums by group: `segment_sum(mu[z], group, G)` and `x.at[group].add(mu[z])`, with known groups.

Each place of the result is a sum over the updates that go there. The updates are put in a matrix, a row per place, its
empty places filled with a zero; the sum along the rows is then one like any other: kept apart as separate factors while
nothing nonlinear reads it, a discrete of its own where its parts are whole numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.jaxpr import constants
from marginalia.lanes.interpret import Node, Sum, Term, apply_elementwise, call, fold, force, generic, terms_of
from marginalia.lanes.structure import concatenate
from marginalia.lanes.value import Lane, Value, constant, full_ids, insert_axis, materialize, plain, take

SPARSEST = 64
"""The matrix of updates may be so many times larger than the updates (groups of very different size)."""


@call("scatter-add", "scatter_add")
def scatter_add(equation: Any, nodes: list[Node]) -> list[Node]:
    """Add updates at known places; where places are computed from a discrete, each output reads everything."""
    indices, updates = force(nodes[1]), force(nodes[2])
    operand = nodes[0]
    if isinstance(operand, Value) and not (operand.lanes or indices.lanes or updates.lanes):
        arrays = [materialize(v).array for v in (operand, indices, updates)]
        return [plain(o) for o in constants.bind(equation.primitive, equation.params, *arrays)]
    axis = len(operand.shape)
    if indices.known is not None and not indices.lanes:
        rows = _rows(equation, operand.shape, np.asarray(indices.known.get()), updates.shape)
        parts = None if rows is None else _take_flat(updates, rows)
    else:
        parts = _compared(equation, operand.shape, indices, updates)
    if parts is None:
        return list(generic(equation, [force(operand), indices, updates]))
    if any(lane.varies(axis) for lane in parts.lanes) and jnp.issubdtype(parts.array.dtype, jnp.floating):
        summed: Node = Sum((Term(parts, (axis,)),), operand.shape)
    else:
        summed = (
            fold("add", parts, (axis,)) if parts.shape[axis] else constant(np.zeros(operand.shape, parts.array.dtype))
        )
    if isinstance(operand, Value) and isinstance(operand.array, np.ndarray) and not operand.array.any():
        return [summed]
    if isinstance(operand, Sum) or isinstance(summed, Sum):
        return [Sum(terms_of(operand) + terms_of(summed), operand.shape)]
    return [apply_elementwise("add", [operand, summed])]


def _compared(equation: Any, shape: tuple[int, ...], indices: Value, updates: Value) -> Value | None:
    """`bincount(z)`: `(places, updates)`, each update where its computed place is this one, else zero."""
    d = equation.params["dimension_numbers"]
    plain_places = not d.update_window_dims and tuple(d.inserted_window_dims) == (0,) and not d.operand_batching_dims
    if len(shape) != 1 or updates.rank != 1 or not plain_places:
        return None
    if equation.params["mode"] == jax.lax.GatherScatterMode.CLIP:
        return None
    place = insert_axis(take(indices, 1, 0), 0)
    count, number = shape[0], updates.shape[0]
    dtype = place.array.dtype
    here = replace(constant(np.arange(count, dtype=dtype)[:, None]), shape=(count, number))
    equal = apply_elementwise("eq", [replace(place, shape=(count, number)), here])
    zero = replace(constant(np.zeros((1, 1), updates.array.dtype)), shape=(count, number))
    update = replace(insert_axis(updates, 0), shape=(count, number))
    return apply_elementwise("select_n", [equal, zero, update])


def _rows(equation: Any, shape: tuple[int, ...], indices: np.ndarray, updates: tuple[int, ...]) -> np.ndarray | None:
    """`(*shape, width)`: flat positions of the updates that go to each place, filled up with one beyond the last.

    None where some places get so many more than others that the matrix would be mostly empty.
    """
    places = _places(equation, shape, indices, updates).reshape(-1)
    inside = np.flatnonzero(places >= 0)
    order = inside[np.argsort(places[inside], kind="stable")]
    counts = np.bincount(places[inside], minlength=int(np.prod(shape)))
    width = int(counts.max(initial=0))
    if counts.size * width > SPARSEST * max(places.size, 2**10):
        return None
    first = np.concatenate([[0], np.cumsum(counts)])[:-1]
    target = places[order]
    rows = np.full((counts.size, width), places.size, np.int64)
    rows[target, np.arange(len(order)) - first[target]] = order
    return rows.reshape((*shape, width))


def _places(equation: Any, shape: tuple[int, ...], indices: np.ndarray, updates: tuple[int, ...]) -> np.ndarray:
    """For each update the flat place where it is added, -1 for none: the gather whose transpose the scatter is."""
    d = equation.params["dimension_numbers"]
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=d.update_window_dims,
        collapsed_slice_dims=d.inserted_window_dims,
        start_index_map=d.scatter_dims_to_operand_dims,
        operand_batching_dims=d.operand_batching_dims,
        start_indices_batching_dims=d.scatter_indices_batching_dims,
    )
    gone = (*d.inserted_window_dims, *d.operand_batching_dims)
    window = iter(updates[axis] for axis in d.update_window_dims)
    sizes = tuple(1 if axis in gone else next(window) for axis in range(len(shape)))
    clip = equation.params["mode"] == jax.lax.GatherScatterMode.CLIP
    mode = jax.lax.GatherScatterMode.CLIP if clip else jax.lax.GatherScatterMode.FILL_OR_DROP
    with jax.ensure_compile_time_eval():
        flat = jnp.arange(int(np.prod(shape)), dtype=jnp.int32).reshape(shape)
        return np.asarray(jax.lax.gather(flat, jnp.asarray(indices), numbers, sizes, mode=mode, fill_value=-1))


def _take_flat(value: Value, rows: np.ndarray) -> Value:
    """Elements of a value by flat position, zero for the position beyond the last."""
    n = len(value.lanes)
    size = int(np.prod(value.shape))
    held = value if value.rank == 1 else materialize(value)
    lanes = tuple(Lane(full_ids(lane, value.shape).reshape(-1), lane.size) for lane in value.lanes)
    array = held.array if value.rank == 1 else held.array.reshape((*held.array.shape[:n], size))
    flat = Value(array, (size,), lanes)
    if (rows == size).any():
        flat = concatenate([flat, constant(np.zeros(1, value.array.dtype))], 0)
    ids = tuple(Lane(np.broadcast_to(lane.ids, flat.shape)[rows], lane.size) for lane in flat.lanes)
    table = (
        flat.array[..., rows]
        if flat.physical[0] > 1
        else flat.array.reshape((*flat.array.shape[:n], *([1] * rows.ndim)))
    )
    return replace(flat, array=table, shape=tuple(rows.shape), lanes=ids, known=None)
