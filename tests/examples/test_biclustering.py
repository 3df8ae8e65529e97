"""The latent block model against the sum over all column groups, rows in closed form given them."""

from __future__ import annotations

import itertools

import numpy as np
from agreement import agrees, normalised, works
from scipy import stats

import biclustering


def oracle(params, y):
    v, w, p = params["v"], params["w"], params["p"]
    n_columns = y.shape[1]
    all_columns = np.array(list(itertools.product(range(len(w)), repeat=n_columns)))
    log_joint, of_row = np.zeros(len(all_columns)), []
    for s, c in enumerate(all_columns):
        hit = p[:, c]  # (row groups, columns)
        terms = np.log(v) + np.log(np.where(y[:, None, :], hit, 1 - hit)).sum(-1)  # (rows, row groups)
        evidence, membership = normalised(terms)
        log_joint[s] = np.log(w[c]).sum() + evidence.sum()
        of_row.append(membership)
    evidence, weight = normalised(log_joint)
    r = np.tensordot(weight, np.array(of_row), 1)
    c = np.stack([weight @ (all_columns == g) for g in range(len(w))], -1)
    prior = stats.dirichlet.logpdf(v, np.full(len(v), 2.0)) + stats.dirichlet.logpdf(w, np.full(len(w), 2.0))
    return prior + evidence, {"r": r[:, None, :], "c": c}


def test_agrees_with_the_sum_by_hand():
    """Three groups of rows, two of columns."""
    args, _ = biclustering.simulate(1, n_rows=3, n_columns=4)
    p = np.array([[0.9, 0.3], [0.5, 0.1], [0.2, 0.6]])
    params = {"v": np.array([0.4, 0.5, 0.1]), "w": np.array([0.7, 0.3]), "p": p}
    agrees(biclustering.model, args, params, *oracle(params, *args), verify=False, n_row_groups=3)


def test_works_for_40_rows_and_8_columns():
    works(biclustering.model, biclustering.simulate(1)[0])
