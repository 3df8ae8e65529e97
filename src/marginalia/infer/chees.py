"""Hamiltonian Monte Carlo of many chains in step, its trajectory length tuned on all of them.

Hoffman, Radul and Sountsov (2021), "An adaptive MCMC scheme for setting trajectory lengths in Hamiltonian Monte
Carlo": gradient ascent on the change in the estimated expected square (ChEES) of all chains' positions, with
trajectories shortened by a quasi-random factor, and the step size by dual averaging of the harmonic mean of the
acceptance rates. Everything happens in coordinates in which the posterior is round, as far as is known.

Written here rather than on BlackJAX's `chees_adaptation`, since that one adapts no metric and is one compiled
loop, in which nothing can be shown or stopped. What is adapted costs microseconds a step and stays in NumPy: only the
paths are compiled, in the program that evaluates the density anyhow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from marginalia.infer.evaluator import Steps
from marginalia.infer.problem import Problem

MOST_STEPS = 256  # of one trajectory
DIVERGED = 1000.0  # energy error
FIRST_LENGTH = 1.57  # a quarter of an orbit, where the posterior is round
FIRST_STEP = 0.5
LEARNING_RATE = 0.05
LONGEST_CHANGE = 0.3  # of the log length in one update
SHRINKAGE, OFFSET, DECAY = 0.05, 10.0, 0.75  # dual averaging (Hoffman and Gelman 2014)


class State(NamedTuple):
    """The chains and what is adapted; positions are those of the problem, not the round ones."""

    points: Any  # (chain, dimension)
    log_density: Any  # (chain,)
    gradients: Any  # (chain, dimension)
    count: Any  # steps made so far
    since: Any  # steps since the metric changed
    log_step: Any
    log_step_mean: Any
    error: Any  # of the acceptance rate, averaged
    centre: Any  # dual averaging draws log_step there
    log_length: Any
    log_length_mean: Any
    first: Any  # Adam's moments
    second: Any


class Numbers(NamedTuple):
    """What is kept of every step."""

    points: Any
    log_density: Any
    energy: Any
    accept: Any
    diverging: Any
    leaps: Any
    step_size: Any


def begin(points: np.ndarray, log_density: np.ndarray, gradients: np.ndarray) -> State:
    """Chains before their first step."""
    log_step, log_length = float(np.log(FIRST_STEP)), float(np.log(FIRST_LENGTH))
    return State(
        points,
        log_density,
        gradients,
        np.int64(0),
        np.int64(0),
        np.float64(log_step),
        np.float64(log_step),
        np.float64(0),
        np.float64(log_step + np.log(2)),
        np.float64(log_length),
        np.float64(log_length),
        np.float64(0),
        np.float64(0),
    )


def restarted(state: State) -> State:
    """The same chains under another metric: step size and length are looked for anew, from where they are."""
    nothing = np.float64(0)
    log_step = np.float64(np.log(FIRST_STEP))
    return state._replace(
        since=np.int64(0), log_step=log_step, log_step_mean=log_step, error=nothing, centre=log_step + np.log(2)
    )


class Stepper:
    """Steps of all chains: paths by the problem's compiled density, all else in NumPy."""

    def __init__(self, problem: Problem, tune: int, target: float, block: int) -> None:
        self._evaluator = problem.evaluator
        self._evaluator.follows = True
        self._tune = tune
        self._target = target
        self.block = block

    def compile(self) -> None:
        """Trace and compile, without running anything; may be called from another thread."""
        self._evaluator.compile()

    def __call__(self, state: State, root: np.ndarray, bits: np.ndarray) -> tuple[State, Numbers]:
        """One block of steps more; `root` times its transpose is the metric.

        Randomness depends on `bits` and the number of the step alone, so a resumed run goes on as if never stopped.
        """
        kept = []
        left = self.block
        while left:
            tuning = state.count < self._tune
            state, numbers = (self._tuned if tuning else self._walked)(state, root, bits, 1 if tuning else left)
            kept.append(numbers)
            left -= len(numbers.leaps)
        return state, Numbers(*(np.concatenate(part) for part in zip(*kept, strict=True)))

    def _tuned(self, state: State, root: np.ndarray, bits: np.ndarray, _: int) -> tuple[State, Numbers]:
        """One step of all chains, from which step size and length learn."""
        rng = np.random.default_rng([*map(int, bits), int(state.count)])
        part = float(halton(np.array([int(state.count) + 1]))[0])
        step = float(np.exp(state.log_step))
        leaps = _leaps(np.array([part]), state.log_length, step)
        momentum = rng.normal(size=state.points.shape)
        now = state.points, momentum, state.log_density, state.gradients
        end = self._evaluator.leap(*now, step, int(leaps[0]), root)
        first, after, rise, accept = _energies(state.log_density, momentum, end)
        taken = rng.random(len(accept)) < accept
        slope = _slope(state.points, end.points, end.momenta, accept, root, part)
        new = self._adapted(state, slope, accept)._replace(
            points=np.where(taken[:, None], end.points, state.points),
            log_density=np.where(taken, end.values, state.log_density),
            gradients=np.where(taken[:, None], end.slopes, state.gradients),
            count=state.count + 1,
            since=state.since + 1,
        )
        energy = np.where(taken, after, first)
        kept = (new.points, new.log_density, energy, accept, ~(rise <= DIVERGED), leaps[0], np.float64(step))
        return new, Numbers(*(part[None] for part in kept))

    def _walked(self, state: State, root: np.ndarray, bits: np.ndarray, steps: int) -> tuple[State, Numbers]:
        """Steps of every chain for itself, as nothing is learnt any more."""
        rng = np.random.default_rng([*map(int, bits), int(state.count)])
        chains, size = state.points.shape
        step = float(np.exp(state.log_step_mean))
        leaps = _leaps(halton(int(state.count) + np.arange(1, steps + 1)), state.log_length_mean, step)
        momenta, uniforms = rng.normal(size=(steps, chains, size)), rng.random((steps, chains))
        now = state.points, momenta, state.log_density, state.gradients
        found = self._evaluator.walk(*now, uniforms, leaps, step, root)
        # The step at which each chain arrived where it is: 0 where it began.
        arrived = np.maximum.accumulate(np.where(found.taken, np.arange(1, steps + 1)[:, None], 0), axis=0)

        def visited(first: np.ndarray, ends: np.ndarray) -> np.ndarray:
            return np.concatenate([first[None], ends])[arrived, np.arange(chains)]

        points, values = visited(state.points, found.points), visited(state.log_density, found.values)
        before = np.concatenate([state.log_density[None], values[:-1]])
        first, after, rise, accept = _energies(before, momenta, found)
        new = state._replace(
            points=points[-1],
            log_density=values[-1],
            gradients=visited(state.gradients, found.slopes)[-1],
            count=state.count + steps,
            since=state.since + steps,
        )
        energy = np.where(found.taken, after, first)
        return new, Numbers(points, values, energy, accept, ~(rise <= DIVERGED), leaps, np.full(steps, step))

    def _adapted(self, state: State, slope: float, accept: np.ndarray) -> State:
        """Step size by dual averaging, length by Adam; the means over the tuning are what remains."""
        since = state.since + 1.0
        rate = 1 / np.mean(1 / np.maximum(accept, 1e-3))
        error = state.error + (self._target - rate - state.error) / (since + OFFSET)
        log_step = state.centre - np.sqrt(since) / SHRINKAGE * error
        weight = since**-DECAY
        log_step_mean = weight * log_step + (1 - weight) * state.log_step_mean
        first = 0.9 * state.first + 0.1 * slope
        second = 0.95 * state.second + 0.05 * slope**2
        count = state.count + 1.0
        change = (first / (1 - 0.9**count)) / np.sqrt(second / (1 - 0.95**count) + 1e-20)
        change = np.clip(LEARNING_RATE * change, -LONGEST_CHANGE, LONGEST_CHANGE)
        log_length = np.clip(state.log_length + change, np.log(0.1), np.log(MOST_STEPS) + log_step)
        kept = 1 / np.minimum(count, 100.0)
        log_length_mean = kept * log_length + (1 - kept) * state.log_length_mean
        return state._replace(
            log_step=log_step,
            log_step_mean=log_step_mean,
            error=error,
            log_length=log_length,
            log_length_mean=log_length_mean,
            first=first,
            second=second,
        )


