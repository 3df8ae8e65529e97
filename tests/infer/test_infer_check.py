"""Findings after a run, and progress: each trouble is said once, with its remedy."""

from __future__ import annotations

import numpy as np
import pytest

from marginalia.infer import check
from marginalia.infer.progress import Lines, Silent, make_progress


def _run(chains=4, draws=500):
    rng = np.random.default_rng(0)
    stats = {
        "diverging": np.zeros((chains, draws), bool),
        "energy": rng.normal(size=(chains, draws)),
        "reached_max_tree_depth": np.zeros((chains, draws), bool),
    }
    return {"x": rng.normal(size=(chains, draws, 2))}, stats


def test_a_good_run_has_no_findings():
    assert check.hmc(*_run(), {"max_tree_depth": 10}) == ()


def test_constant_elements_are_not_judged():
    draws, stats = _run()
    draws["x"][..., 1] = 3.0
    rhat, bulk, tail = check.convergence(draws)["x"]
    assert np.isnan([rhat[1], bulk[1], tail[1]]).all()
    assert check.hmc(draws, stats, {"max_tree_depth": 10}) == ()


def _shift(draws, stats):
    draws["x"][0, :, 1] += 5


def _walk(draws, stats):
    draws["x"][:] = np.cumsum(draws["x"], axis=1)


def _diverge(draws, stats):
    stats["diverging"][1, :7] = True


def _saturate(draws, stats):
    stats["reached_max_tree_depth"][:, :100] = True


def _slow(draws, stats):
    stats["energy"] = np.cumsum(stats["energy"], axis=1)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_shift, "R-hat is above 1.01 for x"),
        (_walk, "Few effective draws: below 400 for x"),
        (_diverge, "7 of 2000 draws diverged"),
        (_saturate, "20% of the draws reached the largest tree depth, 10"),
        (_slow, "The energy explores slowly in 4 of 4 chains"),
    ],
)
def test_each_trouble_is_said(spoil, words):
    draws, stats = _run()
    spoil(draws, stats)
    found = check.hmc(draws, stats, {"max_tree_depth": 10})
    assert sum(words in finding for finding in found) == 1


def test_one_chain_and_very_few_draws_are_said():
    assert any("One chain only" in finding for finding in check.hmc(*_run(chains=1), {"max_tree_depth": 10}))
    assert check.hmc(*_run(draws=3), {"max_tree_depth": 10}) == (
        "Only 3 draws per chain: convergence cannot be judged. Ask for more draws.",
    )


def test_progress_is_silent_on_request_and_plain_off_a_terminal(capsys, monkeypatch):
    assert isinstance(make_progress(False), Silent)
    monkeypatch.setattr("marginalia.infer.progress.LINE_EVERY_SECONDS", 0.0)
    now = [0.0]
    monkeypatch.setattr("marginalia.infer.progress.time.monotonic", lambda: now[0])
    lines = Lines()
    lines.stage("starts", 64)
    for seconds, done in ((7.0, 1), (14.0, 3), (15.0, 10)):
        now[0] = seconds
        lines.update(done, "best log density -3.00")
    lines.stage("sampling", 100)
    lines.update(40)
    assert capsys.readouterr().err.splitlines() == [
        "starts: 1 of 64, best log density -3.00",  # most of it compiling: no pace yet
        "starts: 3 of 64, 3.5 s each, best log density -3.00",
        "starts: 10 of 64, 1/s, best log density -3.00",
        "sampling: 40 of 100",
    ]
