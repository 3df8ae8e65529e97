"""Evaluate a density in blocks of rows.

The program, read as a flat list of steps, falls apart: what depends on data alone is computed once, when the density
is prepared; what depends on parameters alone, once an evaluation; what varies from row to row, block by block, inside a
sum over the rows; and what follows that sum, once again. Equal rows are put together with their number as a weight.
A program in which the rows meet in another way than a sum is left to the ordinary evaluation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.jaxpr.constants import evaluate
from marginalia.jaxpr.device import on_device
from marginalia.rows.blocks import centred, counted, cut, in_blocks, once, same_memory, told_apart
from marginalia.rows.held import ROWS, Axes, Held, TooLarge, Unreadable, dense, ordinary, rows_last, sizes
from marginalia.rows.operations import Reading, apply, varies
from marginalia.rows.quadratic import leaf
from marginalia.rows.steps import Step, Steps, flatten, get, needed, run
from marginalia.rows.unroll import Unrolled, unroll

FEWEST_ROWS = 4096
"""Below this the ordinary evaluation is as fast, and there is less to compile."""

LONGEST_BLOCK = 16384
"""Rows of a block, however little each of them holds."""

SAFE_PRODUCTS = 1e6
"""Products that cancel may be so large, relative to 1, that the sum keeps ten digits in float64."""


@dataclass(frozen=True, eq=False)
class Leaf:
    """Data computed once that vary from row to row, in blocks: (blocks, atoms..., rows of a block)."""

    axes: Axes
    shape: tuple[int, ...]
    centre: np.ndarray | None
    largest: np.ndarray | None


@dataclass(frozen=True, eq=False)
class RowSum:
    """One sum over the rows: the steps that lead to it, from parameters that cross into them and leaves."""

    steps: tuple[Step, ...]
    output: int
    crossing: tuple[int, ...]
    leaves: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Streamed:
    """A function of parameters, to be called with the arrays of `data` beside them."""

    rows: int
    counted: int
    """Rows after equal ones were put together."""
    block: int
    program: Steps
    parameters: tuple[int, ...]
    constants: dict[int, Held]
    leaves: dict[int, Leaf]
    before: tuple[Step, ...]
    sums: tuple[RowSum, ...]
    after: tuple[Step, ...]
    structure: Any
    data: tuple[Any, ...]
    """What each evaluation is given: the arrays of the leaves, in order, then the weights of the rows."""
    borrowed: dict[int, int]
    """Places in `data` that hold an array of the program's own as it is, with which of these it is."""

    def lent(self, data: Sequence[Any], own: Sequence[Any]) -> tuple[Any, ...]:
        """`data` with the program's own arrays in the places that were borrowed."""
        return tuple(own[self.borrowed[i]] if i in self.borrowed else x for i, x in enumerate(data))

    def __call__(self, params: Any, data: Sequence[Any]) -> Any:
        flat = self.structure.flatten_up_to(params)
        values = dict(self.constants)
        values.update({i: ordinary(jnp.asarray(x)) for i, x in zip(self.parameters, flat, strict=True)})
        run(Reading(self.rows), self.before, values)
        *arrays, weights = data
        by_leaf = {i: a.reshape(leaf.shape) for (i, leaf), a in zip(self.leaves.items(), arrays, strict=True)}
        for one in self.sums:
            crossing = [values[i] for i in one.crossing]
            blocks = tuple(by_leaf[i] for i in one.leaves)
            total = _summed(self, one, crossing, blocks, weights)
            values[one.output] = ordinary(total)
        run(Reading(self.rows), self.after, values)
        (output,) = self.program.outputs
        return dense(get(values, output), self.rows)


@dataclass(frozen=True)
class Whole:
    """Why a density is evaluated with all rows at once."""

    reason: str
    few: bool = False
    """Whether there was nothing to gain."""


def stream(
    function: Callable[[Any, Any], Any],
    params: Any,
    data: Sequence[Any],
    fewest: int | None = None,
    longest_block: int | None = None,
) -> Streamed | Whole:
    """`function(params, data)`, a number, in blocks of rows, or why not.

    `data` are the arrays themselves: what is computed from them alone is computed here.
    """
    fewest = FEWEST_ROWS if fewest is None else fewest
    longest_block = LONGEST_BLOCK if longest_block is None else longest_block
    if _longest(data) < fewest:
        return Whole(f"there are fewer than {fewest} rows", few=True)
    closed = jax.make_jaxpr(function)(params, data)
    program = flatten(closed)
    leaves, structure = jax.tree.flatten(params)
    parameters = program.inputs[: len(leaves)]
    own = dict(zip(program.inputs[len(leaves) :], jax.tree.leaves(list(data)), strict=True))
    given = {**own, **program.closed}
    rows = _longest(given.values())
    try:
        return _prepared(program, parameters, leaves, structure, given, list(own.values()), rows, longest_block)
    except Unreadable as reason:
        return Whole(f"its rows meet in other ways than a sum ({reason})")


