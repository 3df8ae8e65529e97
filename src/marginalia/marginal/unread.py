"""Discretes that no data reach: replicates, forecasts, counts to come.

Summed over all its values, a distribution is 1 whatever it is conditioned on. So a discrete that nothing reads but its
own distribution, and others like it, leaves the density as it is: it needs no table, and an endless one no end. Its
probabilities, draws and best values come from the whole program (`Kernel.complete`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.extend import core

from marginalia.jaxpr.reads import dependencies
from marginalia.program import Program


def without_unread(program: Program) -> Program:
    """The program of the same density without its unread discretes; the same object where there are none."""
    unread = find_unread(program)
    if not unread:
        return program
    kept = [i for i, t in enumerate(program.terms) if not (t.kind == "discrete" and t.name in unread)]
    discretes = {name: site for name, site in program.discretes.items() if name not in unread}
    return dataclasses.replace(
        program,
        discretes=discretes,
        terms=tuple(program.terms[i] for i in kept),
        jaxpr=_closed(program, unread, program.jaxpr, kept),
    )


def find_unread(program: Program) -> frozenset[str]:
    """Names of the discretes whose sum over all values is 1, with all that reads them."""
    if not any(term.adds_to_one for term in program.terms):
        return frozenset()
    first = len(program.latents)
    readers: dict[str, set[str | int]] = {name: set() for name in program.discretes}
    names = list(program.discretes)
    for i, (term, read) in enumerate(zip(program.terms, dependencies(program.jaxpr.jaxpr), strict=True)):
        for j in read:
            if j >= first and not (term.kind == "discrete" and term.name == names[j - first]):
                readers[names[j - first]].add(term.name if term.adds_to_one else i)
    unread: set[str] = set()
    candidates = {term.name for term in program.terms if term.adds_to_one}
    while True:
        more = {name for name in candidates - unread if readers[name] <= unread}
        if not more:
            return frozenset(unread)
        unread |= more


def _closed(program: Program, unread: frozenset[str], closed: core.ClosedJaxpr, outputs: list[int]) -> core.ClosedJaxpr:
    """Some outputs, without the inputs that these do not depend on; its arrays stay in their places."""
    jaxpr = closed.jaxpr.replace(outvars=[closed.jaxpr.outvars[i] for i in outputs])
    count = len(jaxpr.constvars)
    places = [i for i, name in enumerate([*program.latents, *program.discretes]) if name not in unread]
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in (*jaxpr.constvars, *jaxpr.invars)]

    def run(*given: jax.Array) -> list[jax.Array]:
        values = [jnp.zeros(a.shape, a.dtype) for a in avals[count:]]
        for place, value in zip(places, given[count:], strict=True):
            values[place] = value
        return jax.core.eval_jaxpr(jaxpr, given[:count], *values)

    found = jax.make_jaxpr(run)(*avals[:count], *[avals[count + i] for i in places])
    inner = found.jaxpr
    if inner.constvars:
        raise AssertionError("the arrays of a program are its inputs")
    return core.ClosedJaxpr(inner.replace(constvars=inner.invars[:count], invars=inner.invars[count:]), closed.consts)
