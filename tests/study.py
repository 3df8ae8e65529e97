"""What the engine says about one case of the zoo, and what brute force says: computed once for all laws."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

import marginalia as mg
from oracle import Oracle, enumerate_all
from zoo import CASES, Case

DRAWS = 2000
EXACT = 1e-10  # relative, in float64
POINT = 20_241


def close(actual: Any, expected: Any, what: str, tolerance: float = EXACT) -> None:
    """Equal to a relative tolerance, measured against the largest entry."""
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape} instead of {expected.shape}"
    assert np.isfinite(expected).all(), f"{what}: the oracle itself is not finite"
    assert np.isfinite(actual).all(), f"{what}: not finite, {actual}"
    worst = np.max(np.abs(actual - expected), initial=0.0)
    scale = max(1.0, np.max(np.abs(expected), initial=0.0))
    assert worst <= tolerance * scale, f"{what}: {actual} instead of {expected}, off by {worst:.2e}"


def value_and_gradient(marginal: Any, params: dict[str, np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
    """The pure density and its gradient, in one compilation."""
    kernel = marginal.kernel
    with jax.enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(kernel.log_density))(params, kernel.data)
        return float(value), {name: np.asarray(g) for name, g in gradient.items()}


class Study:
    """One case: the engine's answers (`density`, `gradient`, ...) beside the truth."""

    def __init__(self, case: Case):
        self.case, self.params = case, case.params

    # What is true --------------------------------------------------------------------------------

    @functools.cached_property
    def oracle(self) -> Oracle | None:
        if self.case.marginals is not None:
            return None
        return enumerate_all(self.case.unscaled or self.case.model, self.case.args, self.params)

    @functools.cached_property
    def _closed(self) -> tuple[float, dict[str, np.ndarray]]:
        with jax.enable_x64(True):
            value, gradient = jax.jit(jax.value_and_grad(self.case.closed))(self.params, *self.case.args)
            return float(value), {name: np.asarray(g) for name, g in gradient.items()}

    @property
    def true_density(self) -> float:
        return self._closed[0] if self.case.closed else self.oracle.density

    @property
    def true_gradient(self) -> dict[str, np.ndarray]:
        return self._closed[1] if self.case.closed else self.oracle.gradient

    @functools.cached_property
    def true_marginals(self) -> dict[str, np.ndarray]:
        if self.case.marginals is not None:
            return self.case.marginals(self.params, *self.case.args)
        return self.oracle.marginals()

    # What the engine says --------------------------------------------------------------------------------

    @functools.cached_property
    def marginal(self) -> Any:
        return mg.marginalize(self.case.model, *self.case.args)

    @functools.cached_property
    def refused(self) -> str:
        """The words of the refusal, where a case may be refused and is."""
        if not self.case.may_refuse:
            return ""
        try:
            self.marginal.log_density(self.params)
        except mg.Refusal as refusal:
            return str(refusal)
        return ""

    @functools.cached_property
    def density(self) -> Any:
        return self.marginal.log_density(self.params)

    @functools.cached_property
    def _pure(self) -> tuple[float, dict[str, np.ndarray]]:
        return value_and_gradient(self.marginal, self.params)

    @functools.cached_property
    def pure_density(self) -> float:
        return self._pure[0]

    @functools.cached_property
    def gradient(self) -> dict[str, np.ndarray]:
        return self._pure[1]

    @functools.cached_property
    def posterior(self) -> dict[str, np.ndarray]:
        return self.marginal.posterior(self.params)

    @functools.cached_property
    def draws(self) -> dict[str, np.ndarray]:
        """DRAWS joint draws of the discretes, the draw axis in front."""
        kernel = self.marginal.kernel
        with jax.enable_x64(True):
            keys = jax.random.split(jax.random.key(POINT), DRAWS)
            draw = jax.jit(jax.vmap(kernel.sample, in_axes=(None, None, 0)))
            return {name: np.asarray(v) for name, v in draw(self.params, kernel.data, keys).items()}

    @functools.cached_property
    def mode(self) -> dict[str, np.ndarray]:
        return self.marginal.mode(self.params)

    @functools.cached_property
    def log_likelihood(self) -> dict[str, np.ndarray]:
        return self.marginal.log_likelihood(self.params)

    @functools.cached_property
    def order(self) -> np.ndarray:
        """A permutation of the rows that is not its own inverse."""
        rows = len(self.case.args[self.case.rows[0]])
        return np.roll(np.arange(rows), 1)[np.r_[1, 0, 2:rows]] if rows > 2 else np.arange(rows)[::-1]

    @functools.cached_property
    def permuted(self) -> Any:
        """The same model on permuted rows."""
        args = [a[self.order] if i in self.case.rows else a for i, a in enumerate(self.case.args)]
        return self.marginal.rebind(*args)

    def conditioned(self, values: dict[str, np.ndarray]) -> Any:
        """The same model with some discretes observed."""
        values = {name: jnp.asarray(value) for name, value in values.items()}
        return mg.marginalize(handlers.condition(self.case.model, data=values), *self.case.args)


@functools.cache
def study(name: str) -> Study:
    """The study of a case, one per process."""
    return Study(CASES[name])
