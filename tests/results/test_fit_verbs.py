"""The Fit: its draws, its table, its memberships, what it warns of."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import arviz_stats
import numpy as np
import pytest
import scipy.special
import scipy.stats
from handwritten import MU3, SD3, W3, data, fit_of, gaussian_draws, mixture

from marginalia import membership
from marginalia.errors import FitError
from marginalia.infer import check
from marginalia.ondraws import OnDraws, flatten


def shares_by_hand(y, draws):
    """Mean over draws of P(z = k | y), written with NumPy: an oracle of another kind than the kernel."""
    mu, w, sd = (draws[n].reshape(-1, *draws[n].shape[2:]) for n in ("mu", "w", "sd"))
    joint = np.log(w)[:, None] + scipy.stats.norm.logpdf(y[None, :, None], mu[:, None], sd[:, None, None])
    return scipy.special.softmax(joint, axis=-1).mean(axis=0)


def test_draws_are_relabelled_and_raw_ones_kept(good):
    assert not np.array_equal(good.draws["mu"], good.raw["mu"])
    np.testing.assert_array_equal(good.draws["mu"][1], good.raw["mu"][1][:, [2, 0, 1]])
    np.testing.assert_array_equal(good.draws["w"][1], good.raw["w"][1][:, [2, 0, 1]])
    np.testing.assert_array_equal(good.data["posterior"]["mu"].values, good.draws["mu"])
    assert good.raw is good.result.draws


def test_switched_labels_are_a_note_and_not_a_fault(good):
    assert any("R-hat" in f for f in check.hmc(good.raw, good.result.stats, {"max_tree_depth": 10}))
    assert good.status == ()
    assert len(good.notes) == 1
    assert good.notes[0].startswith("labels switched between chains: 150 of 600 draws were relabelled")


def test_chains_in_different_modes_are_not_relabelled_away():
    draws = gaussian_draws(MU3, W3, SD3, length=100)
    draws["mu"] = draws["mu"].copy()
    draws["mu"][2] += [0.0, 0.0, 3.0]  # no permutation does this
    fit = fit_of(mixture(data(MU3, W3, SD3), 3), draws)
    assert fit.families
    assert any("not label switching" in s for s in fit.status)
    assert "mu (" in fit.status[0]


def test_findings_that_labels_do_not_explain_stay():
    draws = gaussian_draws(MU3, W3, SD3, length=100)
    fit = fit_of(mixture(data(MU3, W3, SD3), 3), draws, findings=("The starts found nothing.",))
    assert "The starts found nothing." in fit.status
    assert "The starts found nothing." in repr(fit)


def test_an_ordered_model_is_left_alone():
    draws = gaussian_draws(MU3, W3, SD3, length=100)
    fit = fit_of(mixture(data(MU3, W3, SD3), 3, ordered="density"), draws)
    assert fit.families == ()
    assert fit.draws is fit.raw
    assert "r_hat_raw" not in fit.summary()


def test_summary_has_arviz_numbers_and_both_r_hats(good):
    table = good.summary()
    assert list(table.columns) == [
        "mean", "sd", "eti89_lb", "eti89_ub", "ess_bulk", "ess_tail", "r_hat", "r_hat_raw",
    ]  # fmt: skip
    assert list(table.index) == ["w[0]", "w[1]", "w[2]", "mu[0]", "mu[1]", "mu[2]", "sd"]
    theirs = arviz_stats.summary(good.data, round_to="none")
    for column in ("mean", "sd", "eti89_lb", "eti89_ub", "ess_bulk", "r_hat"):
        np.testing.assert_allclose(table[column], theirs[column].astype(float), rtol=1e-10, err_msg=column)
    tail = arviz_stats.ess(good.data, method="tail", prob=(0.05, 0.95))
    np.testing.assert_allclose(table["ess_tail"]["mu[0]"], tail["mu"].values[0], rtol=1e-10)
    assert table["r_hat"].max() < 1.05 < 1.4 < table["r_hat_raw"]["mu[0]"]
    assert table["r_hat_raw"]["sd"] == table["r_hat"]["sd"]


def test_summary_of_a_mode_has_no_spread(mode):
    table = mode.summary()
    assert table.drop(columns="mean").isna().all(axis=None)
    np.testing.assert_array_equal(table["mean"][["mu[0]", "mu[1]", "mu[2]"]], mode.draws["mu"].ravel())
    assert "mode" in table.attrs["note"]


def test_components_of_a_mode_are_numbered_in_order(mode):
    assert not np.array_equal(mode.raw["mu"], mode.draws["mu"])
    np.testing.assert_array_equal(mode.draws["mu"], np.sort(mode.raw["mu"]))
    np.testing.assert_array_equal(mode.draws["w"], mode.raw["w"][..., np.argsort(mode.raw["mu"][0, 0])])
    assert mode.notes == ()


def test_membership_is_the_mean_over_draws(good):
    (shares,) = good.membership().values()
    assert shares.dims == ("obs", "component")
    assert list(shares["component"].values) == [0, 1, 2]
    y = good.data["observed_data"]["y"].values
    np.testing.assert_allclose(shares.values, shares_by_hand(y, good.draws), rtol=1e-10)
    assert shares.attrs["draws"] == 600


def test_membership_of_new_rows(good):
    new = np.array([-5.0, 0.1, 2.4, 6.0])
    shares = good.membership(new)["z"]
    np.testing.assert_allclose(shares.values, shares_by_hand(new, good.draws), rtol=1e-10)
    assert good.labels(new)["z"].values.tolist() == [0, 1, int(shares.values[2].argmax()), 2]


def test_membership_at_the_mode(mode):
    y = mode.data["observed_data"]["y"].values
    np.testing.assert_allclose(mode.membership()["z"].values, shares_by_hand(y, mode.draws), rtol=1e-10)


def test_membership_of_many_rows_uses_fewer_draws_and_says_so(good, monkeypatch):
    monkeypatch.setattr(membership, "WORK", 1000)
    monkeypatch.setattr(membership, "THINNED_DRAWS", 100)
    shares = membership.membership(OnDraws(good.marginal), flatten(good.draws, good.marginal.program.latents))["z"]
    assert (shares.attrs["draws"], shares.attrs["draws_in_fit"]) == (100, 600)
    np.testing.assert_allclose(shares.sum("component"), 1.0, rtol=1e-12)
    assert np.abs(shares.values - good.membership()["z"].values).max() < 0.02


def test_memory_of_a_block_does_not_grow_with_the_draws():
    many = mixture(np.zeros(100_000), 4)
    assert OnDraws(many).block == 5  # 2e6 numbers
    assert OnDraws(mixture(np.zeros(3), 4)).block == 128


def test_states_are_named_after_the_plate_only_when_it_is_sure(good):
    program = good.marginal.program
    unnamed = dataclasses.replace(program.latents["mu"], dims=("mu_dim_0",))
    other = dataclasses.replace(program, latents={**program.latents, "mu": unnamed})
    fit = dataclasses.replace(good, marginal=dataclasses.replace(good.marginal, program=other))
    fit = dataclasses.replace(fit, _on_draws=OnDraws(fit.marginal))
    assert fit.membership()["z"].dims == ("obs", "z_state")


def test_the_tree_has_arviz_groups_and_names(good):
    assert set(good.data.children) == {"posterior", "sample_stats", "log_likelihood", "observed_data"}
    assert good.data["posterior"]["mu"].dims == ("chain", "draw", "component")
    assert good.data["log_likelihood"]["y"].dims == ("chain", "draw", "obs")
    assert good.data["posterior"].attrs["sample_dims"] == ["chain", "draw"]


def test_repr_is_short_and_says_what_matters(good, mode):
    text = repr(good)
    assert text.startswith("Fit by nuts: 4 x 150 draws")
    assert "nothing wrong" in text
    assert "relabelled" in text
    assert len(text.splitlines()) == 3
    assert repr(mode).startswith("Fit by map: the mode of")


def test_a_program_without_discretes_has_no_membership(good):
    program = dataclasses.replace(good.marginal.program, discretes={})
    engine = OnDraws(dataclasses.replace(good.marginal, program=program))
    with pytest.raises(FitError, match="no discrete latent"):
        membership.membership(engine, good.draws)


def test_importing_a_fit_loads_no_plotting():
    code = "import sys, marginalia.fitting; sys.exit('matplotlib' in sys.modules or 'jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
