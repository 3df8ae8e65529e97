"""Functions whose evaluation in blocks of rows was once wrong or failed: it is right, or leaves them whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp

import marginalia as mg
from marginalia.marginal import scaled
from marginalia.rows import blocks
from marginalia.rows.streaming import Streamed, Whole, stream

RNG = np.random.default_rng(8)
N = 7
LINE, OTHER = RNG.normal(size=N), RNG.normal(size=N)
WIDE, SECOND = RNG.normal(size=(N, 3)), RNG.normal(size=(N, 3))
PARAMS = {
    "a": np.array(0.7),
    "b": np.array(-0.3),
    "mu": RNG.normal(size=3),
    "nu": RNG.normal(size=3),
    "grid": RNG.normal(size=(3, 3)),
    "table": RNG.normal(size=(2, 3)),
}

type Function = Callable[[Any, Any], Any]


@jax.custom_jvp
def added_up(x):
    return jnp.sum(x)


@added_up.defjvp
def _(primals, tangents):
    return added_up(*primals), jnp.sum(tangents[0])


@jax.custom_jvp
def silent(x):
    return jnp.zeros_like(x)


@silent.defjvp
def _(primals, tangents):
    return silent(*primals), 2 * tangents[0]


def neighbours(p, data):
    """Slices of a sum of two columns: the products of first with second are other features than second with first."""
    both = data[0] * p["a"] + data[1] * p["b"]
    return jnp.sum(jnp.tanh(jnp.sum(both[:, 1:] * both[:, :-1], 1)))


def quadratic_form(p, data):
    """One array of data along two axes."""
    away = data[0] - p["mu"]
    return jnp.sum(jnp.tanh(jnp.sum(away[:, :, None] * away[:, None, :] * p["grid"], (1, 2))))


def differences(p, data):
    first, second = (data[0] - p["mu"])[:, :, None], (data[0] * p["nu"])[:, None, :]
    return jnp.sum(jnp.tanh(jnp.sum((first - second) ** 2 * p["grid"], (1, 2))))


def regrouped(p, data):
    """Parameters whose axis is made of two."""
    away = jnp.concatenate(data[:2], 1) - p["table"].reshape(6)
    return jnp.sum(jnp.tanh(jnp.sum(away**2, 1)))


BY_ROWS: dict[str, tuple[Function, tuple[Any, ...]]] = {
    "neighbours": (neighbours, (WIDE, SECOND)),
    "quadratic form": (quadratic_form, (WIDE,)),
    "differences": (differences, (WIDE,)),
    "regrouped": (regrouped, (WIDE, SECOND)),
    "a sum of nothing": (
        lambda p, d: jnp.sum(jnp.exp(d[0] * p["a"])) + jnp.sum(jnp.broadcast_to(d[0][:, None] * p["a"], (N, 0))),
        (LINE,),
    ),
    "a derivative where the value is constant": (
        lambda p, d: jnp.sum(jnp.exp(d[0] * p["a"] + silent(d[0] * p["b"]))),
        (LINE,),
    ),
    "one row many times": (
        lambda p, d: jnp.sum(jnp.tanh((d[0] - p["mu"]) @ p["grid"])),
        (np.tile([1.0, 2.0, 3.0], (N, 1)),),
    ),
}

BY_ROWS["zeros of both signs"] = (
    lambda p, d: jnp.sum(jnp.exp(p["a"] * jnp.arctan2(d[0], -jnp.exp(p["b"]))) * d[1]),
    (np.array([0.0, -0.0, 0.0, -0.0, 0.0, 0.0, -0.0]), LINE),
)
BY_ROWS["functions with derivatives of their own"] = (
    lambda p, d: jnp.sum(
        jax.nn.softplus(d[0] * p["a"])
        + jax.nn.relu(d[0] - p["b"])
        + jax.scipy.special.xlogy(d[1], jnp.exp(d[0] * p["a"]))
    ),
    (LINE, np.abs(OTHER)),
)


def complex_numbers(p, data):
    """On the way, from a parameter alone, from data alone, and of 64 bits."""
    turned = jnp.exp(1j * p["a"]) * (data[0] + 1j * p["b"]) / (1.5 + 1j * data[1])
    powers = jnp.sqrt(jnp.log(data[0] + 1j * jnp.exp(p["a"])))
    return jnp.sum(jnp.abs(turned) + powers.imag * jnp.real(data[2] * p["mu"][0]))


def nothing_in_each_row(p, data):
    empty = data[0] - p["a"]
    return jnp.sum(jnp.exp(data[1] * p["b"]) + jnp.sum(empty**2, -1) + jnp.prod(empty, -1))


BY_ROWS["complex numbers"] = (complex_numbers, (LINE, OTHER, np.exp(1j * LINE).astype(np.complex64)))
BY_ROWS["nothing in each row"] = (nothing_in_each_row, (np.zeros((N, 0)), LINE))

WHOLE: dict[str, tuple[Function, tuple[Any, ...]]] = {
    "rows less rows": (
        lambda p, d: jnp.sum(jnp.exp((d[0] * p["a"])[:, None] - (d[1] * p["b"])[None, :])),
        (LINE, OTHER),
    ),
    "rows times rows": (lambda p, d: jnp.sum(jnp.sin((d[0] * p["a"]) @ (d[1] * p["mu"]).T)), (WIDE, SECOND)),
    "a sum hidden in a function": (
        lambda p, d: jnp.sum(jnp.exp(d[0] * p["a"] - 0.1 * added_up(d[0] * p["b"]))),
        (LINE,),
    ),
}


def taken_apart(function: Function, data: Any) -> tuple[Any, Streamed | Whole]:
    arrays = tuple(jnp.asarray(x) for x in data)
    shapes = {n: jax.ShapeDtypeStruct(x.shape, jnp.float64) for n, x in PARAMS.items()}
    return arrays, stream(function, shapes, arrays, fewest=2, longest_block=3)


@pytest.mark.parametrize("name", sorted(BY_ROWS))
def test_by_rows_is_what_is_written(name: str) -> None:
    function, data = BY_ROWS[name]
    with jax.enable_x64(True):
        arrays, found = taken_apart(function, data)
        assert isinstance(found, Streamed), found
        params = jax.tree.map(jnp.asarray, PARAMS)
        way = jax.tree.map(jnp.cos, params)

        def all_of(density: Callable[[Any], Any]) -> Any:
            slope = jax.grad(density)
            return density(params), jax.jvp(slope, (params,), (way,))

        expected = jax.jit(lambda: all_of(lambda p: function(p, arrays)))()
        actual = jax.jit(lambda: all_of(lambda p: found(p, found.data)))()
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        # Entries that are 0 in exact arithmetic are sums of terms near 1: float64 leaves some 1e-14 of them.
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("mode", ["clip", "promise_in_bounds", "fill"])
def test_places_beyond_the_ends_hold_what_they_do_in_jax(mode: Any) -> None:
    def function(p, data):
        return jnp.sum(jnp.nan_to_num(p["mu"].at[data[0]].get(mode=mode), nan=3.0) * data[1])

    with jax.enable_x64(True):
        arrays, found = taken_apart(function, (np.array([0, -1, 5, 2, -7, 1, -3]), LINE))
        assert isinstance(found, Streamed), found
        params = jax.tree.map(jnp.asarray, PARAMS)
        expected, actual = float(function(params, arrays)), float(found(params, found.data))
    assert actual == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_rows_that_meet_are_left_whole(name: str) -> None:
    with jax.enable_x64(True):
        assert isinstance(taken_apart(*WHOLE[name])[1], Whole)


@pytest.mark.parametrize("spread", [95.0, 590.0])
def test_an_all_but_impossible_transition_keeps_paths_that_later_count(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state ruled out for one step only, in the transfer matrices of segments and in the joint of two states."""
    monkeypatch.setattr(scaled, "SHORTEST_SEGMENT", 1)
    emission = np.zeros((16, 2, 1))
    emission[0, 0], emission[1:, 1] = -760.0, -2000.0
    transition = np.array([[0.0, -spread], [-spread, 0.0]])
    start = np.array([[0.0], [-2000.0]])

    def in_logarithms(start, transition, emission):
        before = start
        for own in emission:
            before = logsumexp(before[:, None] + transition[..., None], 0) + own
        return logsumexp(before)

    with jax.enable_x64(True):
        arguments = [jnp.asarray(x) for x in (start, transition, emission)]
        way = [jnp.cos(1.0 + x) for x in arguments]

        def all_of(function: Callable[..., Any]) -> Any:
            slope = jax.grad(function, (0, 1, 2))
            return function(*arguments), jax.jvp(slope, arguments, way)

        expected = jax.jit(lambda: all_of(in_logarithms))()
        found = jax.jit(lambda: all_of(lambda *x: jnp.sum(scaled.log_z(*x))))()
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        # Entries that are 0 in exact arithmetic are sums of terms near 1: float64 leaves some 1e-14 of them.
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-11)


def test_rows_too_wide_for_any_block_are_refused_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of rows do not make a table of a great many states a row bearable (4 million; a thousand here)."""

    def model(y):
        b = numpyro.sample("b", dist.Normal(0, 1).expand([10]).to_event(1))
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5).expand([10]).to_event(1))
            numpyro.sample("y", dist.Normal(z @ b, 1), obs=y)

    monkeypatch.setattr(blocks, "MOST_IN_BLOCK", 2**10)
    with mg.limits(max_states=2**10, max_numbers=2**16), pytest.raises(mg.Refusal, match="max_numbers"):
        mg.marginalize(model, np.linspace(-1, 1, 5000))
