"""R-hat and effective sample sizes are those of ArviZ, number by number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from arviz_stats.base.array import array_stats

from marginalia.infer import diagnostics

AXES = {"chain_axis": 0, "draw_axis": 1}


def series(kind: str) -> Iterator[np.ndarray]:
    """Chains `(chain, draw)` of all lengths, correlated either way."""
    rng = np.random.default_rng(20)
    for _ in range(60):
        chains, length = int(rng.integers(1, 9)), int(rng.choice([4, 5, 6, 7, 9, 16, 31, 100, 257]))
        x = rng.normal(size=(chains, length))
        slope = rng.uniform(-1, 1)
        for t in range(1, length):
            x[:, t] += slope * x[:, t - 1]
        if kind == "apart":
            x += 3 * rng.normal(size=(chains, 1))
        elif kind == "tied":
            x = np.round(x)
        elif kind == "two values":
            x = (x > 0).astype(float)
        if np.ptp(x) > 0:
            yield x


@pytest.mark.parametrize("kind", ["plain", "apart", "tied", "two values"])
def test_they_are_those_of_arviz(kind: str) -> None:
    for x in series(kind):
        ids = np.repeat([0, 1], len(x) // 2)
        with np.errstate(invalid="ignore", divide="ignore"):  # ArviZ divides by nothing where folded draws are constant
            expected = [
                array_stats.rhat(x, **AXES) if len(x) > 1 else np.nan,
                array_stats.ess(x, **AXES, method="bulk"),
                array_stats.ess(x, **AXES, method="tail", prob=(0.05, 0.95)),
            ]
            nested = array_stats.rhat_nested(x, ids, **AXES) if len(x) % 2 == 0 else None
        np.testing.assert_allclose(diagnostics.convergence(x[:, :, None])[:, 0], expected, rtol=1e-9)
        if nested is not None:
            np.testing.assert_allclose(diagnostics.nested_rhat(x[:, :, None], 2), nested, rtol=1e-9)


def test_many_quantities_are_judged_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.cumsum(np.random.default_rng(1).normal(size=(4, 50, 7)), axis=1)
    draws[..., 2], draws[0, 3, 5] = 1.0, np.nan
    alone = np.concatenate([diagnostics.convergence(draws[:, :, [i]]) for i in range(7)], axis=1)
    monkeypatch.setattr(diagnostics, "MOST_NUMBERS", 600)  # three at once
    np.testing.assert_allclose(diagnostics.convergence(draws), alone, rtol=1e-12)
    assert np.isnan(alone[:, [2, 5]]).all()
    assert np.isfinite(alone[:, [0, 1, 3, 4, 6]]).all()


def test_three_draws_say_nothing() -> None:
    assert np.isnan(diagnostics.convergence(np.random.default_rng(1).normal(size=(4, 3, 2)))).all()


def test_what_never_changes_has_no_nested_r_hat_and_spoils_no_other() -> None:
    draws = np.random.default_rng(1).normal(size=(4, 50, 3))
    draws[..., 1] = 1.0
    found = diagnostics.nested_rhat(draws, 2)
    assert np.isfinite(found[[0, 2]]).all()
    assert np.isnan(found[1])
    # The weight of a mixture of one component is a site of its own, of which nothing changes.
    assert np.isnan(diagnostics.nested_rhat(draws[..., [1]], 2)).all()


@pytest.mark.parametrize("length", [1, 2, 3])
def test_so_few_draws_have_no_nested_r_hat(length: int) -> None:
    assert np.isnan(diagnostics.nested_rhat(np.random.default_rng(1).normal(size=(4, length, 2)), 2)).all()
