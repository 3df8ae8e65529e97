"""The ensemble: exact moments, the same bytes, superchains that disagree, and its options."""

from __future__ import annotations

import numpy as np
import pytest
from fake import assert_moments, bimodal, correlated_gaussian

from marginalia import infer
from marginalia.errors import OptionError
from marginalia.infer import ensemble
from marginalia.infer.chees import halton
from marginalia.infer.options import Ensemble


@pytest.fixture(scope="module")
def gaussian():
    return infer.run(correlated_gaussian(), Ensemble(starts=4), random_seed=3, progressbar=False)


def test_moments_of_a_correlated_gaussian(gaussian):
    assert_moments(gaussian.draws["x"])


def test_shapes_statistics_and_what_is_told(gaussian):
    assert gaussian.draws["x"].shape == (64, 100, 2)
    assert {value.shape for value in gaussian.stats.values()} == {(64, 100)}
    assert gaussian.info["nested_rhat"]["x"] < 1.01
    assert gaussian.info["traces"] == 1
    assert gaussian.findings == ()
    # After tuning the step size stays, and acceptance is above its aim (the harmonic mean is the smaller one).
    assert np.ptp(gaussian.stats["step_size"]) == 0
    assert gaussian.stats["acceptance_rate"].mean() > 0.65


def test_same_seed_same_bytes(gaussian):
    again = infer.run(correlated_gaussian(), Ensemble(starts=4), random_seed=3, progressbar=False)
    assert again.draws["x"].tobytes() == gaussian.draws["x"].tobytes()


def test_superchains_that_disagree_are_said(monkeypatch):
    monkeypatch.setattr(ensemble, "jumps_between", lambda problem, weighed: None)
    result = infer.run(bimodal(0.4), Ensemble(starts=16, draws=50, tune=100), random_seed=1, progressbar=False)
    assert result.info["nested_rhat"]["x"] > 1.5
    assert result.findings[0].startswith("The superchains do not agree: nested R-hat is above 1.01 for x")


def test_nested_r_hat_is_that_of_its_definition():
    """Margossian et al. (2022), equation 6, on ranks of split chains: here of chains whose ranks are the values."""
    rng = np.random.default_rng(0)
    far = rng.normal(size=(8, 200)) + np.repeat([0, 0, 0.5, 0.5], 2)[:, None]
    near = rng.normal(size=(8, 200))
    assert ensemble.nested_rhat({"x": near}, 4)["x"] < 1.02
    assert ensemble.nested_rhat({"x": far}, 4)["x"] > 1.02
    same = rng.normal(size=(8, 200)) + np.tile([0, 0.5], 4)[:, None]  # chains differ, the superchains do not
    assert ensemble.nested_rhat({"x": same}, 4)["x"] < 1.02


def test_halton_fills_the_interval():
    np.testing.assert_allclose(halton(np.arange(1, 8)), [0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875])


def test_chains_are_a_multiple_of_superchains():
    with pytest.raises(OptionError) as caught:
        Ensemble(chains=60)
    assert str(caught.value) == (
        "Ensemble: the option 'chains' has a value that makes no sense. "
        "Expected a multiple of superchains (8), at least twice as many. Got 60."
    )
