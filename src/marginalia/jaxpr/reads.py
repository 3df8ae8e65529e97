"""Which inputs of a jaxpr each of its outputs depends on, and through which equations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend import core

from marginalia.jaxpr.calls import inner_program, scan_counts


def dependencies(jaxpr: core.Jaxpr) -> list[set[int]]:
    """For every output: the places of the inputs that it reads, loops and helpers looked into."""
    reads: dict[Any, set[int]] = {v: {i} for i, v in enumerate(jaxpr.invars)}
    for equation in jaxpr.eqns:
        given = [reads.get(atom, set()) if isinstance(atom, core.Var) else set() for atom in equation.invars]
        reads.update(zip(equation.outvars, _through(equation, given), strict=True))
    return [reads.get(v, set()) if isinstance(v, core.Var) else set() for v in jaxpr.outvars]


def _through(equation: Any, given: Sequence[set[int]]) -> list[set[int]]:
    """What each output of an equation reads, its operands reading `given`."""
    inner = inner_program(equation)
    if inner is not None:
        return [_union(given[i] for i in own) for own in dependencies(inner.jaxpr)]
    if equation.primitive.name == "scan":
        return _through_loop(equation, given)
    everything = _union(given)
    return [everything] * len(equation.outvars)


def _through_loop(equation: Any, given: Sequence[set[int]]) -> list[set[int]]:
    """A carried value reads what it has read in the steps before."""
    body = dependencies(equation.params["jaxpr"].jaxpr)
    first, carried = scan_counts(equation)
    known = list(given)
    while True:
        found = [_union(known[i] for i in own) for own in body]
        wider = [*known[:first], *(known[first + j] | found[j] for j in range(carried)), *known[first + carried :]]
        if wider == known:
            # Without any step a carried value is what it was.
            return [*known[first : first + carried], *found[carried:]]
        known = wider


def _union(sets: Any) -> set[int]:
    return set().union(*sets)


def live_equations(jaxpr: core.Jaxpr, outputs: Sequence[Any] | None = None) -> list[Any]:
    """The equations that some output depends on, in order."""
    needed = {v for v in (jaxpr.outvars if outputs is None else outputs) if isinstance(v, core.Var)}
    live = []
    for equation in reversed(jaxpr.eqns):
        if any(v in needed for v in equation.outvars):
            live.append(equation)
            needed.update(v for v in equation.invars if isinstance(v, core.Var))
    return live[::-1]
