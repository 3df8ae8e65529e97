"""Which values of a jaxpr involve no input, evaluated lazily in NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from marginalia.jaxpr import constants
from marginalia.jaxpr.reads import SOURCE, loop_dependencies

_INLINED = ("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint")


class Lazy:
    """A parameter-free value, computed in NumPy when an index needs it, and only then."""

    def __init__(self, compute: Callable[[], np.ndarray]):
        self._compute: Callable[[], np.ndarray] | None = compute
        self._value: np.ndarray | None = None

    def get(self) -> np.ndarray:
        if self._compute is not None:
            self._value = self._compute()
            self._compute = None
        assert self._value is not None
        return self._value


def known_values(closed: core.ClosedJaxpr) -> list[Lazy | None]:
    """For every output: a lazily computed array where it depends on no input, else None."""
    return _read(closed, [None] * len(closed.jaxpr.invars))


def _read(closed: core.ClosedJaxpr, inputs: Sequence[Lazy | None]) -> list[Lazy | None]:
    jaxpr = closed.jaxpr
    known: dict[Any, Lazy | None] = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, value in zip(jaxpr.constvars, closed.consts, strict=True):
        known[variable] = Lazy(functools.partial(np.asarray, value))

    def read(atom: Any) -> Lazy | None:
        if isinstance(atom, core.Literal):
            aval: Any = atom.aval
            return Lazy(functools.partial(np.asarray, atom.val, dtype=aval.dtype))
        return known[atom]

    for equation in jaxpr.eqns:
        arguments = [read(atom) for atom in equation.invars]
        name = equation.primitive.name
        if name in _INLINED and isinstance(equation.params.get("jaxpr"), core.ClosedJaxpr):
            results: Sequence[Lazy | None] = _read(equation.params["jaxpr"], arguments)
        elif name == "scan":
            results = _read_loop(equation, arguments)
        elif any(a is None for a in arguments) or name == "optimization_barrier":
            results = [None] * len(equation.outvars)
        else:
            results = _evaluated(equation, [a for a in arguments if a is not None])
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _read_loop(equation: Any, arguments: list[Lazy | None]) -> list[Lazy | None]:
    """A loop may give some outputs that read nothing unknown: it is run with any numbers for what is unknown."""
    unknown = {i for i, a in enumerate(arguments) if a is None} | {SOURCE}
    free = [not read & unknown for read in loop_dependencies(equation, ["optimization_barrier"])]
    if not any(free):
        return [None] * len(free)
    avals: list[Any] = [a.aval for a in equation.invars]
    stand_in = [a if a is not None else _any_numbers(aval) for a, aval in zip(arguments, avals, strict=True)]
    found = _evaluated(equation, stand_in)
    return [value if known else None for value, known in zip(found, free, strict=True)]


def _any_numbers(aval: Any) -> Lazy:
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
        return Lazy(lambda: constants.concrete(jnp.broadcast_to(jax.random.key(0), aval.shape)))
    return Lazy(lambda: np.ones(aval.shape, aval.dtype))


def _evaluated(equation: Any, arguments: list[Lazy]) -> list[Lazy]:
    @functools.cache
    def compute() -> list[np.ndarray]:
        return constants.evaluate(equation.primitive, equation.params, [a.get() for a in arguments])

    return [Lazy(functools.partial(lambda i: compute()[i], i)) for i in range(len(equation.outvars))]
