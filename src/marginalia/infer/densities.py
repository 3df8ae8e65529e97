"""Log densities of many points: no gradients, blocks of a size that memory allows, in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from marginalia.infer.problem import Problem, in_threads

BLOCK_NUMBERS = 1_000_000  # data elements times points that one call may hold: some 8 MB a table column
MOST_POINTS = 250  # per call: there is progress, and a chance to stop, between calls
FEW_DATA = 5_000  # numbers that one evaluation reads: below it gradients cost less than another compilation


class Densities:
    """The log density on batches of points, compiled once for one size of them; with few data, along with gradients."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._few = problem.data_size < FEW_DATA
        self.block = MOST_POINTS if self._few else max(1, min(MOST_POINTS, BLOCK_NUMBERS // problem.data_size))
        self._compiled: Callable[..., Any] | None = None

    def compile(self) -> None:
        """Trace and compile, without running anything; may be called from another thread."""
        if self._few:
            self._problem.evaluator.compile()
            return
        key = "densities", self.block
        if key not in self._problem.programs:
            points = jax.ShapeDtypeStruct((self.block, self._problem.dimension), np.float64)

            def each(points: jax.Array, data: Any) -> jax.Array:
                # One after the other: the data of a block stay in the cache, and threads take other points.
                return jax.lax.map(lambda point: self._problem.log_density(point, data), points)

            self._problem.programs[key] = jax.jit(each).lower(points, self._problem.data).compile()
        self._compiled = self._problem.programs[key]

    def blocks(self, points: np.ndarray) -> Iterator[np.ndarray]:
        """Values of `points` `(n, dimension)`, a block of at most `block` of them at a time; NaN counts as -inf."""
        if self._few:
            for begin in range(0, len(points), self.block):
                yield self._problem.evaluator.values(points[begin : begin + self.block])
            return
        if self._compiled is None:
            self.compile()
        assert self._compiled is not None
        compiled, data, size = self._compiled, self._problem.data, self.block

        def values(begin: int) -> np.ndarray:
            rows = np.minimum(np.arange(begin, begin + size), len(points) - 1)
            out = np.asarray(compiled(points[rows], data))[: len(points) - begin]
            return np.where(np.isnan(out), -np.inf, out)

        yield from in_threads(values, list(range(0, len(points), size)))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values of `points` `(n, dimension)`: `(n,)`."""
        return np.concatenate([np.empty(0), *self.blocks(points)])
