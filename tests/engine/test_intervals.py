"""Interval arithmetic on jaxprs holds every value that a program can give, and is not wide where nothing is unknown."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from marginalia.jaxpr import interval_functions, interval_moves  # noqa: F401  (their rules)
from marginalia.jaxpr.intervals import RULES, Interval, run
from marginalia.marginal.drawing import QUICKLY
from marginalia.precision import float64

TABLE = np.array([0.5, -1.0, 3.0, 2.0, 7.0, -2.0])

PROGRAMS: dict[str, Any] = {
    "sums": lambda x, y, k: x + y - 2 * x * y / (1.0 + y * y),
    "quotient": lambda x, y, k: x / (y - 1.5),
    "inverse of one sign": lambda x, y, k: 1.0 / (1.0 + x**2) - 1.0 / (k + 1.0),
    "powers": lambda x, y, k: x**2 + x**3 - (1.0 + x**2) ** -2 + jnp.square(y) + (k + 1.0) ** y,
    "power of a negative": lambda x, y, k: jnp.power(x, 2.0) + jnp.power(jnp.abs(x) + 0.1, -1.5),
    "growing": lambda x, y, k: (
        jnp.exp(x) + jnp.expm1(y) + jnp.tanh(x) + jnp.arcsinh(y) + jax.nn.sigmoid(x) + jnp.arctan(y)
    ),
    "logs": lambda x, y, k: jnp.log(x * x + 0.1) + jnp.log1p(jnp.abs(y)) + jnp.sqrt(k) + lax.rsqrt(1.0 + y * y),
    "errors": lambda x, y, k: (
        jax.scipy.special.erf(x) + jax.scipy.special.erfc(y) + jax.scipy.special.erfinv(jnp.tanh(x))
    ),
    "gammas": lambda x, y, k: jax.scipy.special.gammaln(k + 0.3) - jax.scipy.special.gammaln(jnp.abs(x) + 0.01),
    "incomplete gammas": lambda x, y, k: (
        jax.scipy.special.gammainc(k + 1.0, jnp.abs(x)) - jax.scipy.special.gammaincc(k + 0.5, jnp.abs(y))
    ),
    "incomplete beta": lambda x, y, k: jax.scipy.special.betainc(k + 1.0, jnp.abs(x) + 0.5, jax.nn.sigmoid(y)),
    "digamma": lambda x, y, k: lax.digamma(k + 1.0) + jax.scipy.special.i0e(3.0 * x),
    "steps": lambda x, y, k: jnp.floor(x) + jnp.ceil(y) + jnp.round(x + y) + jnp.sign(x) + jnp.abs(y),
    "waves": lambda x, y, k: jnp.sin(x) + jnp.cos(k * 0.3),
    "whole numbers": lambda x, y, k: k // 3 + k % 4 - (k * k) % 7 + (k - 5) // 2 + lax.rem(k, 3),
    "choice": lambda x, y, k: jnp.where(
        (k > 2) & ~(x < y), x, jnp.where((k == 1) | (k != 3) & (x <= 4.0) | (y >= 3.0), y, 5.0)
    ),
    "exclusive": lambda x, y, k: jnp.where((x > 0) ^ (y > 0), 1.0, 2.0) * jnp.maximum(x, y) + jnp.minimum(x, 0.2),
    "clip": lambda x, y, k: jnp.clip(x, -0.5, 0.7) + lax.clamp(jnp.zeros_like(y), y, jnp.ones_like(y)),
    "casts": lambda x, y, k: (3 * x).astype(int) + (k > 1).astype(float) + k.astype(bool) + x.astype(jnp.float32),
    "finite": lambda x, y, k: jnp.where(jnp.isfinite(jnp.log(jnp.maximum(x, 0.0))), x, -1.0),
    "reductions": lambda x, y, k: jnp.sum(x) + jnp.max(y) - jnp.min(x) + jnp.prod(jnp.abs(y)) + jnp.argmax(x),
    "all, any": lambda x, y, k: jnp.all(x > -2.0).astype(float) + 2 * jnp.any(y > 2.0),
    "running": lambda x, y, k: jnp.cumsum(x) + lax.cummax(y) - lax.cummin(x, reverse=True) + jnp.sort(x),
    "softmax": lambda x, y, k: jax.nn.logsumexp(jnp.stack([x, y]), axis=0) + jax.nn.log_softmax(x) + jax.nn.softmax(y),
    "log-sum-exp with gaps": lambda x, y, k: jax.nn.logsumexp(jnp.stack([jnp.where(k > 1, x, -jnp.inf), y]), axis=0),
    "log of a sum of two": lambda x, y, k: jnp.logaddexp(x, y),
    "a maximum of the other axis": lambda x, y, k: _crossed(jnp.outer(x, y)),
    "products": lambda x, y, k: jnp.outer(x, y) @ jnp.arange(9.0).reshape(3, 3) @ y + TABLE[:3] @ x,
    "moved": lambda x, y, k: jnp.concatenate([x, y])[::-1][1:4] + jnp.pad(x, (1, 2), constant_values=4.0)[:3],
    "split": lambda x, y, k: (
        sum(p.sum() for p in jnp.split(jnp.concatenate([x, y]), 3)) + jnp.tile(x, 2).reshape(2, 3)[1]
    ),
    "picked": lambda x, y, k: jnp.asarray(TABLE)[k] + x[jnp.array([2, 0, 1])] + jnp.asarray(TABLE)[k - 4],
    "picked rows": lambda x, y, k: jnp.outer(TABLE, x)[k].sum(1) + jnp.take(x, k, mode="clip"),
    "out of the table": lambda x, y, k: jnp.nan_to_num(jnp.take(jnp.asarray(TABLE), k + 3, mode="fill"), nan=1.0),
    "sliced anywhere": lambda x, y, k: lax.dynamic_slice(jnp.concatenate([x, y]), (k[0],), (3,)),
    "branches": lambda x, y, k: lax.switch(k[0], [lambda v: v, lambda v: 2 * v, lambda v: -v], x),
    "loop": lambda x, y, k: lax.scan(lambda c, s: (0.5 * c + s[0], c * s[1]), x[0], (x, y))[1],
    "loop from behind": lambda x, y, k: lax.scan(lambda c, s: (c + s, c), y[0], x, reverse=True)[1],
    "unknown": lambda x, y, k: jnp.tan(x),
}


def _crossed(table: Any) -> Any:
    """The maximum of each column taken from each row: no log-sum-exp, though it is written alike."""
    return (table - jnp.max(table, axis=0)[:, None]).sum(1)


DEAR = ("errors", "incomplete gammas", "incomplete beta", "digamma")
"""To compile."""


@pytest.mark.parametrize("dear", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_value_lies_in_its_range(dear: bool) -> None:
    rng = np.random.default_rng(3)
    programs = {name: f for name, f in PROGRAMS.items() if (name in DEAR) is dear}
    with float64():
        example = (jnp.zeros(3), jnp.zeros(3), jnp.zeros(3, int))
        closed = {name: jax.make_jaxpr(f)(*example) for name, f in programs.items()}
        together = jax.vmap(lambda x, y, k: {name: f(x, y, k) for name, f in programs.items()})
        values = jax.jit(together, compiler_options=QUICKLY)
        for wide in (0.0, 0.01, 0.5, 3.0):
            low = rng.normal(0.0, 1.5, (2, 3))
            high = low + wide * rng.random((2, 3))
            first = rng.integers(0, 4, 3)
            last = first + rng.integers(0, 3, 3) * (wide > 0.1)
            x, y = (low[i] + (high[i] - low[i]) * rng.choice([0.0, 1.0, 0.3, 0.7], (400, 3)) for i in (0, 1))
            k = rng.integers(first, last + 1, (400, 3))
            found = values(x, y, k)
            for name, program in closed.items():
                (range_,) = run(program, [Interval(low[0], high[0]), Interval(low[1], high[1]), Interval(first, last)])
                value = np.asarray(found[name], float)
                assert range_.shape == value.shape[1:], name
                assert ((range_.low <= value) & (value <= range_.high)).all(), (name, wide)
                width = (range_.high - range_.low) / (1 + np.abs(value[0]))
                assert wide > 0.0 or name in ("unknown", "out of the table") or (width <= 1e-6).all(), name


def test_every_rule_is_tried() -> None:
    used: set[str] = set()

    def look(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            used.add(equation.primitive.name)
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else [value]:
                    if hasattr(inner, "jaxpr"):
                        look(inner.jaxpr)

    with float64():
        for function in PROGRAMS.values():
            look(jax.make_jaxpr(function)(jnp.zeros(3), jnp.zeros(3), jnp.zeros(3, int)).jaxpr)
    rest = {"add_any", "copy", "cbrt", "sinh", "exp2", "argmin", "iota", "transpose", "optimization_barrier", "unstack"}
    assert set(RULES) - used - rest == set()


@pytest.mark.parametrize("far", [1e3, 1e9, 1e18])
def test_log_sum_exp_is_bounded_by_its_largest(far: float) -> None:
    """Without the memory of a maximum, exp(x - max x) has no bound here."""
    with float64():
        program = jax.make_jaxpr(lambda x: jax.nn.logsumexp(jnp.stack([-x, -2 * x]), axis=0))(0.0)
        (found,) = run(program, [Interval(10.0, far)])
    assert found.high <= -10.0 + np.log(2) + 1e-9
