"""The density on a grid: right where it is drawn, refused where it is not one curve."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import scipy.stats
from handwritten import data, fit_of, gaussian_draws, mixture

from marginalia.density import density
from marginalia.errors import FitError
from marginalia.ondraws import OnDraws, flatten


def rebuilt(fit, **changes):
    """The fit's engine with some fields of the program changed."""
    program = dataclasses.replace(fit.marginal.program, **changes)
    return OnDraws(dataclasses.replace(fit.marginal, program=program))


def params_of(fit):
    return flatten(fit.draws, fit.marginal.program.latents)


def test_mean_is_the_mixture_averaged_over_draws(good):
    table = good.density()
    p = params_of(good)
    chosen = np.linspace(0, 599, 500).round().astype(int)
    x = table["grid"].values
    parts = p["w"][chosen, None] * scipy.stats.norm.pdf(
        x[None, :, None], p["mu"][chosen, None], p["sd"][chosen, None, None]
    )
    np.testing.assert_allclose(table["mean"], parts.sum(-1).mean(0), rtol=1e-9)
    np.testing.assert_allclose(table["part"], parts.mean(0).T, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(table["lower"], np.quantile(parts.sum(-1), 0.055, axis=0), rtol=1e-9)
    np.testing.assert_allclose(table["upper"], np.quantile(parts.sum(-1), 0.945, axis=0), rtol=1e-9)


def test_it_holds_nearly_all_probability(good):
    table = good.density()
    assert 0.97 < np.trapezoid(table["mean"], table["grid"]) < 1.0


def test_in_the_plane():
    mu = [[-0.8, -1.5], [0.8, 1.0]]
    fit = fit_of(mixture(data(mu, [0.3, 0.7], 1.0), 2), gaussian_draws(mu, [0.3, 0.7], 1.0))
    table = fit.density()
    assert table["mean"].dims == ("y0", "y1")
    total = np.trapezoid(np.trapezoid(table["mean"], table["y1"], axis=1), table["y0"])
    assert 0.9 < total < 1.0
    peak = np.unravel_index(table["mean"].values.argmax(), table["mean"].shape)
    assert abs(table["y0"].values[peak[0]] - 0.8) < 0.3  # not transposed: the larger component is at (0.8, 1)
    assert abs(table["y1"].values[peak[1]] - 1.0) < 0.3


def test_a_density_that_depends_on_other_rows_is_refused(good):
    """A program that standardises its data inside has another density for other rows."""
    plain = good.marginal

    def standardised(y):
        marginal = mixture((y - y.mean()) / y.std(), 3)
        observed = {"y": dataclasses.replace(marginal.program.observed["y"], value=y)}
        return dataclasses.replace(
            marginal, program=dataclasses.replace(marginal.program, args=(y,), observed=observed)
        )

    engine = OnDraws(dataclasses.replace(standardised(plain.program.args[0]), make=standardised))
    with pytest.raises(FitError, match="depends on the other rows"):
        density(engine, params_of(good))


def test_rows_that_share_a_unit_are_refused(good):
    kernel = good.marginal.kernel

    class Together(type(kernel)):
        def log_likelihood(self, params, data):
            return {"y": jax.numpy.sum(super().log_likelihood(params, data)["y"], keepdims=True)}

    together = Together(kernel.data, kernel.prior_density, kernel.joint)

    def make(y):
        new = mixture(y, 3)
        return dataclasses.replace(new, kernel=dataclasses.replace(together, data=new.kernel.data))

    engine = OnDraws(dataclasses.replace(good.marginal, kernel=together, make=make))
    with pytest.raises(FitError, match="not independent"):
        density(engine, params_of(good))


def test_covariates_are_refused(good):
    y = good.marginal.program.args[0]
    with pytest.raises(FitError, match="depends on its other data"):
        density(rebuilt(good, args=(y, np.arange(60.0))), params_of(good))


def test_data_that_are_no_argument_are_refused(good):
    with pytest.raises(FitError, match="no argument of the program is the observed data"):
        density(rebuilt(good, args=()), params_of(good))


def test_three_columns_are_refused():
    mu = np.array([[-1.0] * 3, [1.0] * 3])
    fit = fit_of(mixture(data(mu, [0.3, 0.7], 1.0), 2), gaussian_draws(mu, [0.3, 0.7], 1.0))
    with pytest.raises(FitError, match=r"one or two dimensions.*Got \(60, 3\)"):
        fit.density()
