"""Latent classes with repeated visits against the sum over each person's class, by hand."""

from __future__ import annotations

import numpy as np
from agreement import agrees, normalised, sigmoid, works
from scipy import stats

import latent_class


def oracle(params, person, time, symptoms, n_people, n_classes):
    w, a, b = params["w"], params["a"], params["b"]
    log_joint = np.tile(np.log(w), (n_people, 1))
    for i, t, y in zip(person, time, symptoms, strict=True):
        for c in range(n_classes):
            p = sigmoid(a[c] + b[c] * t)
            log_joint[i, c] += np.log(np.where(y, p, 1 - p)).sum()
    prior = stats.dirichlet.logpdf(w, np.full(n_classes, 2.0)) + stats.norm.logpdf(a, 0, 2).sum()
    evidence, membership = normalised(log_joint)
    return prior + stats.norm.logpdf(b, 0, 1).sum() + evidence.sum(), {"z": membership}


def test_agrees_with_the_sum_by_hand():
    args, params = latent_class.simulate(0, n_people=6, n_items=3)
    marginal = agrees(latent_class.model, args, params, *oracle(params, *args))
    (unit,) = marginal.kernel.units
    assert unit.shape == (6,), "one unit per person, whatever the number of visits"


def test_works_for_500_people():
    assert "independent elements" in works(latent_class.model, latent_class.simulate(1, n_people=500)[0])
