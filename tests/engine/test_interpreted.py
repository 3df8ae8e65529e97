"""Small programs in NumPy: the same numbers as compiled, or left to the compiler."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import marginalia as mg
from compiled import compilations
from marginalia.infer.problem import Problem
from marginalia.jaxpr.interpreted import in_numpy
from marginalia.marginal.drawing import side_by_side
from zoo import CASES

X = np.array([[0.3, -1.2, 2.0], [0.01, 0.7, -0.4]])
SQUARE = np.array([[[2.0, 0.5], [0.5, 1.0]], [[1.0, 2.0], [2.0, 1.0]]])

OPERATIONS = {
    "elementary functions": lambda x: (jnp.exp(x), jnp.log(x), jnp.log1p(x), jnp.expm1(x), jnp.sqrt(x), jnp.tanh(x)),
    "sigmoid and its kin": lambda x: (jax.nn.sigmoid(x), jax.nn.softplus(x), jax.lax.erf_inv(x), jnp.floor(x)),
    "error function": lambda x: (jax.lax.erf(x), jax.lax.erfc(x)),
    "log-gamma and powers": lambda x: (jax.lax.lgamma(jnp.exp(x)), jnp.exp(x) ** x, x**x, jnp.sign(x) ** x),
    "softmax": lambda x: (jax.nn.softmax(x, axis=-1), jax.nn.log_softmax(x, axis=0)),
    "sums": lambda x: (x.sum(), x.sum(1), x.max(0), x.min(), x.prod(-1), jnp.isfinite(1 / (x - 2)).all(1)),
    "running": lambda x: (jnp.cumsum(x, 1), jnp.cumprod(x, 0), jax.lax.cumsum(x, 1, reverse=True)),
    "moves": lambda x: (jnp.pad(x, ((1, 0), (0, 2)), constant_values=3.0), x[::-1], x.T, jnp.stack([x, -x], 1)),
    "slices": lambda x: (x[:, 1:], x[0], jnp.concatenate([x, x], 1), x.reshape(3, 2), jnp.unstack(x)),
    "where": lambda x: (jnp.where(x > 0, x, -1.0), jnp.clip(x, -0.5, 0.5), jnp.sign(x), jnp.maximum(x, 0.1)),
    "products": lambda x: (x @ x.T, jnp.einsum("ij,kj->ki", x, x), x @ x[0]),
    "bits": lambda x: jax.lax.shift_right_logical(jax.lax.bitcast_convert_type(x, jnp.uint64), jnp.uint64(12)),
    "what nothing needs": lambda x: (jnp.sort(x), x + 1)[1],
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_that_of_xla(name):
    with jax.enable_x64(True):
        found = in_numpy(OPERATIONS[name], X)
        assert found is not None
        for own, expected in zip(
            jax.tree.leaves(found(X)), jax.tree.leaves(OPERATIONS[name](jnp.asarray(X))), strict=True
        ):
            assert own.dtype == expected.dtype
            assert own.shape == expected.shape
            np.testing.assert_allclose(own, expected, rtol=1e-14, atol=1e-15, equal_nan=True)


def test_a_root_is_that_of_each_matrix_and_none_where_there_is_none():
    with jax.enable_x64(True):
        found = in_numpy(jnp.linalg.cholesky, SQUARE)
        assert found is not None
        np.testing.assert_allclose(found(SQUARE), jnp.linalg.cholesky(SQUARE), rtol=1e-14)
        assert np.isnan(found(SQUARE)[1, 0, 0])


@pytest.mark.parametrize(
    "function",
    [
        jnp.sort,
        jnp.argmax,
        lambda x: jax.lax.fori_loop(0, 3, lambda _, a: a * 2, x),
        lambda x: x[jnp.array([1, 0])],
        lambda x: jnp.log(x).astype(int),
        lambda x: jax.lax.bitcast_convert_type(x, jnp.uint32),
    ],
    ids=["sort", "argmax", "loop", "gather", "to whole numbers", "bits of another width"],
)
def test_what_is_not_listed_is_left_to_the_compiler_and_gives_the_same(function):
    with jax.enable_x64(True):
        assert in_numpy(function, X) is None
        np.testing.assert_allclose(side_by_side(function)(X), jax.vmap(function)(X))


def test_random_numbers_are_uniform_normal_and_not_tied_to_each_other():
    def draw(words):
        one, other = jax.random.split(jax.random.wrap_key_data(words, impl="unsafe_rbg"))
        return jax.random.uniform(one, (3,)), jax.random.normal(other, (3,)), jax.random.normal(one, (1,))

    with jax.enable_x64(True):
        words = np.random.default_rng(1).integers(2**32, size=(4000, 4), dtype=np.uint32)
        found = in_numpy(jax.vmap(draw), words)
        assert found is not None
        uniform, normal, again = found(words)
    for column in uniform.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    for column in [*normal.T, *again.T]:
        assert stats.kstest(column, "norm").pvalue > 1e-4
    ties = np.corrcoef(np.concatenate([uniform, normal], axis=1).T)
    assert np.abs(ties[np.triu_indices(6, 1)]).max() < 4.5 / np.sqrt(4000)


def test_keys_of_another_generator_are_left_to_the_compiler():
    def draw(words):
        return jax.random.normal(jax.random.wrap_key_data(words, impl="threefry2x32"), (3,))

    assert in_numpy(jax.vmap(draw), np.zeros((2, 2), np.uint32)) is None


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].params and not CASES[n].may_refuse][::4])
def test_the_way_to_the_real_line_and_back_is_that_of_xla(name):
    marginal = mg.marginalize(CASES[name].model, *CASES[name].args)
    with jax.enable_x64(True):
        problem = Problem(marginal, jacobian=True)
        points = 2 * np.random.default_rng(0).normal(size=(5, problem.dimension))
        found = in_numpy(jax.vmap(lambda x: problem.kernel.constrain(problem.split(x))), points)
        assert found is not None
        expected = jax.vmap(lambda x: problem.kernel.constrain(problem.split(x)))(points)
        for own, other in zip(jax.tree.leaves(found(points)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(problem.unconstrain(problem.constrain(points)), points, rtol=1e-7, atol=1e-9)


def test_the_starts_of_a_mixture_compile_nothing():
    def model(y):
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
        with numpyro.plate("component", 2):
            mu = numpyro.sample("mu", dist.MultivariateNormal(jnp.zeros(2), 3 * jnp.eye(2)))
            sd = numpyro.sample("sd", dist.InverseGamma(2.0, 1.0))
        with numpyro.plate("row", len(y)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("y", dist.Normal(mu[z], sd[z][:, None]).to_event(1), obs=y)

    marginal = mg.marginalize(model, np.arange(14.0).reshape(7, 2))
    with compilations() as compiled, jax.enable_x64(True):
        problem = Problem(marginal, jacobian=True)
        prior = marginal.kernel.draw_prior(np.random.default_rng(0).integers(2**32, size=(900, 2), dtype=np.uint32))
        problem.constrain(problem.unconstrain(prior))
    assert not compiled
    assert np.abs(prior["mu"].mean((0, 1))).max() < 4.5 * np.sqrt(3 / 1800)
    assert abs(prior["mu"].var((0, 1)).mean() / 3 - 1) < 0.15
