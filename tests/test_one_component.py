"""One component is what two are compared with: every method, verb and command works with it, and is right."""

from __future__ import annotations

import csv
import functools
import warnings

import numpy as np
import pytest
from scipy.stats import norm

import marginalia as mg
from marginalia.cli import main
from marginalia.errors import MarginaliaWarning
from marginalia.models import gaussian_mixture

Y = np.random.default_rng(0).normal(3, 2, 30)
METHODS = {
    "auto": mg.Auto(draws=400, tune=100, starts=8),
    "laplace": mg.Laplace(draws=400, starts=4),
    "map": mg.MAP(starts=4, jacobian=True),
    "ensemble": mg.Ensemble(draws=60, tune=60, chains=32, superchains=8, starts=4),
    "nuts": mg.NUTS(draws=400, tune=100, starts=4),
    "advi": mg.ADVI(draws=1000, starts=4, family="full-rank"),
    "metropolis": mg.Metropolis(draws=1000, tune=200, starts=4),
    "slice": mg.Slice(draws=500, tune=100, starts=4),
    "smc": mg.SMC(draws=500),
}
FAST = ("auto", "laplace", "map")


@functools.cache
def exact() -> dict[str, float]:
    """Posterior means of location and scale, by quadrature over both; the log evidence; and the mode, of log sd."""
    centre, spread = Y.mean(), Y.std()
    mu, step_mu = np.linspace(centre - 8 * spread / 5, centre + 8 * spread / 5, 1201, retstep=True)
    log_sd, step_sd = np.linspace(np.log(spread) - 1.5, np.log(spread) + 1.5, 1201, retstep=True)
    prior = norm.logpdf(mu, centre, 2 * spread)[:, None] + norm.logpdf(log_sd, np.log(spread), 0.75)
    squares = ((Y**2).sum() - 2 * mu * Y.sum() + len(Y) * mu**2)[:, None]
    sd = np.exp(log_sd)
    joint = prior - 0.5 * squares / sd**2 - len(Y) * (log_sd + 0.5 * np.log(2 * np.pi))
    top = np.unravel_index(joint.argmax(), joint.shape)
    weight = np.exp(joint - joint.max())
    total = weight.sum()
    evidence = float(np.log(total * step_mu * step_sd) + joint.max())
    means = {"mu": float((weight.sum(1) @ mu) / total), "sd": float((weight.sum(0) @ sd) / total)}
    return {**means, "evidence": evidence, "mode mu": mu[top[0]], "mode sd": sd[top[1]]}


def fitted(method: str) -> mg.Fit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarginaliaWarning)  # the status says the same, and is looked at
        return mg.fit(gaussian_mixture(Y, 1), Y, method=METHODS[method], random_seed=2, progressbar=False)


@pytest.mark.parametrize("method", [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_the_posterior_of_one_component(method):
    fit = fitted(method)
    np.testing.assert_array_equal(fit.draws["weights"], 1.0)
    if method == "map":
        np.testing.assert_allclose(fit.draws["mu"].item(), exact()["mode mu"], atol=0.006)  # a step of the grid
        np.testing.assert_allclose(fit.draws["sd"].item(), exact()["mode sd"], rtol=0.003)
        return
    # A Gaussian is not quite this posterior, and ADVI says so.
    assert (
        all("approximation is not the posterior" in words for words in fit.status)
        if method == "advi"
        else (fit.status == ())
    )
    table = fit.summary()
    for name in ("mu", "sd"):
        row = table.loc[f"{name}[0]"]
        error = row["sd"] / (np.sqrt(row["ess_bulk"]) if method != "advi" else 10)
        assert abs(row["mean"] - exact()[name]) < 4 * error, name
    if method == "smc":
        found = fit.log_evidence
        assert abs(found.value - exact()["evidence"]) < 4 * max(found.standard_error, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("loaded", [False, True])
def test_every_verb_of_one_component(loaded, tmp_path):
    own = fitted("laplace")
    if loaded:
        own = mg.load(own.save(tmp_path / "fit.nc"))
    for found in (own.membership()["z"], own.membership(Y[:1])["z"]):
        assert found.dims == ("obs", "component")
        np.testing.assert_array_equal(found, np.ones((len(found), 1)))
    np.testing.assert_array_equal(own.labels()["z"], 0)
    np.testing.assert_array_equal(own.recover(draws=1)["z"], 0)
    np.testing.assert_allclose(own.pairwise("z").sum(), len(Y) - 1)
    curve = own.density()
    np.testing.assert_allclose(curve["part"][0], curve["mean"], rtol=1e-9)
    predicted = own.predict(random_seed=1)["y"].values
    assert abs(predicted.mean() - exact()["mu"]) < 0.1
    assert own.predict(Y[:1], draws=4)["y"].shape == (4, 1, 1)
    assert np.isfinite(own.loo().elpd)
    assert repr(own).startswith("Fit by laplace")
    assert "Memberships" in own.report(tmp_path / "report.html").read_text()
    for picture in (own.plot.trace, own.plot.membership, own.plot.density):
        assert picture().axes


@pytest.mark.slow
def test_the_command_with_one_component(tmp_path, capsys):
    data, out = tmp_path / "t.csv", tmp_path / "out"
    data.write_text("\n".join(["y", *map(str, Y)]) + "\n")
    shapes = {"fit": ["-k", "1", "--seed", "1", "--out", out, "--no-progress", data], "explain": ["-k", "1", data]}
    shapes |= {"classify": [out / "fit.nc", data, "--out", tmp_path / "c.csv"]}
    shapes |= {"predict": [out / "fit.nc", "--out", tmp_path / "p.csv"]}
    shapes |= {"report": [out / "fit.nc", "--out", tmp_path / "r.html"]}
    for command, words in shapes.items():
        with pytest.raises(SystemExit) as leaving:
            main([command, *map(str, words), *([] if command == "explain" else ["--no-cache"])])
        assert leaving.value.code == 0, (command, capsys.readouterr().err)
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["z_0"], row["z"]) for row in rows] == [("1.000000", "0")] * len(Y)
