"""Fits that share their compiled parts are those of `mg.fit`."""

from __future__ import annotations

import numpy as np
import pytest
from once import fitting_of
from simulated import MODELS

import marginalia as mg


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::marginalia.errors.MarginaliaWarning")  # so few draws are no good fit
@pytest.mark.parametrize("name", MODELS)
def test_shared_parts_change_nothing(name):
    """The second data set is not the one that the parts were compiled for."""
    model = MODELS[name]
    first, y = (model.draw(np.random.default_rng(seed))[1] for seed in (1, 2))
    few = [
        mg.Laplace(draws=50, starts=8),
        mg.NUTS(draws=20, tune=20, chains=2, starts=8),
        mg.SMC(draws=50, chains=2, moves=2),
    ]
    with fitting_of(model.program, first) as fit:
        fits = [[fit(data, method, 3) for data in (first, y)][1] for method in few]
    for method, shared in zip(few, fits, strict=True):
        alone = mg.fit(model.program, y, method=method, random_seed=3, progressbar=False)
        same = np.isclose(np.asarray(shared.result.stats["lp"]), np.asarray(alone.result.stats["lp"]), rtol=1e-6)
        # Data that are known to the compiler are rounded elsewhere, and a long path may part from its twin.
        assert same.mean() > 0.95
