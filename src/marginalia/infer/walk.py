"""What the gradient-free samplers share: chains from the modes that learn the shape of the density while they tune."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.infer import chains as threads
from marginalia.infer import modes
from marginalia.infer.checkpoint import Checkpoint
from marginalia.infer.cloud import cloud_root
from marginalia.infer.problem import Problem, key_data
from marginalia.infer.progress import Progress
from marginalia.infer.reached import UNJUDGED
from marginalia.infer.result import Result, stopped
from marginalia.infer.search import search
from marginalia.precision import in_float64
from marginalia.running import Threads

BLOCK = 50  # draws in one compiled call
FIRST_LESSON = 2  # blocks before the shape is learned from the draws


class State(NamedTuple):
    """One chain; `root` times its transpose is the covariance that it believes in."""

    point: Any
    value: Any
    bits: Any
    root: Any
    log_scale: Any
    count: Any


type Density = Callable[[Any], Any]
type Kernel = Callable[[State, Density, Any], tuple[State, Any]]
"""From a state, the log density and whether the chain still tunes, to the next state and one number about the step."""


class Walk(NamedTuple):
    """A sampler: its name, what its number about a draw is called, and one step of it."""

    name: str
    number: str
    thin: int
    kernel: Kernel


def sample(
    problem: Problem, walk: Walk, options: Any, rng: np.random.Generator, progress: Progress, checkpoint: Checkpoint
) -> Result:
    """Draw from the posterior; what is wrong with the draws themselves is left to the caller to find.

    What it raises, and what an interrupt does, are as in `nuts.run`.
    """
    clock = time.perf_counter()
    size, steps = problem.dimension, options.tune + options.draws
    block = min(BLOCK, steps)

    def step(state: State, data: Any) -> tuple[State, Any]:
        def density(flat: Any) -> Any:
            value = problem.log_density(flat, data)
            return jnp.where(jnp.isfinite(value), value, -jnp.inf)

        def one(_: Any, carry: tuple[State, Any]) -> tuple[State, Any]:
            state, total = carry
            new, number = walk.kernel(state, density, state.count < options.tune)
            return new, total + number

        state, total = jax.lax.fori_loop(0, walk.thin, one, (state, jnp.zeros(())))
        state = state._replace(count=state.count + 1)
        return state, (state.point, state.value, total)

    def blocked(state: State, data: Any) -> tuple[State, Any]:
        return jax.lax.scan(lambda carry, _: step(carry, data), state, None, length=block)

    number = jax.ShapeDtypeStruct((), np.float64)
    template = State(
        jax.ShapeDtypeStruct((size,), np.float64),
        number,
        jax.ShapeDtypeStruct((2,), np.uint32),
        jax.ShapeDtypeStruct((size, size), np.float64),
        number,
        jax.ShapeDtypeStruct((), np.int64),
    )
    with Threads(1) as pool:
        # The sampler compiles while the starts run.
        compiling = pool.submit(in_float64(lambda: jax.jit(blocked).lower(template, problem.data).compile()))
        weighed = search(problem, options.starts, rng, progress, checkpoint.part("modes"))
        compiled = compiling.result()

    def advance(state: State, pieces: list[threads.Piece]) -> tuple[State, threads.Piece]:
        state, numbers = compiled(state, problem.data)
        piece = [np.asarray(part) for part in numbers]
        made = len(pieces) + 1
        if made >= FIRST_LESSON and made * block <= options.tune:
            # The later half of what it has seen; the last lesson comes where tuning ends.
            seen = np.concatenate([part[0] for part in [*pieces, piece][made // 2 :]])
            state = state._replace(root=cloud_root(seen, np.full(len(seen), 1 / len(seen))))
        return state, piece

    saved = checkpoint.part("chains").load()
    if saved is not None:
        chains = threads.Chains(threads.restore(template, saved))
    else:
        points, values, _ = modes.around(problem, weighed, options.chains, rng)
        bits = key_data(rng, options.chains)
        root = weighed.comparable[0].curvature.root if weighed.comparable else np.eye(size)
        begun = [State(points[c], values[c], bits[c], root, np.zeros(()), np.zeros((), int)) for c in range(len(bits))]
        chains = threads.Chains(threads.begin(begun))
    progress.stage("sampling", options.chains * steps)
    threads.advance(
        chains,
        -(-steps // block),
        advance,
        lambda: progress.update(sum(min(len(pieces) * block, steps) for pieces in chains.pieces)),
        lambda now: checkpoint.part("chains").save(chains.kept, now=now),
    )
    length = min(min(len(pieces) for pieces in chains.pieces) * block, steps)
    if length <= options.tune:
        raise KeyboardInterrupt
    points, lp, numbers = (chains.part(i, options.tune, length) for i in range(3))
    draws, stats = problem.constrain(points), {"lp": lp, walk.number: numbers}
    report = weighed.found.report(problem.jacobian, weighed.chosen)
    problem.reached.keep(Result(walk.name, draws, stats, report), UNJUDGED)
    findings = stopped(chains.interrupted, points.shape[1], options.draws) + modes.unvisited(problem, weighed, points)
    info = {
        "options": dataclasses.asdict(options),
        "agreement": report.sentence,
        "starts": weighed.found.total,
        "thin": walk.thin,
        "interrupted": chains.interrupted,
        "seconds": time.perf_counter() - clock,
    }
    return Result(walk.name, draws, stats, report, findings, info)
