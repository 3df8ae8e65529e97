"""The same data at two sites, shown by identity, overlap or value; and arrays that only look alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import marginalia as mg

LONG = np.round(np.sin(np.arange(24.0)) * 5, 3)
SHORT = np.array([1.5, 0.2, 0.7])
BITS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0], [1, 0, 1]])
COUNTS = np.array([4, 0, 2, 4, 1, 0])
GRID = np.arange(12.0).reshape(3, 4) + 0.5


def two(first: Any, second: Any) -> Callable[..., None]:
    """Two sites that observe what two functions make of the data."""

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3))
        numpyro.sample("a", dist.Normal(mu, 1), obs=first(y))
        numpyro.sample("b", dist.Normal(mu, 1), obs=second(y))

    return model


def same(y):
    return y


SHARED: dict[str, tuple[Any, Any, Any, int]] = {
    "the_array": (SHORT, same, same, 3),
    "whole_numbers": (COUNTS, same, same, 6),
    "a_transpose": (GRID, same, lambda y: y.T, 12),
    "reversed": (SHORT, same, lambda y: y[::-1], 3),
    "overlapping_parts": (SHORT, lambda y: y[:2], lambda y: y[1:], 1),
    "one_column": (BITS, same, lambda y: y[:, 1], 4),
    "as_a_column": (SHORT, lambda y: y[:, None], lambda y: y[None, :], 3),
    "jax_array": (jnp.array(SHORT), same, same, 3),
    "parts_of_a_jax_array": (jnp.array(GRID), lambda y: y[0], lambda y: y[:, 1:3], 2),
    "in_jax_from_numpy": (SHORT, lambda y: jnp.asarray(y)[1:], lambda y: y[:2], 1),
    "a_copy": (LONG, same, lambda y: y.copy(), 24),
    "a_copy_of_another_type": (LONG.astype(np.float32), same, lambda y: y.astype(np.float64), 24),
    "many_whole_numbers": (np.arange(40), same, lambda y: y + 0, 40),
}


@pytest.mark.parametrize("name", SHARED)
def test_same_data(name: str) -> None:
    data, first, second, count = SHARED[name]
    (finding,) = mg.check(two(first, second), data)
    assert (finding.kind, finding.where) == ("twice", "sites 'a' and 'b'")
    assert f" {count} " in f" {finding.got} "


APART: dict[str, tuple[Any, Any, Any]] = {
    "equal_columns_of_bits": (BITS, lambda y: y[:, 0], lambda y: y[:, 2]),
    "equal_columns_of_bits_in_jax": (jnp.array(BITS), lambda y: y[:, 0], lambda y: y[:, 2]),
    "equal_columns_of_many_bits": (np.tile(BITS, (50, 1)), lambda y: y[:, 0], lambda y: y[:, 2]),
    "short_copies": (SHORT, same, lambda y: y.copy()),
    "ranks": (np.arange(8), same, lambda y: y.copy()),
    "halves": (LONG, lambda y: y[:12], lambda y: y[12:]),
    "even_and_odd": (LONG, lambda y: y[::2], lambda y: y[1::2]),
    "rows": (GRID, lambda y: y[0], lambda y: y[2]),
    "other_values": (LONG, same, lambda y: y * 2),
    "zeros_of_a_penalty": (np.zeros(5), same, same),
    "numbers": (SHORT, lambda y: y[0], lambda y: y[0]),
}


@pytest.mark.parametrize("name", APART)
def test_other_data(name: str) -> None:
    data, first, second = APART[name]
    assert not mg.check(two(first, second), data)


@pytest.mark.parametrize(("opposite", "kinds"), [(True, []), (False, ["twice"])])
def test_what_a_mask_hides_is_not_observed(opposite: bool, kinds: list[str]) -> None:
    """A hurdle: zeros under one site, the rest under another."""

    def model(y):
        p = numpyro.sample("p", dist.Beta(1, 1))
        rate = numpyro.sample("rate", dist.HalfNormal(3))
        zero = y == 0
        with handlers.mask(mask=zero):
            numpyro.sample("none", dist.Geometric(p), obs=y)
        with handlers.mask(mask=~zero if opposite else np.ones_like(zero)):
            numpyro.sample("some", dist.Poisson(rate), obs=y)

    assert [f.kind for f in mg.check(model, COUNTS)] == kinds


def test_three_sites_are_three_pairs() -> None:
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3))
        for name in "abc":
            numpyro.sample(name, dist.Normal(mu, 1), obs=y)

    assert [f.where for f in mg.check(model, SHORT)] == [f"sites '{x}' and '{y}'" for x, y in ("ab", "ac", "bc")]
