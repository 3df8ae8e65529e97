"""The density estimated from some of the rows: where modes are looked for when the rows are a great many."""

from __future__ import annotations

import jax
import numpy as np

from marginalia.errors import Refusal
from marginalia.infer.problem import Problem
from marginalia.marginal.batches import PART_ROWS, Batches, make_batches

MUCH_DATA = 100_000
"""Numbers that one evaluation reads: from so many on, reading the program on some rows pays."""


class PartProblem(Problem):
    """The density estimated from the same rows throughout."""

    def __init__(self, problem: Problem, batches: Batches, rows: np.ndarray) -> None:
        super().__init__(problem.marginal, jacobian=problem.jacobian)
        self._batches = batches
        self.rows = batches.batch, batches.size
        self.data = batches.cut(rows)
        self.data_size = max(1, sum(int(np.size(leaf)) for leaf in self.data[0]))
        # The rows are data: other ones need no other programs.
        before = getattr(self.kernel, "compiled", {}).setdefault(("part", self.jacobian), self)
        self.log_density, self.programs = before.log_density, before.programs

    def _log_density(self, flat: jax.Array, data: object) -> jax.Array:
        params, log_det = self.kernel.constrain(self.split(flat))
        value = self._batches.of_cut(params, data)
        return value + log_det if self.jacobian else value


def part_of(problem: Problem, rng: np.random.Generator) -> PartProblem | None:
    """The problem on some of its rows, drawn at random; None where it has few, or they cannot be taken apart."""
    if problem.data_size < MUCH_DATA or len(getattr(problem.marginal.program, "observed", ())) == 0:
        return None
    rows = max((site.shape[0] for site in problem.marginal.program.observed.values() if site.shape), default=0)
    if rows < 4 * PART_ROWS:
        return None
    try:
        batches = make_batches(problem.marginal, PART_ROWS)
    except Refusal:
        return None  # rows that depend on each other: all of them are needed
    return PartProblem(problem, batches, rng.choice(batches.size, PART_ROWS, replace=False))
