"""From the program to the Fit with the real engine and sampler, small."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from handwritten import data

import marginalia as mg
from marginalia.errors import MarginaliaWarning, OptionError
from marginalia.models import gaussian_mixture

Y = data([-4.0, 4.0], [0.3, 0.7], 1.0, N=40)


def program(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    with numpyro.plate("component", 2):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@pytest.fixture(scope="module")
def fit():
    options = mg.NUTS(draws=1500, tune=500, chains=2, starts=8)
    return mg.fit(gaussian_mixture(Y, 2), Y, method=options, random_seed=1, progressbar=False)


def test_the_answer(fit):
    assert fit.status == ()
    (family,) = fit.families
    assert family.axes == {"weights": (0,), "mu": (0,), "sd": (0,)}
    table = fit.summary()
    truth = {"mu[0]": -4.0, "mu[1]": 4.0}
    for name, value in truth.items():
        assert abs(table["mean"][name] - value) < 4 * table["sd"][name]
    assert fit.membership()["z"].dims == ("obs", "component")
    assert set(np.unique(fit.labels()["z"])) == {0, 1}


def test_the_same_fit_comes_back_from_a_file_with_its_model(fit, tmp_path):
    back = mg.load(fit.save(tmp_path / "fit.nc"))
    new = np.array([-5.0, 0.0, 3.0])
    np.testing.assert_allclose(back.membership(new)["z"], fit.membership(new)["z"], rtol=1e-12)
    np.testing.assert_array_equal(back.predict(new)["y"], fit.predict(new)["y"])
    np.testing.assert_allclose(back.density()["mean"], fit.density()["mean"], rtol=1e-12)


def test_a_run_that_is_too_short_warns_once():
    options = mg.NUTS(draws=20, tune=20, chains=2, starts=4)
    with pytest.warns(MarginaliaWarning, match="effective") as caught:
        short = mg.fit(mg.marginalize(program, Y), method=options, random_seed=0, progressbar=False)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert str(caught[0].message) == " ".join(short.status)


def test_the_mode_of_a_program_and_its_file(tmp_path):
    fit = mg.fit(program, Y, method=mg.MAP(starts=8), random_seed=0, progressbar=False)
    assert (fit.method, fit.draws["mu"].shape) == ("map", (1, 1, 2))
    path = fit.save(tmp_path / "mode.nc")
    assert mg.load(path).marginal is None
    back = mg.load(path, program, Y)
    np.testing.assert_allclose(back.membership(Y[:3])["z"], fit.membership(Y[:3])["z"], rtol=1e-12)


def test_options_that_make_no_sense():
    with pytest.raises(OptionError, match="no such method"):
        mg.fit(program, Y, method="magic")
    with pytest.raises(OptionError, match="already has its data"):
        mg.fit(mg.marginalize(program, Y), Y)
