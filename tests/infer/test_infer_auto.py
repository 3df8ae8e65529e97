"""The default: which method it chooses, that it says why, and that it runs on until the judge is content."""

from __future__ import annotations

import jax.numpy as jnp
import known
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from arviz_stats.base.array import array_stats
from exact import mixture
from fake import bimodal, correlated_gaussian

import marginalia as mg
from marginalia import infer
from marginalia.infer import auto, ensemble, modes, nuts
from marginalia.infer.options import NUTS, Auto


def _share(result: infer.Result, truth: float) -> float:
    low = (result.draws["x"] < 0).astype(float)
    return float(abs(low.mean() - truth) / array_stats.mcse(low, chain_axis=0, draw_axis=1, method="mean"))


def test_few_data_and_one_mode_are_for_the_ensemble():
    result = infer.run(correlated_gaussian(), Auto(starts=4), random_seed=1, progressbar=False)
    assert result.method == "ensemble"
    assert result.draws["x"].shape == (4, 1000, 2)
    assert result.info["choice"].startswith(
        "The ensemble was chosen (2 parameters, 3 numbers of data, 4 of 4 starts agree, Par"
    )
    assert result.info["options"]["max_draws"] == 4_000
    assert result.info["traces"] == 1  # for starts, k-hat and sampler together
    assert result.findings == ()


def test_many_data_are_for_laplace(monkeypatch):
    monkeypatch.setattr(auto, "FEW_DATA", 3)
    result = infer.run(correlated_gaussian(), Auto(starts=4), random_seed=1, progressbar=False)
    assert result.method == "laplace"
    assert result.info["choice"].endswith(": its proposals fit.")
    assert result.findings == ()


def test_few_data_are_not_for_laplace_however_well_its_proposals_seem_to_fit(monkeypatch):
    """Once found: galaxies, seed 7, a k-hat below 0.7, and a third component of mean 32.9 that is 31.4."""
    monkeypatch.setattr(auto, "_fits", lambda weighed, tried: True)
    assert infer.run(bimodal(0.3), Auto(starts=16), random_seed=1, progressbar=False).method == "ensemble"


def test_one_chain_of_laplace_is_judged_by_its_k_hat(monkeypatch):
    monkeypatch.setattr(auto, "FEW_DATA", 3)
    result = infer.run(correlated_gaussian(), Auto(chains=1, starts=4), random_seed=1, progressbar=False)
    assert (result.method, result.findings) == ("laplace", ())
    assert result.draws["x"].shape == (1, 1000, 2)


@pytest.fixture
def all_begin_at_one_mode(monkeypatch):
    """Chains as they would be without jumps."""
    monkeypatch.setattr(nuts, "jumps_between", lambda problem, weighed: None)
    monkeypatch.setattr(modes, "shares", lambda weighed, count: [count])


def test_modes_far_apart_are_visited_as_often_as_they_deserve(all_begin_at_one_mode):
    stuck = infer.run(bimodal(0.3), NUTS(draws=300, tune=200, starts=16), random_seed=1, progressbar=False)
    assert np.all(stuck.draws["x"] > 0)
    assert "2 modes of comparable weight" in stuck.findings[0]
    assert "0 of 4 chains visited it" in stuck.findings[0]
    result = infer.run(bimodal(0.3), Auto(starts=16), random_seed=1, progressbar=False)
    assert result.method == "ensemble"
    assert result.info["choice"].endswith("its chains jump between the modes.")
    assert _share(result, 0.3) < 4
    assert result.findings == ()


def test_smc_that_would_take_too_long_is_given_up_and_the_chains_are_kept(all_begin_at_one_mode, monkeypatch):
    monkeypatch.setattr(auto, "_fits", lambda weighed, tried: False)
    monkeypatch.setattr(auto, "MOST_WORK", 2e7)
    monkeypatch.setattr(ensemble, "jumps_between", lambda problem, weighed: None)
    marginal = mg.marginalize(known.two_modes, np.array(known.SEEN))
    result = infer.run(marginal, Auto(starts=16, draws=200, tune=100), random_seed=1, progressbar=False)
    assert result.method == "nuts"
    assert "NUTS missed a mode; SMC was given up at temperature " in result.info["choice"]
    assert "2 modes of comparable weight" in result.findings[0]


