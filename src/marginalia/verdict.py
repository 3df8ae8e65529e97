"""What is said of a result: once its draws are under one labelling, and where nobody waited for that."""

from __future__ import annotations

import dataclasses

import numpy as np

from marginalia.infer import Result, check, judge
from marginalia.labels import Relabelled

UNFINISHED = (
    "Interrupted when the draws were made, and before what follows from them: they are as the sampler gave them, with "
    "the labels of components as they came, and without deterministic sites. Run again for all of it; where the run "
    "has a checkpoint, the same call gives it without a new run."
)
CUT = (
    "What was cut off an endless support matters at some of these draws; the run was stopped before it could be made "
    "again with more of it."
)
SEVERAL_MODES = 1.2  # R-hat of relabelled draws above which chains sit in different places


def unfinished(result: Result) -> Result:
    """The result with a word that its draws are not put in order; the user has stopped that."""
    info = {**result.info, "interrupted": True}
    return dataclasses.replace(result, findings=(UNFINISHED, *result.findings), info=info)


def checked_again(result: Result, draws: dict[str, np.ndarray]) -> tuple[str, ...]:
    """The findings of the relabelled draws, and those of the run that have nothing to do with labels."""
    before = set(judge(result, result.draws))
    found = [*judge(result, draws), *(f for f in result.findings if f not in before)]
    if np.shape(next(iter(draws.values())))[:2] == (1, 1):
        return tuple(found)
    if any(np.nanmax(r_hat, initial=1.0) > SEVERAL_MODES for r_hat, _, _ in check.convergence(draws).values()):
        found.append(
            "This is not label switching, which has been put right: the chains are in different modes, and "
            "their mean describes none of them. Compare the modes in result.starts, look at plot.trace(), "
            "narrow the priors or try another number of components."
        )
    return tuple(found)


def words(relabelled: Relabelled) -> tuple[str, ...]:
    """That labels switched, where they did."""
    if not relabelled.moved:
        return ()
    where = "inside chains" if relabelled.inside else "between chains"
    return (
        f"labels switched {where}: {relabelled.moved} of {relabelled.total} draws were relabelled; "
        "summary() shows R-hat before and after.",
    )
