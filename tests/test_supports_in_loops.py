"""Supports along a loop: counts bounded by the last count, latents bounded by latents, states that end in a support."""

from __future__ import annotations

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

import marginalia as mg


def test_survivors_and_births_in_a_loop() -> None:
    """Each count is bounded by the sum of two counts of the step before."""
    y = np.array([3, 2, 0])

    def model() -> None:
        def step(n, seen):
            survivors = numpyro.sample("s", dist.Binomial(n, 0.7))
            n = survivors + numpyro.sample("g", dist.Binomial(2, 0.3))
            numpyro.sample("y", dist.Binomial(n, 0.5), obs=seen)
            return n, None

        scan(step, 3, y)

    def after(n: int, t: int) -> float:
        if t == len(y):
            return 1.0
        return sum(
            stats.binom.pmf(s, n, 0.7)
            * stats.binom.pmf(g, 2, 0.3)
            * stats.binom.pmf(y[t], s + g, 0.5)
            * after(s + g, t + 1)
            for s in range(n + 1)
            for g in range(3)
        )

    assert mg.marginalize(model).log_density({}) == pytest.approx(np.log(after(3, 0)), rel=1e-10)


@pytest.mark.parametrize("how", ["sample_shape", "scan"])
def test_a_latent_whose_support_hangs_on_a_discrete_is_refused(how: str) -> None:
    def model() -> None:
        if how == "scan":
            u, _ = scan(lambda z, _: (numpyro.sample("z", dist.Bernoulli(0.3 + 0.2 * z)), None), 0, None, length=4)
        else:
            u = numpyro.sample("z", dist.Bernoulli(0.3), sample_shape=(3,)).sum()
        numpyro.sample("u", dist.Uniform(1.0 * u, u + 1.0))

    with pytest.raises(mg.Refusal, match="depends on the discrete 'z'"):
        mg.marginalize(model)


def test_a_mask_of_rows_masks_rows_of_events() -> None:
    """Three rows of three: the mask is of rows, not of what they are made of."""
    shown, y = np.array([True, False, True]), np.arange(9.0).reshape(3, 3) / 3
    rows = np.arange(3.0)[:, None] + np.zeros(3)

    def model() -> None:
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(rows + z, 1.0).to_event(1).mask(shown), obs=y)

    each = [stats.norm.logpdf(y, rows + z, 1.0)[shown].sum() + np.log([0.7, 0.3][z]) for z in (0, 1)]
    assert mg.marginalize(model).log_density({}) == pytest.approx(np.logaddexp(*each), rel=1e-10)
