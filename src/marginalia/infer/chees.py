"""Hamiltonian Monte Carlo of many chains in step, its trajectory length tuned on all of them.

Hoffman, Radul and Sountsov (2021), "An adaptive MCMC scheme for setting trajectory lengths in Hamiltonian Monte
Carlo": gradient ascent on the change in the estimated expected square (ChEES) of all chains' positions, with
trajectories shortened by a quasi-random factor, and the step size by dual averaging of the harmonic mean of the
acceptance rates. Everything happens in coordinates in which the posterior is round, as far as is known.

Written here rather than on BlackJAX's `chees_adaptation`, since that one adapts no metric and is one compiled
loop, in which nothing can be shown or stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.infer.problem import Problem, as_key

BLOCK_NUMBERS = 4_000_000  # data elements times chains that one evaluation may hold
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
    """A compiled block of steps of all chains."""

    def __init__(self, problem: Problem, chains: int, tune: int, target: float, block: int) -> None:
        self._problem = problem
        self._chains = chains
        self._tune = tune
        self._target = target
        self.block = block
        self._batch = int(np.clip(BLOCK_NUMBERS // problem.data_size, 1, chains))
        self._compiled: Callable[..., Any] | None = None

    def compile(self) -> None:
        """Trace and compile, without running anything; may be called from another thread."""
        size, chains = self._problem.dimension, self._chains
        state = begin(np.zeros((chains, size)), np.zeros(chains), np.zeros((chains, size)))
        arguments = (state, np.zeros((size, size)), np.zeros(2, np.uint32), np.zeros(self.block), self._problem.data)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)), arguments)
        self._compiled = jax.jit(self._blocked).lower(*shapes).compile()

    def __call__(self, state: State, root: np.ndarray, bits: np.ndarray) -> tuple[State, Numbers]:
        """One block more; `root` times its transpose is the metric."""
        if self._compiled is None:
            self.compile()
        assert self._compiled is not None
        parts = halton(int(state.count) + np.arange(1, self.block + 1))
        out = self._compiled(state, root, bits, parts, self._problem.data)
        return jax.tree.map(np.asarray, out)

    def _blocked(self, state: State, root: Any, bits: Any, parts: Any, data: Any) -> tuple[State, Numbers]:
        def body(state: State, part: Any) -> tuple[State, Numbers]:
            return self._step(state, part, root, jax.random.fold_in(as_key(bits), state.count), data)

        return jax.lax.scan(body, state, parts)

    def _evaluate(self, points: Any, data: Any) -> tuple[Any, Any]:
        def one(point: Any) -> tuple[Any, Any]:
            return jax.value_and_grad(self._problem.log_density)(point, data)

        return jax.lax.map(one, points, batch_size=self._batch) if self._batch < self._chains else jax.vmap(one)(points)

    def _step(self, state: State, part: Any, root: Any, key: Any, data: Any) -> tuple[State, Numbers]:
        tuning = state.count < self._tune
        step = jnp.exp(jnp.where(tuning, state.log_step, state.log_step_mean))
        length = part * jnp.exp(jnp.where(tuning, state.log_length, state.log_length_mean))
        leaps = jnp.clip(jnp.ceil(length / step), 1, MOST_STEPS).astype(int)
        for_momentum, for_choice = jax.random.split(key)
        momentum = jax.random.normal(for_momentum, state.points.shape)

        def leap(_: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            points, momentum, _, gradients = carry
            momentum = momentum + 0.5 * step * gradients @ root
            points = points + step * momentum @ root.T
            value, gradients = self._evaluate(points, data)
            return points, momentum + 0.5 * step * gradients @ root, value, gradients

        first = (state.points, momentum, state.log_density, state.gradients)
        points, ended, value, gradients = jax.lax.fori_loop(0, leaps, leap, first)
        before = 0.5 * jnp.sum(momentum**2, axis=1) - state.log_density
        after = 0.5 * jnp.sum(ended**2, axis=1) - value
        usable = jnp.isfinite(after) & jnp.all(jnp.isfinite(gradients), axis=1)
        rise = jnp.where(usable, after - before, jnp.inf)
        accept = jnp.exp(-jnp.maximum(rise, 0.0))
        taken = jax.random.uniform(for_choice, accept.shape) < accept
        slope = _slope(state.points, points, ended, accept, root, part)
        new = self._adapt(state, slope, accept, part)._replace(
            points=jnp.where(taken[:, None], points, state.points),
            log_density=jnp.where(taken, value, state.log_density),
            gradients=jnp.where(taken[:, None], gradients, state.gradients),
        )
        energy = jnp.where(taken, after, before)
        return new, Numbers(new.points, new.log_density, energy, accept, rise > DIVERGED, leaps, step)

    def _adapt(self, state: State, slope: Any, accept: Any, part: Any) -> State:
        """Step size by dual averaging, length by Adam; the means over the tuning are what remains."""
        since = state.since + 1.0
        rate = 1 / jnp.mean(1 / jnp.maximum(accept, 1e-3))
        error = state.error + (self._target - rate - state.error) / (since + OFFSET)
        log_step = state.centre - jnp.sqrt(since) / SHRINKAGE * error
        weight = since**-DECAY
        log_step_mean = weight * log_step + (1 - weight) * state.log_step_mean
        first = 0.9 * state.first + 0.1 * slope
        second = 0.95 * state.second + 0.05 * slope**2
        count = state.count + 1.0
        change = (first / (1 - 0.9**count)) / jnp.sqrt(second / (1 - 0.95**count) + 1e-20)
        change = jnp.clip(LEARNING_RATE * change, -LONGEST_CHANGE, LONGEST_CHANGE)
        log_length = jnp.clip(state.log_length + change, jnp.log(0.1), jnp.log(MOST_STEPS) + log_step)
        kept = 1 / jnp.minimum(count, 100.0)
        log_length_mean = kept * log_length + (1 - kept) * state.log_length_mean
        tuning = state.count < self._tune
        moved = state._replace(
            log_step=log_step,
            log_step_mean=log_step_mean,
            error=error,
            log_length=log_length,
            log_length_mean=log_length_mean,
            first=first,
            second=second,
        )
        held = jax.tree.map(lambda a, b: jnp.where(tuning, a, b), moved, state)
        return held._replace(count=state.count + 1, since=state.since + 1)


def _slope(before: Any, after: Any, momentum: Any, accept: Any, root: Any, part: Any) -> Any:
    """How ChEES changes with the log of the length; the scale does not matter, Adam takes it out."""
    usable = (accept > 1e-4) & jnp.all(jnp.isfinite(after), axis=1)
    weight = jnp.where(usable, accept, 0.0)
    total = jnp.maximum(weight.sum(), 1e-10)
    end = jnp.where(usable[:, None], after, 0.0)
    from_start = _round(root, before - before.mean(axis=0))
    from_end = _round(root, end - weight @ end / total)
    gain = jnp.sum(from_end**2, axis=1) - jnp.sum(from_start**2, axis=1)
    along = jnp.sum(from_end * jnp.where(usable[:, None], momentum, 0.0), axis=1)
    return part * jnp.sum(weight * gain * along) / total


def _round(root: Any, moves: Any) -> Any:
    return jnp.linalg.solve(root, moves.T).T


def halton(index: np.ndarray) -> np.ndarray:
    """The van der Corput sequence of base 2 at `index` (from 1 on): values between 0 and 1, evenly spread."""
    out, part, rest = np.zeros(len(index)), 0.5, index.copy()
    while rest.any():
        out += part * (rest % 2)
        rest, part = rest // 2, part / 2
    return out
