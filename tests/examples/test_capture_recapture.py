"""Cormack-Jolly-Seber against its textbook likelihood, and against the sum over each animal's last occasion."""

from __future__ import annotations

import numpy as np
from agreement import agrees, works

import capture_recapture


def textbook(params, caught):
    """Per animal: survived and caught or missed up to its last capture, then never seen again (chi)."""
    phi, p = params["phi"], params["p"]
    n_occasions = caught.shape[1]
    chi = np.ones(n_occasions)
    for t in range(n_occasions - 2, -1, -1):
        chi[t] = 1 - phi[t] * (1 - (1 - p[t]) * chi[t + 1])
    density = 0.0
    for history in caught:
        first, last = np.flatnonzero(history)[[0, -1]]
        for t in range(first + 1, last + 1):
            density += np.log(phi[t - 1] * (p[t - 1] if history[t] else 1 - p[t - 1]))
        density += np.log(chi[last])
    return density


def last_occasion_alive(params, caught):
    """The same, and P(alive at t), by the sum over the last occasion at which each animal lives."""
    phi, p = params["phi"], params["p"]
    n_animals, n_occasions = caught.shape
    alive = np.zeros((n_animals, n_occasions))
    density = 0.0
    for i, history in enumerate(caught):
        first, last = np.flatnonzero(history)[[0, -1]]
        weight = np.zeros(n_occasions)
        for d in range(last, n_occasions):
            steps = np.arange(first, d)
            weight[d] = np.prod(phi[steps] * np.where(history[steps + 1], p[steps], 1 - p[steps]))
            weight[d] *= 1 - phi[d] if d < n_occasions - 1 else 1
        density += np.log(weight.sum())
        alive[i] = np.cumsum(weight[::-1])[::-1] / weight.sum()
    return density, {f"z_{t}": np.stack([1 - alive[:, t], alive[:, t]], -1) for t in range(1, n_occasions)}


def some_params(n_occasions):
    return {"phi": np.linspace(0.9, 0.5, n_occasions - 1), "p": np.linspace(0.3, 0.7, n_occasions - 1)}


def test_agrees_with_the_textbook():
    caught = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
    params = some_params(4)
    density, memberships = last_occasion_alive(params, caught)
    assert np.isclose(density, textbook(params, caught), rtol=1e-13, atol=0), "the two oracles"
    marginal = agrees(capture_recapture.model, (caught,), params, density, memberships)
    (unit,) = marginal.kernel.units
    assert unit.shape == (3,), "one unit per animal"


def test_works_for_300_animals():
    works(capture_recapture.model, capture_recapture.simulate(1, n_animals=300)[0])
