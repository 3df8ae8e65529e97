"""The pointwise log-likelihood: one number per independent unit, after the sum over the discretes."""

from __future__ import annotations

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import marginalia as mg
from study import close, study
from zoo import CASES

ROWS = [name for name, case in CASES.items() if case.per_row]
UNITS = [name for name, case in CASES.items() if case.units]
SUMS = [name for name, case in CASES.items() if case.sums and not (case.quick or case.marginals or case.may_refuse)]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in ROWS])
def test_one_number_per_row(name: str) -> None:
    """log p(y_n | params), in the order of the rows, under the observed site's name."""
    s = study(name)
    site = s.case.per_row
    rows = len(s.oracle.observed[site][0])
    assert set(s.log_likelihood) == {site}
    close(s.log_likelihood[site], s.oracle.log_likelihood([{site: n} for n in range(rows)]), f"log p({site}_n)")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in UNITS])
def test_one_number_per_unit(name: str) -> None:
    """Groups, people, whole series: exactly their log p, each once (whatever the unit is called)."""
    s = study(name)
    units = s.case.units(*s.case.args)
    said = np.concatenate([np.ravel(v) for v in s.log_likelihood.values()])
    close(np.sort(said), np.sort(s.oracle.log_likelihood(units)), "log p of the units")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in SUMS])
def test_the_units_add_up(name: str) -> None:
    """The sum of all is log p(observed | params): the density less the prior of the continuous latents."""
    s = study(name)
    total = sum(float(np.sum(v)) for v in s.log_likelihood.values())
    close(total, s.true_density - s.oracle.log_prior_of_latents(), "sum of the log-likelihood")


def test_two_outcomes_are_one_unit() -> None:
    """Two outcomes of one latent: the sum is neither booked on the first nor counted twice."""
    s = study("two_outcomes")
    per_row = sum(np.asarray(v) for v in s.log_likelihood.values())
    close(per_row, s.oracle.log_likelihood([{"y": n, "count": n} for n in range(4)]), "log p of a row")


def test_a_missing_row_says_nothing() -> None:
    assert study("missing_by_handler").log_likelihood["y"][1] == 0.0


def test_units_with_the_same_short_name_are_all_there() -> None:
    """Once found: more than four terms a unit are named by the first and the last, and two units had one name."""
    present = [[0, 1, 2], [0, 2], [1, 2], [0, 1], [0, 1], [0, 1, 2]]
    y = [np.arange(len(who)) * 0.7 - 0.3 * t for t, who in enumerate(present)]

    def model():
        mu = numpyro.sample("mu", dist.Normal(0, 2).expand([2]))
        z = numpyro.sample("z", dist.Bernoulli(0.4).expand([3]))
        for t, who in enumerate(present):
            numpyro.sample(f"y_{t}", dist.Normal(mu[z[np.array(who)]], 1.0), obs=y[t])

    params = {"mu": np.array([-0.4, 1.1])}
    found = mg.marginalize(model).log_likelihood(params)
    log = np.tile(np.log([0.6, 0.4]), (3, 1))
    for who, values in zip(present, y, strict=True):
        for person, value in zip(who, values, strict=True):
            log[person] += -0.5 * (value - params["mu"]) ** 2 - 0.5 * np.log(2 * np.pi)
    assert len(found) == 3
    assert np.isclose(sum(v.sum() for v in found.values()), np.logaddexp(*log.T).sum(), rtol=1e-12, atol=0)
