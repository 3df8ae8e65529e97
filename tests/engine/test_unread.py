"""Discretes that no data reach: which they are, that they cost nothing, and that they are given back all the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from scipy import stats

import marginalia as mg

Y = np.array([310.0, 295.0])


def rates_and_a_count(y):
    high = numpyro.sample("high", dist.Bernoulli(0.4))
    rate = numpyro.sample("rate", dist.Gamma(100.0, 0.5))
    numpyro.sample("y", dist.Normal(rate + 100.0 * high, 10.0).expand([len(y)]), obs=y)
    numpyro.sample("count", dist.Poisson(rate + 100.0 * high))


def test_an_endless_count_that_no_data_reach_is_exact_at_any_rate():
    marginal = mg.marginalize(rates_and_a_count, Y)
    assert not marginal.endless
    assert marginal.kernel.unread == ["count"]
    params = {"rate": 205.0}
    joint = [
        np.log(p) + stats.norm.logpdf(Y, 205.0 + 100.0 * z, 10.0).sum() + stats.gamma.logpdf(205.0, 100.0, scale=2.0)
        for z, p in enumerate([0.6, 0.4])
    ]
    assert float(marginal.log_density(params)) == pytest.approx(np.logaddexp(*joint), rel=1e-12)
    assert "count: one value; reaches no data, so its probabilities add up to 1" in marginal.explain()


@pytest.mark.slow
def test_an_endless_count_that_no_data_reach_is_given_back_with_all_the_values_it_needs():
    marginal = mg.marginalize(rates_and_a_count, Y)
    params = {"rate": 205.0}
    joint = [np.log(p) + stats.norm.logpdf(Y, 205.0 + 100.0 * z, 10.0).sum() for z, p in enumerate([0.6, 0.4])]
    found = marginal.posterior(params)
    weight = np.exp(joint[1] - np.logaddexp(*joint))
    assert found["high"] == pytest.approx([1 - weight, weight], rel=1e-9)
    k = np.arange(found["count"].shape[-1])
    expected = (1 - weight) * stats.poisson.pmf(k, 205.0) + weight * stats.poisson.pmf(k, 305.0)
    assert len(k) > 305
    assert found["count"] == pytest.approx(expected, abs=1e-12)
    mode = marginal.mode(params)
    assert (int(mode["high"]), int(mode["count"])) in {(1, 304), (1, 305)}
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 400)
        drawn = jax.jit(
            jax.vmap(lambda key: marginal.kernel.sample({"rate": jnp.array(205.0)}, marginal.kernel.data, key))
        )(keys)
    mean = (expected * k).sum()
    error = np.sqrt(((expected * k**2).sum() - mean**2) / 400)
    assert abs(np.mean(np.asarray(drawn["count"])) - mean) < 4.5 * error
    pairs = marginal.pairwise(params, "high", "count")
    assert pairs.sum(0) == pytest.approx(found["count"], abs=1e-12)


@pytest.mark.slow
def test_a_fit_gives_back_what_no_data_reach():
    fit = mg.fit(rates_and_a_count, Y, method=mg.MAP(starts=2), random_seed=0, progressbar=False)
    found = fit.membership()["count"].values
    assert found.shape[-1] > 300
    assert found.sum() == pytest.approx(1.0, abs=1e-9)


def _reached(**sites):
    """Which of `a` and `b`, a count that reads it, no data reach; `sites` say what is said about `b`."""

    def model(y):
        p = numpyro.sample("p", dist.Beta(1.0, 1.0))
        a = numpyro.sample("a", dist.Bernoulli(p))
        sites["b"](a, p)
        numpyro.sample("y", dist.Normal(p, 1.0), obs=y)

    return mg.marginalize(model, 0.3).kernel.unread


def test_only_a_distribution_that_is_whole_is_left_out():
    def masked(a, p):
        with handlers.mask(mask=False):
            numpyro.sample("b", dist.Binomial(2, p))

    def scaled(a, p):
        with handlers.scale(scale=2.0):
            numpyro.sample("b", dist.Binomial(2, p))

    def weighted(a, p):
        b = numpyro.sample("b", dist.Binomial(2, p))
        numpyro.factor("f", -0.1 * b)

    def latent(a, p):
        b = numpyro.sample("b", dist.Binomial(2, p))
        numpyro.sample("x", dist.Normal(b, 1.0))

    whole = {
        "b": lambda a, p: numpyro.sample("b", dist.Binomial(2, 0.5 * p + 0.1 * a)),
        "geometric": lambda a, p: numpyro.sample("b", dist.Geometric(0.2 + 0.5 * a)),
        "event": lambda a, p: numpyro.sample("b", dist.Bernoulli(logits=p * jnp.ones(3)).to_event(1)),
        "uniform": lambda a, p: numpyro.sample("b", dist.DiscreteUniform(0, 3)),
    }
    for b in whole.values():
        assert _reached(b=b) == ["a", "b"]
    # What was given to a categorical adds up to what it adds up to.
    assert _reached(b=lambda a, p: numpyro.sample("b", dist.Categorical(jnp.stack([p, 1 - p])))) == ["a"]
    for b in (masked, scaled, weighted, latent):
        assert _reached(b=b) == ["a"], b.__name__


@pytest.mark.parametrize(
    "count",
    [
        lambda n: dist.DiscreteUniform(0, n - 1),
        lambda n: dist.Binomial(n - 1, 0.4),
        lambda n: dist.BetaBinomial(2.0, 3.0, n - 1),
    ],
)
def test_a_state_under_which_a_count_has_no_value_is_impossible_though_no_data_reach_the_count(count):
    def model(less):
        a = numpyro.sample("a", dist.Normal(0.0, 2.0))
        n = numpyro.sample("n", dist.Categorical(jnp.array([0.2, 0.3, 0.5])))
        numpyro.sample("k", count(n + less))
        numpyro.sample("y", dist.Normal(n + a, 1.0), obs=0.7)

    for less, states in ((0, [1, 2]), (1, [0, 1, 2])):
        marginal = mg.marginalize(model, less)
        each = [np.log([0.2, 0.3, 0.5][n]) + stats.norm.logpdf(0.7, n + 0.3) for n in states]
        expected = stats.norm.logpdf(0.3, 0.0, 2.0) + np.logaddexp.reduce(each)
        assert float(marginal.log_density({"a": 0.3})) == pytest.approx(expected, rel=1e-12)
        assert marginal.kernel.unread == (["k"] if less else [])


def test_probabilities_that_do_not_add_up_to_one_count_as_they_are():
    def model():
        w = numpyro.sample("w", dist.Gamma(2.0, 1.0).expand([3]).to_event(1))
        numpyro.sample("b", dist.Categorical(w, validate_args=False))

    w = np.array([0.2, 0.7, 0.9])
    value = float(mg.marginalize(model).log_density({"w": w}))
    assert value == pytest.approx(stats.gamma.logpdf(w, 2.0).sum() + np.log(w.sum()), rel=1e-12)


def test_what_is_read_is_told_step_by_step_in_a_scan():
    def model(y, read):
        p = numpyro.sample("p", dist.Beta(1.0, 1.0))

        def step(carry, now):
            z = numpyro.sample("z", dist.Bernoulli(p))
            c = numpyro.sample("c", dist.Poisson(1.0 + z))
            numpyro.sample("y", dist.Normal(carry, 1.0), obs=now)
            return (z + c if read else z), None

        scan(step, 0, y)

    assert mg.marginalize(model, np.zeros(3), False).kernel.unread == ["c"]
    assert mg.marginalize(model, np.zeros(3), True).kernel.unread == []
