"""Programs inside a program on values held by classes: functions with derivatives of their own, choices, loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from marginalia.classes.rules import Reading, apply, in_one_piece, rule
from marginalia.classes.value import Classed, Unclassed, align, in_full, nothing, owned, spread
from marginalia.classes.value import known as known_value
from marginalia.jaxpr import constants
from marginalia.jaxpr.calls import scan_counts
from marginalia.lanes.calls import ROOM
from marginalia.rows.steps import Steps, flatten, needed


def inside(reading: Reading, program: Steps, inputs: Sequence[Classed]) -> list[Classed]:
    """The outputs of a program that is called."""
    values = dict(zip(program.inputs, inputs, strict=True))
    values.update({i: _closed(x) for i, x in program.closed.items()})
    for step in needed(program.steps, program.outputs):
        operands = [_get(values, i) for i in step.inputs]
        results = apply(reading, step.equation, operands)
        reading.count(step.equation, results)
        values.update(zip(step.outputs, results, strict=True))
    return [_get(values, o) for o in program.outputs]


def _closed(x: Any) -> Classed:
    return in_full(x) if isinstance(x, jax.core.Tracer) or _extended(x) else known_value(np.asarray(x))


def _extended(x: Any) -> bool:
    return jax.dtypes.issubdtype(jnp.result_type(x), jax.dtypes.extended)


def _get(values: dict[int, Classed], at: int | np.ndarray) -> Classed:
    return values[at] if isinstance(at, int) else known_value(np.asarray(at))


class Layout:
    """How a value is held, without its numbers."""

    def __init__(self, value: Classed):
        self.shape, self.own, self.codes, self.classes = value.shape, value.own, value.codes, value.classes

    def of(self, array: Any) -> Classed:
        return Classed(array, self.shape, self.own, self.codes)

    @property
    def lengths(self) -> tuple[int, ...]:
        return (*(self.shape[a] for a in self.own), self.classes)

    def same(self, other: Layout) -> bool:
        return self.own == other.own and self.lengths == other.lengths and self.codes is other.codes

    def holding(self, value: Classed, reading: Reading) -> Any:
        """The numbers of a value that is held no finer than this."""
        blank = Classed(np.empty(self.lengths, bool), self.shape, self.own, self.codes)
        if value.own == self.own and value.codes is self.codes:
            return jnp.broadcast_to(value.array, self.lengths)
        if not self.codes.size > 1:
            value = spread(value)
        own, codes, (_, array) = align([_unknown(blank), value], reading.joins)
        if own != self.own or codes.shape != self.codes.shape:
            raise Unclassed
        return jnp.broadcast_to(array, self.lengths)


def _unknown(value: Classed) -> Classed:
    return Classed(jnp.zeros(value.array.shape), value.shape, value.own, value.codes)


def common(values: Sequence[Classed], reading: Reading) -> Layout:
    """A layout in which all of the values can be held."""
    own, codes, arrays = align([_unknown(v) for v in values], reading.joins)
    lengths = np.broadcast_shapes(*(tuple(a.shape) for a in arrays))
    return Layout(Classed(np.empty(lengths, bool), max((v.shape for v in values), key=len), own, codes))


@rule("custom_jvp_call")
def _custom_jvp(reading: Reading, equation: Any, values: list[Classed]) -> list[Classed]:
    """A function with a derivative of its own keeps it: the derivative's program is held in the same way."""
    if all(v.known for v in values):
        return inside(Reading(reading.joins), flatten(_closed_jaxpr(equation.params["call_jaxpr"])), values)
    reals = all(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in (*equation.invars, *equation.outvars))
    if all(not v.varying for v in values) or not reals:
        return in_one_piece(reading, equation, values)
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
    moving = [i for i, v in enumerate(values) if not v.known]
    fixed = {i: v for i, v in enumerate(values) if v.known}
    layouts_in = [Layout(v) for v in values]
    program = flatten(_closed_jaxpr(equation.params["call_jaxpr"]))
    derivative: list[Steps] = []

    def held(arrays: Sequence[Any]) -> list[Classed]:
        return [fixed[i] if i in fixed else layouts_in[i].of(a) for i, a in enumerate(arrays)]

    def pushed_of(primals: Sequence[Any], tangents: Sequence[Any]) -> list[Classed]:
        if not derivative:
            derivative.append(flatten(_push(equation, avals, moving)))
        inputs = held(primals) + [layouts_in[i].of(t) for i, t in zip(moving, tangents, strict=True)]
        return inside(Reading(reading.joins, nested=True), derivative[0], inputs)

    arrays = [np.zeros(()) if v.known else v.array for v in values]
    layouts: list[Layout] = []

    def lay_out(arrays: list[Any]) -> int:
        outputs = inside(reading, program, held(arrays))
        if reading.nested:
            layouts[:] = [_of_all(o, values, reading) for o in outputs]
            return 0
        tangents = pushed_of(arrays, [arrays[i] for i in moving])
        layouts[:] = [common(pair, reading) for pair in zip(outputs, tangents, strict=True)]
        return 0

    jax.eval_shape(lay_out, [jax.ShapeDtypeStruct(np.shape(a), jnp.result_type(a)) for a in arrays])

    @jax.custom_jvp
    def function(*arrays: Any) -> list[Any]:
        outputs = inside(Reading(reading.joins), program, held(arrays))
        return [layout.holding(o, reading) for o, layout in zip(outputs, layouts, strict=True)]

    @function.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        pushed = pushed_of(primals, [tangents[i] * ROOM for i in moving])
        held_in = [layout.holding(o, reading) for o, layout in zip(pushed, layouts, strict=True)]
        return function(*primals), [x / ROOM for x in held_in]

    found = function(*[jnp.asarray(a) for a in arrays])
    return [layout.of(a) for layout, a in zip(layouts, found, strict=True)]


