"""The N-mixture model against Royle's likelihood, by hand: to the end of the Poisson's mass, and cut."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import agrees, normalised, works
from scipy import stats

import marginalia as mg
import n_mixture


def oracle(params, habitat, count, most):
    """`most` None: so many terms that nothing of the Poisson is left out in double precision."""
    a, p = params["a"], params["p"]
    rate = np.exp(a[0] + a[1] * habitat)[:, None]
    n = np.arange(300 if most is None else most + 1)
    prior = stats.poisson.logpmf(n, rate)
    if most is not None:  # a cut distribution is normalised again
        prior = prior - np.log(stats.poisson.cdf(most, rate))
    log_joint = prior + stats.binom.logpmf(count[:, :, None], n, p).sum(1)
    evidence, membership = normalised(log_joint)
    return stats.norm.logpdf(a, 0, 2).sum() + evidence.sum(), {"N": membership[:, None, :]}


SMALL = {"a": np.array([0.2, 0.5]), "p": np.array(0.4)}


def test_the_cut_model_agrees_with_the_likelihood_by_hand():
    args, _ = n_mixture.simulate(2, n_sites=3, n_visits=2)
    args = (args[0], np.minimum(args[1], 5))
    agrees(n_mixture.cut_model, args, SMALL, *oracle(SMALL, *args, most=12), most=12)


def test_the_cut_model_works_for_200_sites():
    assert "independent elements" in works(n_mixture.cut_model, n_mixture.simulate(1, n_sites=200)[0])


@pytest.mark.xfail(raises=mg.Refusal, reason="latents with infinite supports (Poisson) are refused still")
def test_as_the_paper_has_it():
    args, _ = n_mixture.simulate(2, n_sites=3, n_visits=2)
    marginal = mg.marginalize(n_mixture.model, *args)
    density, memberships = oracle(SMALL, *args, most=None)
    assert np.isclose(marginal.log_density(SMALL), density, rtol=1e-10, atol=0)
    found, expected = marginal.posterior(SMALL)["N"], memberships["N"]
    shared = min(found.shape[-1], expected.shape[-1])
    assert np.allclose(found[..., :shared], expected[..., :shared], rtol=0, atol=1e-10)
    assert mg.verify(marginal).agrees
