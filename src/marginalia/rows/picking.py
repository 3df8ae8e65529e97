"""Gathers along one axis: `effect[group]` with the group a column of the data, `logits[:, k]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.jaxpr import constants
from marginalia.rows.held import ROWS, Held, Unreadable, align, broadcast_all, dense, ordinary, refine
from marginalia.rows.operations import Reading, rule, spread, transposed, varies

MOST_CHOICES = 32
"""Up to so many entries are chosen among by comparisons, which run along the rows; beyond, they are looked up."""

_MODES = {
    jax.lax.GatherScatterMode.CLIP: "clip",
    jax.lax.GatherScatterMode.FILL_OR_DROP: "fill",
    jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS: "promise_in_bounds",
}


@rule("gather")
def _gather(reading: Reading, equation: Any, values: list[Held]) -> list[Held]:
    operand, index = (v.without_form() for v in values)
    if not varies(operand) and not varies(index):
        arrays = [dense(v, reading.rows) for v in values]
        return [ordinary(o) for o in constants.bind(equation.primitive, equation.params, *arrays)]
    d = equation.params["dimension_numbers"]
    sizes = equation.params["slice_sizes"]
    shape = tuple(int(n) for n in equation.outvars[0].aval.shape)
    extent = equation.invars[0].aval.shape
    if len(d.start_index_map) != 1 or tuple(d.collapsed_slice_dims) != tuple(d.start_index_map) or index.axes[-1]:
        raise Unreadable("gather")
    axis = int(d.start_index_map[0])
    paired = dict(zip(map(int, d.operand_batching_dims), map(int, d.start_indices_batching_dims), strict=True))
    rest = [a for a in range(len(extent)) if a != axis]
    if any(sizes[a] != extent[a] for a in rest if a not in paired) or ROWS in operand.axes[axis]:
        raise Unreadable("gather")
    offset = [int(p) for p in d.offset_dims]
    batch = [p for p in range(len(shape)) if p not in offset]
    own = iter(offset)
    places = [batch[paired[a]] if a in paired else next(own) for a in rest]
    n = int(extent[axis])
    whole = refine(operand, (*operand.axes[:axis], (n,) if n != 1 else (), *operand.axes[axis + 1 :]), reading.rows)
    where = Held(index.array, index.axes[:-1])
    mode = _MODES[equation.params["mode"]]
    if not varies(operand) and not paired and n > MOST_CHOICES:
        return [_looked_up(reading, whole, where, axis, places, batch, shape, mode, equation.params["fill_value"])]
    if n > MOST_CHOICES and not isinstance(where.array, np.ndarray):
        raise Unreadable("gather")
    return [_chosen(reading, whole, where, axis, places, batch, shape, mode, equation.params["fill_value"])]


def _placed(value: Held, places: Sequence[int], shape: Sequence[int]) -> Held:
    order = sorted(range(len(places)), key=lambda i: places[i])
    return spread(transposed(value, order), sorted(places), shape)


def _entry(value: Held, axis: int, at: int) -> Held:
    """One entry along an axis of one atom, the axis gone."""
    kept = (*value.axes[:axis], *value.axes[axis + 1 :])
    if not value.axes[axis]:
        return Held(value.array, kept)
    place = sum(len(a) for a in value.axes[:axis])
    if ROWS in [a for x in value.axes[:axis] for a in x]:
        place -= 1
    at = at if value.array.shape[place] != 1 else 0
    return Held(value.array[(slice(None),) * place + (at,)], kept)


def _chosen(
    reading: Reading,
    operand: Held,
    index: Held,
    axis: int,
    places: Sequence[int],
    batch: Sequence[int],
    shape: tuple[int, ...],
    mode: str,
    fill: Any,
) -> Held:
    """Each entry where the index says so."""
    n = operand.axes[axis][0] if operand.axes[axis] else 1
    which = _placed(index, batch, shape)
    asked = list(range(n))
    if isinstance(index.array, np.ndarray):
        asked = [int(i) for i in np.unique(np.clip(index.array, 0, n - 1))]
    cases = [_placed(_entry(operand, axis, i), places, shape) for i in asked]
    axes, (at, *tables) = align([which, *cases], reading.rows)
    if mode == "fill":
        empty = jnp.full((), jnp.nan if fill is None and jnp.issubdtype(operand.dtype, jnp.inexact) else fill or 0)
        result: Any = empty.astype(operand.dtype).reshape((1,) * len(np.shape(at)))
        pending = list(zip(asked, tables, strict=True))
    else:
        result, pending = tables[0], list(zip(asked, tables, strict=True))[1:]
    for i, table in pending:
        # Beyond the ends lies the first or the last entry, as in XLA, unless there is a number to fill in.
        here = at == i if mode == "fill" or i != asked[-1] else at >= i
        hit, table, result = broadcast_all([jnp.asarray(here), table, result])
        result = jax.lax.select(hit, table, result)
    return Held(result, axes)


def _looked_up(
    reading: Reading,
    operand: Held,
    index: Held,
    axis: int,
    places: Sequence[int],
    batch: Sequence[int],
    shape: tuple[int, ...],
    mode: str,
    fill: Any,
) -> Held:
    """A long table of parameters, looked up for each row."""
    table = jnp.moveaxis(dense(operand, reading.rows), axis, -1)
    how: Any = mode
    found = table.at[..., index.array].get(mode=how, wrap_negative_indices=False, fill_value=fill)
    # (the operand's other axes, the index' atoms with the rows last)
    lead = tuple((m,) if m != 1 else () for m in table.shape[:-1])
    kept = tuple(m for m in table.shape[:-1] if m != 1)
    value = Held(found.reshape((*kept, *index.array.shape)), (*lead, *index.axes))
    return _placed(value, [*places, *batch], shape)
