"""The modes, searched once in a run, however often it is resumed."""

from __future__ import annotations

import numpy as np

from marginalia.infer import modes, starts
from marginalia.infer.checkpoint import Checkpoint
from marginalia.infer.optimise import Optimiser
from marginalia.infer.problem import Problem
from marginalia.infer.progress import Progress

START_STEPS = 500


def search(
    problem: Problem, asked: int | None, rng: np.random.Generator, progress: Progress, checkpoint: Checkpoint
) -> modes.Modes:
    """Optimise from many starts and weigh the modes; a resumed run remembers them, and how far `rng` had come.

    Raises:
        FitError: No start has a finite density.
        KeyboardInterrupt: Stopped by the user; an unfinished search is not kept.
    """
    saved = checkpoint.load()
    if saved is not None:
        rng.bit_generator.state = saved["rng"]
        optimiser = Optimiser(problem, START_STEPS)
        optimiser.scale = saved["scale"]
        known = (saved[name] for name in ("mirrors", "below", "rows"))
        found = starts.Found(saved["places"], saved["total"], optimiser, False, *known)
        weighed = modes.Modes(found, saved["comparable"], saved["minor"])
        problem.reached.modes = found, weighed.chosen
        return weighed
    found = starts.find(problem, asked, START_STEPS, rng, progress)
    if found.interrupted:
        raise KeyboardInterrupt
    weighed = modes.under_one_labelling(problem, modes.weigh(found))
    problem.reached.modes = found, weighed.chosen
    state = {name: getattr(found, name) for name in ("places", "total", "mirrors", "below", "rows")}
    state["scale"] = found.optimiser.scale
    state |= {"comparable": weighed.comparable, "minor": weighed.minor}
    checkpoint.save(lambda: {**state, "rng": rng.bit_generator.state}, now=True)
    return weighed
