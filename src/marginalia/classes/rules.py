"""What each primitive does to values held by classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.classes.value import (
    Classed,
    Joins,
    Unclassed,
    align,
    dense,
    in_full,
    known,
    merged,
    nothing,
    owned,
    picked,
    shrunk,
    spread,
)
from marginalia.jaxpr import constants
from marginalia.lanes.interpret import ELEMENTWISE
from marginalia.lanes.structure import reshape_blocks


@dataclass(eq=False)
class Reading:
    """One evaluation: the partitions met before, and how many numbers were computed, and would be without classes."""

    joins: Joins
    nested: bool = False
    """Whether this is the derivative of a function that was given one."""
    computed: int = 0
    otherwise: int = 0

    def count(self, equation: Any, results: Sequence[Classed]) -> None:
        self.computed += sum(math.prod(v.array.shape) for v in results)
        self.otherwise += sum(math.prod(v.aval.shape) for v in equation.outvars)


type Rule = Callable[[Reading, Any, list[Classed]], list[Classed]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register what one or several primitives do."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def apply(reading: Reading, equation: Any, values: list[Classed]) -> list[Classed]:
    """The outputs of one equation."""
    if any(0 in v.shape for v in values):
        raise Unclassed
    name = equation.primitive.name
    if name in RULES:
        found = RULES[name](reading, equation, values)
    elif name in ELEMENTWISE:
        found = [elementwise(reading, equation, values)]
    else:
        found = in_one_piece(reading, equation, values)
    return [_settled(shrunk(v, reading.joins)) for v in found]


def _settled(value: Classed) -> Classed:
    """Classes of which hardly two elements are equal are spread, unless they are known."""
    elements = math.prod(value.codes.shape)
    return spread(value) if not value.known and elements > 1 and 2 * value.classes > elements else value


def in_one_piece(reading: Reading, equation: Any, values: list[Classed]) -> list[Classed]:
    """The operation on ordinary arrays."""
    arrays = [dense(v) for v in values]
    if all(v.known for v in values):
        return [_told(o) for o in constants.evaluate(equation.primitive, equation.params, arrays)]
    return [in_full(o) for o in constants.bind(equation.primitive, equation.params, *arrays)]


def _told(array: Any) -> Classed:
    return known(array) if isinstance(array, np.ndarray) else in_full(array)


def elementwise(reading: Reading, equation: Any, values: list[Classed]) -> Classed:
    shape = tuple(int(n) for n in equation.outvars[0].aval.shape)
    own, codes, arrays = align(values, reading.joins)
    held = np.broadcast_shapes(*(tuple(a.shape) for a in arrays))
    if all(isinstance(a, np.ndarray) for a in arrays):
        known_arrays = [np.broadcast_to(a, held) for a in arrays]
        (found,) = constants.evaluate(equation.primitive, equation.params, known_arrays)
        return Classed(np.asarray(found), shape, own, codes)
    wide = [a if tuple(a.shape) == held else jnp.broadcast_to(a, held) for a in arrays]
    (array,) = constants.bind(equation.primitive, equation.params, *wide)
    return Classed(array, shape, own, codes)


# ---- structure -----------------------------------------------------------------------------------------------------


@rule("broadcast_in_dim")
def _broadcast(reading: Reading, equation: Any, values: list[Classed]) -> list[Classed]:
    (value,) = values[:1]
    shape = tuple(int(n) for n in equation.params["shape"])
    places = equation.params["broadcast_dimensions"]
    lengths = [1] * len(shape)
    for axis, place in enumerate(places):
        lengths[place] = value.codes.shape[axis]
    codes = _reshaped(reading, value.codes, tuple(lengths))
    return [Classed(value.array, shape, tuple(places[a] for a in value.own), codes)]


def _reshaped(reading: Reading, codes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if codes.shape == shape:
        return codes
    return reading.joins.cached(("reshape", id(codes), shape), lambda: codes.reshape(shape), codes)


@rule("reshape", "squeeze", "expand_dims")
def _reshape(reading: Reading, equation: Any, values: list[Classed]) -> list[Classed]:
    (value,) = values
    if equation.primitive.name == "reshape" and equation.params.get("dimensions") is not None:
        raise Unclassed
    old, new = value.shape, tuple(int(n) for n in equation.outvars[0].aval.shape)
    blocks = reshape_blocks(old, new)
    mixed = [a for axes, _ in blocks for a in axes if a in value.own and any(_long(value, b) for b in axes)]
    value = merged(value, mixed, reading.joins)
    full, lengths = list(value.codes.shape), [1] * len(new)
    own: list[int] = []
    for before, after in blocks:
        if any(value.codes.shape[a] > 1 for a in before):
            for a in before:
                full[a] = old[a]
            for b in after:
                lengths[b] = new[b]
        elif any(a in value.own for a in before):
            own += [b for b in after if new[b] != 1]
    codes = reading.joins.cached(
        ("reshape", id(value.codes), tuple(full), tuple(lengths)),
        lambda: np.broadcast_to(value.codes, full).reshape(lengths),
        value.codes,
    )
    array = value.array.reshape((*(new[a] for a in own), value.classes))
    return [Classed(array, new, tuple(own), codes)]


def _long(value: Classed, axis: int) -> bool:
    return axis not in value.own and value.shape[axis] > 1


@rule("transpose")
def _transpose(reading: Reading, equation: Any, values: list[Classed]) -> list[Classed]:
    (value,) = values
    order = equation.params["permutation"]
    codes = reading.joins.cached(
        ("transpose", id(value.codes), tuple(order)), lambda: value.codes.transpose(order), value.codes
    )
    places = [value.own.index(a) for a in order if a in value.own]
    array = value.array if places == sorted(places) else value.array.transpose([*places, len(places)])
    own = tuple(i for i, a in enumerate(order) if a in value.own)
    return [Classed(array, tuple(value.shape[a] for a in order), own, codes)]


@rule("slice")
def _slice(reading: Reading, equation: Any, values: list[Classed]) -> list[Classed]:
    p = equation.params
    steps = p["strides"] or (1,) * len(p["start_indices"])
    cuts = [slice(*ends) for ends in zip(p["start_indices"], p["limit_indices"], steps, strict=True)]
    return [_cut(reading, values[0], cuts, tuple(int(n) for n in equation.outvars[0].aval.shape))]


@rule("rev")
def _rev(reading: Reading, equation: Any, values: list[Classed]) -> list[Classed]:
    (value,) = values
    turned = equation.params["dimensions"]
    cuts = [slice(None, None, -1) if a in turned else slice(None) for a in range(len(value.shape))]
    return [_cut(reading, value, cuts, value.shape)]


def _cut(reading: Reading, value: Classed, cuts: Sequence[slice], shape: tuple[int, ...]) -> Classed:
    array = value.array[(*(cuts[a] for a in value.own), slice(None))]
    at = tuple(cuts[a] if n > 1 else slice(None) for a, n in enumerate(value.codes.shape))
    short = [a for a in value.own if shape[a] == 1]
    own = tuple(a for a in value.own if a not in short)
    array = array.reshape((*(shape[a] for a in own), value.classes))
    return _fewer(reading, array, value, lambda codes: codes[at], ("cut", str(at)), shape, own)


def _fewer(
    reading: Reading,
    array: Any,
    value: Classed,
    act: Callable[[np.ndarray], np.ndarray],
    name: tuple[Any, ...],
    shape: tuple[int, ...],
    own: tuple[int, ...],
) -> Classed:
    """What is left of a value whose codes are chosen from."""

    def compute() -> tuple[np.ndarray, np.ndarray]:
        chosen = act(value.codes)
        used, new = np.unique(chosen, return_inverse=True)
        return used, nothing(chosen.ndim) if len(used) == 1 else new.reshape(chosen.shape)

    used, codes = reading.joins.cached((*name, id(value.codes)), compute, value.codes)
    return Classed(picked(array, used), shape, own, codes)


@rule("concatenate")
def _concatenate(reading: Reading, equation: Any, values: list[Classed]) -> list[Classed]:
    axis = equation.params["dimension"]
    shape = tuple(int(n) for n in equation.outvars[0].aval.shape)
    if len(values) == 1:
        return values
    own = {a for v in values for a in v.own} - {axis}
    varying = {a for v in values for a in v.varying}
    values = [merged(v, [a for a in v.own if a == axis or a in varying], reading.joins) for v in values]
    axes = tuple(sorted(own - varying))
    count = len(shape)
    wide = [max(v.codes.shape[a] for v in values) if a != axis else 1 for a in range(count)]
    if math.prod(wide) * shape[axis] > 2**22:
        raise Unclassed
    arrays, codes, first = [], [], 0
    for v in values:
        lengths = [v.array.shape[v.own.index(a)] if a in v.own else 1 for a in axes]
        array = v.array.reshape((*lengths, v.classes))
        held = (*(shape[a] for a in axes), v.classes)
        arrays.append(array if tuple(array.shape) == held else _broadcast_to(array, held))
        own_codes = [v.shape[axis] if a == axis else wide[a] for a in range(count)]
        codes.append(np.broadcast_to(v.codes + first, own_codes))
        first += v.classes
    key = ("concatenate", axis, *(x for v in values for x in (id(v.codes), v.classes, v.shape[axis])))
    joined = reading.joins.cached(key, lambda: np.concatenate(codes, axis), *(v.codes for v in values))
    known = all(isinstance(a, np.ndarray) for a in arrays)
    array = np.concatenate(arrays, -1) if known else jnp.concatenate(arrays, -1)
    return [Classed(array, shape, axes, joined)]


def _broadcast_to(array: Any, shape: tuple[int, ...]) -> Any:
    return np.broadcast_to(array, shape) if isinstance(array, np.ndarray) else jnp.broadcast_to(array, shape)


@rule("gather")
def _gather(reading: Reading, equation: Any, values: list[Classed]) -> list[Classed]:
    """Entries at known places along one axis; any other is left in one piece."""
    value, where = values
    d = equation.params["dimension_numbers"]
    shape = tuple(int(n) for n in equation.outvars[0].aval.shape)
    simple = len(d.start_index_map) == 1 and tuple(d.collapsed_slice_dims) == tuple(d.start_index_map)
    if not simple or not where.known or math.prod(where.shape) > 2**22:
        return in_one_piece(reading, equation, values)
    axis = int(d.start_index_map[0])
    sizes = equation.params["slice_sizes"]
    at = dense(where)[..., 0]
    inside = bool(((at >= 0) & (at < value.shape[axis])).all())
    paired = [int(a) for a in d.operand_batching_dims]
    if not inside or any(sizes[a] != n for a, n in enumerate(value.shape) if a != axis and a not in paired):
        return in_one_piece(reading, equation, values)
    value = merged(value, [a for a in value.own if a == axis or a in paired], reading.joins)
    rest = [a for a in range(len(value.shape)) if a != axis and a not in paired]
    offset = [int(p) for p in d.offset_dims]
    batch = [p for p in range(len(shape)) if p not in offset]
    place = dict(zip(rest, offset, strict=True))

    beside = dict(zip(paired, (int(a) for a in d.start_indices_batching_dims), strict=True))

    def act(codes: np.ndarray) -> np.ndarray:
        full = [value.shape[a] if a == axis or a in beside else n for a, n in enumerate(codes.shape)]
        lines = np.broadcast_to(codes, full).transpose([*paired, axis, *rest])
        lengths = [[-1 if i == beside[a] else 1 for i in range(at.ndim)] for a in paired]
        along = [np.arange(value.shape[a]).reshape(n) for a, n in zip(paired, lengths, strict=True)]
        return lines[(*along, at)].transpose(np.argsort([*batch, *offset]))

    own = tuple(place[a] for a in value.own)
    return [_fewer(reading, value.array, value, act, ("gather", axis, str(d), at.tobytes(), shape), shape, own)]


# ---- reductions ----------------------------------------------------------------------------------------------------

_REDUCERS: dict[str, Any] = {
    "reduce_sum": jnp.sum,
    "reduce_prod": jnp.prod,
    "reduce_max": jnp.max,
    "reduce_min": jnp.min,
    "reduce_and": jnp.all,
    "reduce_or": jnp.any,
}
_IN_NUMPY: dict[str, Any] = {"reduce_max": np.max, "reduce_min": np.min, "reduce_and": np.all, "reduce_or": np.any}


@rule(*_REDUCERS)
def _reduce(reading: Reading, equation: Any, values: list[Classed]) -> list[Classed]:
    name = equation.primitive.name
    (value,) = values
    axes = tuple(int(a) for a in equation.params["axes"])
    if name in ("reduce_and", "reduce_or") and value.dtype != np.bool_:
        return in_one_piece(reading, equation, values)
    kept = [a for a in range(len(value.shape)) if a not in axes]
    gone = [a for a in axes if value.codes.shape[a] > 1]
    times = math.prod(value.shape[a] for a in axes if a not in value.own and a not in gone)
    places = tuple(value.own.index(a) for a in axes if a in value.own)
    if value.known and (gone or places) and name in ("reduce_sum", "reduce_prod"):
        return in_one_piece(reading, equation, values)
    array = value.array
    if places:
        array = (_IN_NUMPY if value.known else _REDUCERS)[name](array, axis=places).astype(value.dtype)
    if times != 1 and name == "reduce_sum":
        array = array * np.asarray(times, array.dtype)
    elif times != 1 and name == "reduce_prod":
        array = array**times
    shape = tuple(value.shape[a] for a in kept)
    place = {a: i for i, a in enumerate(kept)}
    own = tuple(place[a] for a in value.own if a in place)
    if not gone:
        lengths = tuple(value.codes.shape[a] for a in kept)
        return [Classed(array, shape, own, _reshaped(reading, value.codes, lengths))]
    rows, codes = _rows(reading, value.codes, tuple(gone), kept)
    if name != "reduce_sum":
        return [_over_rows(array, rows, codes, shape, own, name)]
    return [_summed(reading, array, rows, codes, shape, own)]


def _rows(
    reading: Reading, codes: np.ndarray, gone: tuple[int, ...], kept: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The different collections of classes that are reduced to one element each, in order, and which stands where."""

    def compute() -> tuple[np.ndarray, np.ndarray]:
        lengths = tuple(codes.shape[a] for a in kept)
        lines = codes.transpose([*kept, *(a for a in range(codes.ndim) if a not in kept)])
        lines = np.sort(lines.reshape((math.prod(lengths), -1)), axis=1)
        if len(lines) == 1:
            return lines, nothing(len(kept))
        rows, which = np.unique(lines, axis=0, return_inverse=True)
        return rows, nothing(len(kept)) if len(rows) == 1 else which.reshape(lengths)

    return reading.joins.cached(("rows", id(codes), gone, tuple(kept)), compute, codes)


