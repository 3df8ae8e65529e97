"""Pairwise marginals against enumeration: neighbours in a chain, far apart, two sites, separately named ones."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import marginalia as mg
from study import close

START, TRANS = np.array([0.5, 0.3, 0.2]), np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
Y = np.array([0.1, 2.2, 1.9, -0.3, 0.8, 2.1, 0.0, 1.0, 1.5])


def scanned(y):
    mu = numpyro.sample("mu", dist.Normal(0, 2).expand([3]).to_event(1))

    def step(before, now):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(TRANS)[before]))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=now)
        return z, None

    scan(step, 0, y)


def looped(y):
    mu = numpyro.sample("mu", dist.Normal(0, 2).expand([3]).to_event(1))
    z = numpyro.sample("z_0", dist.Categorical(jnp.asarray(START)))
    for t, now in enumerate(y):
        if t:
            z = numpyro.sample(f"z_{t}", dist.Categorical(jnp.asarray(TRANS)[z]))
        numpyro.sample(f"y_{t}", dist.Normal(mu[z], 1.0), obs=now)


def crossed(y):
    mu = numpyro.sample("mu", dist.Normal(0, 2).expand([2]).to_event(1))
    nu = numpyro.sample("nu", dist.Normal(0, 2).expand([3]).to_event(1))
    with numpyro.plate("rows", 3, dim=-2):
        r = numpyro.sample("r", dist.Bernoulli(0.4))
    with numpyro.plate("columns", 3, dim=-1):
        c = numpyro.sample("c", dist.Categorical(jnp.asarray(START)))
    numpyro.sample("y", dist.Normal(mu[r] + nu[c], 1.0).to_event(2), obs=y.reshape(3, 3))


MU = {"mu": np.array([0.0, 1.0, 2.0])}


@pytest.mark.parametrize("lag", [1, 3])
def test_pairs_along_a_chain(lag: int) -> None:
    found = mg.marginalize(scanned, Y[:6]).pairwise(MU, "z", lag=lag)
    assert found.shape == (6 - lag, 3, 3)
    close(found.sum((1, 2)), np.ones(6 - lag), "total")
    for t in range(6 - lag):
        close(found[t], _forward_backward(Y[:6], t, t + lag), f"pair {t}")


def _forward_backward(y: np.ndarray, first: int, second: int) -> np.ndarray:
    """All 3^T paths of the chain that begins in state 0."""
    states = np.stack(np.meshgrid(*[range(3)] * len(y), indexing="ij"), -1).reshape(-1, len(y))
    before = np.concatenate([np.zeros((len(states), 1), int), states[:, :-1]], 1)
    log = np.log(TRANS[before, states]).sum(1) - 0.5 * ((y - MU["mu"][states]) ** 2).sum(1)
    weight = np.exp(log - np.logaddexp.reduce(log))
    table = np.zeros((3, 3))
    np.add.at(table, (states[:, first], states[:, second]), weight)
    return table


def test_the_chain_conserves_its_states() -> None:
    marginal = mg.marginalize(scanned, Y)
    pairs, single = marginal.pairwise(MU, "z"), marginal.posterior(MU)["z"]
    close(pairs.sum(2), single[:-1], "sum over the second")
    close(pairs.sum(1), single[1:], "sum over the first")


def test_sites_that_are_named_apart_and_far_from_each_other() -> None:
    marginal = mg.marginalize(looped, Y)
    near, far = marginal.pairwise(MU, "z_3", "z_4"), marginal.pairwise(MU, "z_0", "z_8")
    posterior = marginal.posterior(MU)
    for table, names in ((near, ("z_3", "z_4")), (far, ("z_0", "z_8"))):
        close(table.sum(1), posterior[names[0]], names[0])
        close(table.sum(0), posterior[names[1]], names[1])
    product = posterior["z_3"][:, None] * posterior["z_4"]
    assert np.abs(near - product).max() > 0.01, "neighbours are not independent"


def test_pairs_of_two_sites() -> None:
    params = {"mu": np.array([0.0, 1.0]), "nu": np.array([-1.0, 0.0, 1.0])}
    marginal = mg.marginalize(crossed, Y)
    found = marginal.pairwise(params, "r", "c")
    assert found.shape == (3, 3, 2, 3)
    posterior = marginal.posterior(params)
    close(found.sum(-1), np.broadcast_to(posterior["r"], (3, 3, 2)), "rows")
    close(found.sum(-2), np.broadcast_to(posterior["c"], (3, 3, 3)), "columns")
    states = np.stack(np.meshgrid(*[range(2)] * 3, *[range(3)] * 3, indexing="ij"), -1).reshape(-1, 6)
    mean = params["mu"][states[:, :3]][:, :, None] + params["nu"][states[:, 3:]][:, None, :]
    log = np.log(np.where(states[:, :3] == 1, 0.4, 0.6)).sum(1) + np.log(START[states[:, 3:]]).sum(1)
    log += -0.5 * ((Y.reshape(3, 3) - mean) ** 2).sum((1, 2))
    weight = np.exp(log - np.logaddexp.reduce(log))
    expected = np.zeros((3, 3, 2, 3))
    for i in range(3):
        for j in range(3):
            np.add.at(expected[i, j], (states[:, i], states[:, 3 + j]), weight)
    close(found, expected, "joint tables")


def test_pairs_that_are_not_there_are_refused() -> None:
    marginal = mg.marginalize(scanned, Y)
    for name, lag, axis, word in (
        ("u", 1, -1, "'u'"),
        ("z", 9, -1, "lag=9"),
        ("z", 0, -1, "lag=0"),
        ("z", 1, 3, "axis=3"),
    ):
        with pytest.raises(mg.OptionError, match=word):
            marginal.pairwise(MU, name, lag=lag, axis=axis)


def test_parts_of_a_counted_sum_have_pairs_too() -> None:
    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.4).expand([12]))
        numpyro.sample("y", dist.Normal(1.0 * z.sum(), 1.0), obs=3.0)

    marginal = mg.marginalize(model)
    assert marginal.kernel.register.counts
    found = marginal.pairwise({}, "z", lag=3)
    states = (np.arange(2**12)[:, None] >> np.arange(12)) & 1
    weight = 0.4 ** states.sum(1) * 0.6 ** (12 - states.sum(1)) * np.exp(-0.5 * (3.0 - states.sum(1)) ** 2)
    expected = np.zeros((2, 2))
    np.add.at(expected, (states[:, 2], states[:, 5]), weight / weight.sum())
    close(found[2], expected, "z[2], z[5]")
