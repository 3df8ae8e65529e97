"""What variational inference climbs: the log density, whole at each step or estimated from a batch of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.infer.optimise import Optimiser
from marginalia.infer.problem import Problem
from marginalia.marginal.batches import Batches


class Target(Protocol):
    """A log density with its gradient, estimated from rows that change from step to step.

    Attributes:
        data: What `value_and_gradient` reads, an argument of every compiled function.
    """

    data: Any

    def value_and_gradient(self, points: Any, rows: Any, data: Any) -> tuple[Any, Any]:
        """Log densities `(samples,)` and gradients `(samples, dimension)` at points; to be traced."""

    def rows(self, rng: np.random.Generator, steps: int) -> Any:
        """The rows of the next steps, `(steps, ...)`, or None."""

    def rows_like(self, steps: int) -> Any:
        """The shape of `rows`."""

    def anchor(self, point: np.ndarray, optimiser: Optimiser) -> None:
        """Take note of the point around which the climb will be; the shapes in `data` stay."""

    def follow(self, draw: Callable[[int], np.ndarray]) -> None:
        """Take note of where the climb has come to: `draw(n)` gives points `(n, dimension)` of the approximation."""

    def kept(self) -> Any:
        """What later steps depend on, as a checkpoint keeps it."""

    def restore(self, kept: Any) -> None:
        """Go on from there."""


class AllRows:
    """The whole density at every step."""

    def __init__(self, problem: Problem) -> None:
        self.data = problem.data
        self._one = jax.value_and_grad(problem.log_density)

    def value_and_gradient(self, points: Any, rows: Any, data: Any) -> tuple[Any, Any]:
        return jax.vmap(self._one, (0, None))(points, data)

    def rows(self, rng: np.random.Generator, steps: int) -> None:
        return None

    def rows_like(self, steps: int) -> None:
        return None

    def anchor(self, point: np.ndarray, optimiser: Optimiser) -> None:
        pass

    def follow(self, draw: Callable[[int], np.ndarray]) -> None:
        pass

    def kept(self) -> None:
        return None

    def restore(self, kept: Any) -> None:
        pass


class SomeRows:
    """An unbiased estimate from some rows a step; every row is used once before any is used again.

    Near the mode a row's log-likelihood is almost linear. So the sum of the linear parts of all rows at the mode is
    computed once, and only what is left over is estimated from the batch (control variates, as Baker, Fearnhead, Fox
    and Nemeth 2019 have them for stochastic gradient samplers): its noise shrinks with the posterior's width.
    """

    def __init__(self, problem: Problem, batches: Batches) -> None:
        self._problem = problem
        self._batches = batches
        self._left = np.empty(0, int)
        self.size, self.batch = batches.size, batches.batch
        nothing = np.zeros(problem.dimension)
        self.data = (batches.data, (nothing, np.zeros(()), nothing))

    def _of_rows(self, flat: Any, rows: Any, data: Any) -> Any:
        params, _ = self._problem.kernel.constrain(self._problem.split(flat))
        return self._batches.of_rows(params, rows, data)

    def _of_rest(self, flat: Any, data: Any) -> Any:
        params, log_det = self._problem.kernel.constrain(self._problem.split(flat))
        return self._batches.of_rest(params, data) + log_det

    def value_and_gradient(self, points: Any, rows: Any, data: Any) -> tuple[Any, Any]:
        own, (centre, level, slope) = data
        both = jnp.concatenate([points, centre[None]])
        value, gradient = jax.vmap(jax.value_and_grad(self._of_rows), (0, None, None))(both, rows, own)
        rest, rest_gradient = jax.vmap(jax.value_and_grad(self._of_rest), (0, None))(points, own)
        tilt = slope - gradient[-1]
        linear = level - value[-1] + (points - centre) @ tilt
        return rest + value[:-1] + linear, rest_gradient + gradient[:-1] + tilt

    def rows(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        wanted = steps * self._batches.batch
        while len(self._left) < wanted:
            self._left = np.concatenate([self._left, rng.permutation(self._batches.size)])
        taken, self._left = self._left[:wanted], self._left[wanted:]
        return taken.reshape(steps, self._batches.batch)

    def rows_like(self, steps: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((steps, self._batches.batch), np.int64)

    def anchor(self, point: np.ndarray, optimiser: Optimiser) -> None:
        own = self.data[0]
        value, gradient = (part[0] for part in optimiser.evaluate(point[None]))
        rest, rest_gradient = jax.jit(jax.value_and_grad(self._of_rest))(point, own)
        self.data = (own, (point, np.asarray(value - rest), np.asarray(gradient - rest_gradient)))

    def follow(self, draw: Callable[[int], np.ndarray]) -> None:
        pass

    def kept(self) -> np.ndarray:
        return self._left

    def restore(self, kept: Any) -> None:
        self._left = kept
