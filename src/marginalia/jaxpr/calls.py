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


def scan_counts(equation: Any) -> tuple[int, int]:
    """Numbers of constants and carried values of a scan; read off the shapes, since JAX's parameters for them change.

    What is scanned over, and what is collected, has one axis more outside the loop than inside.
    """
    body = equation.params["jaxpr"].jaxpr
    scanned = sum(len(o.aval.shape) > len(i.aval.shape) for o, i in zip(equation.invars, body.invars, strict=True))
    collected = sum(len(o.aval.shape) > len(i.aval.shape) for o, i in zip(equation.outvars, body.outvars, strict=True))
    carried = len(equation.outvars) - collected
    return len(equation.invars) - scanned - carried, carried
