"""Many optimisations side by side: limited-memory BFGS that evaluates the density once per iteration.

An iteration tries one point: it is taken when the density rises enough (Armijo), else the next iteration
tries a shorter step (Nocedal and Wright, Numerical Optimization, 2006, chapters 3 and 7.2). A point of density -inf or
NaN is simply not taken: hard constraints need nothing special.

All starts go in step, in NumPy, on the one compiled density of the problem. An optimiser of its own in the compiled
program took 1.0 s to compile for a mixture whose 64 climbs take 0.1 s in this way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from marginalia.infer.problem import Problem
from marginalia.infer.progress import Progress

RUNNING, CONVERGED, STALLED = 0, 1, 2
MEMORY = 10
RISE = 1e-4  # Armijo: the part of the promised rise that a step must give
GAIN_TOLERANCE = 1e-13  # converged when a full step promises fewer nats than this, per nat of the density
STALL_TOLERANCE = 1e-6  # no step helps: converged all the same when the promise is below this
SHORTEST = 1e-14


@dataclass
class _State:
    """Some optimisations, a row each; `value` and `gradient` are those of the negative log density."""

    point: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    direction: np.ndarray
    step: np.ndarray
    moves: np.ndarray  # (n, MEMORY, dimension): last differences of points, the newest last
    turns: np.ndarray  # (n, MEMORY, dimension): and of gradients
    used: np.ndarray  # how many of them count
    status: np.ndarray

    def take(self, rows: np.ndarray) -> _State:
        return _State(*(part[rows] for part in vars(self).values()))

    def put(self, rows: np.ndarray, other: _State) -> None:
        for part, new in zip(vars(self).values(), vars(other).values(), strict=True):
            part[rows] = new


@dataclass(frozen=True)
class Climb:
    """Where the optimisations ended.

    Attributes:
        points: `(n, dimension)`.
        log_density: `(n,)`.
        status: `(n,)`: RUNNING (too few steps), CONVERGED or STALLED.
        gradient_norms: `(n, steps + 1)`: the largest absolute derivative along the way, NaN after the end.
        interrupted: Whether the user stopped it; only starts that had ended are listed, or all, if none had.
        rows: `(n,)`: which of the starts they are.
    """

    points: np.ndarray
    log_density: np.ndarray
    status: np.ndarray
    gradient_norms: np.ndarray
    interrupted: bool
    rows: np.ndarray


class Optimiser:
    """The optimisation of one problem, of at most `steps` iterations; it also evaluates values and gradients.

    Attributes:
        scale: The size of each coordinate, `(dimension,)`: climbs go in units of it. A table's columns may differ by
            a factor of a million, and a hundred differences of gradients do not tell that to the optimiser.
    """

    def __init__(self, problem: Problem, steps: int) -> None:
        self._problem = problem
        self._steps = steps
        self.scale = np.ones(problem.dimension)

    def evaluate(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log densities `(n,)`, -inf where anything is not finite, and gradients `(n, dimension)`."""
        return self._problem.evaluator(points)

    def climb(self, points: np.ndarray, progress: Progress, steps: int | None = None) -> Climb:
        """Maximise from each of `points` `(n, dimension)`, in fewer `steps` if told; all must have a finite density."""
        limit = 1 + (self._steps if steps is None else min(steps, self._steps))
        state = _begin(points / self.scale)
        norms = np.full((len(points), self._steps + 1), np.nan)
        active = every = np.arange(len(points))
        interrupted = False
        try:
            for i in range(limit):
                # All parts at once, so that an interrupt finds them in step.
                new = state.take(every)
                new.put(active, self._advance(state.take(active)))
                state = new
                norms[active, i] = np.abs(state.gradient[active] / self.scale).max(axis=1)
                active = active[state.status[active] == RUNNING]
                done, best = len(points) - len(active), -state.value.min()
                progress.update(done if i + 1 < limit else len(points), f"best log density {best:.2f}")
                if not len(active):
                    break
        except KeyboardInterrupt:
            if not np.isfinite(state.value).any():
                raise
            interrupted = True
        kept = every
        if interrupted:
            ended = state.status != RUNNING
            kept = np.flatnonzero(ended if ended.any() else np.isfinite(state.value))
        points = state.point[kept] * self.scale
        return Climb(points, -state.value[kept], state.status[kept], norms[kept], interrupted, kept)

    def _advance(self, state: _State) -> _State:
        slope = _dot(state.direction, state.gradient)
        trial = state.point + state.step[:, None] * state.direction
        value, gradient = self.evaluate(trial * self.scale)
        value, gradient = -value, -gradient * self.scale
        usable = np.isfinite(value)
        with np.errstate(invalid="ignore"):  # the first trial rises from infinity
            rise = value - state.value
            rounding = 1e-15 * np.abs(state.value)
            taken = usable & ((rise <= RISE * state.step * slope + rounding) | ~np.isfinite(state.value))
        new = state.take(np.arange(len(value)))
        yes, no = np.flatnonzero(taken), np.flatnonzero(~taken)
        if len(yes):
            new.put(yes, _moved(state.take(yes), trial[yes], value[yes], gradient[yes]))
        if len(no):
            new.put(no, _shortened(state.take(no), rise[no], slope[no], usable[no]))
        promise = -0.5 * _dot(new.direction, new.gradient)
        with np.errstate(invalid="ignore"):
            done = taken & (promise < GAIN_TOLERANCE * np.maximum(1.0, np.abs(new.value)))
        new.status[done] = CONVERGED
        return new


