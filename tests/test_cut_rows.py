"""A plate that draws some of its rows, around rows that were cut before: what a data loader hands over."""

from __future__ import annotations

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

import marginalia as mg

Y = np.array([0.3, -1.2, 0.8, 2.0])
X = np.array([[0.1, 0.4], [0.0, -0.3], [1.0, 0.2], [0.5, 0.5]])
MU = np.array([-0.4, 0.9])


def rows(means: np.ndarray, y: np.ndarray) -> float:
    """Two classes with probabilities 0.7 and 0.3."""
    return float(logsumexp(np.log([0.7, 0.3]) + norm.logpdf(y[:, None], means), axis=1).sum())


def class_means():
    return numpyro.sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))


def test_each_row_counts_as_many_times_as_rows_of_the_plate_stand_behind_it():
    def model(y):
        mu = class_means()
        with numpyro.plate("rows", 400, subsample_size=4):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)

    marginal = mg.marginalize(model, Y)
    expected = norm.logpdf(MU).sum() + 100 * rows(MU, Y)
    assert marginal.log_density({"mu": MU}) == pytest.approx(expected, rel=1e-12)
    assert marginal.posterior({"mu": MU})["z"].shape == (4, 2)
    assert marginal.rebind(Y[::-1].copy()).log_density({"mu": MU}) == pytest.approx(expected, rel=1e-12)


def test_covariates_of_the_same_rows_and_a_second_plate_of_its_own_scale():
    def model(x, y):
        mu = class_means()
        with numpyro.plate("rows", 400, subsample_size=4) as chosen:
            assert chosen.shape == (4,)
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal((x * mu).sum(-1) + mu[z], 1), obs=y)
        with numpyro.plate("others", 30, subsample_size=3):
            numpyro.sample("other", dist.Normal(mu[0], 1), obs=y[:3])

    own = [logsumexp(np.log([0.7, 0.3]) + norm.logpdf(v, u @ MU + MU)) for u, v in zip(X, Y, strict=True)]
    expected = norm.logpdf(MU).sum() + 100 * sum(own) + 10 * norm.logpdf(Y[:3], MU[0]).sum()
    assert mg.marginalize(model, X, Y).log_density({"mu": MU}) == pytest.approx(expected, rel=1e-12)


def test_rows_that_are_chosen_and_do_not_fit_are_refused_as_before():
    def model(x, y):
        mu = class_means()
        with numpyro.plate("rows", 400, subsample_size=4) as chosen:
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal(mu[z] + x[chosen], 1), obs=y)

    with pytest.raises(mg.DataError, match=r"shape \(400,\)"):
        mg.marginalize(model, np.zeros(400), Y)