def _longest(arrays: Any) -> int:
    return max((n for a in arrays for n in np.shape(a)), default=0)


def _prepared(
    program: Steps,
    parameters: tuple[int, ...],
    abstract: Sequence[Any],
    structure: Any,
    given: dict[int, Any],
    own: list[Any],
    rows: int,
    longest_block: int,
) -> Streamed:
    live = needed(program.steps, program.outputs)
    moving = set(parameters)
    for step in live:
        if moving.intersection(step.reads):
            moving.update(step.outputs)
    fixed = [s for s in live if not moving.intersection(s.outputs)]
    rest = [s for s in live if moving.intersection(s.outputs)]
    border = {i for s in rest for i in s.reads if i not in moving}
    border |= {o for o in program.outputs if isinstance(o, int) and o not in moving}
    values = _computed_once(fixed, given, rows, border)
    constants, varying = told_apart(values)
    if not varying:
        raise Unreadable("no rows")
    varying, weights = counted(varying, rows)
    reaches = {i: centred(v.array) for i, v in varying.items()}
    before, sums, after, width = _split(program, rest, parameters, abstract, constants, varying, reaches, rows)
    different = next(iter(varying.values())).array.shape[-1]
    blocks, block = cut(different, width, longest_block)
    leaves: dict[int, Leaf] = {}
    arrays: list[Any] = []
    borrowed: dict[int, int] = {}
    for i, value in varying.items():
        leaves[i] = Leaf(value.axes, (blocks, *value.array.shape[:-1], block), *reaches[i])
        places = [k for k, x in enumerate(own) if blocks * block == different and _is_own(value.array, x)]
        if places:
            borrowed[len(arrays)] = places[0]
            arrays.append(own[places[0]])
        else:
            arrays.append(on_device(in_blocks(value.array, blocks, block)))
    if weights is None and blocks * block != different:
        weights = np.ones(different)
    if weights is not None:
        weights = on_device(np.pad(weights, (0, blocks * block - different)).reshape(blocks, block))
    return Streamed(
        rows,
        different,
        block,
        program,
        parameters,
        constants,
        leaves,
        before,
        sums,
        after,
        structure,
        (*arrays, weights),
        borrowed,
    )


def _is_own(array: np.ndarray, own: Any) -> bool:
    """Whether a column of data is one that the program was given, as it lies there."""
    one_column = array.size == array.shape[-1] == np.size(own)
    return one_column and array.dtype == jnp.result_type(own) and same_memory(array, np.asarray(own))


# ---- what depends on the data alone --------------------------------------------------------------------------------


def with_rows(array: Any, rows: int) -> Held:
    """An array of data: the axis that is as long as there are rows is theirs, where there is exactly one."""
    shape = tuple(np.shape(array))
    if shape.count(rows) != 1:
        return ordinary(np.asarray(array))
    axes: Axes = tuple((ROWS,) if n == rows else ((n,) if n != 1 else ()) for n in shape)
    kept = np.asarray(array).reshape(tuple(n for n in shape if n != 1))
    atoms = [a for axis in axes for a in axis]
    return Held(np.moveaxis(kept, atoms.index(ROWS), -1), axes)


def _computed_once(steps: Sequence[Step], given: dict[int, Any], rows: int, border: set[int]) -> dict[int, Held]:
    """Every value at the border between data and parameters, in NumPy."""
    values = {i: with_rows(a, rows) for i, a in given.items()}

    def perform(reading: Reading, equation: Any, operands: list[Held]) -> list[Held]:
        try:
            found = apply(reading, equation, operands)
        except TooLarge:
            raise
        except Unreadable:
            found = []
        if not found or reading.exits:
            reading.exits = 0
            whole = [_whole(v, rows) for v in operands]
            return [with_rows(a, rows) for a in evaluate(equation.primitive, equation.params, whole)]
        return [once(_marked(Held(np.asarray(v.array), v.axes), rows)) for v in found]

    steps = needed(steps, border)
    last = {i: at for at, step in enumerate(steps) for i in step.reads if i not in border}
    with jax.ensure_compile_time_eval():
        for at, step in enumerate(steps):
            run(Reading(rows, eager=True), [step], values, perform)
            for i in step.reads:
                # Arrays as long as the data go as soon as nothing reads them any more.
                if last.get(i) == at:
                    values.pop(i, None)
    return {i: values[i] for i in border}


