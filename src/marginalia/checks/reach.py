"""Which latents reach data, read off the program's jaxpr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from marginalia.checks.findings import Finding
from marginalia.checks.survey import Seen
from marginalia.jaxpr.calls import inner_program
from marginalia.program import Program, Term


def unreached(program: Program, sites: Mapping[str, Seen]) -> list[Finding]:
    """Latents that no data inform, and data that inform no latent.

    A latent reaches data when an observed site or a factor reads it, or when the prior of a latent that does reads it:
    a hyperparameter reaches data through its children.
    """
    names = [*program.latents, *program.discretes]
    if not names:
        return []
    reads = dict(
        zip((t.name for t in program.terms), _reads(program.jaxpr, [1 << i for i in range(len(names))]), strict=True)
    )
    data = [t for t in program.terms if t.kind in ("observed", "factor") and _counts(t, sites)]
    if not data:
        return [
            Finding(
                "unreached",
                "the program",
                "it observes nothing, so the posterior is the prior",
                expected="a `numpyro.sample(..., obs=y)` or a `numpyro.factor`",
                got=f"latents only ({_listed(names)})",
                remedy="pass the data to the model and give them to the site as `obs=`.",
            )
        ]
    reached = 0
    for term in data:
        reached |= reads[term.name]
    while True:
        before = reached
        for i, name in enumerate(names):
            if reached >> i & 1:
                reached |= reads[name]
        if reached == before:
            break
    found = [_lost(name, name in program.discretes) for i, name in enumerate(names) if not reached >> i & 1]
    return found + [_constant(t) for t in data if t.kind == "observed" and not reads[t.name]]


def _counts(term: Term, sites: Mapping[str, Seen]) -> bool:
    silent = term.name in sites and sites[term.name].masked_out
    return not silent and bool(np.any(np.asarray(term.scale) != 0))


def _lost(name: str, discrete: bool) -> Finding:
    return Finding(
        "unreached",
        f"site '{name}'",
        f"this {'discrete' if discrete else 'latent'} reaches no data: its posterior is its prior",
        expected="the distribution of an observed site, of a factor, or of a latent that reaches data to read it",
        got="none that does (a `numpyro.deterministic` is no data, and `numpyro.sample(..., obs=y)` returns y itself)",
        remedy="use it in the parameters of the observed site; leave it out if it is not needed, or draw it after the "
        "fit if it is a prediction.",
    )


def _constant(term: Term) -> Finding:
    return Finding(
        "constant",
        f"site '{term.name}'",
        "no latent explains these data: their log-probability is the same number whatever the latents are",
        expected="a distribution with a latent among its parameters",
        remedy="check that the parameters are the latents and not fixed numbers of the same name.",
        severity="note",
    )


def _listed(names: Sequence[str]) -> str:
    shown = [f"'{n}'" for n in names[:4]]
    return ", ".join(shown) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _reads(closed: core.ClosedJaxpr, inputs: Sequence[int]) -> list[int]:
    """For every output: which inputs it reads, as the bits of a whole number."""
    reads: dict[Any, int] = dict(zip(closed.jaxpr.invars, inputs, strict=True))

    def of(atom: Any) -> int:
        return reads.get(atom, 0) if isinstance(atom, core.Var) else 0

    for equation in closed.jaxpr.eqns:
        arguments = [of(atom) for atom in equation.invars]
        inner = inner_program(equation)
        if inner is not None:
            results = _reads(inner, arguments)
        else:
            # Loops and branches too: what enters may reach all that leaves, so nothing is called lost wrongly.
            union = 0
            for bits in arguments:
                union |= bits
            results = [union] * len(equation.outvars)
        reads.update(zip(equation.outvars, results, strict=True))
    return [of(atom) for atom in closed.jaxpr.outvars]
