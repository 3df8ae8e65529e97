"""What a run has in hand when it is stopped: the best of it, as a result that says what it is worth.

The stages of a run leave here what they have reached. A method that is stopped when it has draws from the posterior
gives these itself; what is here is for all other moments.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from marginalia.infer.result import EDGE, MAXIMUM, UNBOUNDED, UNFINISHED, Result

AGAIN = "Run again for the posterior; where the run has a checkpoint, the same call goes on from where it was."

UNJUDGED = "of which not all was looked at that could be wrong with them"
REFUSED = "which have not passed the checks, so that another method was to follow"


class Cloud(NamedTuple):
    """Points on their way from prior to posterior.

    Attributes:
        points: `(run, point, dimension)`.
        log_density: Of the posterior, `(run, point)`.
        powers: For each run the power to which the likelihood counts; 1 is the posterior.
    """

    points: np.ndarray
    log_density: np.ndarray
    powers: list[float]


@dataclass
class Reached:
    """The best that is known so far, of each kind.

    Attributes:
        draws: Draws that came before, and in words why they are no more than that: see `keep`.
        cloud: Points between prior and posterior.
        modes: What the starts found (`starts.Found`), and the index of the place to begin from.
        climbed: Points `(n, dimension)` that the starts had climbed to, with their log densities `(n,)`.
    """

    draws: tuple[Result, str] | None = None
    cloud: Cloud | None = None
    modes: tuple[Any, int] | None = None
    climbed: tuple[np.ndarray, np.ndarray] | None = None

    def keep(self, draws: Result, why: str) -> None:
        """Keep draws that were not judged yet (`UNJUDGED`), or that the run goes on from (`REFUSED`)."""
        self.draws = draws, why

    def result(self, problem: Any, where: str) -> Result | None:
        """The most that can be given: draws, else a mode, else points; None where there is nothing.

        `where` is the stage at which the run was stopped, in words.
        """
        arrived = self.cloud is not None and min(self.cloud.powers) == 1.0
        if self.draws is not None and not arrived:
            return _with_word(*self.draws, where)
        if self.cloud is not None and (arrived or self.modes is None):
            return _of_cloud(problem, self.cloud, where)
        if self.modes is not None:
            return _of_mode(problem, *self.modes, where)
        return None if self.climbed is None else _of_points(problem, *self.climbed, where)


def _with_word(draws: Result, why: str, where: str) -> Result:
    said = f"Interrupted {where}: these are the draws of method {draws.method!r}, {why}. {AGAIN}"
    return dataclasses.replace(
        draws, findings=(said, *draws.findings), info={**draws.info, "interrupted": True, "stage": where}
    )


def _of_cloud(problem: Any, cloud: Cloud, where: str) -> Result:
    least, most = min(cloud.powers), max(cloud.powers)
    if least == 1.0:
        said = (
            f"Interrupted {where}: the points have arrived at the posterior, but not moved there for as long as they "
            f"should, so relatives stand close together. {AGAIN}"
        )
    else:
        power = f"{least:.2g}" if f"{least:.2g}" == f"{most:.2g}" else f"{least:.2g} to {most:.2g}"
        said = (
            f"Interrupted {where}: these points are no posterior. They are draws from the prior times the likelihood "
            f"to the power of {power} (1 is the posterior), so they are spread too widely, and drawn to the prior. "
            f"{AGAIN}"
        )
    info = {"interrupted": True, "stage": where, "temperatures": [[power] for power in cloud.powers]}
    return Result("smc", problem.constrain(cloud.points), {"lp": cloud.log_density}, None, (said,), info)


def _of_mode(problem: Any, found: Any, chosen: int, where: str) -> Result:
    place = found.places[chosen]
    sites = ", ".join(map(repr, place.far_sites))
    what = {
        MAXIMUM: "the best mode found until then" if found.interrupted else "the mode that the run was to begin from",
        EDGE: f"the highest place that was found, at the edge of the support of {sites}",
        UNBOUNDED: f"a place where the density was growing without bound, while {sites} ran away",
        UNFINISHED: "the highest point that was climbed to, which is no mode yet",
    }[place.kind]
    report = found.report(problem.jacobian, chosen)
    info = {"agreement": report.sentence, "starts": found.total}
    point = {name: np.asarray(value, float)[None, None] for name, value in place.params.items()}
    result = _one_point(point, place.log_density, what, where)
    return dataclasses.replace(result, starts=report, info={**result.info, **info})


def _of_points(problem: Any, points: np.ndarray, log_density: np.ndarray, where: str) -> Result:
    best = int(np.argmax(log_density))
    what = "the highest point that was climbed to, which may be no mode"
    return _one_point(problem.constrain(points[None, best : best + 1]), float(log_density[best]), what, where)


def _one_point(params: dict[str, np.ndarray], log_density: float, what: str, where: str) -> Result:
    said = (
        f"Interrupted {where}, before there was a draw from the posterior. What is kept is one point, {what}: it has "
        f"no spread, and no interval or probability of a parameter follows from it. {AGAIN}"
    )
    info: dict[str, Any] = {"interrupted": True, "stage": where, "log_density": log_density}
    return Result("map", params, {"lp": np.array([[log_density]])}, None, (said,), info)
