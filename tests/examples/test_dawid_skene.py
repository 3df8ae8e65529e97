"""Dawid and Skene's annotators against the sum over each item's class, by hand."""

from __future__ import annotations

import numpy as np
from agreement import agrees, normalised, works
from scipy import stats

import dawid_skene


def oracle(params, item, annotator, label, n_items, n_annotators, n_classes):
    prevalence, confusion = params["prevalence"], params["confusion"]
    log_joint = np.tile(np.log(prevalence), (n_items, 1))
    for i, j, answer in zip(item, annotator, label, strict=True):
        log_joint[i] += np.log(confusion[:, j, answer])
    prior = stats.dirichlet.logpdf(prevalence, np.ones(n_classes))
    for k in range(n_classes):
        alpha = np.ones(n_classes) + 2.0 * (np.arange(n_classes) == k)
        prior += sum(stats.dirichlet.logpdf(confusion[k, j], alpha) for j in range(n_annotators))
    evidence, membership = normalised(log_joint)
    return prior + evidence.sum(), {"z": membership}


def test_agrees_with_the_sum_by_hand():
    """The third item was shown to nobody: its class is known by the prevalence only."""
    (item, annotator, label, *sizes), params = dawid_skene.simulate(0, n_items=6, n_annotators=4, answers=3)
    seen = item != 2
    args = (item[seen], annotator[seen], label[seen], *sizes)
    density, membership = oracle(params, *args)
    marginal = agrees(dawid_skene.model, args, params, density, membership, verify=False)
    assert np.allclose(membership["z"][2], params["prevalence"])
    (unit,) = marginal.kernel.units
    assert unit.shape in ((5,), (6,)), "one unit per item, whatever the number of its answers"


def test_works_for_500_items():
    assert "independent elements" in works(dawid_skene.model, dawid_skene.simulate(1, n_items=500)[0])
