"""Stopped at any moment, a run gives what it has, with a word on its worth; its checkpoint goes on as before."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import known
import numpy as np
import pytest
import resumed
from scipy import stats

import marginalia as mg
from marginalia import labels
from marginalia.errors import MarginaliaWarning
from marginalia.infer import check, driver, modes, run
from marginalia.infer.progress import Silent
from marginalia.infer.result import Result

METHODS = {**resumed.METHODS, "map": mg.MAP(starts=4)}
FAST = ("laplace", "ensemble", "map")
POINT, MODE, DRAWS = range(3)


class Stopping(Silent):
    """An interrupt at one of the moments at which a run tells where it is; it counts them."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def stage(self, name: str, total: int) -> None:
        self.update(0)

    def update(self, done: int, note: str = "") -> None:
        self.count += 1
        if self.count == self.at:
            raise KeyboardInterrupt


@functools.cache
def marginal() -> mg.Marginal:
    return mg.marginalize(known.two_modes, np.array(known.SEEN))


def infer(method: str, path: Path | None = None) -> Result:
    return run(marginal(), METHODS[method], random_seed=11, progressbar=False, checkpoint=path)


def stopped(method: str, at: int, monkeypatch: pytest.MonkeyPatch, path: Path | None = None) -> tuple[Result, int]:
    """The result of a run that is stopped at one moment, and how many moments there were."""
    progress = Stopping(at)
    with monkeypatch.context() as patch:
        patch.setattr(driver, "make_progress", lambda show: progress)
        return infer(method, path), progress.count


def worth(result: Result) -> int:
    """What a result says that it is, which has to be what it is."""
    said = result.findings[0] if result.findings else ""
    theta, lp = result.draws["theta"], result.stats["lp"]
    truth = stats.norm.logpdf(theta, 0, 4) + stats.norm.logpdf(known.SEEN, (theta + 1) ** 2, 2)
    judged = ~np.isnan(lp)
    np.testing.assert_allclose(lp[judged], truth[judged], rtol=1e-9)
    if result.method != "map":
        assert theta.size > 1
        if "these points are no posterior" in said:
            assert "log_evidence" not in result.info
            return POINT
        return DRAWS
    assert theta.shape == (1, 1)
    slope = -theta / 16 + (known.SEEN - (theta + 1) ** 2) * 2 * (theta + 1) / 4
    if "highest point" in said:
        return POINT
    assert abs(slope.item()) < 1e-4
    return MODE


@pytest.mark.parametrize("method", [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_stopped_at_any_moment_it_gives_what_it_has(method, monkeypatch):
    whole, moments = stopped(method, -1, monkeypatch)
    assert not whole.info.get("interrupted")
    with pytest.raises(KeyboardInterrupt):  # nothing was tried yet
        stopped(method, 1, monkeypatch)
    before, least = POINT, 3 if method == "smc" else 2
    for at in np.unique(np.linspace(least, moments, 9 if method in FAST else 25).astype(int)):
        result, told = stopped(method, int(at), monkeypatch)
        if told < at:
            continue  # chains in threads: what two of them have done is told at once at times
        assert result.findings[0].startswith("Interrupted"), result.findings
        assert result.info["interrupted"]
        now = worth(result)
        assert now >= before, (at, result.findings)
        before = now
    assert before == (MODE if method == "map" else DRAWS)


def test_points_on_their_way_to_the_posterior_are_said_to_be_that(monkeypatch):
    result, _ = stopped("smc", 4, monkeypatch)
    assert worth(result) == POINT
    (said,) = result.findings
    assert "draws from the prior times the likelihood to the power of 0.0" in said
    assert all(0 < power < 0.1 for (power,) in result.info["temperatures"])


@pytest.mark.parametrize("method", [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_what_it_gives_leaves_the_checkpoint_as_it_was(method, monkeypatch, tmp_path):
    truth, moments = stopped(method, -1, monkeypatch)
    for at in np.unique(np.linspace(3, moments, 3 if method in FAST else 7).astype(int)):
        path = tmp_path / str(at)
        stopped(method, int(at), monkeypatch, path)
        again, expected = resumed.numbers(infer(method, path)), resumed.numbers(truth)
        assert again.keys() == expected.keys()
        for name, value in expected.items():
            assert again[name].tobytes() == value.tobytes(), (at, name)


@pytest.mark.parametrize(
    ("method", "module", "name", "least"),
    [
        ("laplace", modes, "weigh", MODE),
        ("laplace", check, "mixing", DRAWS),
        ("ensemble", modes, "around", MODE),
        ("ensemble", modes, "unvisited", DRAWS),
        ("ensemble", check, "mixing", DRAWS),
        pytest.param("smc", check, "chains", DRAWS, marks=pytest.mark.slow),
        pytest.param("nuts", modes, "unvisited", DRAWS, marks=pytest.mark.slow),
        pytest.param("nuts", check, "hmc", DRAWS, marks=pytest.mark.slow),
        pytest.param("slice", check, "chains", DRAWS, marks=pytest.mark.slow),
        pytest.param("advi", modes, "weigh", MODE, marks=pytest.mark.slow),
    ],
)
def test_stopped_between_two_stages(method, module, name, least, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, stop)
        result = infer(method)
    assert result.findings[0].startswith("Interrupted at ")
    assert worth(result) == least


def test_stopped_while_labels_are_put_in_order_the_draws_are_given_as_they_came(monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    whole = infer("laplace")
    with monkeypatch.context() as patch:
        patch.setattr(labels, "find_exchangeable", stop)
        with pytest.warns(MarginaliaWarning, match="Interrupted when the draws were made"):
            fit = mg.fit(marginal(), method=METHODS["laplace"], random_seed=11, progressbar=False)
    np.testing.assert_array_equal(fit.draws["theta"], whole.draws["theta"])
    assert fit.result.info["interrupted"]
    assert fit.summary().shape[0] == 1


def test_a_point_is_a_fit_that_says_so(monkeypatch, tmp_path):
    progress = Stopping(6)
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", MarginaliaWarning)
        patch.setattr(driver, "make_progress", lambda show: progress)
        fit = mg.fit(marginal(), method=METHODS["ensemble"], random_seed=11, progressbar=False)
    assert "before there was a draw from the posterior" in fit.status[0]
    assert "it has no spread" in fit.status[0]
    assert repr(fit).splitlines()[0] == "Fit by map: the mode of theta"
    back = mg.load(fit.save(tmp_path / "fit.nc"))
    assert back.status == fit.status
    assert back.result.info["interrupted"]
