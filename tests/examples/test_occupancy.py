"""Occupancy against MacKenzie's likelihood, by hand."""

from __future__ import annotations

import numpy as np
from agreement import agrees, normalised, sigmoid, works
from scipy import stats

import occupancy


def oracle(params, habitat, wind, seen):
    a, b = params["a"], params["b"]
    psi, p = sigmoid(a[0] + a[1] * habitat), sigmoid(b[0] + b[1] * wind)
    occupied = np.log(psi) + np.log(np.where(seen, p, 1 - p)).sum(1)
    # An empty site gives no detection; one that was seen occupied is not empty.
    with np.errstate(divide="ignore"):
        empty = np.log((1 - psi) * (seen.sum(1) == 0))
    evidence, membership = normalised(np.stack([empty, occupied], -1))
    prior = stats.norm.logpdf(np.concatenate([a, b]), 0, 1.5).sum()
    return prior + evidence.sum(), {"z": membership[:, None, :]}


def test_agrees_with_the_likelihood_by_hand():
    args, params = occupancy.simulate(0, n_sites=7, n_visits=3)
    density, membership = oracle(params, *args)
    agrees(occupancy.model, args, params, density, membership)
    assert 0 < (args[2].sum(1) == 0).sum() < 7, "both kinds of sites are there"


def test_works_for_200_sites():
    assert "independent elements" in works(occupancy.model, occupancy.simulate(1, n_sites=200)[0])
