"""The N-mixture model against Royle's likelihood, by hand, to the end of the Poisson's mass."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import agrees, normalised, works
from scipy import stats

import marginalia as mg
import n_mixture


def oracle(params, habitat, count, most):
    """So many terms (`most`) that nothing of the Poisson is left out in double precision."""
    a, p = params["a"], params["p"]
    rate = np.exp(a[0] + a[1] * habitat)[:, None]
    n = np.arange(most)
    log_joint = stats.poisson.logpmf(n, rate) + stats.binom.logpmf(count[:, :, None], n, p).sum(1)
    evidence, membership = normalised(log_joint)
    return stats.norm.logpdf(a, 0, 2).sum() + evidence.sum(), {"N": membership[:, None, :]}


SMALL = {"a": np.array([0.2, 0.5]), "p": np.array(0.4)}


def test_the_model_as_the_paper_has_it_agrees_with_the_likelihood_by_hand():
    args, _ = n_mixture.simulate(2, n_sites=3, n_visits=2)
    density, memberships = oracle(SMALL, *args, most=300)
    memberships["N"] = memberships["N"][..., :64]
    marginal = agrees(n_mixture.model, args, SMALL, density, memberships, verify=False)
    assert mg.verify(marginal).agrees


@pytest.mark.slow
def test_it_works_for_200_sites():
    assert "independent elements" in works(n_mixture.model, n_mixture.simulate(1, n_sites=200)[0])
