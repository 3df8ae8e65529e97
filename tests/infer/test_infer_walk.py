"""Metropolis and slice sampling: the posterior of quadrature, in Monte Carlo standard errors."""

from __future__ import annotations

import warnings

import arviz as az
import known
import numpy as np
import pytest

import marginalia as mg
from marginalia.errors import MarginaliaWarning, OptionError
from marginalia.infer import metropolis

SIGMAS = 4.0
METHODS = {
    "metropolis": mg.Metropolis(draws=1000, tune=500, chains=4, starts=8),
    "slice": mg.Slice(draws=1000, tune=200, chains=4, starts=8),
}


@pytest.fixture(scope="module", params=METHODS)
def fit(request) -> mg.Fit:
    return mg.fit(known.two_parameters, known.Y, method=METHODS[request.param], random_seed=3, progressbar=False)


def test_the_draws_are_those_of_the_posterior(fit):
    _, truth = known.two_parameters_truth()
    for name, mean in zip(("mu", "w"), truth, strict=True):
        draws = fit.draws[name]
        mcse = float(az.mcse(draws, method="mean"))
        assert abs(draws.mean() - mean) < SIGMAS * mcse


def test_a_good_run_has_nothing_to_say_against_itself(fit):
    assert not fit.status
    assert fit.draws["mu"].shape == (4, 1000)
    assert "starts reach" in fit.result.info["agreement"]
    assert {"r_hat", "ess_bulk"} <= set(fit.summary().columns)


def test_the_density_of_each_draw_is_the_programs(fit):
    flat = {name: value[2, 7] for name, value in fit.draws.items()}
    jacobian = np.log(flat["w"]) + np.log1p(-flat["w"])
    assert fit.result.stats["lp"][2, 7] == pytest.approx(fit.marginal.log_density(flat) + jacobian)


@pytest.mark.parametrize(
    "method", [mg.Metropolis(draws=60, tune=0, thin=1, starts=2), mg.Slice(draws=3, tune=0, starts=2)]
)
def test_a_short_run_is_not_called_converged(method):
    with pytest.warns(MarginaliaWarning, match="R-hat|Few effective|cannot be judged"):
        mg.fit(known.two_parameters, known.Y, method=method, random_seed=0, progressbar=False)


def test_a_mode_that_no_chain_visits_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarginaliaWarning)
        fit = mg.fit(
            known.two_modes,
            np.array(known.SEEN),
            method=mg.Metropolis(draws=400, tune=200, starts=16),
            random_seed=1,
            progressbar=False,
        )
    assert any("2 modes of comparable weight" in sentence for sentence in fit.status)


def test_a_walk_that_hardly_moves_is_said():
    draws = {"x": np.random.default_rng(0).normal(size=(4, 1000))}
    found = metropolis.judge(draws, {"acceptance_rate": np.full((4, 1000), 0.01)}, {})
    assert any("A walk hardly moves: 1.0%" in sentence for sentence in found)


@pytest.mark.parametrize(
    ("options", "bad"),
    [
        (mg.Metropolis, {"draws": 0}),
        (mg.Metropolis, {"thin": 0}),
        (mg.Slice, {"tune": -1}),
        (mg.Slice, {"chains": True}),
    ],
)
def test_options_that_make_no_sense_are_refused(options, bad):
    with pytest.raises(OptionError, match=next(iter(bad))):
        options(**bad)
