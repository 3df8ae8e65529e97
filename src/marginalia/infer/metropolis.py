"""Random walk Metropolis: a Gaussian step, in the shape of the posterior as far as it is known.

Length and covariance of the step are learned during tuning alone (Roberts and Rosenthal 2009 give the rates that the
length aims at), so that the draws are those of a fixed, valid chain.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.infer import check, walk
from marginalia.infer.checkpoint import NOWHERE, Checkpoint
from marginalia.infer.options import Metropolis
from marginalia.infer.problem import Problem, as_key
from marginalia.infer.progress import Progress
from marginalia.infer.result import Result

MOST_THINNING = 100
SMALLEST_RATE = 0.05


def run(
    problem: Problem,
    options: Metropolis,
    rng: np.random.Generator,
    progress: Progress,
    checkpoint: Checkpoint = NOWHERE,
) -> Result:
    """Draw from the posterior; errors as in `walk.sample`."""
    size = problem.dimension
    thin = min(3 * size, MOST_THINNING) if options.thin is None else options.thin
    sampler = walk.Walk("metropolis", "acceptance_rate", thin, lambda *given: _step(size, *given))
    result = walk.sample(problem, sampler, options, rng, progress, checkpoint)
    stats = {**result.stats, "acceptance_rate": result.stats["acceptance_rate"] / thin}
    findings = (*result.findings, *judge(result.draws, stats, dataclasses.asdict(options)))
    return dataclasses.replace(result, stats=stats, findings=findings)


def judge(draws: dict[str, np.ndarray], stats: dict[str, np.ndarray], options: dict[str, Any]) -> tuple[str, ...]:
    """Agreement of the chains, effective draws, and a walk that hardly moves."""
    out = check.chains(draws, stats, options)
    rate = float(np.min(np.mean(stats["acceptance_rate"], axis=1)))
    if rate < SMALLEST_RATE:
        out += (
            f"A walk hardly moves: {rate:.1%} of its steps are taken. Raise tune, so that it learns a shorter step; "
            'or use method="nuts".',
        )
    return out


def _step(size: int, state: walk.State, density: walk.Density, tuning: Any) -> tuple[walk.State, Any]:
    """One step, and the chance with which it was taken."""
    key, kick, coin = jax.random.split(as_key(state.bits), 3)
    length = jnp.exp(state.log_scale) * 2.38 / jnp.sqrt(size)
    point = state.point + length * (state.root @ jax.random.normal(kick, (size,)))
    value = density(point)
    chance = jnp.exp(jnp.minimum(value - state.value, 0.0))
    taken = jax.random.uniform(coin) < chance
    target = 0.234 + 0.206 / size
    learned = state.log_scale + (chance - target) / (state.count + 1.0) ** 0.6
    return state._replace(
        point=jnp.where(taken, point, state.point),
        value=jnp.where(taken, value, state.value),
        bits=jax.random.key_data(key),
        log_scale=jnp.where(tuning, learned, state.log_scale),
    ), chance
