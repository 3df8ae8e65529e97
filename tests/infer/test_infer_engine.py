"""Inference on marginals that the engine made, not by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import marginalia as mg
from marginalia import infer
from marginalia.marginal import marginalize


def _five_points(y):
    weights = numpyro.sample("weights", dist.Dirichlet(0.5 * jnp.ones(2)))
    scale = numpyro.sample("scale", dist.LogNormal(0, 2))
    with numpyro.plate("components", 2):
        locs = numpyro.sample("locs", dist.Normal(0, 10))
    with numpyro.plate("data", len(y)):
        assignment = numpyro.sample("assignment", dist.Categorical(weights))
        numpyro.sample("obs", dist.Normal(locs[assignment], scale), obs=y)


@pytest.fixture(scope="module")
def marginal():
    return marginalize(_five_points, np.array([0.0, 1.0, 10.0, 11.0, 12.0]))


def test_map_of_five_points(marginal):
    result = infer.run(marginal, infer.MAP(starts=100), random_seed=1, progressbar=False)
    order = np.argsort(result.draws["locs"][0, 0])
    np.testing.assert_allclose(result.draws["locs"][0, 0][order], [0.4989, 10.9845], atol=1e-4)
    np.testing.assert_allclose(result.draws["weights"][0, 0][order], [0.375, 0.625], atol=1e-4)
    np.testing.assert_allclose(result.draws["scale"].item(), 0.6514, atol=1e-4)
    assert result.info["traces"] == 1


def test_nuts_of_five_points_is_traced_once(marginal):
    options = infer.NUTS(draws=100, tune=200, chains=2, starts=16)
    result = infer.run(marginal, options, random_seed=4, progressbar=False)
    assert result.info["traces"] == 1
    assert result.draws["weights"].shape == (2, 100, 2)
    np.testing.assert_allclose(result.draws["weights"].sum(axis=-1), 1.0)
    # The mode of two clusters, whichever label each has: with five points the labels may switch inside a chain.
    # This only tells places apart: other splits of the points have means that are off by 3 and more.
    low_and_high = np.median(np.sort(result.draws["locs"], axis=-1), axis=1)
    np.testing.assert_allclose(low_and_high, [[0.5, 11.0]] * 2, atol=1.0)


def _ordered_by_factor(y):
    p = numpyro.sample("p", dist.Dirichlet(2 * jnp.ones(3)))
    numpyro.factor("no_small_part", jnp.where(p.min() < 0.1, -jnp.inf, 0.0))
    mu = numpyro.sample("mu", dist.Normal(jnp.array([0.0, 10.0, 20.0]), 5).to_event(1))
    numpyro.factor("increasing", jnp.where(jnp.all(jnp.diff(mu) > 0), 0.0, -jnp.inf))
    sd = numpyro.sample("sd", dist.HalfCauchy(5).expand([3]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(p))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]), obs=y)


def test_nuts_starts_inside_hard_constraints():
    rng = np.random.default_rng(0)
    y = np.concatenate([rng.normal(0, 2, 15), rng.normal(10, 2, 20), rng.normal(20, 3, 25)])
    options = infer.NUTS(draws=100, tune=200, chains=2, starts=16)
    result = infer.run(marginalize(_ordered_by_factor, y), options, random_seed=1, progressbar=False)
    assert np.all(np.diff(result.draws["mu"], axis=-1) > 0)
    assert result.draws["p"].min() >= 0.1
    assert result.stats["diverging"].mean() < 0.1
    assert np.all(np.isfinite(result.stats["lp"]))


@pytest.mark.parametrize(("beta", "several"), [(2.0, False), (2.5, True)])
def test_a_weight_and_its_reflection_are_one_mode_where_the_density_says_so(beta, several):
    """Beta(2, 2) makes copies of the two; under Beta(2, 2.5) they are modes of different mass."""

    def model(y):
        w = numpyro.sample("w", dist.Beta(2.0, beta))
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(w))
            numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)

    rng = np.random.default_rng(0)
    y = np.concatenate([rng.normal(-2, 1, 10), rng.normal(3, 1, 30)])
    fit = mg.fit(model, y, method=mg.Laplace(draws=600, starts=16), random_seed=1, progressbar=False)
    assert fit.status == ()
    assert fit.result.info["modes"] == 1 + several
    assert fit.result.starts.modes[0].count < 16 if several else fit.result.starts.modes[0].count == 16
    assert (fit.draws["mu"][..., 0] > fit.draws["mu"][..., 1]).any() == several
