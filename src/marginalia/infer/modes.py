"""Which modes count: their masses under the Gaussian that touches each, and whether chains saw them all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from marginalia.errors import FitError, compose
from marginalia.infer import starts
from marginalia.infer.curvature import Curvature, curvature_at
from marginalia.infer.problem import Problem
from marginalia.infer.result import MAXIMUM

MODES_WEIGHED = 5
CLIMBS = 64  # draws whose mode is looked up, for each rival
COMPARABLE = 4.0  # nats of mass: modes nearer than this to the best one matter,
MINOR = 7.0  # and those nearer than this move a mean by more than the noise of some thousand draws
FEWEST_VISITS = 30  # draws that a minor mode must be due before a miss is said: its mass is known to a factor only
TIE = 1e-4  # values of one site nearer than this part of their spread over the modes coincide
WEIGHED_WITHIN = 30.0  # nats of density: a mode further below the best is not weighed
JITTER_TRIES = 8
PLAIN_JITTER = 0.05


@dataclass(frozen=True)
class Weighed:
    """A mode with the Gaussian that touches it.

    Attributes:
        place: Index in `Found`.
        point: Unconstrained, `(dimension,)`.
        curvature: The Gaussian.
        mass: In parts of the heaviest mode's.
    """

    place: int
    point: np.ndarray
    curvature: Curvature
    mass: float


@dataclass(frozen=True)
class Modes:
    """The places that the starts found, and those of them that have some mass, the heaviest first.

    Label copies of a mode count as the same mode.

    Attributes:
        found: All places.
        comparable: The heaviest mode and those of comparable mass; none, if no place is proper.
        minor: Those of less mass, but some.
    """

    found: starts.Found
    comparable: tuple[Weighed, ...]
    minor: tuple[Weighed, ...] = ()

    @property
    def every(self) -> tuple[Weighed, ...]:
        """All modes that have some mass."""
        return (*self.comparable, *self.minor)

    @property
    def chosen(self) -> int:
        """Index in `found` of the place where sampling begins."""
        return self.comparable[0].place if self.comparable else 0

    @property
    def centre(self) -> np.ndarray:
        """Where sampling begins: the heaviest mode, or the place that was found instead of one, `(dimension,)`."""
        if self.comparable:
            return self.comparable[0].point
        return self.found.places[0].point if self.found.below is None else self.found.below

    @property
    def rivals(self) -> tuple[Weighed, ...]:
        """Modes of comparable mass besides the heaviest."""
        return self.comparable[1:]

    @property
    def uneven(self) -> bool:
        """Whether components coincide at one mode and not at another.

        Such modes have different numbers of label copies, and masses counted for one copy of each mislead.
        """
        ties = np.full(len(self.every), np.inf)
        for name, value in self.found.places[self.chosen].params.items():
            if np.size(value) > 1:  # components coincide where all of their sites do
                values = [np.sort(self.found.places[mode.place].params[name], axis=None) for mode in self.every]
                spread = np.ptp(np.concatenate([np.zeros(1), *values]))
                ties = np.minimum(ties, [np.sum(np.diff(one) <= TIE * spread) for one in values])
        return bool(np.any(ties != ties[:1]))


def weigh(found: starts.Found) -> Modes:
    """Masses of the best modes by their curvature; those far below the heaviest are left out."""
    top = found.places[0].log_density
    weighed: list[tuple[float, int, Curvature]] = []
    for i, place in enumerate(found.places[:MODES_WEIGHED]):
        if place.kind == MAXIMUM and not place.far_sites and place.log_density > top - WEIGHED_WITHIN:
            curvature = curvature_at(found.optimiser, place.point, place.log_density)
            if curvature is not None:
                weighed.append((curvature.log_mass, i, curvature))
    weighed.sort(key=lambda entry: -entry[0])
    kept = [
        Weighed(i, found.places[i].point, curvature, float(np.exp(mass - weighed[0][0])))
        for mass, i, curvature in weighed
        if weighed[0][0] - mass < MINOR
    ]
    least = np.exp(-COMPARABLE)
    return Modes(found, tuple(m for m in kept if m.mass > least), tuple(m for m in kept if m.mass <= least))


def around(
    problem: Problem, modes: Modes, count: int, rng: np.random.Generator, mode: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` points of finite density around one of the modes of comparable mass, the heaviest unless told.

    Returns:
        Points `(count, dimension)`, log densities `(count,)` and gradients `(count, dimension)`.

    Raises:
        FitError: The density is not finite there.
    """
    centre = modes.comparable[mode].point if mode else modes.centre
    root = modes.comparable[mode].curvature.root if modes.comparable else np.eye(problem.dimension) * PLAIN_JITTER
    scale = np.ones(count)
    points = np.empty((count, problem.dimension))
    values, gradients = np.full(count, -np.inf), np.empty_like(points)
    for attempt in range(JITTER_TRIES):
        bad = np.flatnonzero(~np.isfinite(values))
        if not bad.size:
            break
        noise = rng.normal(size=(bad.size, problem.dimension)) if attempt < JITTER_TRIES - 1 else 0.0
        points[bad] = centre + scale[bad, None] * (noise @ root.T if np.ndim(noise) else 0.0)
        values[bad], gradients[bad] = modes.found.optimiser.evaluate(points[bad])
        scale[bad] /= 3
    if not np.all(np.isfinite(values)):
        raise FitError(
            compose(
                "the density is not finite at the best start",
                remedy="run mg.check(model, ...); look at factors that can be -inf or NaN.",
            )
        )
    return points, values, gradients


