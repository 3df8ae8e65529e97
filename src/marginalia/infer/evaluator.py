"""Log densities and gradients of many points, and Hamiltonian chains from them: one compiled program for both.

All that is done with a density on the host, climbing, curvature, moving chains, goes through here, so that a fit
compiles the density's gradient once. Points are evaluated one after the other inside the program, in a loop whose
length is an argument: for 82 rows and 3 components a gradient takes 2.2 us so, 3.1 us for 64 points under `vmap`, and
80 us as a call of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.precision import in_float64
from marginalia.running import Threads

if TYPE_CHECKING:
    from marginalia.infer.problem import Problem

SLOTS = 64  # points, or steps of one chain, that one call may hold
BLOCK_NUMBERS = 500_000  # data elements times gradients of one call: between calls there is a chance to stop
WORTH_THREADS = 60_000  # data elements times gradients below which a second thread costs more than it spares
ALWAYS = -1.0  # a uniform number below every chance: the step is taken


class Steps(NamedTuple):
    """Ends of Hamiltonian paths: points, momenta and gradients `(n, dimension)`, the rest `(n,)`."""

    points: Any
    momenta: Any
    values: Any
    slopes: Any
    taken: Any


class Evaluator:
    """The compiled density of one problem; may be compiled from one thread while another waits for it.

    There are two programs, which other evaluators of an equal problem share: one for points alone, and one that follows
    paths too. They agree to rounding. Which of them evaluates points depends on `follows` and on nothing that happened
    before, so that a seed gives the same draws in whatever order fits are made.

    Attributes:
        follows: Whether paths will be asked for: to be set before anything is evaluated.
    """

    def __init__(self, problem: Problem) -> None:
        self.follows = False
        self._problem = problem
        self._pool: Threads | None = None

    def compile(self) -> Callable[..., Any]:
        """The program that evaluates points; traced and compiled here, if nobody did before, without running it."""
        programs = self._problem.programs
        key = "paths" if self.follows else "points"
        with programs.setdefault("lock", threading.Lock()):
            if key not in programs:
                programs[key] = self._paths() if self.follows else self._points()
            return programs[key]

    def _points(self) -> Callable[..., Any]:
        points = jax.ShapeDtypeStruct((SLOTS, self._problem.dimension), np.float64)
        whole = jax.ShapeDtypeStruct((), np.int64)
        return jax.jit(self._evaluated).lower(points, whole, self._problem.data).compile()

    def _paths(self) -> Callable[..., Any]:
        size = self._problem.dimension
        points = jax.ShapeDtypeStruct((SLOTS, size), np.float64)
        numbers, counts = jax.ShapeDtypeStruct((SLOTS,), np.float64), jax.ShapeDtypeStruct((SLOTS,), np.int64)
        number, whole = jax.ShapeDtypeStruct((), np.float64), jax.ShapeDtypeStruct((), np.int64)
        root, chain = jax.ShapeDtypeStruct((size, size), np.float64), jax.ShapeDtypeStruct((), np.bool_)
        given = (points, points, numbers, points, numbers, counts, number, root, chain, whole, self._problem.data)
        return jax.jit(self._followed).lower(*given).compile()

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log densities `(n,)` and gradients `(n, dimension)`; -inf and 0 where either is not finite."""
        values, slopes = self._evaluate(points)
        usable = np.isfinite(values) & np.isfinite(slopes).all(axis=1)
        return np.where(usable, values, -np.inf), np.where(usable[:, None], slopes, 0.0)

    def values(self, points: np.ndarray) -> np.ndarray:
        """Log densities alone `(n,)`; NaN counts as -inf."""
        values, _ = self._evaluate(points)
        return np.where(np.isnan(values), -np.inf, values)

    def _evaluate(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not len(points):
            return np.empty(0), points
        if not self.follows:
            values, slopes = (np.concatenate(part) for part in zip(*self._parts(self._values_of, points), strict=True))
            return values, slopes
        zeros, numbers = np.zeros_like(points), np.zeros(len(points))
        root = np.zeros((points.shape[1], points.shape[1]))
        found = self.leap(points, zeros, numbers, zeros, 0.0, 1, root)
        return found.values, found.slopes

    def leap(
        self,
        points: np.ndarray,
        momenta: np.ndarray,
        values: np.ndarray,
        slopes: np.ndarray,
        step: float,
        leaps: int,
        root: np.ndarray,
    ) -> Steps:
        """The same number of leapfrog steps from many points, whose values and gradients are known.

        `root @ root.T` is the inverse mass matrix. Nothing is refused: the ends are given as they are.
        """

        def one(points: np.ndarray, momenta: np.ndarray, values: np.ndarray, slopes: np.ndarray) -> Steps:
            n = len(points)
            return self._follow(
                points, momenta, values, slopes, np.full(n, ALWAYS), np.full(n, leaps), step, root, chain=False
            )

        parts = self._parts(one, points, momenta, values, slopes, gradients=leaps)
        return Steps(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def walk(
        self,
        points: np.ndarray,
        momenta: np.ndarray,
        values: np.ndarray,
        slopes: np.ndarray,
        uniforms: np.ndarray,
        leaps: np.ndarray,
        step: float,
        root: np.ndarray,
    ) -> Steps:
        """Steps of many chains, each accepted or not: the ends of all paths, and which of them were taken.

        Args:
            points: Where the chains are, `(chains, dimension)`, with their values and slopes.
            momenta: `(steps, chains, dimension)`, at most `SLOTS` steps.
            uniforms: Between 0 and 1, `(steps, chains)`: a step is taken where it is below the chance.
            leaps: Leapfrog steps of each, `(steps,)`.
            step: Their size.
            root: `root @ root.T` is the inverse mass matrix.

        Returns:
            `Steps` whose arrays have the axes `(steps, chains)` first.
        """

        def one(c: np.ndarray) -> Steps:
            i = int(c[0])
            at = (points[i : i + 1], momenta[:, i], values[i : i + 1], slopes[i : i + 1])
            return self._follow(*at, uniforms[:, i], leaps, step, root, chain=True)

        parts = self._parts(one, np.arange(len(points)), gradients=int(leaps.sum()), most=1)
        return Steps(*(np.stack(part, axis=1) for part in zip(*parts, strict=True)))

    def _follow(
        self,
        points: np.ndarray,
        momenta: np.ndarray,
        values: np.ndarray,
        slopes: np.ndarray,
        uniforms: np.ndarray,
        leaps: np.ndarray,
        step: float,
        root: np.ndarray,
        *,
        chain: bool,
    ) -> Steps:
        assert self.follows
        paths, n = self.compile(), len(momenta)
        given = [_padded(part) for part in (points, momenta, values, slopes, uniforms, leaps)]
        found = paths(*given, step, root, chain, n, self._problem.data)
        return Steps(*(np.asarray(part)[:n] for part in found))

    def _values_of(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = len(points)
        values, slopes = self.compile()(_padded(points), n, self._problem.data)
        return np.asarray(values)[:n], np.asarray(slopes)[:n]

    def _parts(self, act: Callable[..., Any], *arrays: np.ndarray, gradients: int = 1, most: int = SLOTS) -> list[Any]:
        """`act` on parts of the arrays, in threads where that pays (compiled programs release the interpreter)."""
        from marginalia.infer.problem import workers

        count, each = len(arrays[0]), self._problem.data_size * gradients
        part = int(np.clip(BLOCK_NUMBERS // each, 1, most))
        cores = workers()
        threads = cores > 1 and count > 1 and count * each > WORTH_THREADS
        if threads:
            part = min(part, -(-count // cores))
        pieces = [[array[i : i + part] for array in arrays] for i in range(0, count, part)]
        if not threads or len(pieces) == 1:
            return [act(*piece) for piece in pieces]
        self._pool = self._pool or Threads(cores, thread_name_prefix="marginalia")
        jobs = [self._pool.submit(in_float64(act), *piece) for piece in pieces]
        try:
            return [job.result() for job in jobs]
        finally:
            for job in jobs:
                job.cancel()

    # ---- traced ---------------------------------------------------------------------------------------------------

    def _evaluated(self, points: Any, count: Any, data: Any) -> tuple[Any, Any]:
        one = jax.value_and_grad(self._problem.log_density)

        def body(i: Any, found: tuple[Any, Any]) -> tuple[Any, Any]:
            value, slope = one(points[i], data)
            return found[0].at[i].set(value), found[1].at[i].set(slope)

        return jax.lax.fori_loop(0, count, body, (jnp.zeros(SLOTS), jnp.zeros_like(points)))

    def _followed(
        self,
        points: Any,
        momenta: Any,
        values: Any,
        slopes: Any,
        uniforms: Any,
        leaps: Any,
        step: Any,
        root: Any,
        chain: Any,
        count: Any,
        data: Any,
    ) -> Steps:
        """Paths from all points, or, as a chain, from the first point and then from where the last path led."""
        one = jax.value_and_grad(self._problem.log_density)

        def leap(_: Any, at: tuple[Any, ...]) -> tuple[Any, ...]:
            point, momentum, _value, slope = at
            momentum = momentum + 0.5 * step * slope @ root
            point = point + step * momentum @ root.T
            value, slope = one(point, data)
            return point, momentum + 0.5 * step * slope @ root, value, slope

        def path(i: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            at, found = carry
            given = points[i], values[i], slopes[i]
            at = tuple(jnp.where(chain & (i > 0), own, new) for own, new in zip(at, given, strict=True))
            end, momentum, value, slope = jax.lax.fori_loop(0, leaps[i], leap, (at[0], momenta[i], at[1], at[2]))
            rise = 0.5 * (momentum @ momentum - momenta[i] @ momenta[i]) - value + at[1]
            usable = jnp.isfinite(rise) & jnp.all(jnp.isfinite(slope))
            taken = usable & (uniforms[i] < jnp.exp(-rise))
            step_ = Steps(end, momentum, value, slope, taken)
            found = Steps(*(whole.at[i].set(part) for whole, part in zip(found, step_, strict=True)))
            new = end, value, slope
            return tuple(jnp.where(taken, b, a) for a, b in zip(at, new, strict=True)), found

        found = Steps(points, momenta, values, slopes, jnp.zeros(SLOTS, bool))
        return jax.lax.fori_loop(0, count, path, ((points[0], values[0], slopes[0]), found))[1]


def _padded(array: np.ndarray) -> np.ndarray:
    out = np.zeros((SLOTS, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out
