"""Equations that carry a program which could as well be written in place."""

from __future__ import annotations

from typing import Any

from jax.extend import core

_CALLS = frozenset(
    {
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "remat",
        "remat2",
        "checkpoint",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
    }
)


def inner_program(equation: Any) -> core.ClosedJaxpr | None:
    """The program that an equation calls once with its own operands, None for any other equation."""
    if equation.primitive.name not in _CALLS:
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = equation.params.get(key)
        if isinstance(inner, core.Jaxpr) and not inner.constvars:
            inner = core.ClosedJaxpr(inner, ())
        if isinstance(inner, core.ClosedJaxpr) and len(inner.jaxpr.invars) == len(equation.invars):
            return inner
    return None
