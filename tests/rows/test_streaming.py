"""The density in blocks of rows is the density: value, gradient and curvature, however the rows are cut and counted."""

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
from scipy import stats
from scipy.special import logsumexp

import marginalia as mg
from marginalia.rows import streaming
from marginalia.rows.streaming import Streamed, Whole, stream
from zoo import CASES

RNG = np.random.default_rng(5)
COMPONENTS, COLUMNS = 3, 4

BY_ROWS = {
    "annotators",
    "experts",
    "full_covariance",
    "latent_class",
    "missing_by_handler",
    "occupancy",
    "truncated_components",
    "weighted_rows",
}
"""Models of independent rows: to leave one of these whole is a loss of speed."""

WHOLE = {"change_point", "latent_given_discrete", "chain_by_scan"}
"""Models whose rows are not independent."""


def by_rows(kernel: Any, **how: Any) -> Streamed:
    with jax.enable_x64(True):
        found = stream(kernel.log_density_whole, kernel.abstract_params(), kernel.closed, **how)
    assert isinstance(found, Streamed), found
    return found


def compare(kernel: Any, streamed: Streamed, params: Any, *, curvature: bool = False, tolerance: float = 1e-11) -> None:
    """Value and gradient at a point, by rows and whole."""
    with jax.enable_x64(True):
        params = {n: jnp.asarray(v, float) for n, v in params.items()}
        whole = jax.jit(jax.value_and_grad(kernel.log_density_whole))(params, kernel.closed)
        rows = jax.jit(jax.value_and_grad(streamed))(params, streamed.data)
        pairs = list(zip(jax.tree.leaves(whole), jax.tree.leaves(rows), strict=True))
        if curvature:
            flat, back = ravel_pytree(params)
            way = jnp.asarray(RNG.normal(size=flat.shape))

            def turned(function: Callable[[Any], Any]) -> Any:
                return jax.jit(lambda x: jax.jvp(jax.grad(function), (x,), (way,))[1])(flat)

            pairs.append(
                (
                    turned(lambda x: kernel.log_density_whole(back(x), kernel.closed)),
                    turned(lambda x: streamed(back(x), streamed.data)),
                )
            )
    for expected, found in pairs:
        scale = max(1.0, float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))))
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", sorted(BY_ROWS))
def test_models_of_independent_rows_go_by_rows(name: str) -> None:
    case = CASES[name]
    kernel = mg.marginalize(case.model, *case.args).kernel
    compare(kernel, by_rows(kernel, fewest=2, longest_block=3), case.params)


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_models_of_dependent_rows_stay_whole_and_say_why(name: str) -> None:
    case = CASES[name]
    kernel = mg.marginalize(case.model, *case.args).kernel
    with jax.enable_x64(True):
        found = stream(kernel.log_density_whole, kernel.abstract_params(), kernel.closed, fewest=2)
    assert isinstance(found, Whole)
    assert "rows" in found.reason


def diagonal(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(COMPONENTS)))
    with numpyro.plate("component", COMPONENTS):
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([y.shape[1]]).to_event(1))
        sd = numpyro.sample("sd", dist.HalfNormal(5).expand([y.shape[1]]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]).to_event(1), obs=y)


def full(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(COMPONENTS)))
    with numpyro.plate("component", COMPONENTS):
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([y.shape[1]]).to_event(1))
        sd = numpyro.sample("sd", dist.HalfNormal(5).expand([y.shape[1]]).to_event(1))
        root = numpyro.sample("root", dist.LKJCholesky(y.shape[1], 2.0))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        tril = sd[z][:, :, None] * root[z]
        numpyro.sample("y", dist.MultivariateNormal(mu[z], scale_tril=tril), obs=y)


def counts(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(COMPONENTS)))
    rate = numpyro.sample("rate", dist.LogNormal(0, 1).expand([COMPONENTS]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Poisson(rate[z]), obs=y)


def effects(y, group):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([40]).to_event(1))
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(beta[group] + z, 1.0), obs=y)


MODELS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "diagonal": (diagonal, (RNG.normal(size=(23, COLUMNS)),)),
    "full": (full, (RNG.normal(size=(23, COLUMNS)),)),
    "counts": (counts, (RNG.poisson(2.0, size=61),)),
    "effects": (effects, (RNG.normal(size=61), RNG.integers(0, 40, size=61))),
}


def start(kernel: Any) -> dict[str, np.ndarray]:
    """A point with scales near 1, so that no product is too large to be summed."""
    with jax.enable_x64(True):
        params = {n: np.array(v) for n, v in kernel.prior(jax.random.key(3)).items()}
    return {n: np.abs(v) + 0.5 if n == "sd" else v for n, v in params.items()}


@pytest.mark.parametrize(
    ("name", "longest_block"),
    [
        pytest.param("diagonal", 7, marks=pytest.mark.slow),
        pytest.param("full", 7, marks=pytest.mark.slow),
        ("counts", 2),
        ("effects", 7),
        ("effects", 100),
    ],
)
def test_any_block_gives_the_same_value_gradient_and_curvature(name: str, longest_block: int) -> None:
    model, args = MODELS[name]
    kernel = mg.marginalize(model, *args).kernel
    streamed = by_rows(kernel, fewest=2, longest_block=longest_block)
    compare(kernel, streamed, start(kernel), curvature=longest_block < 100)


