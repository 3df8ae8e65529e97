"""What reading a model of many rows holds beside the data: next to nothing for one column, one copy for several."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import marginalia as mg
from marginalia.lanes import run as runs

FEW, MANY = 50_000, 200_000


def line(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([3]).to_event(1))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def columns(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([3, 8]).to_event(2))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1.0).to_event(1), obs=y)


def peak(model: Callable[..., Any], y: np.ndarray) -> int:
    """Bytes that Python and NumPy hold at most while the model is read and made ready, JAX's copy of the data too."""
    tracemalloc.start()
    try:
        marginal = mg.marginalize(model, y)
        marginal.kernel.data  # noqa: B018  made when first asked for
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def growth(model: Callable[..., Any], *columns: int) -> float:
    """How many times the data what is held grows by, from few rows to many."""
    rng = np.random.default_rng()  # data that no test has read before
    data = [rng.normal(size=(n, *columns)) for n in (FEW, FEW, MANY)]
    # What is imported and compiled once is no part of it.
    _, few, many = (peak(model, y) for y in data)
    return (many - few) / (data[2].nbytes - data[0].nbytes)


def test_one_column_is_copied_once_for_jax_and_nothing_else_grows_with_it() -> None:
    assert growth(line) < 1.5


def test_several_columns_are_copied_once_more_in_the_order_of_the_blocks() -> None:
    assert growth(columns, 8) < 2.4


def test_identities_written_out_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: an array for each of what the plan says."""
    monkeypatch.setattr(runs, "FEWEST", 10**9)
    assert growth(line) > 4


@pytest.mark.parametrize("rows", [5, 5000])
def test_what_happens_to_the_data_later_changes_no_answer(rows: int) -> None:
    """A program has data of its own from when it was read on, though they are copied once only."""
    y = np.random.default_rng(1).normal(size=rows)
    params = {"mu": np.array([-1.0, 0.0, 2.0]), "w": np.full(3, 1 / 3)}
    logs = -0.5 * (y - params["mu"][:, None]) ** 2 - 0.5 * np.log(2 * np.pi) - np.log(3)
    prior = np.log(2) - 0.5 * ((params["mu"] / 5) ** 2).sum() - 3 * (np.log(5) + 0.5 * np.log(2 * np.pi))
    expected = np.logaddexp.reduce(logs, axis=0).sum() + prior
    marginal = mg.marginalize(line, y)
    y += 100
    assert marginal.log_density(params) == pytest.approx(expected, rel=1e-12)
