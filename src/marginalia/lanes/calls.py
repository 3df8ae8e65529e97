"""Primitives that carry a program inside: jitted helpers, custom derivatives, branches and loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from marginalia.jaxpr import constants
from marginalia.lanes.interpret import (
    Node,
    apply_elementwise,
    call,
    force,
    known_outputs,
    run_closed,
)
from marginalia.lanes.value import Array, Value, aligned, constant, materialize, plain, table_over


@call("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint")
def inline(equation: Any, nodes: list[Node]) -> list[Node]:
    """A jitted helper is read as if it were written in place."""
    return run_closed(equation.params.get("jaxpr") or equation.params["call_jaxpr"], nodes)


@call("custom_jvp_call")
def custom_jvp(equation: Any, nodes: list[Node]) -> list[Node]:
    """A function with a derivative of its own keeps it: the derivative's jaxpr is read as tables too."""
    values = [force(node) for node in nodes]
    known = known_outputs(equation, values)
    if all(v.is_plain() for v in values):
        outputs = [plain(o) for o in constants.bind(equation.primitive, equation.params, *[v.array for v in values])]
    else:
        outputs = _custom_jvp_tables(equation, values)
    return [replace(o, known=k) for o, k in zip(outputs, known, strict=True)] if known else list(outputs)


ROOM = 2.0**22
"""A table may serve a million rows, and as many times the slope at 1e-308 is no number: going back, what is multiplied
with slopes is smaller by this, and larger again afterwards. A power of two, so that no digit changes."""


def _custom_jvp_tables(equation: Any, values: list[Value]) -> list[Value]:
    shapes: list[Value] = []
    inexact = [jnp.issubdtype(v.array.dtype, jnp.inexact) for v in values]

    def read(closed: core.ClosedJaxpr, inputs: list[Value]) -> list[Value]:
        return [force(o) for o in run_closed(closed, inputs)]

    @jax.custom_jvp
    def function(*arrays: Any) -> list[Any]:
        inputs = [replace(v, array=a, known=None) for v, a in zip(values, arrays, strict=True)]
        outputs = read(equation.params["call_jaxpr"], inputs)
        shapes[:] = [replace(o, array=np.empty(o.array.shape, bool)) for o in outputs]
        return [jnp.asarray(o.array) for o in outputs]

    @function.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        avals = [jax.ShapeDtypeStruct(v.shape, v.array.dtype) for v in values]
        moving = [i for i, yes in enumerate(inexact) if yes]

        def push(all_primals: list[Any], moving_tangents: list[Any]) -> Any:
            def of_moving(*moved: Any) -> Any:
                arguments = list(all_primals)
                for i, x in zip(moving, moved, strict=True):
                    arguments[i] = x
                return constants.bind(equation.primitive, equation.params, *arguments)

            return jax.jvp(of_moving, [all_primals[i] for i in moving], moving_tangents)

        closed = jax.make_jaxpr(push)(avals, [avals[i] for i in moving])
        inputs = [replace(v, array=a, known=None) for v, a in zip(values, primals, strict=True)]
        inputs += [replace(values[i], array=tangents[i] * ROOM, known=None) for i in moving]
        outputs = read(closed, inputs)
        half = len(outputs) // 2
        primal_out = function(*primals)
        return primal_out, [_like(o, s) / ROOM for o, s in zip(outputs[half:], shapes, strict=True)]

    arrays = function(*[jnp.asarray(v.array) for v in values])
    return [replace(s, array=a) for s, a in zip(shapes, arrays, strict=True)]


def _like(value: Value, model: Value) -> Array:
    """A tangent laid out as its primal: the same lanes in the same order, the same axes held."""
    table = table_over(value, model.lanes)
    return jnp.broadcast_to(table, model.array.shape)


@call("cond")
def conditional(equation: Any, nodes: list[Node]) -> list[Node]:
    """`lax.cond` and `lax.switch` on a discrete: every branch is read, and the state selects."""
    which, *operands = [force(node) for node in nodes]
    branches = equation.params["branches"]
    if not which.lanes and not any(o.lanes for o in operands):
        values = [materialize(v) for v in (which, *operands)]
        return [plain(o) for o in constants.bind(equation.primitive, equation.params, *[v.array for v in values])]
    results = [[force(o) for o in run_closed(branch, operands)] for branch in branches]
    top = constant(np.asarray(len(branches) - 1, which.array.dtype))
    zero = constant(np.asarray(0, which.array.dtype))
    which = apply_elementwise("min", [apply_elementwise("max", [which, zero]), top])
    chosen: list[Node] = []
    for cases in zip(*results, strict=True):
        lanes, tables = aligned([which, *cases], cases[0].shape)
        index = jnp.asarray(tables[0]).astype(jnp.int32)
        index = index.astype(bool) if len(branches) == 2 else index
        chosen.append(Value(jax.lax.select_n(index, *[jnp.asarray(t) for t in tables[1:]]), cases[0].shape, lanes))
    return chosen
