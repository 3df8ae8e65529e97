"""DINA against the sum over each person's skills, by hand."""

from __future__ import annotations

import itertools

import numpy as np
from agreement import agrees, normalised, works
from scipy import stats

import dina


def oracle(params, q, solved):
    slip, guess, pi = params["slip"], params["guess"], params["pi"]
    profiles = np.array(list(itertools.product((0, 1), repeat=len(pi))))
    log_joint = np.zeros((len(solved), len(profiles)))
    for c, profile in enumerate(profiles):
        able = np.array([all(profile[k] for k in np.flatnonzero(asks)) for asks in q])
        p = np.where(able, 1 - slip, guess)
        log_joint[:, c] = np.log(np.where(profile, pi, 1 - pi)).sum() + np.log(np.where(solved, p, 1 - p)).sum(1)
    evidence, of_profile = normalised(log_joint)
    has = of_profile @ profiles  # (people, skills)
    prior = stats.beta.logpdf(np.concatenate([slip, guess]), 1, 4).sum()
    return prior + evidence.sum(), {"alpha": np.stack([1 - has, has], -1)}


def test_agrees_with_the_sum_by_hand():
    args, params = dina.simulate(0, n_people=3, n_items=7, n_skills=3)
    marginal = agrees(dina.model, args, params, *oracle(params, *args), verify=False)
    assert [u.shape for u in marginal.kernel.units] == [(3,)], "one unit per person"


def test_works_for_500_people_and_20_items():
    works(dina.model, dina.simulate(1, n_people=500, n_items=20, n_skills=5)[0])