def _begin(points: np.ndarray) -> _State:
    """A value of +inf and no direction: the first trial is the start itself, taken if it is finite."""
    count, size = points.shape
    nothing, memory = np.zeros((count, size)), np.zeros((count, MEMORY, size))
    return _State(
        points.copy(),
        np.full(count, np.inf),
        nothing,
        nothing.copy(),
        np.full(count, 0.5),
        memory,
        memory.copy(),
        np.zeros(count, int),
        np.full(count, RUNNING),
    )


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("...d,...d->...", a, b)


def _norm(a: np.ndarray) -> np.ndarray:
    return np.sqrt(_dot(a, a))


def _moved(state: _State, trial: np.ndarray, value: np.ndarray, gradient: np.ndarray) -> _State:
    """Go to the trial point and aim anew."""
    move, turn = trial - state.point, gradient - state.gradient
    curved = _dot(move, turn) > 1e-12 * _norm(move) * _norm(turn)
    moves, turns = state.moves, state.turns
    moves[curved] = np.concatenate([moves[curved, 1:], move[curved, None]], axis=1)
    turns[curved] = np.concatenate([turns[curved, 1:], turn[curved, None]], axis=1)
    used = np.where(curved, np.minimum(state.used + 1, MEMORY), state.used)
    direction = -_precondition(gradient, moves, turns, used)
    descends = _dot(direction, gradient) < 0
    direction = np.where(descends[:, None], direction, _steepest(gradient))
    longest = 10.0 + _norm(trial)
    direction *= np.minimum(1.0, longest / np.maximum(_norm(direction), 1e-300))[:, None]
    # Where the density does not bend, the memory says nothing about the length: grow it.
    step = np.where(curved, 1.0, np.minimum(2.0 * state.step, 1e3))
    used = np.where(descends, used, 0)
    return _State(trial, value, gradient, direction, step, moves, turns, used, state.status)


def _shortened(state: _State, rise: np.ndarray, slope: np.ndarray, usable: np.ndarray) -> _State:
    """Stay, and try a shorter step; at the end of shortening, steepest descent once, then give up."""
    with np.errstate(invalid="ignore", divide="ignore"):
        parabola = -slope * state.step**2 / (2 * (rise - slope * state.step))
    inside = usable & np.isfinite(parabola)
    parabola = np.where(inside, parabola, 0.0)
    step = np.where(inside, np.clip(parabola, 0.1 * state.step, 0.5 * state.step), 0.2 * state.step)
    out = step < SHORTEST
    fresh = out & (state.used > 0) & (-0.5 * slope >= STALL_TOLERANCE)
    status = np.where(-0.5 * slope < STALL_TOLERANCE, CONVERGED, STALLED)
    state.direction = np.where(fresh[:, None], _steepest(state.gradient), state.direction)
    state.step = np.where(fresh, 1.0, step)
    state.used = np.where(fresh, 0, state.used)
    state.status = np.where(out & ~fresh, status, state.status)
    return state


def _steepest(gradient: np.ndarray) -> np.ndarray:
    return -gradient / np.maximum(_norm(gradient), 1.0)[:, None]


def _precondition(gradient: np.ndarray, moves: np.ndarray, turns: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The inverse Hessian that the memory implies, times the gradient (the two-loop recursion)."""
    counts = np.arange(MEMORY) >= MEMORY - used[:, None]
    products = _dot(moves, turns)
    inverse = np.where(counts, 1.0 / np.where(counts, products, 1.0), 0.0)
    vector, parts = gradient, np.zeros_like(products)
    for j in reversed(range(MEMORY)):
        parts[:, j] = inverse[:, j] * _dot(moves[:, j], vector)
        vector = vector - parts[:, j, None] * turns[:, j]
    length = _dot(turns[:, -1], turns[:, -1])
    scale = np.where(counts[:, -1], products[:, -1] / np.maximum(length, 1e-300), 1.0)
    scale = np.where(counts[:, -1], scale, 1.0 / np.maximum(_norm(gradient), 1.0))
    vector = vector * scale[:, None]
    for j in range(MEMORY):
        vector = vector + moves[:, j] * (parts[:, j] - inverse[:, j] * _dot(turns[:, j], vector))[:, None]
    return vector
