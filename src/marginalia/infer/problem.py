"""The log density as a function of one flat vector, compiled once per use."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.errors import FitError, compose
from marginalia.infer.evaluator import Evaluator
from marginalia.infer.reached import Reached
from marginalia.marginal.drawing import in_blocks, side_by_side
from marginalia.precision import in_float64
from marginalia.running import Threads

ROUNDING = 1e-6
OVERHEAD = 1000  # operations that a gradient of no data at all takes

type Labelling = Callable[[dict[str, np.ndarray], np.ndarray], dict[str, np.ndarray]]
type Mirrors = Callable[[dict[str, np.ndarray]], tuple[tuple[str, ...], ...]]


class Problem:
    """A marginal density over one flat unconstrained vector.

    The order of the vector is the order of `kernel.unconstrained_shapes`, each site ravelled in C order.
    The data are an argument of every compiled function, so nothing large is baked in.

    Attributes:
        dimension: Length of the vector.
        data_size: Number of data elements that one evaluation reads.
        work: What one gradient costs, in operations: the measure of what a method costs, which no clock is.
        jacobian: Whether the density includes the Jacobian of the transforms.
        traces: How often the program's density has been traced; tests hold a budget on it.
        one_labelling: From draws `{site: (chain, draw, ...)}` and their log densities `(chain, draw)` to the same
            draws under one labelling of the components, as they will be judged in the end. Unless given, the
            draws as they are.
        evaluator: Values and gradients of many points, by one compiled program that equal problems share.
        programs: What methods have compiled, by a name of theirs.
        reached: What a run on it has in hand, for when it is stopped.
        mirrors: From some points `{site: (n, ...)}` to the sites that are reflected when two labels change places, a
            tuple for each pair of labels. Unless given, none.

    Raises:
        FitError: The program has no continuous latent.
    """

    def __init__(
        self,
        marginal: Any,
        *,
        jacobian: bool,
        one_labelling: Labelling | None = None,
        mirrors: Mirrors | None = None,
    ) -> None:
        self.marginal = marginal
        self.one_labelling: Labelling = one_labelling or (lambda draws, lp: draws)
        self.mirrors: Mirrors = mirrors or (lambda params: ())
        self.kernel = marginal.kernel
        self.data = self.kernel.data
        self.jacobian = jacobian
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(shape) for name, shape in self.kernel.unconstrained_shapes.items()
        }
        self.dimension = sum(math.prod(shape) for shape in self.shapes.values())
        if self.dimension == 0:
            raise FitError(
                compose(
                    "the program has no continuous latent, so there is nothing to infer by sampling",
                    remedy="marginalize() alone gives the exact answer: its posterior(), sample() and mode() "
                    "take an empty dict of parameters.",
                )
            )
        self.data_size = max(1, self.kernel.numbers_read)
        self.work = self.kernel.operations + OVERHEAD
        self.traces = 0
        # An inner jit is traced once, whoever calls it: value, gradient and samplers share it.
        self.log_density = jax.jit(self._log_density)
        self.evaluator = Evaluator(self)
        self.programs: dict[Any, Any] = {}
        self.reached = Reached()

    def recalled(self) -> Problem:
        """The same, with all that was compiled for an equal problem before."""
        before = getattr(self.kernel, "compiled", {}).setdefault(("problem", self.jacobian), self)
        self.log_density, self.programs = before.log_density, before.programs
        return self

    def split(self, flat: Any) -> dict[str, Any]:
        """The flat vector `(..., dimension)` as `{site: (..., *unconstrained shape)}`."""
        out, at = {}, 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            out[name] = flat[..., at : at + size].reshape((*flat.shape[:-1], *shape))
            at += size
        return out

    def join(self, sites: dict[str, Any]) -> jax.Array:
        """The inverse of `split` for one point; to be traced."""
        return jnp.concatenate([jnp.ravel(sites[name]) for name in self.shapes])

    def _log_density(self, flat: jax.Array, data: Any) -> jax.Array:
        self.traces += 1
        params, log_det = self.kernel.constrain(self.split(flat))
        value = self.kernel.log_density(params, data)
        return value + log_det if self.jacobian else value

    def _program(self, name: str, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        if name not in self.programs:
            self.programs[name] = make()
        return self.programs[name]

    def constrain(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """Constrained parameters of `points` `(..., dimension)`, as `{site: (..., *shape)}`."""
        params, _ = self._constrained(points.reshape(-1, self.dimension))
        return {name: leaf.reshape((*points.shape[:-1], *leaf.shape[1:])) for name, leaf in params.items()}

    def _constrained(self, points: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Parameters of points `(n, dimension)` and log |det J|; a block of fixed size at a time, so compiled once."""
        run = self._program("constrain", lambda: side_by_side(lambda x: self.kernel.constrain(self.split(x))))
        return in_blocks(run, points, self.dimension)

    def unconstrain(self, params: dict[str, np.ndarray]) -> np.ndarray:
        """The points `(n, dimension)` of parameters `{site: (n, *shape)}`; NaN where they are outside the support."""
        run = self._program("unconstrain", lambda: side_by_side(lambda p: self.join(self.kernel.unconstrain(p))))
        return in_blocks(run, params, self.dimension)

    def density_of(self, params: dict[str, np.ndarray]) -> np.ndarray:
        """log p(observed, params), no Jacobian, of parameters `{site: (n, *shape)}`; -inf outside their support."""
        count = len(next(iter(params.values())))
        points = self.unconstrain(params)
        inside = np.isfinite(points).all(axis=1)
        points = np.where(inside[:, None], points, 0.0)
        again, log_det = self._constrained(points)
        for name, value in params.items():
            # What comes back as something else was not in the support.
            near = np.isclose(again[name], value, ROUNDING, ROUNDING * np.abs(value).max(initial=1e-300))
            inside &= near.reshape(count, -1).all(axis=1)
        values = self.evaluator.values(points)
        return np.where(inside, values - log_det if self.jacobian else values, -np.inf)

    def log_likelihood(self, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Terms per independent unit, `{unit: (n, ...)}`, for parameters `{site: (n, *shape)}`."""
        rows = jax.jit(jax.vmap(self.kernel.log_likelihood, (0, None)))(params, self.data)
        return {name: np.asarray(leaf) for name, leaf in rows.items()}


def workers() -> int:
    """Number of threads that run compiled functions at the same time."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def in_threads[T, R](function: Callable[[T], R], items: list[T]) -> Iterator[R]:
    """Map over `items` in threads (compiled functions release the interpreter), results in order.

    The first item runs alone: it compiles, and the rest find the compiled function. Leaving the iterator
    early, by an interrupt say, drops what has not begun.
    """
    inside = in_float64(function)
    if items:
        yield inside(items[0])
    if len(items) < 2:
        return
    pool = Threads(workers())
    try:
        yield from pool.map(inside, items[1:])
    finally:
        pool.shutdown(cancel_futures=True)


def key_data(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Raw bits for JAX keys, `(*shape, 2)`; `as_key` turns them into keys inside a compiled function."""
    return rng.integers(2**32, size=(*shape, 2), dtype=np.uint32)


def as_key(bits: jax.Array) -> jax.Array:
    """A JAX key of the given bits, whatever generator the user has set as JAX's default."""
    return jax.random.wrap_key_data(bits, impl="threefry2x32")
