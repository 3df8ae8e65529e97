"""The same program with every float32 computed in float64.

Under JAX's own setting float32 is what a float is, and a program that names it (`jnp.zeros(n, jnp.float32)`) means no
rounding by that. Half precision is chosen on purpose, and stays.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from marginalia.jaxpr import constants
from marginalia.jaxpr.calls import inner_program, scan_counts
from marginalia.jaxpr.reads import live_equations

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)

_KEPT = frozenset({"bitcast_convert_type", "reduce_precision", "custom_vjp_call"})
"""Operations that are about the bits of a number, or whose program is not written anew."""

_SCATTERS = {
    "scatter": jax.lax.scatter,
    "scatter-add": jax.lax.scatter_add,
    "scatter-mul": jax.lax.scatter_mul,
    "scatter-min": jax.lax.scatter_min,
    "scatter-max": jax.lax.scatter_max,
}


def in_doubles(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """The program itself where nothing that counts is float32."""
    if not _has_singles(closed.jaxpr):
        return closed
    given = [jax.ShapeDtypeStruct(a.shape, _wide(a.dtype)) for a in closed.in_avals]
    return jax.make_jaxpr(lambda *arrays: _run(closed, arrays))(*given)


def _wide(dtype: Any) -> Any:
    return DOUBLE if dtype == SINGLE else dtype


def _programs(equation: Any) -> list[core.Jaxpr]:
    parts = [value if isinstance(value, tuple | list) else (value,) for value in equation.params.values()]
    return [one.jaxpr for part in parts for one in part if isinstance(one, core.ClosedJaxpr)]


def _has_singles(jaxpr: core.Jaxpr) -> bool:
    return any(
        any(getattr(v.aval, "dtype", None) == SINGLE for v in (*equation.invars, *equation.outvars))
        or any(map(_has_singles, _programs(equation)))
        for equation in live_equations(jaxpr)
    )


def _widened(array: Any) -> Any:
    return array.astype(DOUBLE) if jnp.result_type(array) == SINGLE else array


def _run(closed: core.ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, map(_widened, closed.consts), strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        if isinstance(atom, core.Literal):
            about: Any = atom.aval
            return np.asarray(atom.val, dtype=_wide(about.dtype))
        return values[atom]

    for equation in live_equations(jaxpr):
        values.update(zip(equation.outvars, _evaluate(equation, [read(a) for a in equation.invars]), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _evaluate(equation: Any, arrays: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    avals = [v.aval for v in (*equation.invars, *equation.outvars)]
    if not any(getattr(a, "dtype", None) == SINGLE for a in avals) and not any(map(_has_singles, _programs(equation))):
        return constants.bind(equation.primitive, params, *arrays)
    if name == "custom_jvp_call":
        return _custom_jvp(equation, arrays)
    if name not in _KEPT:
        if (inner := inner_program(equation)) is not None:
            return _run(inner, arrays)
        if name == "scan":
            return _scan(equation, arrays)
        if name == "while":
            return _while(params, arrays)
        if name == "cond":
            branches = [functools.partial(_branch, b) for b in params["branches"]]
            return list(jax.lax.switch(arrays[0].astype(jnp.int32), branches, *arrays[1:]))
        if name in _SCATTERS:
            return [_scatter(equation, arrays)]
        if not _programs(equation):
            wide = {key: DOUBLE if _is_single(value) else value for key, value in params.items()}
            return constants.bind(equation.primitive, wide, *arrays)
    narrow = [jnp.asarray(x, v.aval.dtype) if _narrowed(v) else x for v, x in zip(equation.invars, arrays, strict=True)]
    return [_widened(x) for x in constants.bind(equation.primitive, params, *narrow)]


def _narrowed(atom: Any) -> bool:
    return getattr(atom.aval, "dtype", None) == SINGLE


def _is_single(value: Any) -> bool:
    return isinstance(value, np.dtype | type) and value in (SINGLE, np.float32)


def _branch(closed: core.ClosedJaxpr, *arrays: Any) -> list[Any]:
    return [jnp.asarray(x) for x in _run(closed, arrays)]


def _scan(equation: Any, arrays: list[Any]) -> list[Any]:
    body, length, reverse = (equation.params[k] for k in ("jaxpr", "length", "reverse"))
    n_consts, n_carry = scan_counts(equation)
    fixed, start, scanned = arrays[:n_consts], arrays[n_consts : n_consts + n_carry], arrays[n_consts + n_carry :]

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        found = [jnp.asarray(x) for x in _run(body, [*fixed, *carry, *xs])]
        return found[:n_carry], found[n_carry:]

    last, collected = jax.lax.scan(step, start, scanned, length, reverse)
    return [*last, *collected]


def _while(params: dict[str, Any], arrays: list[Any]) -> list[Any]:
    n_test, n_fixed = params["cond_nconsts"], params["body_nconsts"]
    of_test, fixed, start = arrays[:n_test], arrays[n_test : n_test + n_fixed], arrays[n_test + n_fixed :]
    return list(
        jax.lax.while_loop(
            lambda carry: _run(params["cond_jaxpr"], [*of_test, *carry])[0],
            lambda carry: [jnp.asarray(x) for x in _run(params["body_jaxpr"], [*fixed, *carry])],
            list(map(jnp.asarray, start)),
        )
    )


def _scatter(equation: Any, arrays: list[Any]) -> Any:
    kept = {k: equation.params[k] for k in ("indices_are_sorted", "unique_indices", "mode")}
    operand, indices, updates = map(jnp.asarray, arrays)
    numbers = equation.params["dimension_numbers"]
    return _SCATTERS[equation.primitive.name](operand, indices, updates, numbers, **kept)


def _custom_jvp(equation: Any, arrays: list[Any]) -> list[Any]:
    """A function with a derivative of its own keeps it, both computed in float64."""
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
    moving = [i for i, a in enumerate(avals) if jnp.issubdtype(a.dtype, jnp.inexact)]

    def push(primals: list[Any], tangents: list[Any]) -> list[Any]:
        def of_moving(*moved: Any) -> list[Any]:
            every = list(primals)
            for i, x in zip(moving, moved, strict=True):
                every[i] = x
            return constants.bind(equation.primitive, equation.params, *every)

        return jax.jvp(of_moving, [primals[i] for i in moving], tangents)[1]

    @jax.custom_jvp
    def function(*given: Any) -> list[Any]:
        return [jnp.asarray(x) for x in _run(equation.params["call_jaxpr"], given)]

    @function.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        closed = jax.make_jaxpr(push)(avals, [avals[i] for i in moving])
        return function(*primals), _run(closed, [*primals, *(tangents[i] for i in moving)])

    return function(*map(jnp.asarray, arrays))
