"""Tempered SMC: evidences and modes against quadrature and simple Monte Carlo, in standard errors."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import known
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy import stats

import marginalia as mg
from marginalia.errors import FitError, MarginaliaWarning, OptionError
from marginalia.infer import run, smc

SIGMAS = 4.0


@pytest.fixture(scope="module")
def two() -> mg.Fit:
    return mg.fit(known.two_parameters, known.Y, method=mg.SMC(draws=250, chains=4), random_seed=3, progressbar=False)


def test_the_evidence_of_two_parameters_is_that_of_quadrature(two):
    truth, _ = known.two_parameters_truth()
    value, error = two.log_evidence
    assert error < 0.2
    assert abs(value - truth) < SIGMAS * error


def test_the_draws_are_those_of_the_posterior(two):
    _, truth = known.two_parameters_truth()
    for name, mean in zip(("mu", "w"), truth, strict=True):
        runs = two.draws[name].mean(axis=1)
        assert abs(runs.mean() - mean) < SIGMAS * runs.std(ddof=1) / np.sqrt(len(runs))


def test_what_a_fit_tells(two):
    assert two.method == "smc"
    assert two.draws["mu"].shape == (4, 250)
    info = two.result.info
    assert all(betas[0] == 0 and betas[-1] == 1 and np.all(np.diff(betas) > 0) for betas in info["temperatures"])
    marginal = two.marginal
    flat = {name: value[0, 0] for name, value in two.draws.items()}
    jacobian = np.log(flat["w"]) + np.log1p(-flat["w"])
    assert two.result.stats["lp"][0, 0] == pytest.approx(marginal.log_density(flat) + jacobian)
    assert two.predict(draws=60)["y"].shape[-1] == 20
    assert two.membership()["z"].shape == (20, 2)


@pytest.mark.slow
def test_the_evidence_of_five_parameters_is_that_of_simple_monte_carlo():
    truth, noise = known.five_parameters_truth()
    marginal = mg.marginalize(known.five_parameters, known.X, known.Y_LINES)
    info = run(marginal, mg.SMC(draws=250, chains=4), random_seed=1, progressbar=False).info
    assert info["log_evidence_error"] < 0.3
    assert abs(info["log_evidence"] - truth) < SIGMAS * np.hypot(noise, info["log_evidence_error"])


def test_both_modes_get_their_weight():
    evidence, weight = known.two_modes_truth()
    marginal = mg.marginalize(known.two_modes, np.array(known.SEEN))
    result = run(marginal, mg.SMC(draws=200, chains=8), random_seed=2, progressbar=False)
    shares = (result.draws["theta"] > -1).mean(axis=1)
    assert 0.05 < weight < 0.95
    assert abs(shares.mean() - weight) < SIGMAS * shares.std(ddof=1) / np.sqrt(8)
    assert abs(result.info["log_evidence"] - evidence) < SIGMAS * result.info["log_evidence_error"]


def test_a_hard_constraint_counts_in_the_evidence():
    def model():
        a = numpyro.sample("a", dist.Normal(0, 1).expand([2]))
        numpyro.factor("order", jnp.where(a[0] < a[1], 0.0, -jnp.inf))

    result = run(mg.marginalize(model), mg.SMC(draws=200), random_seed=5, progressbar=False)
    assert abs(result.info["log_evidence"] - np.log(0.5)) < SIGMAS * result.info["log_evidence_error"]
    assert np.all(result.draws["a"][..., 0] < result.draws["a"][..., 1])


def test_a_prior_that_reads_a_discrete_is_summed_too():
    def model(y):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        a = numpyro.sample("a", dist.Normal(jnp.where(z == 1, 4.0, -1.0), 1.0))
        numpyro.sample("y", dist.Normal(a, 2.0), obs=y)

    result = run(mg.marginalize(model, np.array(3.0)), mg.SMC(draws=200), random_seed=1, progressbar=False)
    truth = np.log(0.3 * stats.norm.pdf(3, 4, np.sqrt(5)) + 0.7 * stats.norm.pdf(3, -1, np.sqrt(5)))
    assert abs(result.info["log_evidence"] - truth) < SIGMAS * result.info["log_evidence_error"]


def test_weights_on_the_edge_of_the_simplex_are_not_lost():
    def model(y):
        w = numpyro.sample("w", dist.Dirichlet(jnp.full(2, 0.05)))
        numpyro.sample("y", dist.Bernoulli(w[0]).expand([1]).to_event(1), obs=y)

    result = run(mg.marginalize(model, np.array([1])), mg.SMC(draws=200), random_seed=1, progressbar=False)
    assert abs(result.info["log_evidence"] - np.log(0.5)) < SIGMAS * result.info["log_evidence_error"]


def test_improper_priors_are_refused():
    def model(y):
        mu = numpyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(FitError, match=r"smc: the prior of 'mu' is improper.*Remedy: give it a proper prior"):
        mg.fit(model, np.array(1.0), method="smc", progressbar=False)


def test_data_that_no_prior_draw_can_have_given_are_said():
    def model():
        a = numpyro.sample("a", dist.Normal(0, 1))
        numpyro.factor("never", jnp.where(jnp.abs(a) < 100.0, -jnp.inf, 0.0))

    with pytest.raises(FitError, match="none of 50 draws from the prior"):
        run(mg.marginalize(model), mg.SMC(draws=50), random_seed=0, progressbar=False)


def test_few_possible_prior_draws_are_said():
    def model():
        a = numpyro.sample("a", dist.Normal(0, 1))
        numpyro.factor("far", jnp.where(a > 2.0, 0.0, -jnp.inf))

    with pytest.warns(MarginaliaWarning, match=r"Only \d+ of 100 draws from the prior"):
        mg.fit(model, method=mg.SMC(draws=100, chains=2), random_seed=0, progressbar=False)


def test_other_methods_have_no_evidence():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarginaliaWarning)
        fit = mg.fit(known.two_modes, np.array(known.SEEN), method=mg.MAP(starts=4), random_seed=0, progressbar=False)
    with pytest.raises(FitError, match="'map' estimates no evidence"):
        fit.log_evidence  # noqa: B018


@pytest.mark.parametrize("options", [{"draws": 5}, {"target_ess": 1.0}, {"moves": 0}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        mg.SMC(**options)


def test_the_next_temperature_leaves_the_effective_part_asked_for():
    likelihood = np.random.default_rng(0).normal(size=1000) * 50
    likelihood[:100] = -np.inf
    rise = smc.next_rise(likelihood, 1.0, 0.5)
    weights = np.where(np.isfinite(likelihood), np.exp(rise * (likelihood - likelihood.max())), 0.0)
    assert weights.sum() ** 2 / (weights**2).sum() == pytest.approx(450, rel=1e-6)
    assert smc.next_rise(likelihood * 1e-6, 0.25, 0.5) == 0.25


def test_systematic_resampling_gives_each_point_its_share():
    weights = np.random.default_rng(0).dirichlet(np.ones(50))
    counts = np.bincount(smc.systematic(weights, np.random.default_rng(1)), minlength=50)
    assert counts.sum() == 50
    assert np.all(np.abs(counts - 50 * weights) < 1)


def test_how_many_temperatures_are_to_come_is_told_from_how_fast_they_rise():
    halving = [0.0, *(2.0 ** np.arange(-30, -9))]
    assert smc._stages_left(halving) == pytest.approx(10)
    assert smc._stages_left([*halving, 1.0]) == 0
    assert smc._stages_left([0.0, 1e-9]) == np.inf
    crawling = [0.0, *(1e-6 * 1.001 ** np.arange(60))]
    assert smc._stages_left(crawling) == pytest.approx(-np.log(crawling[-1]) / np.log(1.001))


def test_temperatures_that_hardly_rise_are_an_error_and_no_road_without_an_end(monkeypatch):
    monkeypatch.setattr(smc, "next_rise", lambda likelihood, most, target: 1e-9)
    marginal = mg.marginalize(known.two_modes, np.array(known.SEEN))
    with pytest.raises(
        FitError, match=r"far: more than 1000 temperatures would be needed\. Got at temperature 6\.2e-08"
    ):
        run(marginal, mg.SMC(draws=50, chains=1), random_seed=1, progressbar=False)


def test_points_that_hardly_move_are_said(monkeypatch):
    monkeypatch.setattr(smc, "correlation", lambda before, after: 0.9)
    marginal = mg.marginalize(known.two_modes, np.array(known.SEEN))
    findings = run(marginal, mg.SMC(draws=50, chains=2, moves=3), random_seed=1, progressbar=False).findings
    assert any(said.startswith("The points moved slowly: after 3 moves at the last temperature") for said in findings)
