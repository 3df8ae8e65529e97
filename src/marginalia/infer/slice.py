"""Slice sampling (Neal 2003): one axis after another, stepping out and shrinking.

The axes are those of the learned covariance, so that a width of two standard deviations suits all of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.infer import check, walk
from marginalia.infer.checkpoint import NOWHERE, Checkpoint
from marginalia.infer.options import Slice
from marginalia.infer.problem import Problem, as_key
from marginalia.infer.progress import Progress
from marginalia.infer.result import Result

WIDTH = 2.0  # standard deviations
STEPS_OUT = 16.0  # of a width, at most, on both sides together
NARROWEST = 1e-10  # an interval this narrow holds nothing but the point itself
LEFT, RIGHT, INSIDE, DONE = 0, 1, 2, 3

judge = check.chains


def run(
    problem: Problem, options: Slice, rng: np.random.Generator, progress: Progress, checkpoint: Checkpoint = NOWHERE
) -> Result:
    """Draw from the posterior; errors as in `walk.sample`."""
    sampler = walk.Walk("slice", "n_steps", options.thin, _sweep)
    result = walk.sample(problem, sampler, options, rng, progress, checkpoint)
    findings = (*result.findings, *judge(result.draws, result.stats, dataclasses.asdict(options)))
    stats = {**result.stats, "n_steps": result.stats["n_steps"].astype(np.int64)}
    return dataclasses.replace(result, stats=stats, findings=findings)


class _Search(NamedTuple):
    """The search along one axis: the next `place` to look at, in standard deviations from where it began."""

    key: Any
    phase: Any
    left: Any
    right: Any
    steps_left: Any
    steps_right: Any
    place: Any
    value: Any
    looks: Any


def _sweep(state: walk.State, density: walk.Density, _: Any) -> tuple[walk.State, Any]:
    """Once along every axis; the number is that of evaluations."""

    def along(axis: Any, carry: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
        point, value, bits, looks = carry
        direction = state.root[:, axis]
        key, level_key, place_key, share_key = jax.random.split(as_key(bits), 4)
        level = value + jnp.log1p(-jax.random.uniform(level_key))
        left = -WIDTH * jax.random.uniform(place_key)
        steps_left = jnp.floor(STEPS_OUT * jax.random.uniform(share_key))

        def look(search: _Search) -> _Search:
            # One evaluation per turn, whatever it is for: the program holds the density once.
            found = density(point + search.place * direction)
            return _next(search, found, found > level)

        begun = _Search(
            key, LEFT, left, left + WIDTH, steps_left, STEPS_OUT - 1 - steps_left, left, value, jnp.zeros(())
        )
        begun = jax.tree.map(jnp.asarray, begun)
        end = jax.lax.while_loop(lambda search: search.phase != DONE, look, begun)
        return point + end.place * direction, end.value, jax.random.key_data(end.key), looks + end.looks

    carry = (state.point, state.value, state.bits, jnp.zeros(()))
    point, value, bits, looks = jax.lax.fori_loop(0, len(state.point), along, carry)
    return state._replace(point=point, value=value, bits=bits), looks


def _next(search: _Search, found: Any, inside: Any) -> _Search:
    """What the density at the place says: step further out, shrink, or stop."""
    at_left, at_right, within = (search.phase == phase for phase in (LEFT, RIGHT, INSIDE))
    out_left = at_left & inside & (search.steps_left > 0)
    out_right = at_right & inside & (search.steps_right > 0)
    miss = within & ~inside
    left = jnp.where(out_left, search.left - WIDTH, jnp.where(miss & (search.place < 0), search.place, search.left))
    right = jnp.where(
        out_right, search.right + WIDTH, jnp.where(miss & (search.place >= 0), search.place, search.right)
    )
    phase = jnp.where(
        at_left, jnp.where(out_left, LEFT, RIGHT), jnp.where(at_right, jnp.where(out_right, RIGHT, INSIDE), INSIDE)
    )
    stuck = miss & (right - left < NARROWEST)
    phase = jnp.where((within & inside) | stuck, DONE, phase)
    key, draw = jax.random.split(search.key)
    somewhere = left + (right - left) * jax.random.uniform(draw)
    place = jnp.where(phase == LEFT, left, jnp.where(phase == RIGHT, right, somewhere))
    place = jnp.where(stuck, 0.0, jnp.where(phase == DONE, search.place, place))
    value = jnp.where((phase == DONE) & ~stuck, found, search.value)
    return _Search(
        key,
        phase,
        left,
        right,
        search.steps_left - out_left,
        search.steps_right - out_right,
        place,
        value,
        search.looks + 1,
    )