def _of_all(output: Classed, operands: Sequence[Classed], reading: Reading) -> Layout:
    """A layout that holds what is computed element by element from the operands, or anything at all."""
    if all(v.shape in (output.shape, ()) for v in operands):
        return common([output, *operands], reading)
    own = tuple(a for a, n in enumerate(output.shape) if n != 1)
    lengths = (*(output.shape[a] for a in own), 1)
    return Layout(Classed(np.empty(lengths, bool), output.shape, own, nothing(len(output.shape))))


def _closed_jaxpr(program: Any) -> core.ClosedJaxpr:
    return program if isinstance(program, core.ClosedJaxpr) else core.ClosedJaxpr(program, ())


def _push(equation: Any, avals: Sequence[Any], moving: Sequence[int]) -> core.ClosedJaxpr:
    def push(primals: list[Any], tangents: list[Any]) -> Any:
        def of_moving(*moved: Any) -> Any:
            arguments = list(primals)
            for i, x in zip(moving, moved, strict=True):
                arguments[i] = x
            return constants.bind(equation.primitive, equation.params, *arguments)

        return jax.jvp(of_moving, [primals[i] for i in moving], tangents)[1]

    return jax.make_jaxpr(push)(list(avals), [avals[i] for i in moving])


@rule("scan")
def _scan(reading: Reading, equation: Any, values: list[Classed]) -> list[Classed]:
    """A loop over the first axis of what is scanned, its carried values held by classes that last."""
    if all(not v.varying for v in values):
        return in_one_piece(reading, equation, values)
    n_constants, n_carried = scan_counts(equation)
    given, carried = values[:n_constants], values[n_constants : n_constants + n_carried]
    scanned = [owned(v, 0, reading.joins) for v in values[n_constants + n_carried :]]
    program = flatten(equation.params["jaxpr"])
    length, reverse = int(equation.params["length"]), bool(equation.params["reverse"])
    layouts = [Layout(v) for v in carried]
    steps = [_one_step(v) for v in scanned]
    collected: list[Layout] = []

    def body(count: Reading, carry: Sequence[Any], inputs: Sequence[Any]) -> list[Classed]:
        own = [layout.of(a) for layout, a in zip(layouts, carry, strict=True)]
        return inside(count, program, [*given, *own, *(s.of(a) for s, a in zip(steps, inputs, strict=True))])

    def shapes(layout: Layout, dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(layout.lengths, dtype)

    for _ in range(8):
        settled = True

        def lay_out(carry: list[Any], inputs: list[Any]) -> int:
            nonlocal settled
            counting = Reading(reading.joins)
            outputs = body(counting, carry, inputs)
            for j, (layout, out) in enumerate(zip(layouts, outputs, strict=False)):
                wider = common([layout.of(carry[j]), out], reading)
                if not wider.same(layout):
                    layouts[j], settled = wider, False
            collected[:] = [Layout(o) for o in outputs[n_carried:]]
            if settled:
                reading.computed += counting.computed * length
                reading.otherwise += counting.otherwise * length
            return 0

        jax.eval_shape(
            lay_out,
            [shapes(layout, v.dtype) for layout, v in zip(layouts, carried, strict=True)],
            [jax.ShapeDtypeStruct(s.lengths, v.dtype) for s, v in zip(steps, scanned, strict=True)],
        )
        if settled:
            break
    else:
        raise Unclassed

    def step(carry: list[Any], inputs: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs = body(Reading(reading.joins), carry, inputs)
        left = [layout.holding(o, reading) for layout, o in zip(layouts, outputs, strict=False)]
        return left, [layout.holding(o, reading) for layout, o in zip(collected, outputs[n_carried:], strict=True)]

    begin = [layout.holding(v, reading) for layout, v in zip(layouts, carried, strict=True)]
    last, ys = jax.lax.scan(step, begin, [jnp.asarray(v.array) for v in scanned], length=length, reverse=reverse)
    found = [layout.of(a) for layout, a in zip(layouts, last, strict=True)]
    for layout, y, out in zip(collected, ys, equation.outvars[n_carried:], strict=True):
        shape = tuple(int(n) for n in out.aval.shape)
        codes = reading.joins.cached(("stacked", id(layout.codes)), lambda c=layout.codes: c[None], layout.codes)
        own = ((0,) if length != 1 else ()) + tuple(a + 1 for a in layout.own)
        found.append(Classed(y if length != 1 else y[0], shape, own, codes))
    return found


def _one_step(value: Classed) -> Layout:
    """One position along the first axis."""
    codes = value.codes[0]
    own = tuple(a - 1 for a in value.own if a != 0)
    lengths = (*(value.shape[a + 1] for a in own), value.classes)
    return Layout(Classed(np.empty(lengths, bool), value.shape[1:], own, codes))
