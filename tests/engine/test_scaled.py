"""Chains in scaled linear space: the same number, gradient and curvature as in logarithms, or logarithms are taken."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from marginalia.marginal import scaled

RNG = np.random.default_rng(11)


def chain(steps: int, k: int, b: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random start (K, B), transition (K, K), emissions (T, K, B)."""
    return RNG.normal(size=(k, b)), spread * RNG.normal(size=(k, k)), spread * RNG.normal(size=(steps, k, b))


def by_logarithms(start: Any, transition: Any, emission: Any) -> Any:
    """The forward pass as in textbooks, a state at a time."""
    alpha = start
    for own in emission:
        alpha = logsumexp(alpha[:, None] + transition[..., None], axis=0) + own
    return logsumexp(alpha, axis=0)


def both(arguments: tuple[np.ndarray, ...], function: Any = scaled.log_z) -> tuple[Any, Any]:
    """Value and gradients of the sum over sequences, by the function and by logarithms."""

    def slopes(f: Any) -> Any:
        return jax.device_get(jax.jit(jax.value_and_grad(lambda *a: jnp.sum(f(*a)), (0, 1, 2)))(*arguments))

    with jax.enable_x64(True):
        found, expected = slopes(function), slopes(by_logarithms)
    return found, expected


def agree(found: Any, expected: Any, tolerance: float = 1e-11) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.max(np.abs(b)))))


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaled, "SHORTEST_SEGMENT", 3)
    monkeypatch.setattr(scaled, "SEGMENTS", 8)


def test_all_paths_are_summed() -> None:
    """Against every path written out."""
    start, transition, emission = chain(4, 3, 1)
    total = [
        start[path[0], 0]
        + sum(transition[i, j] + emission[t, j, 0] for t, (i, j) in enumerate(itertools.pairwise(path)))
        for path in itertools.product(range(3), repeat=5)
    ]
    with jax.enable_x64(True):
        found = scaled.log_z(start, transition, emission)
    assert float(found[0]) == pytest.approx(float(np.logaddexp.reduce(total)), rel=1e-13)


@pytest.mark.parametrize(("steps", "k", "b"), [(24, 3, 1), (26, 2, 3), (19, 4, 2), (12, 13, 2)])
@pytest.mark.usefixtures("short_segments")
def test_segments_of_any_number_give_value_and_gradient(steps: int, k: int, b: int) -> None:
    agree(*both(chain(steps, k, b)))


@pytest.mark.usefixtures("short_segments")
def test_curvature_is_that_of_logarithms() -> None:
    start, transition, emission = chain(14, 2, 2)
    way = RNG.normal(size=transition.shape)
    with jax.enable_x64(True):

        def turned(f: Any) -> Any:
            slope = jax.grad(lambda a: jnp.sum(f(start, a, emission * a[0, 1])))
            return jax.jit(lambda a: jax.jvp(slope, (a,), (way,))[1])(transition)

        agree(turned(scaled.log_z), turned(by_logarithms))


@pytest.mark.usefixtures("short_segments")
def test_states_far_apart_are_no_loss() -> None:
    """Emissions of which all but one underflow at each step: what is dropped is nothing."""
    start, transition, emission = chain(25, 3, 1)
    agree(*both((start, transition, 5000.0 * emission)))


@pytest.mark.usefixtures("short_segments")
def test_a_path_that_pays_late_is_not_dropped() -> None:
    """A start state that is 1000 nats less likely, and the only one from which the rest is likely."""
    start = np.array([[0.0], [-1000.0]])
    transition = np.array([[0.0, -3000.0], [-3000.0, 0.0]])
    emission = np.zeros((20, 2, 1))
    emission[:, 0] = -100.0
    found, expected = both((start, transition, emission))
    assert expected[0] == pytest.approx(-1000.0)
    agree(found, expected)


@pytest.mark.usefixtures("short_segments")
def test_impossible_transitions_are_summed_in_logarithms() -> None:
    start, transition, emission = chain(20, 3, 2)
    transition[2, 0] = -np.inf
    with jax.enable_x64(True):
        assert not bool(scaled._bearable(jnp.asarray(transition)))
        found = jax.jit(scaled.log_z)(start, transition, emission)
        expected = by_logarithms(start, transition, emission)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.usefixtures("short_segments")
def test_impossible_observations_give_minus_infinity_and_no_nan() -> None:
    start, transition, emission = chain(20, 3, 2)
    emission[7, :, 1] = -np.inf
    with jax.enable_x64(True):
        value, slopes = jax.jit(jax.value_and_grad(lambda *a: scaled.log_z(*a)[0], (0, 1, 2)))(
            start, transition, emission
        )
        both_values = np.asarray(jax.jit(scaled.log_z)(start, transition, emission))
        slopes = jax.device_get(slopes)
    assert np.isfinite(value)
    assert both_values[1] == -np.inf
    assert all(np.isfinite(s).all() for s in slopes)