def test_equal_rows_are_counted_once() -> None:
    model, args = MODELS["counts"]
    kernel = mg.marginalize(model, *args).kernel
    streamed = by_rows(kernel, fewest=2)
    assert streamed.counted == len(np.unique(args[0]))
    compare(kernel, streamed, start(kernel))


def test_points_side_by_side_are_points_alone() -> None:
    """Under `vmap` the choice between ways to sum is one for all points, and all are right."""
    model, args = MODELS["diagonal"]
    kernel = mg.marginalize(model, *args).kernel
    streamed = by_rows(kernel, fewest=2, longest_block=5)
    points = [start(kernel) for _ in range(3)]
    points[1] = {**points[1], "mu": points[1]["mu"] + 1.0}
    points[2] = {**points[2], "sd": points[2]["sd"] * 1e-6}  # sums of products would lose all digits here
    with jax.enable_x64(True):
        together = jax.tree.map(lambda *x: jnp.stack(x), *points)
        found = jax.jit(jax.vmap(jax.value_and_grad(streamed), (0, None)))(together, streamed.data)
        for i, point in enumerate(points):
            expected = jax.jit(jax.value_and_grad(kernel.log_density_whole))(point, kernel.closed)
            for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
                np.testing.assert_allclose(b[i], a, rtol=1e-9)


@pytest.mark.parametrize(
    ("model", "far", "scale"), [(diagonal, 1e6, 1.0), (diagonal, 1e9, 1e-3), (full, 1e9, 1.0), (full, 0.0, 1e-7)]
)
def test_no_digit_is_lost_to_data_far_from_zero_or_narrow_components(
    model: Callable[..., Any], far: float, scale: float
) -> None:
    """The matrix product of sufficient statistics against differences taken first, in extended precision."""
    y = far + RNG.normal(size=(40, COLUMNS))
    kernel = mg.marginalize(model, y).kernel
    streamed = by_rows(kernel, fewest=2, longest_block=16)
    params = {
        "w": np.array([0.2, 0.3, 0.5]),
        "mu": y[:COMPONENTS] + 0.1 * scale,
        "sd": np.full((COMPONENTS, COLUMNS), scale),
    }
    if model is full:
        params["root"] = np.broadcast_to(np.eye(COLUMNS), (COMPONENTS, COLUMNS, COLUMNS))
    with jax.enable_x64(True):
        found = float(jax.jit(streamed)(params, streamed.data))
        rest = float(jax.jit(kernel.log_density_whole)(params, kernel.closed))
    wide = np.longdouble
    away = (y[None].astype(wide) - params["mu"][:, None].astype(wide)) / wide(scale)
    rows = -0.5 * (away**2).sum(-1) - COLUMNS * np.log(wide(scale) * np.sqrt(2 * wide(np.pi)))
    rows = rows + np.log(params["w"].astype(wide))[:, None]
    top = rows.max(0)
    likelihood = float((top + np.log(np.exp(rows - top).sum(0))).sum())
    prior = rest - _likelihood(kernel, params)
    assert found == pytest.approx(likelihood + prior, rel=1e-10)


def _likelihood(kernel: Any, params: Any) -> float:
    with jax.enable_x64(True):
        found = jax.jit(kernel.log_likelihood)(params, kernel.closed)
    return float(sum(np.asarray(v).sum() for v in found.values()))


def test_narrow_components_would_lose_digits_as_sums_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is needed: without it the same sums are wrong in the first digits."""
    sd = 1e-8
    centre = RNG.normal(size=(COMPONENTS, COLUMNS))
    y = centre[RNG.integers(COMPONENTS, size=40)] + sd * RNG.normal(size=(40, COLUMNS))
    kernel = mg.marginalize(diagonal, y).kernel
    params = {"w": np.full(3, 1 / 3), "mu": centre, "sd": np.full((COMPONENTS, COLUMNS), sd)}
    streamed = by_rows(kernel, fewest=2)
    with jax.enable_x64(True):
        expected = float(jax.jit(kernel.log_density_whole)(params, kernel.closed))
        assert float(jax.jit(streamed)(params, streamed.data)) == pytest.approx(expected, rel=1e-12)
        monkeypatch.setattr(streaming, "SAFE_PRODUCTS", np.inf)
        wrong = float(jax.jit(lambda p, d: streamed(p, d))(params, streamed.data))
    assert abs(wrong - expected) > 1e-4 * abs(expected)


def test_a_large_density_is_by_rows_from_the_public_verb() -> None:
    """`log_density` of 5000 rows against SciPy."""
    y = RNG.normal(size=5000)

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)

    marginal = mg.marginalize(model, y)
    assert isinstance(marginal.kernel.by_rows, Streamed)
    mu = np.array([-1.0, 1.5])
    rows = stats.norm.logpdf(y[:, None], mu) + np.log([0.7, 0.3])
    expected = logsumexp(rows, axis=1).sum() + stats.norm.logpdf(mu).sum()
    assert float(marginal.log_density({"mu": mu})) == pytest.approx(expected, rel=1e-12)