def _over_rows(
    array: Any, rows: np.ndarray, codes: np.ndarray, shape: tuple[int, ...], own: tuple[int, ...], name: str
) -> Classed:
    if len(rows) == 1 and name != "reduce_prod":
        rows = np.unique(rows)[None]
    act = _IN_NUMPY[name] if isinstance(array, np.ndarray) else _REDUCERS[name]
    lines = picked(array, rows.reshape(-1)).reshape((*array.shape[:-1], *rows.shape))
    return Classed(act(lines, axis=-1), shape, own, codes)


MOST_COUNTS = 2**24
FEW_SUMMED = 4
"""So few elements are added up as they are."""
MINUS, PLUS, NEITHER = 1.0, float(2**16), float(2**32)


def _summed(
    reading: Reading, array: Any, rows: np.ndarray, codes: np.ndarray, shape: tuple[int, ...], own: tuple[int, ...]
) -> Classed:
    """Each class as often as it is met: a product with the table of counts."""
    classes = array.shape[-1]
    if rows.shape[1] <= FEW_SUMMED or classes > 4 * rows.shape[1] or not jnp.issubdtype(array.dtype, jnp.floating):
        lines = picked(array, rows.reshape(-1)).reshape((*array.shape[:-1], *rows.shape))
        return Classed(jnp.sum(lines, axis=-1).astype(array.dtype), shape, own, codes)
    if len(rows) * classes > MOST_COUNTS or classes >= PLUS:
        raise Unclassed
    counts = np.zeros((classes, len(rows)))
    np.add.at(counts, (rows, np.broadcast_to(np.arange(len(rows))[:, None], rows.shape)), 1.0)
    return Classed(weighted_sum(array, counts), shape, own, codes)