def unvisited(problem: Problem, modes: Modes, points: np.ndarray) -> tuple[str, ...]:
    """Say which modes the chains have missed; `points` has the shape `(chain, draw, dimension)`.

    Of each chain the draws that are most alike to a mode are looked at, and where they lead uphill. A mode of
    comparable mass must have been visited by every chain, a minor one by some chain if by its mass it should have been.
    """
    chains, length = points.shape[:2]
    total = sum(mode.mass for mode in modes.every)
    due = [mode for mode in modes.minor if mode.mass / total * chains * length > FEWEST_VISITS]
    visits = [_visitors(problem, modes, mode, points) for mode in (*modes.rivals, *due)]
    missed = [
        (mode, visitors)
        for mode, visitors in zip((*modes.rivals, *due), visits, strict=True)
        if visitors < (chains if mode in modes.rivals else 1)
    ]
    if not missed:
        return ()
    rival, visitors = missed[0]
    several = len(modes.comparable) if rival in modes.rivals else len(modes.every)
    kind = "modes of comparable weight" if rival in modes.rivals else "modes"
    seen = f"{visitors} of {chains} chains visited it" if chains > 1 else "no draw is there"
    return (
        f"The density has {several} {kind} that are no copies with other labels. "
        f"One of them holds about {rival.mass:.2g} times the mass of the heaviest, and "
        f"{seen}. R-hat cannot tell what all chains have missed. "
        'Use method="smc", which visits them all; or narrow the priors, or order components where modes mean the same.',
    )


def _visitors(problem: Problem, modes: Modes, mode: Weighed, points: np.ndarray) -> int:
    """How many chains have been uphill to a mode."""
    chains, length = points.shape[:2]
    place = modes.found.places[mode.place]
    params = problem.constrain(points.reshape(chains * length, -1))
    far = starts.apart(problem, [place.params], params, modes.found.mirrors).reshape(chains, length)
    each = max(1, CLIMBS // chains)
    nearest = np.argsort(far, axis=1, kind="stable")[:, :each]
    some = np.take_along_axis(points, nearest[:, :, None], axis=1)
    uphill = starts.reached(problem, modes.found, some.reshape(-1, points.shape[2])).reshape(chains, -1)
    return int((uphill == mode.place).any(axis=1).sum())
