"""W3 as the workflow has it: a start at the mode, then Metropolis; in standard errors."""

from __future__ import annotations

import arviz as az
import numpy as np
import pytest
import test_w3 as w3

import marginalia as mg

pytestmark = [pytest.mark.xdist_group("w3"), pytest.mark.slow]


def test_metropolis_gives_the_means_and_has_nothing_to_complain_of() -> None:
    mean, _, error = w3.truth()
    method = mg.Metropolis(draws=1000, tune=500)
    fit = mg.fit(w3.model, w3.points(), method=method, random_seed=3, progressbar=False)
    assert fit.status == ()
    draws = w3.in_one_labelling(fit)
    mcse = np.array([float(az.mcse(draws[..., i], method="mean")) for i in range(5)])
    score = (draws.mean((0, 1)) - mean) / np.hypot(mcse, error)
    assert (np.abs(score) < w3.SIGMAS).all(), (draws.mean((0, 1)), mean, score)
