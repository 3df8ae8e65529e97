"""The terms that read no discrete, apart from the sum over the discretes: priors, and factors on parameters.

They are small beside the data's, so they are evaluated at many points, in NumPy where that can be
(`jaxpr/interpreted`). A difference between two priors is seen here to the last digits, where it would drown in the sum
over many rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from marginalia.jaxpr.reads import dependencies
from marginalia.marginal.drawing import in_blocks, side_by_side

MOST_NUMBERS = 10_000  # of one term: what has more is data

type Points = dict[str, np.ndarray]


def free_terms(kernel: Any) -> Callable[[Points], dict[str, np.ndarray]]:
    """From parameters `{site: (n, *shape)}` to the log-probabilities of each term that reads no discrete, `(n,)` each.

    Scales are applied, elements are summed. Call inside `precision.float64()`.
    """
    found = kernel.compiled.get("free terms")
    return found or kernel.compiled.setdefault("free terms", _make(kernel.program))


def _make(program: Any) -> Callable[[Points], dict[str, np.ndarray]]:
    closed = program.jaxpr
    reads = dependencies(closed.jaxpr)
    latents = len(program.latents)
    chosen = [
        i
        for i, term in enumerate(program.terms)
        if math.prod(term.shape) <= MOST_NUMBERS and reads[i] and max(reads[i]) < latents
    ]
    if not chosen:
        return lambda points: {}
    jaxpr = closed.jaxpr
    part = core.Jaxpr(
        jaxpr.constvars, jaxpr.invars, [jaxpr.outvars[i] for i in chosen], jaxpr.eqns, jaxpr.effects, jaxpr.debug_info
    )
    evaluate = core.jaxpr_as_fun(core.ClosedJaxpr(part, closed.consts))
    terms = [program.terms[i] for i in chosen]
    states = [jnp.zeros(d.shape, int) for d in program.discretes.values()]

    def one(params: dict[str, Any]) -> dict[str, Any]:
        values = evaluate(*(params[name] for name in program.latents), *states)
        return {t.name: jnp.sum(v * t.scale) for t, v in zip(terms, values, strict=True)}

    run = side_by_side(one)
    size = sum(math.prod(site.shape) for site in program.latents.values())
    return lambda points: in_blocks(run, {name: np.asarray(points[name], float) for name in program.latents}, size)
