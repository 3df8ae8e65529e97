"""Which inputs of a jaxpr each of its outputs depends on, and through which equations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from jax.extend import core

from marginalia.jaxpr.calls import inner_program, scan_counts

SOURCE = -1
"""In place of an input: what a primitive puts out that is named among the sources."""


def dependencies(jaxpr: core.Jaxpr, sources: Collection[str] = ()) -> list[set[int]]:
    """For every output: the places of the inputs that it reads, loops and helpers looked into.

    `SOURCE` is among them where a primitive named in `sources` is read.
    """
    reads: dict[Any, set[int]] = {v: {i} for i, v in enumerate(jaxpr.invars)}
    for equation in jaxpr.eqns:
        given = [reads.get(atom, set()) if isinstance(atom, core.Var) else set() for atom in equation.invars]
        reads.update(zip(equation.outvars, _through(equation, given, sources), strict=True))
    return [reads.get(v, set()) if isinstance(v, core.Var) else set() for v in jaxpr.outvars]


def loop_dependencies(equation: Any, sources: Collection[str] = ()) -> list[set[int]]:
    """For every output of a `scan`: the places of the operands that it reads, at any step."""
    return _through_loop(equation, [{i} for i in range(len(equation.invars))], sources)


def _through(equation: Any, given: Sequence[set[int]], sources: Collection[str]) -> list[set[int]]:
    """What each output of an equation reads, its operands reading `given`."""
    inner = inner_program(equation)
    if inner is not None:
        return [_joined(own, given) for own in dependencies(inner.jaxpr, sources)]
    if equation.primitive.name == "scan":
        return _through_loop(equation, given, sources)
    own = {SOURCE} if sources and _holds(equation, sources) else set()
    return [own.union(*given)] * len(equation.outvars)


def _through_loop(equation: Any, given: Sequence[set[int]], sources: Collection[str]) -> list[set[int]]:
    """A carried value reads what it has read in the steps before."""
    body = dependencies(equation.params["jaxpr"].jaxpr, sources)
    first, carried = scan_counts(equation)
    known = list(given)
    while True:
        found = [_joined(own, known) for own in body]
        wider = [*known[:first], *(known[first + j] | found[j] for j in range(carried)), *known[first + carried :]]
        if wider == known:
            # Without any step a carried value is what it was.
            return [*known[first : first + carried], *found[carried:]]
        known = wider


def live_equations(jaxpr: core.Jaxpr, outputs: Sequence[Any] | None = None) -> list[Any]:
    """The equations that some output depends on, in order."""
    needed = {v for v in (jaxpr.outvars if outputs is None else outputs) if isinstance(v, core.Var)}
    live = []
    for equation in reversed(jaxpr.eqns):
        if any(v in needed for v in equation.outvars):
            live.append(equation)
            needed.update(v for v in equation.invars if isinstance(v, core.Var))
    return live[::-1]


def _joined(places: set[int], given: Sequence[set[int]]) -> set[int]:
    return set().union(*({SOURCE} if i == SOURCE else given[i] for i in places))


def _holds(equation: Any, names: Collection[str]) -> bool:
    """Whether an equation, or a program that it carries (a branch, the body of a `while`), is of these primitives."""
    if equation.primitive.name in names:
        return True
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            jaxpr = part.jaxpr if isinstance(part, core.ClosedJaxpr) else part
            if isinstance(jaxpr, core.Jaxpr) and any(_holds(inner, names) for inner in jaxpr.eqns):
                return True
    return False
