"""Inference on marginals that the engine made, not by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

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
