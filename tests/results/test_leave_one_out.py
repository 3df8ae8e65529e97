"""LOO: ArviZ's numbers when everything is stored, and close to them when it is not."""

from __future__ import annotations

import dataclasses

import arviz_stats
import numpy as np
import pytest
from handwritten import MU3, SD3, W3, data, fit_of, gaussian_draws, mixture

from marginalia import compare
from marginalia.errors import FitError, OptionError


def test_loo_is_arviz_loo(good):
    ours, theirs = good.loo(), arviz_stats.loo(good.data, pointwise=True)
    assert ours.n_data_points == ours.units_used == 60
    np.testing.assert_allclose(ours.elpd, theirs.elpd, rtol=1e-4)  # the efficiencies are averaged differently
    np.testing.assert_allclose(ours.se, theirs.se, rtol=1e-3)
    np.testing.assert_allclose(ours.elpd_i.values, theirs.elpd_i.values.ravel(), atol=1e-2)


def test_stored_and_computed_on_demand_agree(good):
    direct = compare.loo(good._on_draws, good.draws, None)
    np.testing.assert_allclose(direct.elpd_i.values, good.loo().elpd_i.values, rtol=1e-12)


def test_too_large_a_log_likelihood_is_not_stored(good):
    assert compare.log_likelihood(good._on_draws, good.draws, limit=600 * 60) is not None
    assert compare.log_likelihood(good._on_draws, good.draws, limit=600 * 60 - 1) is None


def test_a_sample_of_units_estimates_the_whole(monkeypatch):
    marginal = mixture(data(MU3, W3, SD3, N=400), 3)
    fit = fit_of(marginal, gaussian_draws(MU3, W3, SD3, length=50))
    full = fit.loo()
    monkeypatch.setattr(compare, "MOST_UNITS", 100)
    part = compare.loo(fit._on_draws, fit.draws, None)
    assert (part.units_used, part.n_data_points) == (100, 400)
    sampling = np.sqrt(max(part.se**2 - full.se**2, 0.0))
    assert abs(part.elpd - full.elpd) < max(4 * sampling, 0.02 * full.se)
    assert abs(part.elpd - full.elpd) < 0.2 * full.se  # far better than scaling a quarter of the rows up


def test_units_have_names(good):
    np.testing.assert_allclose(good.loo(unit="y").elpd, good.loo().elpd)
    with pytest.raises(OptionError, match=r"no unit is called 'x'.*\['y'\]"):
        good.loo(unit="x")


def test_a_mode_has_no_loo(mode):
    with pytest.raises(FitError, match="at least 50 draws"):
        mode.loo()


def test_one_unit_cannot_be_left_out(good):
    kept = {"y": good.data["log_likelihood"]["y"].values[:, :, :1]}
    with pytest.raises(FitError, match="at least two independent units"):
        compare.loo(None, good.draws, kept)


def test_units_of_all_sites_count(good):
    y = good.data["log_likelihood"]["y"].values
    both = compare.loo(None, good.draws, {"a": y, "b": y[..., :10]})
    assert both.n_data_points == 70
    only = compare.loo(None, good.draws, {"a": y, "b": y[..., :10]}, unit="b")
    assert only.n_data_points == 10
    assert dataclasses.is_dataclass(both)
