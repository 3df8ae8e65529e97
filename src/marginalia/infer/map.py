"""The most probable parameters: the best place that many optimised starts agree on."""

from __future__ import annotations

import numpy as np

from marginalia.infer import starts
from marginalia.infer.options import MAP
from marginalia.infer.problem import Problem
from marginalia.infer.progress import Progress
from marginalia.infer.result import EDGE, MAXIMUM, UNBOUNDED, UNFINISHED, Result


def run(problem: Problem, options: MAP, rng: np.random.Generator, progress: Progress) -> Result:
    """Maximise the density from many starts.

    Returns:
        A result whose draws have shape `(1, 1, *site shape)`: the mode. `info` has its log density, the
        agreement in words, and the largest absolute derivative after each iteration of a start that found it.
    """
    found = starts.find(problem, options.starts, options.steps, rng, progress)
    best = found.places[0]
    report = found.report(options.jacobian)
    draws = {name: np.asarray(value, float)[None, None] for name, value in best.params.items()}
    norms = best.gradient_norms[np.isfinite(best.gradient_norms)]
    info = {
        "log_density": best.log_density,
        "agreement": report.sentence,
        "gradient_norms": [float(norm) for norm in norms],
        "starts": found.total,
        "interrupted": found.interrupted,
    }
    stats = {"lp": np.array([[best.log_density]])}
    return Result("map", draws, stats, report, _findings(found, options), info)


def _findings(found: starts.Found, options: MAP) -> tuple[str, ...]:
    best = found.places[0]
    findings = []
    if found.interrupted and best.kind == UNFINISHED:
        findings.append("Interrupted before any start had ended: this is the highest point so far, no mode. Run again.")
    elif found.interrupted:
        findings.append("Interrupted: the mode is the best place found until then. Run again for all of the starts.")
    higher = [place for place in found.places if place.kind == UNBOUNDED and place.log_density > best.log_density]
    if best.kind == UNBOUNDED or higher:
        away = higher or [best]
        sites = ", ".join(repr(name) for name in dict.fromkeys(name for place in away for name in place.far_sites))
        kept = "the reported mode is the highest proper one" if higher else "no proper mode was found"
        findings.append(
            f"From {sum(place.count for place in away)} of {found.total} starts the density grew "
            f"without bound while {sites} ran away: a component collapses on a data point, or a weight "
            f"goes to 0 under a Dirichlet prior below 1; {kept}. Give scales a prior that keeps them from 0 "
            "(LogNormal, InverseGamma) and weights a Dirichlet of at least 1, or set jacobian=True."
        )
    elif best.kind == EDGE:
        sites = ", ".join(map(repr, best.far_sites))
        findings.append(
            f"The density is highest at the edge of the support of {sites}, as of a weight that is 0 or 1: that is the "
            "mode, but no peak, so nothing can be said around it. For a mode inside, set jacobian=True, or give "
            f"{sites} a prior that vanishes at the edge."
        )
    elif best.kind != MAXIMUM and not found.interrupted:
        findings.append(
            "The optimisation stopped before the gradient vanished: the best place lies at the edge of "
            f"a hard constraint, or {options.steps} iterations are too few. Raise steps, or replace a factor "
            "of -inf by a support that holds the constraint."
        )
    return tuple(findings)
