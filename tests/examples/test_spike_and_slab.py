"""Spike and slab: all 4096 subsets of 12 columns, by hand."""

from __future__ import annotations

import numpy as np
from agreement import agrees, normalised, works
from scipy import stats

import spike_and_slab


def oracle(params, x, y):
    w, sigma, b = params["w"], params["sigma"], params["b"]
    n_columns = len(b)
    subsets = np.indices((2,) * n_columns).reshape(n_columns, -1).T
    chosen = subsets.sum(1)
    log_joint = chosen * np.log(w) + (n_columns - chosen) * np.log(1 - w)
    log_joint = log_joint + stats.norm.logpdf(y, (subsets * b) @ x.T, sigma).sum(1)
    evidence, of_subset = normalised(log_joint)
    matters = of_subset @ subsets
    prior = stats.halfnorm.logpdf(sigma, scale=2) + stats.norm.logpdf(b, 0, 2).sum()
    return prior + evidence, {"z": np.stack([1 - matters, matters], -1)}


def test_agrees_with_all_subsets():
    args, _ = spike_and_slab.simulate(0, n_rows=6)
    params = {"w": np.array(0.3), "sigma": np.array(0.9), "b": np.linspace(-1.5, 1.4, 12)}
    agrees(spike_and_slab.model, args, params, *oracle(params, *args), verify=False)


def test_works_for_100_rows():
    works(spike_and_slab.model, spike_and_slab.simulate(1)[0])