@pytest.mark.slow
def test_a_mode_of_one_percent_is_not_forgotten(all_begin_at_one_mode):
    stuck = infer.run(bimodal(0.01), NUTS(draws=1000, tune=200), random_seed=1, progressbar=False)
    assert np.all(stuck.draws["x"] > 0)
    assert "2 modes that are no copies" in stuck.findings[0]
    result = infer.run(bimodal(0.01), Auto(), random_seed=1, progressbar=False)
    assert _share(result, 0.01) < 4


def test_the_choice_and_its_reason_are_in_the_fit_and_same_seed_same_bytes():
    model = mixture()
    first, second = (
        mg.fit(model.model, *model.args, method=Auto(draws=60, tune=200), random_seed=5, progressbar=False)
        for _ in range(2)
    )
    assert first.method == "ensemble"
    assert first.notes[0] == first.result.info["choice"]
    assert f"Note: {first.notes[0]}" in repr(first)
    # 60 draws a chain are too few for the judge, so it went on.
    assert first.draws["mu"].shape[1] > 60
    assert "draws a chain, not 60" in first.notes[0]
    assert first.status == ()
    assert first.draws["mu"].tobytes() == second.draws["mu"].tobytes()


def walled(y):
    """An edge that a leapfrog step of the usual size falls over."""
    x = numpyro.sample("x", dist.Normal(0, 1))
    numpyro.factor("wall", jnp.where(x > 1.5, -5000.0 * (x - 1.5), 0.0))
    numpyro.sample("y", dist.Normal(x, 1), obs=y)


def test_where_the_ensemble_diverges_nuts_is_asked():
    result = infer.run(mg.marginalize(walled, np.array(1.5)), Auto(draws=200), random_seed=2, progressbar=False)
    assert result.method == "nuts"
    assert "the ensemble did not pass the checks" in result.info["choice"]


def test_chains_that_make_no_two_superchains_are_for_nuts():
    options = Auto(starts=4, draws=100, tune=100, chains=3)
    result = infer.run(correlated_gaussian(), options, random_seed=1, progressbar=False)
    assert result.method == "nuts"
    assert result.draws["x"].shape[0] == 3


@pytest.mark.slow
def test_what_is_asked_for_is_the_beginning_of_what_is_drawn():
    model = mixture()
    marginal = mg.marginalize(model.model, *model.args)
    short = infer.run(marginal, NUTS(draws=150, tune=200), random_seed=5, progressbar=False)
    long = infer.run(marginal, NUTS(draws=150, tune=200, max_draws=600), random_seed=5, progressbar=False)
    assert long.draws["mu"].shape[1] in (300, 600)
    assert np.array_equal(long.draws["mu"][:, :150], short.draws["mu"])


@pytest.mark.slow
def test_where_draws_diverge_the_step_is_halved_and_they_are_thrown_away():
    marginal = mg.marginalize(walled, np.array(1.5))
    plain = infer.run(marginal, NUTS(draws=500, tune=200), random_seed=2, progressbar=False)
    assert plain.info["halvings"] == 0
    assert plain.stats["diverging"].any()
    halved = infer.run(marginal, NUTS(draws=500, tune=200, max_draws=500), random_seed=2, progressbar=False)
    assert halved.info["halvings"] >= 1
    assert halved.info["divergences"] < plain.info["divergences"]
    assert halved.draws["x"].shape == plain.draws["x"].shape


@pytest.mark.parametrize("bad", [0, 2.0, True])
def test_max_draws_is_a_whole_number(bad):
    with pytest.raises(mg.OptionError, match="Auto: the option 'max_draws' has a value that makes no sense"):
        Auto(max_draws=bad)
