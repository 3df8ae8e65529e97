"""What each primitive does to values held with the rows last."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from marginalia.jaxpr import constants
from marginalia.lanes.interpret import ELEMENTWISE
from marginalia.lanes.structure import reshape_blocks
from marginalia.rows.held import (
    ROWS,
    Atoms,
    Axes,
    Held,
    TooLarge,
    Unreadable,
    align,
    broadcast_all,
    dense,
    ordinary,
    rows_last,
)


@dataclass(eq=False)
class Reading:
    """One evaluation: how many rows there are, what each row counts, and whether sums of products are collected."""

    rows: int
    weights: Any = None
    forms: bool = False
    bounds: list[Any] = field(default_factory=list)
    """Filled while reading: for each sum of products, the largest of the products that cancel in it."""
    eager: bool = False
    """Whether the values are data, to be computed in NumPy wherever it agrees."""
    nested: bool = False
    """Whether this is inside a function whose derivative is given: nobody asks for those of what it calls."""
    exits: int = 0
    """How many sums over the rows have been met."""


MOST_NUMBERS = 2**28
"""No array computed once from the data has more."""

SMALL = 4096
"""Constants of up to so many numbers are computed with in NumPy."""

type Rule = Callable[[Reading, Any, list[Held]], list[Held]]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register what one or several primitives do."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def varies(value: Held) -> bool:
    """Whether the value changes from row to row."""
    return value.row_axis is not None and value.array.shape[-1] != 1


def apply(reading: Reading, equation: Any, values: list[Held]) -> list[Held]:
    """The outputs of one equation."""
    name = equation.primitive.name
    if name in RULES:
        return RULES[name](reading, equation, values)
    if name in ELEMENTWISE:
        return [elementwise(reading, equation, values)]
    if any(varies(v) for v in values):
        raise Unreadable(name)
    arrays = [dense(v, reading.rows) for v in values]
    return [ordinary(o) for o in constants.bind(equation.primitive, equation.params, *arrays)]


# ---- elementwise -------------------------------------------------------------------------------------------------


def elementwise(reading: Reading, equation: Any, values: list[Held]) -> Held:
    from marginalia.rows.quadratic import combine

    name = equation.primitive.name
    if name == "select_n":
        chosen = _decided(values)
        if chosen is not None:
            return chosen
    result = bind_elementwise(reading, equation, values)
    if reading.forms and varies(result):
        return replace(result, form=combine(reading, equation, values))
    return result


def bind_elementwise(reading: Reading, equation: Any, values: Sequence[Held]) -> Held:
    axes, arrays = align(values, reading.rows)
    if reading.eager and math.prod(np.broadcast_shapes(*[np.shape(a) for a in arrays])) > MOST_NUMBERS:
        raise TooLarge("a table of the data alone too large to be kept")
    known = constants.elementwise(equation.primitive.name, equation.params, arrays)
    if known is not None and (reading.eager or known.size <= SMALL):
        return Held(known, axes)
    (array,) = constants.bind(equation.primitive, equation.params, *broadcast_all(arrays))
    return Held(array, axes)


def _decided(values: list[Held]) -> Held | None:
    """A choice that is the same everywhere and known."""
    which, *cases = values
    if not isinstance(which.array, np.ndarray) or which.array.size != 1:
        return None
    chosen = cases[int(which.array.reshape(-1)[0])]
    wide = next((c for c in cases if c is not chosen), chosen)
    # The other case may be the one that knows its axes.
    return chosen if chosen.axes or not wide.axes else replace(chosen, array=chosen.array)


# ---- structure ---------------------------------------------------------------------------------------------------


def structural(act: Callable[[Reading, Any, Held], Held]) -> Rule:
    """A rule that moves positions and computes nothing: it does the same to the parts of a sum of products."""

    def read(reading: Reading, equation: Any, values: list[Held]) -> list[Held]:
        value = values[0]
        result = act(reading, equation, value.without_form())
        if value.form is not None:
            result = replace(result, form=value.form.moved(equation, lambda part: act(reading, equation, part)))
        return [result]

    return read


def rebuild(value: Held, axes: Axes, lengths: Sequence[int]) -> Held:
    """The same numbers under other atoms, the order of what is not the rows kept."""
    atoms = [a for axis in axes for a in axis]
    return Held(value.array.reshape(rows_last(tuple(lengths), atoms)), axes)


@rule("broadcast_in_dim")
@structural
def _broadcast(reading: Reading, equation: Any, value: Held) -> Held:
    return spread(value, equation.params["broadcast_dimensions"], equation.params["shape"])


def spread(value: Held, places: Sequence[int], shape: Sequence[int]) -> Held:
    """The value's axes at `places` (increasing) among those of a larger shape, repeated along the others."""
    source = {place: axis for axis, place in enumerate(places)}
    held = value.held()
    starts = np.cumsum([0, *(len(a) for a in value.axes)])
    axes: list[Atoms] = []
    lengths: list[int] = []
    for place, n in enumerate(shape):
        own = value.axes[source[place]] if place in source else ()
        if own:
            axes.append(own)
            lengths += _span(held, starts, source[place])
        else:
            axes.append((n,) if n != 1 else ())
            lengths += [1] if n != 1 else []
    return rebuild(value, tuple(axes), lengths)