def weighted_sum(array: Any, counts: np.ndarray) -> Any:
    """`array @ counts`; a class that is not met adds nothing, not even 0 times infinity."""
    finite = jnp.isfinite(array)
    total = jnp.matmul(jnp.where(finite, array, 0.0), counts.astype(array.dtype))
    fixed = jax.lax.stop_gradient(array)
    kinds = jnp.where(fixed == -jnp.inf, MINUS, jnp.where(fixed == jnp.inf, PLUS, NEITHER))
    met = jnp.matmul(jnp.where(finite, 0.0, kinds).astype(array.dtype), (counts > 0).astype(array.dtype))
    only = jnp.where(met < PLUS, -jnp.inf, jnp.where((met < NEITHER) & (met % PLUS == 0), jnp.inf, jnp.nan))
    return jnp.where(met == 0, total, only.astype(array.dtype))


@rule("scatter-add")
def _scatter_add(reading: Reading, equation: Any, values: list[Classed]) -> list[Classed]:
    """Sums by group, into zeros at known places along one axis; any other is left in one piece."""
    into, where, value = values
    d = equation.params["dimension_numbers"]
    simple = len(d.scatter_dims_to_operand_dims) == 1 and d.inserted_window_dims == d.scatter_dims_to_operand_dims
    empty = into.known and not np.any(into.array)
    if not simple or d.operand_batching_dims or not where.known or not empty or len(where.shape) != 2:
        return in_one_piece(reading, equation, values)
    to = int(d.scatter_dims_to_operand_dims[0])
    (axis,) = (a for a in range(len(value.shape)) if a not in d.update_window_dims)
    rest = [a for a in range(len(value.shape)) if a != axis]
    slots = dense(where)[..., 0]
    n = into.shape[to]
    others = tuple(into.shape[a] for a in range(len(into.shape)) if a != to)
    inside = ((slots >= 0) & (slots < n)).all() and others == tuple(value.shape[a] for a in rest)
    if axis in value.own:
        value = merged(value, [axis], reading.joins)
    if not inside:
        return in_one_piece(reading, equation, values)
    for other in value.varying:
        if other != axis:
            value = owned(value, other, reading.joins)
    classes = value.classes

    def compute() -> tuple[np.ndarray, np.ndarray]:
        """The classes that meet in each slot, filled up with one more that is zero."""
        own = np.broadcast_to(value.codes.reshape(-1), slots.shape)
        order = np.lexsort((own, slots))
        times = np.bincount(slots, minlength=n)
        place = np.arange(len(slots)) - np.repeat(np.cumsum(times) - times, times)
        lines = np.full((n, int(times.max())), classes)
        lines[slots[order], place] = own[order]
        rows, which = np.unique(lines, axis=0, return_inverse=True)
        return rows, which.reshape(-1)

    rows, codes = reading.joins.cached(("slots", id(value.codes), slots.tobytes(), n), compute, value.codes)
    lengths = [n if a == to else 1 for a in range(len(into.shape))]
    place = dict(zip(rest, (a for a in range(len(into.shape)) if a != to), strict=True))
    own = tuple(place[a] for a in value.own)
    array = jnp.asarray(value.array)
    array = jnp.concatenate([array, jnp.zeros((*array.shape[:-1], 1), array.dtype)], -1)
    codes = _reshaped(reading, codes, tuple(lengths)) if len(rows) > 1 else nothing(len(lengths))
    return [_summed(reading, array, rows, codes, into.shape, own)]


@rule("argmax", "argmin", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _along(reading: Reading, equation: Any, values: list[Classed]) -> list[Classed]:
    """What goes along one own axis does so for every class."""
    (value,) = values
    params = dict(equation.params)
    key = "axes" if "axes" in params else "axis"
    axis = int(params[key][0] if key == "axes" else params[key])
    if axis not in value.own or value.known:
        return in_one_piece(reading, equation, values)
    place = value.own.index(axis)
    params[key] = (place,) if key == "axes" else place
    (array,) = constants.bind(equation.primitive, params, value.array)
    shape = tuple(int(n) for n in equation.outvars[0].aval.shape)
    if key == "axis":
        return [Classed(array, shape, value.own, value.codes)]
    own = tuple(a - (a > axis) for a in value.own if a != axis)
    lengths = tuple(n for a, n in enumerate(value.codes.shape) if a != axis)
    return [Classed(array, shape, own, _reshaped(reading, value.codes, lengths))]
