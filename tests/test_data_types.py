"""Data of any type: the density of the numbers that they are, or a refusal with the place."""

from __future__ import annotations

import datetime

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.sparse
from numpyro.contrib.control_flow import scan
from scipy import stats
from scipy.special import logsumexp

import marginalia as mg
from marginalia.models import gaussian_mixture


def model(family, y):
    with numpyro.plate("obs", 5):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
        numpyro.sample("y", family(z), obs=y)


COUNTS, REALS = np.array([0, 3, 255, 200, 7]), np.array([0.3, 1.7, 2.2, 9.1, 0.01])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", "float32", "uint64"])
def test_narrow_types_are_computed_with_as_the_numbers_that_they_are(dtype):
    counts, reals = COUNTS.astype(dtype), REALS.astype(dtype if dtype.startswith("float") else float)
    for y, ours, theirs in (
        (counts, lambda z: dist.Poisson(jnp.array([5.0, 220.0])[z]), stats.poisson([5.0, 220.0]).logpmf),
        (reals, lambda z: dist.Gamma(jnp.array([2.0, 3.0])[z], 1.0), stats.gamma([2.0, 3.0]).logpdf),
    ):
        expected = logsumexp(np.log([0.4, 0.6]) + theirs(y[:, None].astype(float)), axis=1).sum()
        np.testing.assert_allclose(mg.marginalize(model, ours, y).log_density({}), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.ma.masked_array(REALS, mask=[0, 1, 0, 0, 0]), r"site 'y', row 1 .*a missing value"),
        (np.full(5, "2020-01-01", "M8[D]"), r"site 'y': the data are not numbers.*datetime64"),
        (REALS.astype(complex), r"site 'y': the data are not numbers.*complex128"),
        (jnp.asarray(REALS.astype(np.complex64)), r"site 'y': the data are not numbers.*complex64"),
        (scipy.sparse.csr_array(REALS[:, None]), r"site 'y': the data are not numbers.*toarray"),
        (list("abcde"), r"site 'y': the data are not numbers.*<U1"),
        ([datetime.date(2020, 1, 1)] * 5, r"site 'y': the data are not numbers.*object"),
        ([1j] * 5, r"site 'y': the data are not numbers.*complex128"),
        ([None] * 5, r"site 'y': the data are not numbers.*object"),
        ("abcde", r"site 'y': the data are not numbers.*<U5"),
    ],
    ids=["masked", "dates", "complex", "jax complex", "sparse", "text", "days", "complex list", "none", "one text"],
)
def test_what_are_no_numbers_is_refused_at_its_site(y, words):
    with pytest.raises(mg.DataError, match=words):
        mg.marginalize(model, lambda z: dist.Normal(0.0, 1.0), y)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.full(5, "2020-01-01", "M8[D]"), r"`scan` goes through: the data are not numbers.*datetime64"),
        (scipy.sparse.csr_array(REALS[:, None]), r"`scan` goes through: the data are not numbers.*toarray"),
        ([datetime.date(2020, 1, 1)] * 5, r"`scan` goes through: the data are not numbers.*object"),
        (tuple(REALS.tolist()), r"`scan` goes through: a number has no steps.*np\.asarray"),
        (REALS.astype(complex), r"site 'y': the data are not numbers.*complex128"),
    ],
    ids=["dates", "sparse", "days", "tuple", "complex"],
)
def test_what_a_loop_cannot_go_through_is_refused(y, words):
    def loop(y):
        def step(carry, value):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=value)
            return carry, None

        scan(step, 0.0, y)

    with pytest.raises(mg.DataError, match=words):
        mg.marginalize(loop, y)


def test_one_value_that_is_far_too_large_is_named():
    y = REALS.copy()
    y[3] = 1e300
    with pytest.raises(mg.DataError, match=r"the square of a value.*Got a value of size 1e\+300"):
        gaussian_mixture(y)

    def located(y):
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
        model(lambda z: dist.Normal(mu[z], 1.0), y)

    with pytest.raises(mg.FitError, match=r"'y' holds 1e\+300 \(row 3\), whose square is too large for a number"):
        mg.fit(located, y, method="map", random_seed=0, progressbar=False)
