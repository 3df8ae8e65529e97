"""Prediction: the program forward, its moments known in closed form."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.nn import logsumexp

from marginalia.errors import DataError, FitError, MarginaliaWarning


def with_model(fit, model):
    program = dataclasses.replace(fit.marginal.program, model=model)
    return dataclasses.replace(fit, marginal=dataclasses.replace(fit.marginal, program=program))


class NoSampler(dist.Distribution):
    support = dist.constraints.real

    def __init__(self, loc):
        self.loc = loc
        super().__init__(batch_shape=jnp.shape(loc), validate_args=False)

    def log_prob(self, value):
        return -((value - self.loc) ** 2)


@pytest.fixture(scope="module")
def predicted(good):
    return good.predict(random_seed=3)


def test_moments_are_those_of_the_mixture(good, predicted):
    y = predicted["y"].values  # (chain, draw, obs)
    mu, w, sd = (good.draws[n] for n in ("mu", "w", "sd"))
    mean = (w * mu).sum(-1)
    variance = (w * (mu**2 + sd[..., None] ** 2)).sum(-1) - mean**2
    standard = (y.mean(-1) - mean) / np.sqrt(variance / y.shape[-1])  # one a draw, about N(0, 1)
    assert abs(standard.mean()) < 4 / np.sqrt(standard.size)
    assert abs(standard.std() - 1) < 4 / np.sqrt(2 * standard.size)


def test_discretes_are_drawn_forward_with_their_weights(good, predicted):
    z = predicted["z"].values
    share = np.stack([(z == k).mean(-1) for k in range(3)], axis=-1)
    standard = (share - good.draws["w"]) / np.sqrt(good.draws["w"] * (1 - good.draws["w"]) / z.shape[-1])
    assert np.all(np.abs(standard.mean(axis=(0, 1))) < 4 / np.sqrt(600))


def test_the_seed_decides(good, predicted):
    np.testing.assert_array_equal(predicted["y"].values, good.predict(random_seed=3)["y"].values)
    assert not np.array_equal(predicted["y"].values, good.predict(random_seed=4)["y"].values)


def test_names_axes_and_what_was_not_applied(predicted):
    out = predicted
    assert out["y"].dims == ("chain", "draw", "obs")
    assert set(out.data_vars) == {"y", "z"}
    assert out.attrs["factors"] == "none"


def test_new_rows_and_fewer_draws(good):
    out = good.predict(np.zeros(7), draws=100)
    assert out["y"].shape == (4, 25, 7)
    assert out["draw"].values[:2].tolist() == [0, 6]


def test_a_mode_predicts_many_times(mode):
    y = mode.predict(random_seed=0)["y"].values
    assert y.shape == (1, 1000, 60)
    assert len(np.unique(y)) == y.size


def test_factors_are_named(good):
    def model(y):
        good.marginal.program.model(y)
        numpyro.factor("limit", jnp.zeros(()))

    out = with_model(good, model).predict(random_seed=0)
    assert out.attrs["factors"].startswith("not applied: limit; what they say of the parameters is in the draws")
    assert set(out.data_vars) == {"y", "z"}


def test_data_in_factors_alone_predict_nothing_and_that_is_said(good):
    def model(y):
        w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
        mu = numpyro.sample("mu", dist.Normal(0, 10).expand([3]))
        sd = numpyro.sample("sd", dist.HalfNormal(5.0))
        numpyro.factor("rows", logsumexp(jnp.log(w) + dist.Normal(mu, sd).log_prob(y[:, None]), axis=1).sum())

    words = (
        r"predict\(\): predicted is nothing, as the program observes no data that could be drawn anew: it reads them "
        r"in factors \(rows\), and a factor says how probable the data are, not how to draw others\. For predictions, "
    )
    with pytest.warns(MarginaliaWarning, match=words):
        out = with_model(good, model).predict(random_seed=0)
    assert not out.data_vars
    assert out.attrs["predicted"].startswith("nothing, as")
    assert good.predict(random_seed=0, draws=8).attrs["predicted"] == "z, y"


def test_a_distribution_without_a_sampler_is_refused(good):
    def model(y):
        w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
        mu = numpyro.sample("mu", dist.Normal(0, 10).expand([3]))
        numpyro.sample("sd", dist.HalfNormal(5.0))
        numpyro.sample("y", NoSampler(jnp.full(len(y), (w * mu).sum())), obs=y)

    with pytest.raises(FitError, match="has no sampler"):
        with_model(good, model).predict()


def test_data_that_change_the_shape_of_a_latent_are_refused(good):
    def model(y):
        numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
        numpyro.sample("mu", dist.Normal(0, 10).expand([len(y)]))
        numpyro.sample("sd", dist.HalfNormal(5.0))

    with pytest.raises(DataError, match=r"site 'mu'.*the shape that was fitted, \(3,\).*Got \(60,\)"):
        with_model(good, model).predict()


def test_doubles_without_touching_the_users_precision(predicted):
    assert not jax.config.jax_enable_x64
    assert predicted["y"].dtype == np.float64