def _marked(value: Held, rows: int) -> Held:
    """A value that turns out as long as there are rows, a row's number for one, is theirs."""
    if ROWS in value.atoms or value.axes.count((rows,)) != 1:
        return value
    place = value.atoms.index(rows)
    if value.held()[place] != rows:
        return value
    axes = tuple((ROWS,) if axis == (rows,) else axis for axis in value.axes)
    return Held(np.moveaxis(value.array, place, -1), axes)


def _whole(value: Held, rows: int) -> np.ndarray:
    full = tuple(rows if a == ROWS else a for a in rows_last(value.atoms, value.atoms))
    array = np.broadcast_to(value.array, full)
    if ROWS in value.atoms:
        array = np.moveaxis(array, -1, value.atoms.index(ROWS))
    return np.array(array).reshape(sizes(value.axes, rows))


# ---- what depends on parameters ------------------------------------------------------------------------------------


def _split(
    program: Steps,
    steps: Sequence[Step],
    parameters: tuple[int, ...],
    abstract: Sequence[Any],
    constants: dict[int, Held],
    varying: dict[int, Held],
    reaches: dict[int, tuple[np.ndarray | None, np.ndarray | None]],
    rows: int,
) -> tuple[tuple[Step, ...], tuple[RowSum, ...], tuple[Step, ...], int]:
    """Steps before the rows, the sums over rows, and the steps after them; the widest array of a row."""
    before: list[Step] = []
    inside: list[Step] = []
    after: list[Step] = []
    exits: list[Step] = []
    followed: set[int] = set()
    rowwise = set(varying)
    width = 1

    def trace(params: list[Any], blocks: dict[int, Any]) -> int:
        nonlocal width
        values = dict(constants)
        values.update({i: ordinary(x) for i, x in zip(parameters, params, strict=True)})
        values.update({i: _leaf(x, varying[i].axes, *reaches[i]) for i, x in blocks.items()})
        for step in steps:
            reading = Reading(rows, forms=True)
            run(reading, [step], values)
            results = [values[i] for i in step.outputs]
            by_row = rowwise.intersection(step.reads)
            if followed.intersection(step.reads):
                if by_row or any(varies(v) for v in results):
                    raise Unreadable("rows that meet their own sum")
                after.append(step)
                followed.update(step.outputs)
            elif reading.exits:
                if any(v.axes for v in results):
                    raise Unreadable("a sum over rows that is no number")
                exits.append(step)
                followed.update(step.outputs)
            elif by_row:
                inside.append(step)
                rowwise.update(i for i in step.outputs)
            else:
                before.append(step)
            for i, v in zip(step.outputs, results, strict=True):
                if varies(v):
                    # What has a form is not computed where the form is summed.
                    width = width if v.form is not None else max(width, math.prod(v.array.shape[:-1]))
                    if i not in rowwise:
                        raise Unreadable("rows out of nothing")
        if any(isinstance(o, int) and o in rowwise for o in program.outputs):
            raise Unreadable("rows in the result")
        return 0

    blocks = {i: jax.ShapeDtypeStruct((*v.array.shape[:-1], 2), v.array.dtype) for i, v in varying.items()}
    jax.eval_shape(trace, list(abstract), blocks)
    sums = []
    for step in exits:
        own = needed(inside, step.reads)
        made = {i for s in own for i in s.outputs}
        read = {i for s in (*own, step) for i in s.reads} - made
        leaves = tuple(i for i in varying if i in read)
        crossing = tuple(sorted(i for i in read if i not in varying and i not in constants))
        sums.append(RowSum((*own, step), step.outputs[0], crossing, leaves))
    return tuple(before), tuple(sums), tuple(after), width


def _leaf(array: Any, axes: Axes, centre: np.ndarray | None, largest: np.ndarray | None) -> Held:
    value = Held(array, axes)
    return value if centre is None or largest is None else Held(array, axes, leaf(value, centre, largest))


# ---- one sum over the rows -----------------------------------------------------------------------------------------


