"""Chains and counts: the strategies for discretes that are too many to enumerate, on sizes that can be."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

import marginalia as mg
from oracle import enumerate_all

DRAWS = 4000
rng = np.random.default_rng(11)
Y = rng.normal(size=10)


def hmm_by_scan(y):
    transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones((3, 3))).to_event(1))
    mu = numpyro.sample("mu", dist.Normal(0, 1).expand([3]).to_event(1))

    def step(z, y_t):
        z = numpyro.sample("z", dist.Categorical(transition[z]))
        numpyro.sample("y", dist.Normal(mu[z], 1), obs=y_t)
        return z, None

    scan(step, 0, jnp.asarray(y))


def lag_of_two_with_time(y):
    transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones((2, 2, 2))).to_event(2))

    def step(carry, y_t):
        before, last, t = carry
        z = numpyro.sample("z", dist.Categorical(transition[before, last]))
        numpyro.sample("y", dist.Normal(z * jnp.cos(1.0 * t), 1), obs=y_t)
        return (last, z, t + 1), None

    scan(step, (1, 0, 0), jnp.asarray(y))


def named_lag_of_two(y):
    transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones((2, 2, 2))).to_event(2))
    z = [0, 1]
    for t in range(len(y)):
        z.append(numpyro.sample(f"z{t}", dist.Categorical(transition[z[-2], z[-1]])))
        numpyro.sample(f"y{t}", dist.Normal(z[-1], 1), obs=y[t])


def vectorised_chain_by_factor(y):
    transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones((2, 2))).to_event(1))
    z = numpyro.sample("z", dist.Categorical(jnp.ones(2) / 2).expand([len(y)]))
    numpyro.factor("steps", jnp.log(transition[z[:-1], z[1:]]).sum())
    numpyro.sample("y", dist.Normal(2.0 * z, 1), obs=y)


def two_chains_of_unequal_length(y):
    stay = numpyro.sample("stay", dist.Beta(2, 2))
    for s, length in enumerate((8, 5)):
        z = 0
        for t in range(length):
            z = numpyro.sample(f"z{s}_{t}", dist.Bernoulli(jnp.where(z == 1, stay, 0.3)))
            numpyro.sample(f"y{s}_{t}", dist.Normal(2.0 * z, 1), obs=y[t] + s)


def remembered_without_end(y):
    a = numpyro.sample("a", dist.Normal(0, 1))

    def step(total, y_t):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(a * (total + z), 1), obs=y_t)
        return total + z, None

    scan(step, 0, jnp.asarray(y))


def plain_sum(y):
    a, p = numpyro.sample("a", dist.Normal(0, 1)), numpyro.sample("p", dist.Beta(1, 1))
    with numpyro.plate("n", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(p))
        numpyro.sample("y", dist.Normal(z * a, 1), obs=y)
    numpyro.sample("total", dist.Normal(a * z.sum(), 1), obs=0.5)
    numpyro.sample("share", dist.Normal(z.mean(), 1), obs=0.5)


def weighted_sum(y):
    a = numpyro.sample("a", dist.Normal(0, 1))
    z = numpyro.sample("z", dist.Categorical(jnp.array([0.2, 0.3, 0.5])).expand([6]))
    numpyro.sample("y", dist.Normal(a * jnp.dot(z, jnp.array([1.0, 2.0, 3.0, -1.0, 0.0, 5.0])), 1), obs=y[0])


def sums_within_groups(y):
    a = numpyro.sample("a", dist.Normal(0, 1))
    with numpyro.plate("group", 2, dim=-2):
        g = numpyro.sample("g", dist.Bernoulli(0.3))
        with numpyro.plate("member", 4):
            probs = jnp.where(g[..., None] == 1, jnp.array([0.2, 0.3, 0.5]), jnp.array([0.6, 0.3, 0.1]))
            z = numpyro.sample("z", dist.Categorical(probs))
    numpyro.sample("y", dist.Normal(a * z.sum(1), 1).to_event(1), obs=y[:2])


def repeated_parts_and_supports_of_different_size(y):
    a = numpyro.sample("a", dist.Normal(0, 1))
    two = numpyro.sample("two", dist.Bernoulli(0.4).expand([3]))
    four = numpyro.sample("four", dist.Categorical(jnp.array([0.1, 0.2, 0.3, 0.4])).expand([3]))
    z = jnp.concatenate([two, four])
    numpyro.sample("first", dist.Poisson(jnp.exp(a) + z[np.array([0, 1, 1, 2, 5])].sum()), obs=3)
    numpyro.sample("second", dist.Normal(z[3:5].sum(), 1), obs=y[0])


def two_sums_of_the_same_parts(y):
    a = numpyro.sample("a", dist.Normal(0, 1))
    z = numpyro.sample("z", dist.Bernoulli(0.4).expand([6]))
    numpyro.sample("y", dist.Normal(a * z.sum(), 1), obs=y[0])
    numpyro.sample("x", dist.Normal((z * jnp.array([1, 2, 3, 4, 5, 6])).sum(), 1), obs=y[1])


SIMPLEX = np.array([[0.7, 0.3], [0.4, 0.6]])
CASES = {
    hmm_by_scan: ("forward pass", {"transition": rng.dirichlet(np.ones(3), 3), "mu": np.array([-1.0, 0.5, 2.0])}, 8),
    lag_of_two_with_time: ("2 before", {"transition": rng.dirichlet(np.ones(2), (2, 2))}, 10),
    named_lag_of_two: ("2 before", {"transition": rng.dirichlet(np.ones(2), (2, 2))}, 10),
    vectorised_chain_by_factor: ("forward pass", {"transition": SIMPLEX}, 10),
    two_chains_of_unequal_length: ("2 chains", {"stay": 0.8}, 10),
    remembered_without_end: ("graph", {"a": 0.4}, 6),
    plain_sum: ("convolution", {"a": 0.4, "p": 0.3}, 8),
    weighted_sum: ("convolution", {"a": 0.4}, 1),
    sums_within_groups: ("convolution", {"a": 0.4}, 2),
    repeated_parts_and_supports_of_different_size: ("convolution", {"a": 0.4}, 1),
    two_sums_of_the_same_parts: ("graph", {"a": 0.4}, 2),
}


# every other one in a hurry
@pytest.mark.parametrize(
    "model",
    [pytest.param(m, marks=pytest.mark.slow if i % 2 else ()) for i, m in enumerate(CASES)],
    ids=lambda m: m.__name__,
)
def test_everything_equals_enumeration(model, monkeypatch):
    monkeypatch.setattr("marginalia.lanes.sums.COUNT_FROM", 2)
    monkeypatch.setattr("marginalia.marginal.chain.SHORTEST", 4)
    strategy, params, rows = CASES[model]
    args = (Y[:rows],)
    params = {name: np.asarray(value, float) for name, value in params.items()}
    truth = enumerate_all(model, args, params, limit=2**20)
    marginal = mg.marginalize(model, *args)
    assert strategy in marginal.explain()
    with jax.enable_x64(True):
        kernel = marginal.kernel

        def everything(p, data, keys):
            value, gradient = jax.value_and_grad(kernel.log_density)(p, data)
            draws = jax.vmap(lambda key: kernel.sample(p, data, key))(keys)
            return value, gradient, kernel.posterior(p, data), kernel.mode(p, data), draws

        keys = jax.random.split(jax.random.key(3), DRAWS)
        value, gradient, posterior, mode, draws = jax.jit(everything)(params, kernel.data, keys)
    np.testing.assert_allclose(value, truth.density, rtol=1e-10)
    for name, expected in truth.gradient.items():
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-9, atol=1e-10)
    for name, expected in truth.marginals().items():
        np.testing.assert_allclose(posterior[name], expected, atol=1e-9)
        support = truth.sites[name].support
        frequency = (np.asarray(draws[name])[..., None] == support).mean(0)
        error = np.sqrt(expected * (1 - expected) / DRAWS)
        assert np.all(np.abs(frequency - expected) <= 4.5 * error + 1e-12)
    best = truth.table[truth.index({name: np.asarray(v) for name, v in mode.items()})]
    np.testing.assert_allclose(best, truth.table.max(), rtol=1e-12)


def test_a_sum_of_five_hundred_is_the_binomial_mixture_it_is():
    def model():
        a, p = numpyro.sample("a", dist.Normal(0, 1)), numpyro.sample("p", dist.Beta(1, 1))
        with numpyro.plate("n", 500):
            z = numpyro.sample("z", dist.Bernoulli(p))
        numpyro.sample("y", dist.Normal(a * z.sum(), 1), obs=0.5)

    k = np.arange(501)
    terms = stats.binom.logpmf(k, 500, 0.3) + stats.norm.logpdf(0.5, 0.02 * k, 1)
    expected = np.logaddexp.reduce(terms) + stats.norm.logpdf(0.02)
    np.testing.assert_allclose(mg.marginalize(model).log_density({"a": 0.02, "p": 0.3}), expected, rtol=1e-10)


def test_a_chains_compiled_program_does_not_grow_with_its_length():
    params = {"transition": np.full((3, 3), 1 / 3), "mu": np.array([-1.0, 0.5, 2.0])}

    def equations(length):
        kernel = mg.marginalize(hmm_by_scan, np.linspace(-1, 1, length)).kernel
        with jax.enable_x64(True):
            return len(jax.make_jaxpr(kernel.log_density)(params, kernel.data).jaxpr.eqns)

    assert equations(300) == equations(30)