def _leaps(parts: np.ndarray, log_length: Any, step: float) -> np.ndarray:
    """How many leapfrog steps make up the parts of a length."""
    return np.clip(np.ceil(parts * float(np.exp(log_length)) / step), 1, MOST_STEPS).astype(np.int64)


def _energies(before: np.ndarray, momentum: np.ndarray, end: Steps) -> tuple[np.ndarray, ...]:
    """Energy at the beginning and end of each path, how much it rose, and the chance that the path is taken."""
    with np.errstate(all="ignore"):  # a path may end at infinity: it is not taken
        first = 0.5 * np.sum(momentum**2, axis=-1) - before
        after = 0.5 * np.sum(end.momenta**2, axis=-1) - end.values
        usable = np.isfinite(after) & np.all(np.isfinite(end.slopes), axis=-1)
        rise = np.where(usable, after - first, np.inf)
        return first, after, rise, np.exp(-np.maximum(rise, 0.0))


def _slope(
    before: np.ndarray, after: np.ndarray, momentum: np.ndarray, accept: np.ndarray, root: np.ndarray, part: float
) -> float:
    """How ChEES changes with the log of the length; the scale does not matter, Adam takes it out."""
    usable = (accept > 1e-4) & np.all(np.isfinite(after), axis=1) & np.all(np.isfinite(momentum), axis=1)
    weight = np.where(usable, accept, 0.0)
    total = max(float(weight.sum()), 1e-10)
    end = np.where(usable[:, None], after, 0.0)
    from_start = _round(root, before - before.mean(axis=0))
    from_end = _round(root, end - weight @ end / total)
    gain = np.sum(from_end**2, axis=1) - np.sum(from_start**2, axis=1)
    along = np.sum(from_end * np.where(usable[:, None], momentum, 0.0), axis=1)
    return part * float(np.sum(weight * gain * along)) / total


def _round(root: np.ndarray, moves: np.ndarray) -> np.ndarray:
    return np.linalg.solve(root, moves.T).T


def halton(index: np.ndarray) -> np.ndarray:
    """The van der Corput sequence of base 2 at `index` (from 1 on): values between 0 and 1, evenly spread."""
    out, part, rest = np.zeros(len(index)), 0.5, index.copy()
    while rest.any():
        out += part * (rest % 2)
        rest, part = rest // 2, part / 2
    return out
