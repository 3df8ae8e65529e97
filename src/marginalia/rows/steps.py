"""A jaxpr as a flat list of steps, helpers read in place, and what runs them on values held with the rows last."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from marginalia.jaxpr import constants
from marginalia.jaxpr.calls import inner_program
from marginalia.rows.held import Held, Unreadable, align, dense, ordinary
from marginalia.rows.operations import Reading, apply, rule, varies


@dataclass(frozen=True, eq=False)
class Step:
    """One equation; its operands are numbers of values or constants."""

    equation: Any
    inputs: tuple[int | np.ndarray, ...]
    outputs: tuple[int, ...]

    @property
    def reads(self) -> list[int]:
        return [i for i in self.inputs if isinstance(i, int)]


@dataclass(frozen=True, eq=False)
class Steps:
    """A program: numbers of its inputs, its steps in order, its outputs; `closed` are arrays that it holds."""

    inputs: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int | np.ndarray, ...]
    closed: dict[int, Any]


def flatten(closed: core.ClosedJaxpr) -> Steps:
    """All equations in order, those of helpers in place of their calls."""
    number = itertools.count()
    steps: list[Step] = []
    held: dict[int, Any] = {}

    def read(jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[int | np.ndarray]) -> list[int | np.ndarray]:
        names: dict[Any, int | np.ndarray] = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, value in zip(jaxpr.constvars, consts, strict=True):
            place = next(number)
            names[variable] = place
            held[place] = value

        def of(atom: Any) -> int | np.ndarray:
            if isinstance(atom, core.Literal):
                aval: Any = atom.aval
                return np.asarray(atom.val, dtype=aval.dtype)
            return names[atom]

        for equation in jaxpr.eqns:
            operands = [of(atom) for atom in equation.invars]
            inner = None if equation.primitive.name.startswith("custom") else inner_program(equation)
            if inner is not None:
                results = read(inner.jaxpr, inner.consts, operands)
            else:
                results = [next(number) for _ in equation.outvars]
                steps.append(Step(equation, tuple(operands), tuple(r for r in results if isinstance(r, int))))
            names.update(zip(equation.outvars, results, strict=True))
        return [of(atom) for atom in jaxpr.outvars]

    inputs = tuple(next(number) for _ in closed.jaxpr.invars)
    outputs = read(closed.jaxpr, closed.consts, inputs)
    return Steps(inputs, tuple(steps), tuple(outputs), held)


def needed(steps: Iterable[Step], wanted: Iterable[int | np.ndarray]) -> list[Step]:
    """The steps that some wanted value depends on, in order."""
    open_ = {w for w in wanted if isinstance(w, int)}
    kept = []
    for step in reversed(list(steps)):
        if open_.intersection(step.outputs):
            kept.append(step)
            open_.update(step.reads)
    return kept[::-1]


def run(
    reading: Reading,
    steps: Iterable[Step],
    values: dict[int, Held],
    perform: Callable[[Reading, Any, list[Held]], list[Held]] = apply,
) -> None:
    """Carry out the steps, adding what they compute to `values`."""
    for step in steps:
        operands = [get(values, i) for i in step.inputs]
        values.update(zip(step.outputs, perform(reading, step.equation, operands), strict=True))


def get(values: Mapping[int, Held], at: int | np.ndarray) -> Held:
    return values[at] if isinstance(at, int) else ordinary(at)


@rule("custom_jvp_call")
def _custom_jvp(reading: Reading, equation: Any, values: list[Held]) -> list[Held]:
    """A function with a derivative of its own keeps it: the derivative's program is held in the same way."""
    if not any(varies(v) for v in values):
        arrays = [dense(v, reading.rows) for v in values]
        return [ordinary(o) for o in constants.bind(equation.primitive, equation.params, *arrays)]
    values = [v.without_form() for v in values]
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
    moving = [i for i, a in enumerate(avals) if jnp.issubdtype(a.dtype, jnp.inexact)]
    plain = Reading(reading.rows, nested=True)
    layouts: list[Held] = []

    def of(closed: core.ClosedJaxpr, inputs: list[Held]) -> list[Held]:
        program = flatten(closed)
        found = dict(zip(program.inputs, inputs, strict=True))
        found.update({number: ordinary(array) for number, array in program.closed.items()})
        run(plain, needed(program.steps, program.outputs), found)
        if plain.exits:
            raise Unreadable("a sum over rows inside a function with a derivative of its own")
        return [get(found, o) for o in program.outputs]

    def outputs_of(arrays: Sequence[Any]) -> list[Held]:
        return of(equation.params["call_jaxpr"], [Held(a, v.axes) for a, v in zip(arrays, values, strict=True)])

    def pushed_of(primals: Sequence[Any], tangents: Sequence[Any]) -> list[Held]:
        def push(all_primals: list[Any], moving_tangents: list[Any]) -> Any:
            def of_moving(*moved: Any) -> Any:
                arguments = list(all_primals)
                for i, x in zip(moving, moved, strict=True):
                    arguments[i] = x
                return constants.bind(equation.primitive, equation.params, *arguments)

            return jax.jvp(of_moving, [all_primals[i] for i in moving], moving_tangents)[1]

        closed = jax.make_jaxpr(push)(avals, [avals[i] for i in moving])
        inputs = [Held(a, v.axes) for a, v in zip(primals, values, strict=True)]
        return of(closed, inputs + [Held(tangents[i], values[i].axes) for i in moving])

    def lay_out(arrays: list[Any]) -> int:
        """A value is held as widely as its tangent, which may vary where it does not."""
        outputs = outputs_of(arrays)
        for value, tangent in zip(outputs, outputs if reading.nested else pushed_of(arrays, arrays), strict=True):
            axes, held = align([value, tangent], reading.rows)
            layouts.append(Held(np.empty(np.broadcast_shapes(*[tuple(a.shape) for a in held]), bool), axes))
        return 0

    if not moving or not all(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in equation.outvars):
        raise Unreadable("a function with a derivative of its own, of whole numbers")
    jax.eval_shape(lay_out, [jax.ShapeDtypeStruct(v.array.shape, v.array.dtype) for v in values])

    @jax.custom_jvp
    def function(*arrays: Any) -> list[Any]:
        return [_like(o, layout, reading.rows) for o, layout in zip(outputs_of(arrays), layouts, strict=True)]

    @function.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        pushed = pushed_of(primals, tangents)
        return function(*primals), [_like(o, layout, reading.rows) for o, layout in zip(pushed, layouts, strict=True)]

    arrays = function(*[jnp.asarray(v.array) for v in values])
    return [Held(a, layout.axes) for a, layout in zip(arrays, layouts, strict=True)]


def _like(value: Held, layout: Held, rows: int) -> Any:
    """A value or its tangent in the layout of both."""
    from marginalia.rows.held import refine

    return jnp.broadcast_to(refine(value, layout.axes, rows).array, layout.array.shape)
