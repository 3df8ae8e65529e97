"""W6: five points, two clusters, the known most probable parameters; old and new points classified."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import special, stats

import marginalia as mg
from marginalia.errors import MarginaliaWarning

pytestmark = pytest.mark.xdist_group("w6")

Y = np.array([0.0, 1.0, 10.0, 11.0, 12.0])
NEW = np.round(np.arange(-3.0, 15.01, 0.1), 1)
# The most probable parameters (density without Jacobian), to the digits in which they are printed.
WEIGHTS, LOCS, SCALE = (0.375, 0.625), (0.4989, 10.9845), 0.6514


def model(y):
    weights = numpyro.sample("weights", dist.Dirichlet(0.5 * jnp.ones(2)))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with numpyro.plate("components", 2):
        locs = numpyro.sample("locs", dist.Normal(0.0, 10.0))
    with numpyro.plate("data", len(y)):
        assignment = numpyro.sample("assignment", dist.Categorical(weights))
        numpyro.sample("obs", dist.Normal(locs[assignment], scale), obs=y)


def responsibilities(weights: np.ndarray, locs: np.ndarray, scale: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(..., rows, 2) by Bayes' rule."""
    scale = np.asarray(scale)[..., None, None]
    joint = np.log(weights)[..., None, :] - 0.5 * ((y[:, None] - locs[..., None, :]) / scale) ** 2
    return special.softmax(joint, axis=-1)


@functools.cache
def most_probable(seed: int = 1) -> mg.Fit:
    # Dirichlet(0.5) makes the density unbounded at a weight of zero, and that is said
    with pytest.warns(MarginaliaWarning, match="without bound"):
        return mg.fit(model, Y, method=mg.MAP(starts=100), random_seed=seed, progressbar=False)


@functools.cache
def nuts() -> mg.Fit:
    method = mg.NUTS(draws=5000, tune=1500, chains=4, target_accept=0.98)
    with warnings.catch_warnings():
        # Dirichlet(1/2) has an infinite density at its edge: a handful of divergences there is said, and rightly so.
        warnings.simplefilter("ignore", MarginaliaWarning)
        return mg.fit(model, Y, method=method, random_seed=4, progressbar=False)


def point(fit: mg.Fit) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The parameters of a MAP fit and the order of its components from left to right."""
    params = {name: np.asarray(v)[0, 0] for name, v in fit.draws.items()}
    return params, np.argsort(params["locs"])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_map_to_the_printed_digits(seed: int) -> None:
    """A scale started too large falls into one cluster; the best of the starts does not, at any seed."""
    params, order = point(most_probable(seed))
    assert np.abs(params["weights"][order] - WEIGHTS).max() < 0.0005
    assert np.abs(params["locs"][order] - LOCS).max() < 0.00005
    assert abs(params["scale"] - SCALE) < 0.00005


def test_map_is_a_stationary_point() -> None:
    """By hand, without the library: the derivatives of log p(y, params) vanish there."""
    params, _ = point(most_probable())
    w, mu, s = params["weights"], params["locs"], float(params["scale"])
    r = responsibilities(w, mu, params["scale"], Y)
    slope_mu = (r * (Y[:, None] - mu) / s**2).sum(0) - mu / 100
    slope_s = (r * ((Y[:, None] - mu) ** 2 / s**3 - 1 / s)).sum() - 1 / s - np.log(s) / (4 * s)
    slope_w = ((r.sum(0) - 0.5) / w) @ [1, -1]
    assert np.abs([*slope_mu, slope_s, slope_w]).max() < 1e-4


def test_gradient_norms_and_starts_are_part_of_the_result() -> None:
    fit = most_probable()
    assert fit.result.starts is not None
    assert any("grad" in name for name in fit.result.info), sorted(fit.result.info)


def test_the_data_are_classified() -> None:
    fit = most_probable()
    params, order = point(fit)
    p = fit.membership()["assignment"].values
    assert np.array_equal(p[:, order].argmax(1), [0, 0, 1, 1, 1])
    expected = responsibilities(params["weights"], params["locs"], params["scale"], Y)
    assert np.allclose(p, expected, rtol=0, atol=1e-10)
    labels = fit.labels()["assignment"].values.astype(int)
    assert np.array_equal(np.argsort(order)[labels], [0, 0, 1, 1, 1])


def test_new_points_are_classified() -> None:
    fit = most_probable()
    params, order = point(fit)
    p = fit.membership(NEW)["assignment"].values
    assert p.shape == (181, 2)
    expected = responsibilities(params["weights"], params["locs"], params["scale"], NEW)
    assert np.allclose(p, expected, rtol=0, atol=1e-10)
    labels = p[:, order].argmax(1)
    assert labels[0] == 0
    assert labels[-1] == 1
    assert np.count_nonzero(np.diff(labels)) == 1, "one border"
    assert NEW[labels.argmax()] == 5.8  # the border by hand: 5.7417 between the means, less 0.0207 for the weights


def test_random_labels_follow_the_memberships() -> None:
    """Labels drawn instead of the most probable: their frequencies are the memberships, for new points."""
    params, _ = point(most_probable())
    # between the clusters, and with a wider scale, so that both labels occur
    params = {**params, "scale": np.array(4.0)}
    marginal = mg.marginalize(model, NEW)
    draws = [marginal.sample(params, key=jax.random.key(i))["assignment"] for i in range(40)]
    p = responsibilities(params["weights"], params["locs"], params["scale"], NEW)[:, 1]
    score = (np.sum(draws) - 40 * p.sum()) / np.sqrt(40 * (p * (1 - p)).sum())
    assert abs(score) < 4.5
    cells = stats.binom.cdf(np.sum(draws, axis=0), 40, p), stats.binom.sf(np.sum(draws, axis=0) - 1, 40, p)
    assert np.minimum(*cells).min() > stats.norm.sf(5.0)


def test_nuts_memberships() -> None:
    """The two labellings are two modes; under one labelling the points are told apart."""
    fit = nuts()
    assert not any("R-hat" in finding or "mode" in finding for finding in fit.status), fit.status
    p = fit.membership()["assignment"].values
    weights, locs, scale = (fit.draws[n].reshape(-1, *fit.draws[n].shape[2:]) for n in ("weights", "locs", "scale"))
    assert np.allclose(p, responsibilities(weights, locs, scale, Y).mean(0), rtol=0, atol=1e-8)
    order = np.argsort(np.median(locs, axis=0))
    assert np.array_equal(p[:, order].argmax(1), [0, 0, 1, 1, 1])
    assert p.max(1).min() > 0.8
