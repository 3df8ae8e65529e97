"""`mg.verify` on the examples for which it is slow to compile: Dirichlet priors, many rounds, long chains."""

from __future__ import annotations

import pytest
from agreement import enumeration_agrees

import biclustering
import dawid_skene
import dina
import hmm
import marginalia as mg
import spike_and_slab

CASES = {
    "dawid_skene": (dawid_skene.model, dawid_skene.simulate(0, n_items=6, n_annotators=4, answers=3)),
    "dina": (dina.model, dina.simulate(0, n_people=3, n_items=7, n_skills=3)),
    "spike_and_slab": (spike_and_slab.model, spike_and_slab.simulate(0, n_rows=6)),
    "biclustering": (biclustering.model, biclustering.simulate(1, n_rows=3, n_columns=4)),
    "hmm": (hmm.model, hmm.simulate(0, 9)),
    "hmm_loop": (hmm.loop_model, hmm.simulate(0, 9)),
    "hmm_exponential": (hmm.exponential_model, hmm.simulate(0, 9, emission="exponential")),
    "hmm_covariates": (hmm.covariate_model, hmm.simulate(0, 9, covariates=True)),
    "hmm_covariates_loop": (hmm.covariate_loop_model, hmm.simulate(0, 9, covariates=True)),
    "hmm_batch": (hmm.batch_model, hmm.simulate_batch(0, [4, 2, 1])),
    "hmm_batch_loop": (hmm.batch_loop_model, hmm.simulate_batch(0, [4, 2, 1])),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_enumeration_agrees(name):
    model, (args, _) = CASES[name]
    enumeration_agrees(mg.marginalize(model, *args))