def _summed(streamed: Streamed, one: RowSum, crossing: Sequence[Held], blocks: tuple[Any, ...], weights: Any) -> Any:
    """The sum over all blocks, with a derivative that goes through the blocks once, value and gradient together."""
    moving = [i for i, v in enumerate(crossing) if jnp.issubdtype(v.dtype, jnp.inexact)]

    def of_block(arrays: Sequence[Any], block: Sequence[Any], weight: Any, forms: bool) -> tuple[Any, list[Any]]:
        reading = Reading(streamed.rows, weight, forms)
        values = dict(streamed.constants)
        values.update({i: Held(a, v.axes) for i, a, v in zip(one.crossing, arrays, crossing, strict=True)})
        for i, array in zip(one.leaves, block, strict=True):
            own = streamed.leaves[i]
            values[i] = _leaf(array, own.axes, own.centre, own.largest) if forms else Held(array, own.axes)
        run(reading, one.steps, values)
        return values[one.output].array, reading.bounds

    def over_blocks(act: Callable[[Any], Any], blocks: Any, weights: Any) -> Any:
        if blocks[0].shape[0] == 1:
            return act(jax.tree.map(lambda x: x[0], (blocks, weights)))
        shapes = jax.eval_shape(act, jax.tree.map(lambda x: x[0], (blocks, weights)))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def step(total: Any, block: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, act(block)), None

        return jax.lax.scan(step, zero, (blocks, weights))[0]

    @functools.cache
    def narrow(forms: bool) -> Unrolled | None:
        each = [jax.ShapeDtypeStruct(b.shape[1:], b.dtype) for b in (*blocks, *_some(weights))]

        def of_all(arrays: Sequence[Any], block: Sequence[Any]) -> Any:
            weight = None if weights is None else block[-1]
            return of_block(arrays, block[: len(blocks)], weight, forms)[0]

        return unroll(of_all, [v.array for v in crossing], each)

    def value(unrolled: Unrolled | None, forms: bool, arrays: Any, blocks: Any, weights: Any) -> Any:
        if unrolled is not None:
            handed = unrolled.handed(arrays)
            return over_blocks(lambda b: unrolled.value(*handed, (*b[0], *_some(b[1]))), blocks, weights)
        return over_blocks(lambda b: of_block(arrays, b[0], b[1], forms)[0], blocks, weights)

    def value_and_slopes(unrolled: Unrolled | None, forms: bool, arrays: Any, blocks: Any, weights: Any) -> Any:
        moved = [arrays[i] for i in moving]

        def every(moved: list[Any]) -> list[Any]:
            own = dict(zip(moving, moved, strict=True))
            return [own.get(i, a) for i, a in enumerate(arrays)]

        def act(block: Any) -> Any:
            return jax.value_and_grad(lambda x: of_block(every(x), block[0], block[1], forms)[0])(moved)

        if unrolled is None:
            return over_blocks(act, blocks, weights)
        handed, pull, fixed = jax.vjp(lambda x: unrolled.handed(every(x)), moved, has_aux=True)
        found, slopes = over_blocks(
            lambda b: unrolled.value_and_slopes(handed, fixed, (*b[0], *_some(b[1]))), blocks, weights
        )
        return found, pull(slopes)[0]

    def either(act: Callable[..., Any], arrays: Any, blocks: Any, weights: Any) -> Any:
        first = [b[0][..., :2] for b in blocks]
        bounds = of_block(arrays, first, None, True)[1]
        if not bounds:
            return act(narrow(False), False, arrays, blocks, weights)
        scale = float(jnp.finfo(jnp.result_type(bounds[0])).eps / np.finfo(np.float64).eps)
        safe = everywhere(functools.reduce(jnp.maximum, bounds) < SAFE_PRODUCTS / math.sqrt(scale))
        # Data so far away are rare: that way has to be right, and quick to compile.
        near, far = functools.partial(act, narrow(True), True), functools.partial(act, None, False)
        return jax.lax.cond(safe, near, far, arrays, blocks, weights)

    @jax.custom_jvp
    def total(arrays: Any, blocks: Any, weights: Any) -> Any:
        return either(value, arrays, blocks, weights)

    @total.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        found, slopes = either(value_and_slopes, *primals)
        # What the sum gains along a complex number is the real part of its slope times the change.
        gains = (jnp.real(jnp.sum(slope * tangents[0][i])) for i, slope in zip(moving, slopes, strict=True))
        pushed = sum(gains, jnp.zeros_like(found))
        return found, pushed

    return total([jnp.asarray(v.array) for v in crossing], list(blocks), weights)


def _some(weights: Any) -> tuple[Any, ...]:
    return () if weights is None else (weights,)


@jax.custom_batching.custom_vmap
def everywhere(safe: Any) -> Any:
    """Whether it holds at all points evaluated side by side: a choice for each of them would compute both ways."""
    return safe


@everywhere.def_vmap
def _everywhere(axis_size: int, in_batched: Any, safe: Any) -> Any:
    return jnp.all(safe), False
