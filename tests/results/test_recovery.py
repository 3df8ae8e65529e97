"""Deterministic sites, and joint draws of the discretes, from the draws of a fit."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import marginalia as mg
from study import close

Y = np.concatenate([np.random.default_rng(3).normal(m, 1.0, 12) for m in (-1.0, 1.0)])


def model(y):
    w = numpyro.sample("w", dist.Beta(2, 2))
    mu = numpyro.sample("mu", dist.Normal(jnp.array([-1.0, 1.0]), 0.5).to_event(1))
    numpyro.deterministic("gap", mu[1] - mu[0])
    numpyro.deterministic("odds", jnp.stack([w, 1 - w]) / w)
    with numpyro.plate("row", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(w))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
    numpyro.deterministic("upper", z.sum())
    numpyro.deterministic("centre", mu[z])


@pytest.fixture(scope="module")
def fit() -> mg.Fit:
    return mg.fit(model, Y, method=mg.NUTS(draws=1000, tune=500, chains=2), random_seed=2, progressbar=False)


def test_deterministics_of_parameters_are_part_of_the_posterior(fit: mg.Fit) -> None:
    assert set(fit.deterministics) == {"gap", "odds"}
    close(fit.deterministics["gap"], fit.draws["mu"][..., 1] - fit.draws["mu"][..., 0], "gap")
    assert fit.data["posterior"]["odds"].shape == (2, 1000, 2)
    table = fit.summary()
    close(table.loc["gap", "mean"], fit.deterministics["gap"].mean(), "mean of the gap")
    assert {"odds[0]", "odds[1]", "w", "mu[0]"} <= set(table.index)
    assert "upper" not in fit.data["posterior"]


def test_discretes_are_drawn_together_and_what_reads_them_follows(fit: mg.Fit) -> None:
    drawn = fit.recover(random_seed=1)
    assert drawn["z"].dims == ("chain", "draw", "row")
    z, mu = drawn["z"].values, fit.draws["mu"]
    assert np.array_equal(drawn["upper"].values, z.sum(-1))
    close(drawn["centre"].values, np.where(z == 1, mu[..., 1:], mu[..., :1]), "centre")
    close(drawn["gap"].values, fit.deterministics["gap"], "gap")
    exact = fit.membership()["z"].values[:, 1]
    error = np.sqrt(exact * (1 - exact) / z[..., 0].size)
    assert (np.abs(z.mean((0, 1)) - exact) <= 4 * error + 1e-9).all()


def test_the_same_seed_gives_the_same_draws_and_fewer_are_evenly_spaced(fit: mg.Fit) -> None:
    few = fit.recover(draws=20, random_seed=4)
    assert few["z"].shape == (2, 10, 24)
    assert few["draw"].values[[0, -1]].tolist() == [0, 999]
    assert few.identical(fit.recover(draws=20, random_seed=4))
    assert not np.array_equal(few["z"].values, fit.recover(draws=20, random_seed=5)["z"].values)


def test_a_saved_fit_keeps_them(fit: mg.Fit, tmp_path: Path) -> None:
    fit.save(tmp_path / "fit.nc")
    bare, whole = mg.load(tmp_path / "fit.nc"), mg.load(tmp_path / "fit.nc", model, Y)
    for again in (bare, whole):
        assert set(again.draws) == {"w", "mu"}
        assert np.array_equal(again.deterministics["gap"], fit.deterministics["gap"])
    assert whole.recover(random_seed=1).identical(fit.recover(random_seed=1))
    with pytest.raises(mg.FitError, match="without its model"):
        bare.recover()


@pytest.mark.slow
def test_transitions_of_a_chain_are_counted_over_the_draws() -> None:
    def chain(y):
        stay = numpyro.sample("stay", dist.Beta(8, 2))
        table = jnp.array([[0.0, 1.0], [1.0, 0.0]]) * (1 - stay) + jnp.eye(2) * stay

        def step(before, now):
            z = numpyro.sample("z", dist.Categorical(table[before]))
            numpyro.sample("y", dist.Normal(2.0 * z, 0.5), obs=now)
            return z, None

        scan(step, 0, y)

    y = np.array([0.0, 0.1, 2.0, 2.2, 1.9, 0.2, -0.1, 2.1])
    fit = mg.fit(chain, y, method=mg.NUTS(draws=1000, tune=500, chains=2), random_seed=2, progressbar=False)
    moves = fit.pairwise("z").sum(0)
    close(moves.sum(), 7.0, "transitions")
    z = fit.recover(random_seed=0)["z"].values
    seen = np.array([[((z[..., :-1] == a) & (z[..., 1:] == b)).sum(-1).mean() for b in (0, 1)] for a in (0, 1)])
    assert np.abs(moves - seen).max() < 4 * 0.5 / np.sqrt(z.shape[0] * z.shape[1])
