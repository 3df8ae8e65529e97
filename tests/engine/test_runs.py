"""Identities held as runs: the same answers as with arrays of them, for models small enough to write both out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import marginalia as mg
from marginalia.errors import Refusal
from marginalia.lanes import run as runs
from marginalia.lanes.run import Run
from marginalia.marginal import recall
from zoo import CASES

SYMBOLIC = (
    "change_point",
    "diagonal_covariance",
    "full_covariance",
    "gaussian_mixture",
    "missing_by_handler",
    "multinomial_rows",
    "two_outcomes",
    "weighted_rows",
)
"""Models of rows of which each has one discrete: no array of identities is written out to plan them."""

MEETING = ("two_discretes_per_row", "class_per_group_and_row", "discrete_given_discrete", "rows_and_columns")
"""Models in which discretes meet: runs become arrays where the factor graph is built."""


@pytest.fixture
def as_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    monkeypatch.setattr(recall, "fingerprint", lambda program: None)  # every program is planned anew
    return lambda yes: monkeypatch.setattr(runs, "FEWEST", 0 if yes else 4096)


def answers(marginal: Any, params: dict[str, Any]) -> dict[str, Any]:
    kernel = marginal.kernel
    with jax.enable_x64(True):
        point = {name: jnp.asarray(x, float) for name, x in params.items()}

        def everything(point: Any, data: Any) -> Any:
            return {
                "density": jax.value_and_grad(kernel.log_density)(point, data),
                "posterior": kernel.posterior(point, data),
                "mode": kernel.mode(point, data),
                "draw": kernel.sample(point, data, jax.random.key(3)),
                "likelihood": kernel.log_likelihood(point, data),
                "sites": kernel.site_densities(point, data),
            }

        return jax.device_get(jax.jit(everything)(point, kernel.data))


# every other one in a hurry
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if i % 2 else ()) for i, n in enumerate(SYMBOLIC + MEETING)]
)
def test_runs_change_no_answer(name: str, as_runs: Callable[[bool], None]) -> None:
    case = CASES[name]
    as_runs(False)
    arrays = mg.marginalize(case.model, *case.args)
    as_runs(True)
    symbolic = mg.marginalize(case.model, *case.args)
    assert isinstance(symbolic.kernel.plan.graph.component, Run) == (name in SYMBOLIC)
    units = [[(u.name, u.shape, u.dims, u.sites) for u in m.kernel.units] for m in (arrays, symbolic)]
    assert units[0] == units[1]
    expected, found = answers(arrays, case.params), answers(symbolic, case.params)
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12)
    assert str(symbolic).splitlines()[-1] == str(arrays).splitlines()[-1]


def two_plates(x, y):
    """Two sites of their own rows, of different supports, and three columns of an event."""
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([3, 3]).to_event(2))
    with numpyro.plate("first", len(x)):
        a = numpyro.sample("a", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(2.0 * a, 1.0), obs=x)
    with numpyro.plate("second", len(y)):
        b = numpyro.sample("b", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[b], 1.0).to_event(1), obs=y)


def test_sites_apart_are_groups_of_their_own(as_runs: Callable[[bool], None]) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=7), rng.normal(size=(5, 3))
    params = {"w": np.array([0.2, 0.3, 0.5]), "mu": rng.normal(size=(3, 3))}
    as_runs(True)
    marginal = mg.marginalize(two_plates, x, y)
    (groups,) = marginal.kernel.plan.rounds
    assert [(g.variables, g.states) for g in groups] == [(Run(0, (7,)), 2), (Run(7, (5,)), 3)]
    found = marginal.log_likelihood(params)
    first = np.logaddexp(
        np.log(0.7) - 0.5 * x**2 - 0.5 * np.log(2 * np.pi), np.log(0.3) - 0.5 * (x - 2) ** 2 - 0.5 * np.log(2 * np.pi)
    )
    rows = np.log(params["w"]) - 0.5 * ((y[:, None] - params["mu"]) ** 2).sum(-1) - 1.5 * np.log(2 * np.pi)
    second = np.logaddexp.reduce(rows, axis=1)
    np.testing.assert_allclose(found["x"], first, rtol=1e-13)
    np.testing.assert_allclose(found["y"], second, rtol=1e-13)


def scaled_columns(y, scale):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2, 3]).to_event(2))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
    with numpyro.handlers.scale(scale=scale), numpyro.plate("columns", 3), numpyro.plate("again", len(y), dim=-2):
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def test_columns_of_unequal_scale_are_refused_though_they_could_be_summed(as_runs: Callable[[bool], None]) -> None:
    """A scale multiplies the log of the sum: columns are summed first only where one scale holds for all."""
    y = np.random.default_rng(6).normal(size=(4, 3))
    for yes in (False, True):
        as_runs(yes)
        with pytest.raises(Refusal, match="sites under one sum have different scales"):
            mg.marginalize(scaled_columns, y, jnp.array([1.0, 2.0, 1.0]))


@pytest.mark.parametrize(
    "move",
    [
        lambda a: a.reshape((4, 1, 6)),
        lambda a: a.reshape((24,))[3:17],
        lambda a: a.reshape((24,))[::2],
        lambda a: a.reshape((1, 24))[0],
        lambda a: a.reshape((1, 24))[:, 5:7],
        lambda a: a.transpose([1, 0]),
        lambda a: a.reshape((4, 1, 6)).transpose([1, 0, 2]),
        lambda a: a[1:, :],
        lambda a: a[:, :],
        lambda a: a.reshape((24,))[np.array([3, 5, 3])],
        lambda a: a.reshape((24,))[np.arange(24) > 20],
    ],
)
def test_a_run_moves_as_its_array_does(move: Callable[[Any], Any], as_runs: Callable[[bool], None]) -> None:
    as_runs(True)
    held = runs.run(7, (4, 6))
    assert isinstance(held, Run)
    expected, found = move(np.asarray(held)), move(held)
    assert tuple(found.shape) == expected.shape
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_a_part_of_a_run_of_components_is_found_by_a_run() -> None:
    assert Run(10, (9000,))[Run(5, (4000, 2))] == Run(15, (4000, 2))
    assert runs.as_run(np.array([[3, 4], [5, 6]])) == Run(3, (2, 2))
    assert runs.as_run(np.array([-1, 0, 1])) is None
    assert runs.as_run(np.array([3, 5])) is None
