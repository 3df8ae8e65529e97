"""Rows as separate vectors: density, gradient and curvature of all rows at once, or left to the ordinary way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree

import marginalia as mg
from marginalia.rows import streaming
from marginalia.rows.streaming import Streamed, stream
from marginalia.rows.unroll import Unrolled, logarithm, unroll

RNG = np.random.default_rng(11)
ROWS = 23


def line(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("component", 3):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        sd = numpyro.sample("sd", dist.HalfNormal(2))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]), obs=y)


def square(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("component", 2):
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
        sd = numpyro.sample("sd", dist.HalfNormal(2).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]).to_event(1), obs=y)


def masked(y):
    """Some entries of y were not seen, and a long-tailed distribution, whose square is under a logarithm."""
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("component", 2):
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    seen = ~jnp.isnan(y)
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        own = dist.StudentT(4.0, mu[z], 1.5).mask(seen).to_event(1)
        numpyro.sample("y", own, obs=jnp.where(seen, y, 0.0))


def impossible(y):
    """Rows that one component cannot have made, and rows that come in many copies."""
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    rate = numpyro.sample("rate", dist.LogNormal(0, 1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.factor("zero", jnp.where((z == 0) & (y > 0), -jnp.inf, 0.0))
        with numpyro.handlers.mask(mask=z == 1):
            numpyro.sample("y", dist.Normal(rate, 1.0), obs=y)


def sloping(y):
    """A line through (x, y) for each component: the table varies with both."""
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("component", 2):
        slope = numpyro.sample("slope", dist.Normal(0, 2))
    sd = numpyro.sample("sd", dist.HalfNormal(2))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(slope[z] * y[:, 1], sd), obs=y[:, 0])


def correlated(y):
    """One covariance for all components: a triangular system for each row."""
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    tilt = numpyro.sample("tilt", dist.Normal(0, 1))
    with numpyro.plate("component", 2):
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    root = jnp.array([[1.0, 0.0], [0.0, 0.7]]).at[1, 0].set(tilt)
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.MultivariateNormal(mu[z], scale_tril=root), obs=y)


W2, W3 = np.array([0.3, 0.7]), np.array([0.2, 0.5, 0.3])
HOLES = np.where(RNG.random((ROWS, 2)) < 0.3, np.nan, RNG.normal(size=(ROWS, 2)))
PROGRAMS: dict[str, tuple[Callable[..., Any], np.ndarray, dict[str, Any]]] = {
    "line": (line, RNG.normal(size=ROWS), {"w": W3, "mu": [-1.0, 0.5, 2.0], "sd": [1.0, 0.4, 0.8]}),
    "square": (square, RNG.normal(size=(ROWS, 2)), {"w": W2, "mu": RNG.normal(size=(2, 2)), "sd": [[1, 0.7], [2, 1]]}),
    "masked": (masked, HOLES, {"w": W2, "mu": RNG.normal(size=(2, 2))}),
    "impossible": (impossible, RNG.poisson(0.7, 4 * ROWS).astype(float), {"w": W2, "rate": 0.9}),
    "correlated": (correlated, RNG.normal(size=(ROWS, 2)), {"w": W2, "mu": RNG.normal(size=(2, 2)), "tilt": -0.4}),
    "sloping": (sloping, RNG.normal(size=(ROWS, 2)), {"w": W2, "slope": [-1.0, 1.5], "sd": 0.8}),
}


@pytest.fixture
def unrolled(monkeypatch: pytest.MonkeyPatch) -> list[Unrolled | None]:
    """What became of each sum over rows."""
    found: list[Unrolled | None] = []

    def note(*arguments: Any) -> Unrolled | None:
        found.append(unroll(*arguments))
        return found[-1]

    monkeypatch.setattr(streaming, "unroll", note)
    return found


def kernel_of(name: str) -> tuple[Any, Streamed, dict[str, Any]]:
    program, y, params = PROGRAMS[name]
    kernel = mg.marginalize(program, y).kernel
    with jax.enable_x64(True):
        rows = stream(kernel.log_density_whole, kernel.abstract_params(), kernel.closed, fewest=2, longest_block=7)
        assert isinstance(rows, Streamed), rows
        return kernel, rows, {n: jnp.asarray(v, float) for n, v in params.items()}


def derivatives(function: Callable[[Any], Any], params: Any) -> Any:
    """Value, gradient, a derivative forward, second derivatives, and values at three points side by side."""
    flat, back = ravel_pytree(params)
    # Weights stay weights.
    others, _ = ravel_pytree({n: jnp.full_like(v, n != "w") for n, v in params.items()})

    def of_flat(x: Any) -> Any:
        return function(back(x))

    def everything(x: Any) -> Any:
        way = jnp.cos(jnp.arange(x.size, dtype=x.dtype))
        points = x * (1 + others * jnp.array([[0.0], [0.01], [-0.02]]))
        return (
            jax.value_and_grad(of_flat)(x),
            jax.jvp(of_flat, (x,), (way,)),
            jax.hessian(of_flat)(x),
            jax.grad(lambda x: jnp.vdot(jax.grad(of_flat)(x), way))(x),
            jax.vmap(jax.value_and_grad(of_flat))(points),
        )

    return jax.jit(everything)(flat)


DEAR = ("sloping", "square")
"""Not in a hurry: what they have, `line` and `correlated` have too."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in DEAR else ()) for n in sorted(PROGRAMS)]
)
def test_value_and_all_derivatives_are_those_of_the_whole(name: str, unrolled: list[Unrolled | None]) -> None:
    kernel, rows, params = kernel_of(name)
    with jax.enable_x64(True):
        expected = derivatives(lambda p: kernel.log_density_whole(p, kernel.closed), params)
        found = derivatives(lambda p: rows(p, rows.data), params)
    assert unrolled
    assert None not in unrolled
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-10 * float(np.abs(a).max()))


