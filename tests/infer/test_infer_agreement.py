"""Every method that draws gives the means that quadrature gives, in Monte Carlo standard errors."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from arviz_stats.base.array import array_stats
from exact import MODELS, Exact, funnel, latent_class

import marginalia as mg
from marginalia.errors import MarginaliaWarning
from marginalia.infer import auto

SIGMAS = 4.0
METHODS = {
    "auto": mg.Auto(),
    "nuts": mg.NUTS(draws=4000),
    "laplace": mg.Laplace(),
    "ensemble": mg.Ensemble(draws=400),
    "metropolis": mg.Metropolis(),
    "slice": mg.Slice(),
}
CLOUDS = 16  # of SMC: whole runs, the only independent ones


@functools.cache
def exact(name: str) -> Exact:
    return MODELS[name]()


@functools.cache
def marginal(name: str) -> mg.Marginal:
    return mg.marginalize(exact(name).model, *exact(name).args)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("name", sorted(MODELS))
def test_means_are_those_of_quadrature(name: str, method: str) -> None:
    fit = mg.fit(marginal(name), method=METHODS[method], random_seed=11, progressbar=False)
    assert fit.status == ()
    errors = exact(name).errors(fit.draws)
    assert max(errors.values()) < SIGMAS, errors
    if fit.method == "laplace":
        assert fit.result.info["k_hat"] < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_clouds_of_smc_have_the_means_and_the_evidence_of_quadrature(name: str) -> None:
    fit = mg.fit(marginal(name), method=mg.SMC(draws=250, chains=CLOUDS), random_seed=11, progressbar=False)
    assert fit.status == ()
    for what, function in exact(name).functions.items():
        clouds = function(fit.draws).mean(axis=1)
        off = abs(clouds.mean() - exact(name).means[what])
        assert off < SIGMAS * clouds.std(ddof=1) / np.sqrt(CLOUDS), (what, off)
    value, error = fit.log_evidence
    assert error < 0.2
    assert abs(value - exact(name).log_evidence) < SIGMAS * error


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.5, 2.0])
def test_a_funnel_is_sampled_by_the_default_and_refused_by_laplace(scale: float) -> None:
    model = funnel(scale)
    fit = mg.fit(model.model, *model.args, random_seed=1, progressbar=False)
    assert fit.method == "nuts"
    assert fit.status == ()
    assert max(model.errors(fit.draws).values()) < SIGMAS
    with pytest.warns(MarginaliaWarning, match="These draws are no posterior: the Pareto k-hat"):
        fit = mg.fit(model.model, *model.args, method="laplace", random_seed=1, progressbar=False)
    assert fit.result.info["k_hat"] > 0.7


@pytest.mark.slow
def test_the_default_gives_the_means_of_a_mixture() -> None:
    fit = mg.fit(marginal("mixture"), random_seed=3, progressbar=False)
    assert fit.status == ()
    errors = exact("mixture").errors(fit.draws)
    assert max(errors.values()) < SIGMAS, errors
    # Both numbers are label-free, so the errors above would not see labels that switched.
    assert np.all(fit.draws["mu"].mean(axis=(0, 1))[0] < fit.draws["mu"].mean(axis=(0, 1))[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("people", "words"), [(40, "2 modes of comparable weight"), (150, "2 modes that are no copies")]
)
def test_a_mode_that_chains_missed_is_said_by_nuts_and_visited_by_the_default(people: int, words: str) -> None:
    """With 150 people it holds 1 % of the mass: enough to be wrong by ten standard errors with an R-hat of 1.00."""
    model = latent_class(people, tell=4.0)
    seed = 14  # with 40 people, NUTS visits the minor mode from every second seed, and then has nothing to say
    with pytest.warns(MarginaliaWarning, match=words):
        fit = mg.fit(model.model, *model.args, method=METHODS["nuts"], random_seed=seed, progressbar=False)
    assert fit.summary()["r_hat"].max() < 1.01
    fit = mg.fit(model.model, *model.args, random_seed=seed, progressbar=False)
    assert fit.method == "laplace"
    assert fit.result.info["modes"] == 2
    assert fit.status == ()
    assert max(model.errors(fit.draws).values()) < SIGMAS


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.01, 0.3])
def test_without_laplace_the_default_goes_to_smc_where_modes_are_apart(share: float, monkeypatch) -> None:
    monkeypatch.setattr(auto, "LEAST_EFFICIENCY", 2.0)  # nothing is as good as that

    def model(y):
        z = numpyro.sample("z", dist.Bernoulli(share))
        x = numpyro.sample("x", dist.Normal(jnp.where(z == 1, -6.0, 5.0), jnp.where(z == 1, 0.5, 1.0)))
        numpyro.sample("y", dist.Normal(0.0 * x, 1.0), obs=y)

    # Starts come from the prior: of 64, one is in a mode of 1 % with some seeds.
    fit = mg.fit(model, np.array(0.0), random_seed=2, progressbar=False)
    assert fit.method == "smc"
    assert fit.notes[0].startswith("SMC was chosen")
    assert ("the ensemble missed a minor mode" in fit.notes[0]) == (share < 0.1)
    assert fit.result.starts is not None
    assert fit.status == ()
    low = (fit.draws["x"] < 0).astype(float)
    assert abs(low.mean() - share) / array_stats.mcse(low, chain_axis=0, draw_axis=1, method="mean") < SIGMAS
