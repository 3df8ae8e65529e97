"""Fits made from planted draws: what the verbs should answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from handwritten import MU3, SD3, W3, data, fit_of, gaussian_draws, mixture

from marginalia.fitting import Fit, finish
from marginalia.infer.result import MAXIMUM, Mode, Result, Starts


@pytest.fixture(scope="session")
def good() -> Fit:
    """Three components in 1-D, 4 chains x 150 draws, chain 1 with its labels switched."""
    draws = gaussian_draws(MU3, W3, SD3, length=150)
    for name in ("mu", "w"):
        draws[name][1] = draws[name][1][:, [1, 2, 0]]
    mode = Mode({"mu": np.array(MU3), "w": np.array(W3), "sd": np.array(SD3)}, -120.0, 61, MAXIMUM)
    return fit_of(mixture(data(MU3, W3, SD3), 3), draws, starts=Starts((mode,), 64, jacobian=True))


@pytest.fixture(scope="session")
def mode() -> Fit:
    """A mode: one draw, its components in no order."""
    draws = {n: v[:1, :1] for n, v in gaussian_draws(MU3[::-1], W3[::-1], SD3).items()}
    return finish(mixture(data(MU3, W3, SD3), 3), Result("map", draws, {}, info={"random_seed": 7}))
