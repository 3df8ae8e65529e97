"""Which modes count: their masses under the Gaussian that touches each, and whether chains saw them all."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from marginalia.errors import FitError, compose
from marginalia.infer import starts
from marginalia.infer.curvature import Curvature, curvature_at
from marginalia.infer.problem import Problem
from marginalia.infer.result import MAXIMUM

MODES_WEIGHED = 5
MOSTLY = 0.5  # of the draws of a mode's Gaussian that must lie downhill of it, and
ALIKE = 2.0  # nats: the standard deviation of density over Gaussian, for the Gaussian to tell the mode's mass
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


def under_one_labelling(problem: Problem, weighed: Modes) -> Modes:
    """The modes, of each the copy whose labels agree with the others': starts end in any copy of a mode.

    Chains that begin at different modes, and jump between them, then need not switch labels.
    """
    found, kept = weighed.found, weighed.every
    if len(kept) < 2:
        return weighed
    places = [found.places[mode.place] for mode in kept]
    params = {name: np.stack([place.params[name] for place in places])[None] for name in places[0].params}
    heights = np.array([place.log_density for place in places])
    moved = problem.one_labelling(params, heights[None])
    if all(np.array_equal(moved[name], value) for name, value in params.items()):
        return weighed
    points = problem.unconstrain({name: value[0] for name, value in moved.items()})
    out = []
    for mode, point, height in zip(kept, points, heights, strict=True):
        curvature = curvature_at(found.optimiser, point, height) if np.all(np.isfinite(point)) else None
        out.append(mode if curvature is None else replace(mode, point=point, curvature=curvature))
    several = len(weighed.comparable)
    return Modes(found, tuple(out[:several]), tuple(out[several:]))


def shares(weighed: Modes, count: int) -> list[int]:
    """How many of `count` chains begin at each mode of comparable mass: as its mass deserves, and one at least.

    Where there are fewer chains than modes, the lightest get none.
    """
    masses = np.array([mode.mass for mode in weighed.comparable[:count]] or [1.0])
    counts = np.maximum(1, np.floor(count * masses / masses.sum()).astype(int))
    counts[0] = 1
    counts[0] += count - counts.sum()
    return [int(c) for c in counts]


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
        if visitors < (chains if mode in modes.rivals else 1) and _holds(problem, modes, mode)
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


def _holds(problem: Problem, modes: Modes, mode: Weighed) -> bool:
    """Whether the Gaussian that touches a mode tells its mass: the density is alike, and most draws lie downhill.

    If not, the mode is a small top on something larger, and by its Gaussian nobody can say that chains should have
    been there; those that begin in different modes and agree have left them.
    """
    noise = np.random.default_rng(mode.place).normal(size=(CLIMBS, problem.dimension))
    points = mode.point + noise @ mode.curvature.root.T
    values, _ = modes.found.optimiser.evaluate(points)
    log_ratio = values + 0.5 * np.sum(noise**2, axis=1)
    alike = np.std(log_ratio, where=np.isfinite(log_ratio)) < ALIKE
    return bool(alike and np.mean(starts.reached(problem, modes.found, points) == mode.place) > MOSTLY)


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
