"""How many draws go through at once depends on the rows, and no answer on that: with 300 000 rows it is two."""

from __future__ import annotations

import numpy as np
import pytest
from handwritten import MU3, SD3, W3, data, fit_of, gaussian_draws, mixture

from marginalia import ondraws
from marginalia.density import density
from marginalia.ondraws import flatten

PLANE = ([[-0.8, -1.5], [0.8, 1.0]], [0.3, 0.7], 1.0)
ASKED = {
    "density": lambda fit: fit.density()["mean"].values,
    "membership": lambda fit: fit.membership()["z"].values,
    "likelihood": lambda fit: fit.data["log_likelihood"]["y"].values,
    "draws": lambda fit: fit.draws["mu"],
    "membership of new rows": lambda fit: fit.membership(fit.marginal.program.args[0][:3])["z"].values,
    "loo": lambda fit: fit.loo().elpd,
}


def fitted(case, block: int, monkeypatch: pytest.MonkeyPatch):
    mu, w, sd = case
    with monkeypatch.context() as patch:
        patch.setattr(ondraws, "MAX_BLOCK", block)
        fit = fit_of(mixture(data(mu, w, sd), len(w)), gaussian_draws(mu, w, sd, length=15))
        assert fit._on_draws.block == block
        return {name: ask(fit) for name, ask in ASKED.items()}


def test_a_curve_needs_no_block_that_holds_all_draws_it_checks(good, monkeypatch):
    monkeypatch.setattr(good._on_draws, "block", 2)
    again = density(good._on_draws, flatten(good.draws, good.marginal.program.latents))
    np.testing.assert_allclose(again["mean"], good.density()["mean"], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("case", [(MU3, W3, SD3), PLANE], ids=["line", "plane"])
def test_no_answer_depends_on_the_number_of_draws_in_a_block(case, monkeypatch):
    usual = fitted(case, 128, monkeypatch)
    for block in (1, 2, 7):
        for name, found in fitted(case, block, monkeypatch).items():
            np.testing.assert_allclose(found, usual[name], rtol=1e-9, atol=1e-12, err_msg=f"{name}, {block} draws")
