"""Which values of a jaxpr involve no input, evaluated lazily in NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from marginalia.jaxpr import constants

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
        elif any(a is None for a in arguments) or name == "optimization_barrier":
            results = [None] * len(equation.outvars)
        else:
            results = _evaluated(equation, [a for a in arguments if a is not None])
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _evaluated(equation: Any, arguments: list[Lazy]) -> list[Lazy]:
    @functools.cache
    def compute() -> list[np.ndarray]:
        return constants.evaluate(equation.primitive, equation.params, [a.get() for a in arguments])

    return [Lazy(functools.partial(lambda i: compute()[i], i)) for i in range(len(equation.outvars))]