def test_a_component_of_no_weight_and_a_density_of_nothing(unrolled: list[Unrolled | None]) -> None:
    kernel, rows, params = kernel_of("line")
    kernel_0, rows_0, params_0 = kernel_of("impossible")
    with jax.enable_x64(True):
        for k, r, p in (
            (kernel, rows, {**params, "w": jnp.array([0.0, 0.6, 0.4])}),
            (kernel_0, rows_0, {**params_0, "w": jnp.array([1.0, 0.0])}),
        ):
            expected = jax.jit(jax.value_and_grad(k.log_density_whole))(p, k.closed)
            found = jax.jit(jax.value_and_grad(r))(p, r.data)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-10), expected, found)
    assert not np.isfinite(found[0])
    assert None not in unrolled


# ---- single steps --------------------------------------------------------------------------------------------------

X = np.arange(12.0).reshape(2, 6) % 5 - 1
A = np.array([[0.5, -1.0], [2.0, 0.0]])

STEPS: dict[str, Callable[[Any, Any], Any]] = {
    "largest, with ties": lambda a, x: jnp.max(a[:, :, None] * 0 + x, axis=0) * a[0, 0],
    "largest of three": lambda a, x: jnp.max(jnp.concatenate([x, x[:1]]) * a[0, 0], axis=0),
    "least of three": lambda a, x: jnp.min(jnp.concatenate([x, x[1:]]) * a[0, 0], axis=0),
    "product with zeros": lambda a, x: jnp.prod(x * a[:, :1], axis=0),
    "matrix product": lambda a, x: jnp.sin(a @ x),
    "matrix product, rows first": lambda a, x: jnp.cos(x.T @ a),
    "batched product": lambda a, x: jnp.einsum("kr,kd->dkr", x, a),
    "product of rows with rows": lambda a, x: jnp.einsum("kr,kr->r", x, x * a[:, :1]),
    "all and any": lambda a, x: jnp.where((x > 0).all(0) | (x < 0).any(0), a[0, 1], a[1, 0]),
    "transposed and cut": lambda a, x: jnp.exp(x.T[:, 1:] * a[0, :1]).T,
    "logarithms": lambda a, x: jnp.log(x**2 + a[1, 0]) * jnp.log(a[1, 0]),
    "sums of everything": lambda a, x: jnp.broadcast_to(a[:, :, None] * x[None], (2, 2, x.shape[-1])),
}

LEFT: dict[str, Callable[[Any, Any], Any]] = {
    "a running sum": lambda a, x: jnp.cumsum(x * a[0, 0], axis=1),
    "a row's number": lambda a, x: x * a[0, 0] * jnp.arange(x.shape[1]),
    "rows beside columns": lambda a, x: jnp.sin(x.reshape(-1) * a[0, 0]),
    "rows that meet": lambda a, x: x * a[0, 0] - x.mean(1, keepdims=True),
    "rows backwards": lambda a, x: x * a[0, 0] + x[:, ::-1],
    "a wide table": lambda a, x: jnp.broadcast_to(x[:, None] * a[0, 0], (2, 9, x.shape[1])),
}


@pytest.mark.parametrize("name", sorted(STEPS))
def test_single_steps_and_their_derivatives(name: str) -> None:
    def function(arrays: Any, block: Any) -> Any:
        return jnp.sum(STEPS[name](arrays[0], block[0]))

    with jax.enable_x64(True):
        arrays, block = [jnp.asarray(A)], [jnp.asarray(X)]
        found = unroll(function, arrays, block)
        assert found is not None

        def slopes(arrays: Any) -> Any:
            handed, pull, fixed = jax.vjp(found.handed, arrays, has_aux=True)
            value, slopes = found.value_and_slopes(handed, fixed, block)
            return value, pull(slopes)[0]

        expected = jax.value_and_grad(lambda a: function(a, block))(arrays)
        value = found.value(*found.handed(arrays), block)
        for a, b in zip(
            jax.tree.leaves((*expected, expected[0])), jax.tree.leaves((*slopes(arrays), value)), strict=True
        ):
            np.testing.assert_allclose(b, a, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", sorted(LEFT))
def test_what_is_left_to_the_ordinary_way(name: str) -> None:
    with jax.enable_x64(True):
        assert unroll(lambda a, b: jnp.sum(LEFT[name](a[0], b[0])), [jnp.asarray(A)], [jnp.asarray(X)]) is None


# ---- the logarithm -------------------------------------------------------------------------------------------------


def test_the_logarithm_is_right_to_the_last_digit_or_two() -> None:
    near_one = 1 + RNG.normal(size=200) * 10.0 ** RNG.integers(-15, 0, 200)
    x = np.concatenate(
        [np.exp(RNG.uniform(-700, 709, 400)), np.abs(near_one), [1.0, 2.0, np.sqrt(0.5), 2.3e-308, 1e307]]
    )
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(logarithm)(x))
        slopes = np.asarray(jax.vmap(jax.grad(logarithm))(x))
    exact = np.log(x.astype(np.longdouble))
    assert (np.abs(found - exact) <= 2 * np.spacing(np.abs(found))).all()
    np.testing.assert_array_equal(slopes, 1 / x)


def test_the_logarithm_of_what_is_no_positive_number() -> None:
    x = np.array([0.0, -0.0, -1.0, -np.inf, np.inf, np.nan])
    with jax.enable_x64(True):
        np.testing.assert_array_equal(np.asarray(logarithm(x)), [-np.inf, -np.inf, np.nan, np.nan, np.inf, np.nan])