@rule("reshape", "squeeze", "expand_dims")
@structural
def _reshape(reading: Reading, equation: Any, value: Held) -> Held:
    if equation.params.get("dimensions") is not None and equation.primitive.name == "reshape":
        raise Unreadable("reshape")
    shape = tuple(equation.outvars[0].aval.shape)
    old = tuple(equation.invars[0].aval.shape)
    held = value.held()
    starts = np.cumsum([0, *(len(a) for a in value.axes)])
    axes: list[Atoms] = [()] * len(shape)
    lengths: list[int] = []
    for a, b in reshape_blocks(old, shape):
        atoms = [(atom, n) for axis in a for atom, n in zip(value.axes[axis], _span(held, starts, axis), strict=True)]
        for axis in b:
            mine, atoms = _consume(atoms, shape[axis], reading.rows)
            axes[axis] = tuple(atom for atom, _ in mine)
            lengths += [n for _, n in mine]
        if atoms:
            raise Unreadable("reshape")
    return rebuild(value, tuple(axes), lengths)


def _span(held: tuple[int, ...], starts: Any, axis: int) -> tuple[int, ...]:
    return held[starts[axis] : starts[axis + 1]]


def _consume(atoms: list[tuple[int, int]], size: int, rows: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The first atoms that make up an axis of the given length, the last of them split where it must be; the rest."""
    mine: list[tuple[int, int]] = []
    while size > 1:
        if not atoms:
            raise Unreadable("reshape")
        (atom, n), *rest = atoms
        length = rows if atom == ROWS else atom
        if size % length == 0:
            mine.append((atom, n))
            size //= length
            atoms = rest
            continue
        if atom == ROWS or length % size:
            raise Unreadable("reshape")
        mine.append((size, 1 if n == 1 else size))
        atoms = [(length // size, 1 if n == 1 else length // size), *rest]
        size = 1
    return mine, atoms


@rule("transpose")
@structural
def _transpose(reading: Reading, equation: Any, value: Held) -> Held:
    return transposed(value, equation.params["permutation"])


def transposed(value: Held, order: Sequence[int]) -> Held:
    """The axes in another order."""
    starts = np.cumsum([0, *(len(a) for a in value.axes)])
    places = [p for axis in order for p in range(starts[axis], starts[axis + 1])]
    physical = list(rows_last(range(len(value.atoms)), value.atoms))
    axes = tuple(value.axes[axis] for axis in order)
    wanted = rows_last(places, [a for axis in axes for a in axis])
    return Held(value.array.transpose([physical.index(p) for p in wanted]), axes)


@rule("slice")
@structural
def _slice(reading: Reading, equation: Any, value: Held) -> Held:
    p = equation.params
    old = equation.invars[0].aval.shape
    steps = p["strides"] or (1,) * len(old)
    held = value.held()
    axes: list[Atoms] = []
    lengths: list[int] = []
    index: list[slice] = []
    at = 0
    for axis, (a, b, s) in enumerate(zip(p["start_indices"], p["limit_indices"], steps, strict=True)):
        own = value.axes[axis]
        mine = held[at : at + len(own)]
        at += len(own)
        n = -(-(b - a) // s)
        if n == old[axis]:
            axes.append(own)
            lengths += mine
            index += [slice(None)] * len(own)
        elif all(h == 1 for h in mine) and ROWS not in own:
            axes.append((n,) if n != 1 else ())
            lengths += [1] if n != 1 else []
            index += [slice(None)] * len(own)
        elif len(own) == 1 and own[0] != ROWS:
            axes.append((n,) if n != 1 else ())
            lengths += [n] if n != 1 else []
            index.append(slice(a, b, s))
        else:
            raise Unreadable("slice")
    array = value.array[rows_last(index, value.atoms)]
    return rebuild(replace(value, array=array), tuple(axes), lengths)


@rule("concatenate")
def _concatenate(reading: Reading, equation: Any, values: list[Held]) -> list[Held]:
    axis = equation.params["dimension"]
    if not any(varies(v) for v in values):
        arrays = [dense(v, reading.rows) for v in values]
        return [ordinary(o) for o in constants.bind(equation.primitive, equation.params, *arrays)]
    if any(ROWS in v.axes[axis] or len(v.axes[axis]) > 1 for v in values):
        raise Unreadable("concatenate")
    # All but the joined axis in common atoms, the joined one held in full.
    blank = [replace(v, axes=(*v.axes[:axis], (), *v.axes[axis + 1 :])) for v in values]
    axes = _common(blank, reading.rows)
    lengths = [var.aval.shape[axis] for var in equation.invars]
    place = sum(len(a) for a in axes[:axis])
    pieces = []
    for value, n in zip(values, lengths, strict=True):
        wanted = (*axes[:axis], (n,), *axes[axis + 1 :])
        full = value if value.axes[axis] else replace(value, axes=(*value.axes[:axis], (), *value.axes[axis + 1 :]))
        pieces.append(_refined(full, wanted, reading.rows))
    before_rows = ROWS not in [a for x in axes[:axis] for a in x]
    place = place if before_rows else place - 1
    shape = list(np.broadcast_shapes(*[(*p.shape[:place], 1, *p.shape[place + 1 :]) for p in pieces]))
    spread = []
    for piece, n in zip(pieces, lengths, strict=True):
        shape[place] = n
        spread.append(jnp.broadcast_to(piece, shape))
    total = sum(lengths)
    return [Held(jnp.concatenate(spread, place), (*axes[:axis], (total,), *axes[axis + 1 :]))]


def _common(values: list[Held], rows: int) -> Axes:
    from marginalia.rows.held import common_axes

    return common_axes([_no_lengths(v) for v in values], rows)


def _no_lengths(value: Held) -> Held:
    """For agreeing on axes only: the array is not looked at but for its lengths."""
    lengths = tuple(1 for axis in value.axes for _ in axis)
    return Held(np.empty(lengths, bool), value.axes)


def _refined(value: Held, axes: Axes, rows: int) -> Any:
    from marginalia.rows.held import refine

    return refine(value, axes, rows).array


# ---- reductions --------------------------------------------------------------------------------------------------

_REDUCERS: dict[str, Any] = {
    "reduce_sum": jnp.sum,
    "reduce_prod": jnp.prod,
    "reduce_max": jnp.max,
    "reduce_min": jnp.min,
}
_LOGICAL: dict[str, Any] = {"reduce_and": jnp.all, "reduce_or": jnp.any}


@rule(*_REDUCERS, *_LOGICAL)
def _reduce(reading: Reading, equation: Any, values: list[Held]) -> list[Held]:
    from marginalia.rows.quadratic import contract

    name = equation.primitive.name
    (value,) = values
    axes = equation.params["axes"]
    if name in _LOGICAL and value.dtype != np.bool_:
        raise Unreadable(name)
    gone = {i for axis in axes for i in _places(value, axis)}
    atoms = value.atoms
    row = next((i for i in gone if atoms[i] == ROWS), None)
    some = all(value.held())  # a sum of nothing is nothing to contract
    if reading.forms and name == "reduce_sum" and value.form is not None and gone and row is None and some:
        contracted = contract(reading, value, axes)
        if contracted is not None:
            return [contracted]
    held = value.held()
    kept = tuple(axis for i, axis in enumerate(value.axes) if i not in axes)
    array: Any = value.array
    if row is not None and held[row] != 1:
        if name != "reduce_sum":
            raise Unreadable(f"{name} over all rows")
        reading.exits += 1
        if reading.weights is not None:
            # A row that counts for nothing adds nothing, not even 0 times minus infinity.
            array = jnp.where(reading.weights > 0, array * reading.weights, 0.0)
    physical = list(rows_last(range(len(atoms)), atoms))
    reduce = {**_REDUCERS, **_LOGICAL}[name]
    array = reduce(array, axis=tuple(physical.index(i) for i in gone))
    array = array.astype(value.dtype)
    once = math.prod(reading.rows if atoms[i] == ROWS else atoms[i] for i in gone if held[i] == 1)
    if once == 0 and name not in ("reduce_sum", "reduce_prod"):
        raise Unreadable(f"{name} of nothing")
    if once != 1 and name == "reduce_sum":
        array = array * np.asarray(once, array.dtype)
    elif once != 1 and name == "reduce_prod":
        array = array**once
    return [Held(array, kept)]


def _places(value: Held, axis: int) -> range:
    start = sum(len(a) for a in value.axes[:axis])
    return range(start, start + len(value.axes[axis]))


# ---- products and solves -------------------------------------------------------------------------------------------


@rule("dot_general")
def _dot(reading: Reading, equation: Any, values: list[Held]) -> list[Held]:
    if not any(varies(v) for v in values):
        arrays = [dense(v, reading.rows) for v in values]
        return [ordinary(o) for o in constants.bind(equation.primitive, equation.params, *arrays)]
    (contracted, batched) = equation.params["dimension_numbers"]
    first, second = (v.without_form() for v in values)
    letters: dict[tuple[int, int], tuple[str, ...]] = {}
    fresh = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    merged: list[Atoms] = []
    for i, j in [*zip(*contracted, strict=True), *zip(*batched, strict=True)]:
        if first.axes[i] != second.axes[j]:
            # Where one of them does not know of the rows, or holds an axis in other pieces.
            axes = _common([Held(first.array, (first.axes[i],)), Held(second.array, (second.axes[j],))], reading.rows)
            first, second = _with_axis(first, i, axes[0], reading.rows), _with_axis(second, j, axes[0], reading.rows)
        names = tuple(next(fresh) for _ in first.axes[i])
        letters[0, i] = letters[1, j] = names
        merged.append(first.axes[i])
    if any(ROWS in axis for axis in merged[: len(contracted[0])]):
        raise Unreadable("a product over all rows")
    for side, value in enumerate((first, second)):
        for axis, own in enumerate(value.axes):
            letters.setdefault((side, axis), tuple(next(fresh) for _ in own))
    out = [(0, i) for i in batched[0]]
    for side, value in enumerate((first, second)):
        used = (*contracted[side], *batched[side])
        out += [(side, axis) for axis in range(len(value.axes)) if axis not in used]
    axes = tuple((first, second)[side].axes[axis] for side, axis in out)
    words, arrays = [], []
    for side, value in enumerate((first, second)):
        word = [x for axis in range(len(value.axes)) for x in letters[side, axis]]
        words.append("".join(rows_last(word, value.atoms)))
        # Lengths of one along what is summed must be spelled out: einsum would count them once.
        full = list(value.array.shape)
        for place, atom in enumerate(rows_last(value.atoms, value.atoms)):
            summed = any(words[side][place] in letters[0, i] for i in contracted[0])
            if summed and full[place] == 1 and atom != ROWS:
                full[place] = atom
        arrays.append(jnp.broadcast_to(value.array, full))
    result = [x for key in out for x in letters[key]]
    atoms = [a for axis in axes for a in axis]
    spec = f"{words[0]},{words[1]}->{''.join(rows_last(result, atoms))}"
    preferred = equation.params.get("preferred_element_type")
    array = jnp.einsum(spec, *arrays, precision=equation.params.get("precision"), preferred_element_type=preferred)
    return [Held(array, axes)]


def _with_axis(value: Held, axis: int, atoms: Atoms, rows: int) -> Held:
    from marginalia.rows.held import refine

    return refine(value, (*value.axes[:axis], atoms, *value.axes[axis + 1 :]), rows)


@rule("triangular_solve")
def _solve(reading: Reading, equation: Any, values: list[Held]) -> list[Held]:
    """A system per component with a right-hand side per row: the rows are the columns of one right-hand side."""
    from marginalia.rows.quadratic import solved

    a, b = values
    if not varies(a) and not varies(b):
        arrays = [dense(v, reading.rows) for v in values]
        return [ordinary(o) for o in constants.bind(equation.primitive, equation.params, *arrays)]
    *lead, own, last = b.axes
    if varies(a) or not equation.params["left_side"] or len(own) != 1 or ROWS in own:
        raise Unreadable("triangular_solve")
    if (ROWS in last) == any(ROWS in axis for axis in lead) or (last and last[-1] != ROWS):
        raise Unreadable("triangular_solve")
    n = equation.invars[1].aval.shape[-2]
    # Whether the rows are systems of their own or columns of one: held, they are columns.
    axes, (left, right) = align([_lead(a), _lead(b)], reading.rows)
    if ROWS in [x for axis in axes for x in axis]:
        left, right = left[..., 0], right[..., 0]
    shape = np.broadcast_shapes(left.shape, right.shape)
    matrix = jnp.broadcast_to(a.array.reshape((*left.shape, n, n)), (*shape, n, n))
    rest = b.array.shape[right.ndim + 1 :]
    inner = jnp.broadcast_to(b.array, (*b.array.shape[: right.ndim], n, *rest))
    columns = jnp.broadcast_to(inner.reshape((*right.shape, n, -1)), (*shape, n, math.prod(rest)))
    (array,) = constants.bind(equation.primitive, equation.params, matrix, columns)
    result = Held(array.reshape((*shape, n, *rest)), (*axes, (n,), last))
    if reading.forms and b.form is not None and len(last) <= 1:
        return [replace(result, form=solved(reading, equation, matrix, b, result.axes, n))]
    return [result]


def _lead(value: Held) -> Held:
    """All axes but the last two, as an array of their lengths alone."""
    count = sum(len(a) for a in value.axes[:-2])
    atoms = value.atoms[:count]
    return Held(np.empty(rows_last(value.held()[:count], atoms), bool), value.axes[:-2])
