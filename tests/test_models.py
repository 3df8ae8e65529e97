"""The ready programs: their density by hand, and that name and options make the same program again."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats

import marginalia as mg
from marginalia import models
from marginalia.errors import DataError, OptionError
from marginalia.precision import float64

RNG = np.random.default_rng(5)
LINE = RNG.normal(size=9)
PLANE = RNG.normal(3.0, [1.0, 20.0], size=(9, 2))
PARAMS = {"weights": np.array([0.2, 0.5, 0.3])}


def by_hand(y, new, weights, mu, sd, z):
    """log p(weights, mu, sd, z, new) of the mixture whose priors were made for `y`."""
    center, scale, K = y.mean(axis=0), y.std(axis=0), len(weights)
    return (
        stats.dirichlet(np.ones(K)).logpdf(weights)
        + stats.norm(center, 2 * scale).logpdf(mu).sum()
        + stats.lognorm(0.75, scale=scale / K).logpdf(sd).sum()
        + np.log(weights[z]).sum()
        + stats.norm(mu[z], sd[z]).logpdf(new).sum()
    )


@pytest.mark.parametrize("y", [LINE, PLANE], ids=["line", "plane"])
def test_the_mixture_is_what_its_docstring_says(y):
    K, shape = 3, (3, *y.shape[1:])
    mu, sd = RNG.normal(size=shape), RNG.gamma(2.0, size=shape)
    z = RNG.integers(K, size=len(y))
    with float64():
        params = {**PARAMS, "mu": mu, "sd": sd, "z": z}
        value, _ = log_density(models.gaussian_mixture(y, components=K), (y,), {}, params)
    np.testing.assert_allclose(value, by_hand(y, y, PARAMS["weights"], mu, sd, z), rtol=1e-12)


@pytest.mark.parametrize("y", [LINE, PLANE], ids=["line", "plane"])
def test_new_rows_change_no_prior(y):
    saved = models.gaussian_mixture(y, components=3, columns=["a", "b"][: y.ndim])
    options = json.loads(json.dumps(saved.model_options))
    again = models.build(saved.model_name, options)
    assert options["columns"] == ["a", "b"][: y.ndim]
    new = 100 + y[:4]
    shape = (3, *y.shape[1:])
    mu, sd, z = RNG.normal(size=shape), RNG.gamma(2.0, size=shape), np.array([0, 2, 1, 1])
    with float64():
        value, _ = log_density(again, (new,), {}, {**PARAMS, "mu": mu, "sd": sd, "z": z})
    np.testing.assert_allclose(value, by_hand(y, new, PARAMS["weights"], mu, sd, z), rtol=1e-12)


@pytest.mark.parametrize("y", [LINE, PLANE], ids=["line", "plane"])
def test_without_data_it_draws_them(y):
    model = models.gaussian_mixture(y, components=3)
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(n=7)
    assert {name: site["value"].shape for name, site in trace.items() if site["type"] == "sample"} == {
        "weights": (3,),
        "mu": (3, *y.shape[1:]),
        "sd": (3, *y.shape[1:]),
        "z": (7,),
        "y": (7, *y.shape[1:]),
    }
    assert {name for name, site in trace.items() if site["type"] == "plate"} == {"component", "obs"} | (
        {"dim"} if y.ndim == 2 else set()
    )


@pytest.mark.parametrize(
    ("y", "words"),
    [
        ([1.0, 1.0], "column 'a': all values are the same"),
        ([3.0], "Got 1 row."),
        ([[1.0, 2.0], [3.0, 2.0]], "column 'b': all values are the same"),
        ([1.0, 2.0, 1e300], "column 'a': the square of a value, .* is no number any more.*other units"),
        ([-1.7e308, 1.7e308], "column 'a': the square of a value"),
        ([1e-300, 3e-300], "column 'a': the square of a value, or of a difference"),
        ([1e15, 1e15 + 1], "column 'a': the values differ by so little beside their size.*subtract a constant"),
        ([1.0, np.nan], r"y\[1\]: the data hold a value that is not a finite number. Got nan"),
        ([], r"Got \(0,\)"),
        (5.0, r"Got \(\)"),
        (["x"], "the data are not numbers"),
    ],
)
def test_data_without_a_scale_are_refused(y, words):
    with pytest.raises(DataError, match=words):
        models.gaussian_mixture(y, components=2, columns=["a", "b"])


@pytest.mark.parametrize("components", [0, -1, 2.0, True, "3"])
def test_a_number_of_components_that_is_none(components):
    with pytest.raises(OptionError, match="a whole number from 1"):
        models.gaussian_mixture(LINE, components=components)


def test_an_unknown_name_or_option_is_refused():
    with pytest.raises(OptionError, match=r"one of gaussian-mixture\. Got 'gauss'"):
        models.build("gauss", {})
    with pytest.raises(OptionError, match="the options of the ready program 'gaussian-mixture' do not fit"):
        models.build("gaussian-mixture", {"components": 2, "centre": 0.0})


def test_a_column_far_from_0_has_the_modes_of_one_around_it():
    """Seconds since 1970, say: locations of 1e9 are starts as good as any."""
    y = np.concatenate([LINE, LINE + 8])
    options = mg.MAP(starts=8)
    near, far = (
        mg.fit(models.gaussian_mixture(y + offset, 2), y + offset, method=options, random_seed=1, progressbar=False)
        for offset in (0.0, 1e9)
    )
    np.testing.assert_allclose(far.draws["mu"] - 1e9, near.draws["mu"], atol=1e-4)
    np.testing.assert_allclose(far.draws["sd"], near.draws["sd"], rtol=1e-4)
