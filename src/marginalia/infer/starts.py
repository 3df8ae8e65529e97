"""Where to begin: many candidates, many optimisations at once, and the modes they agree on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from marginalia.errors import FitError, compose
from marginalia.infer import mirror
from marginalia.infer.candidates import CandidateMaker, kind_of
from marginalia.infer.optimise import CONVERGED, Climb, Optimiser
from marginalia.infer.part import PartProblem, part_of
from marginalia.infer.problem import Problem
from marginalia.infer.progress import Progress, Silent
from marginalia.infer.result import EDGE, MAXIMUM, UNBOUNDED, UNFINISHED, Mode, Starts

STARTS = 64
FEWEST_STARTS = 8
# Starts x data elements: beyond this the default number of starts shrinks, as each costs seconds.
STARTS_BUDGET = 5_000_000
CANDIDATES_PER_START = 4
FEWEST_CANDIDATES = 64
MOST_FOLLOWED = 12  # places found on some of the rows that are followed up on all
FEW_STEPS = 10  # bring a start near the data, but not far up a spike
CANDIDATE_ROUNDS = 10
HUGE = 1e154  # beyond this a square overflows
BLAMED = 16  # impossible candidates that are looked into to say what is impossible
SAME_MODE = 0.01  # nats: ends further apart are different modes
LOGITS = ("simplex", "interval")
LARGEST_LOGIT = 30.0  # beyond this a weight or probability is 0 or 1 to all digits
SAME_SPREAD = 0.02  # values nearer than this part of the spread over all ends are the same,
SAME_SIZE = 1e-3  # and so are those nearer than this part of their size
BACK = 2.0  # a runaway is looked back along in steps of so much
LEVEL = 1e-6  # part of the density's size: a smaller rise is none
FAR = 4.0  # a coordinate this far outside all candidates has run away; log scales count in e-folds


class _Pool(NamedTuple):
    """Points of finite density, with their values."""

    points: np.ndarray
    values: np.ndarray

    def take(self, rows: np.ndarray) -> _Pool:
        return _Pool(*(part[rows] for part in self))

    def join(self, other: _Pool) -> _Pool:
        return _Pool(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Place:
    """One mode, unconstrained and constrained, with the starts that ended there."""

    point: np.ndarray
    params: dict[str, np.ndarray]
    log_density: float
    count: int
    kind: str
    far_sites: tuple[str, ...]
    gradient_norms: np.ndarray


@dataclass(frozen=True)
class Found:
    """What the starts found.

    Attributes:
        places: Where they ended, proper maxima first, each kind by falling density.
        total: How many there were.
        optimiser: It can go on from any point.
        interrupted: Whether the user stopped them.
        mirrors: The sites that are reflected when two labels change places, a tuple for each pair of labels.
        rows: Where modes were looked for on some of the rows: how many, and of how many.
        below: Where every start ran away, up the spike of a group's spread, say, a point that has most likely more
            mass around it: that of the median height among the starts after a few steps.
    """

    places: tuple[Place, ...]
    total: int
    optimiser: Optimiser
    interrupted: bool
    mirrors: tuple[tuple[str, ...], ...] = ()
    below: np.ndarray | None = None
    rows: tuple[int, int] | None = None

    def report(self, jacobian: bool, chosen: int = 0) -> Starts:
        """The public account of the modes, the chosen one first."""
        order = [chosen, *(i for i in range(len(self.places)) if i != chosen)]
        places = [self.places[i] for i in order]
        modes = tuple(Mode(place.params, place.log_density, place.count, place.kind) for place in places)
        return Starts(modes, self.total, jacobian, self.rows)


def number_of_starts(problem: Problem, asked: int | None) -> int:
    """The number of starts: as asked, else 64, else fewer where the data are many."""
    if asked is not None:
        return asked
    return int(np.clip(STARTS_BUDGET // problem.data_size, FEWEST_STARTS, STARTS))


def find(problem: Problem, asked: int | None, steps: int, rng: np.random.Generator, progress: Progress) -> Found:
    """Optimise from many starts and group where they end.

    Args:
        problem: The density.
        asked: Number of starts, or None for the default.
        steps: Most iterations per start.
        rng: Source of all randomness.
        progress: Told how many starts have ended.

    Raises:
        FitError: No start has a finite density.
    """
    optimiser = Optimiser(problem, steps)
    part = part_of(problem, rng)
    scouted = _scouted(part, asked, steps, rng, progress) if part is not None else None
    if scouted is not None:
        scout, pool, chosen, ends = scouted
        optimiser.scale = scout.scale
        total, ends = len(ends.points), _on_all_rows(problem, optimiser, ends)
    if scouted is None or not len(ends.points):
        part, scout = None, optimiser
        total = number_of_starts(problem, asked)
        progress.stage("starts", total)
        pool, chosen = _screened(problem, optimiser, total, rng)
        optimiser.scale = _sizes(pool.points)
        ends = optimiser.climb(chosen, progress)
        total = len(ends.points)
    problem.reached.climbed = ends.points, ends.log_density
    span = np.stack([pool.points.min(axis=0), pool.points.max(axis=0)])
    params = problem.constrain(ends.points)
    groups = _groups(ends.log_density, features(problem, params))
    mirrors: tuple[tuple[str, ...], ...] = ()
    if len(groups) > 1 and not ends.interrupted:
        # Are some of them copies? Asked at points that are in no mode, where a symmetry cannot hold by chance.
        mirrors = problem.mirrors(problem.constrain(pool.points[:FEWEST_CANDIDATES]))
        groups = _groups(ends.log_density, features(problem, params, mirrors)) if mirrors else groups
    places = _places(problem, optimiser, ends, params, groups, span)
    below = None
    if places[0].kind == UNBOUNDED and not ends.interrupted:
        few = scout.climb(chosen, Silent(), FEW_STEPS)
        below = few.points[np.argsort(few.log_density, kind="stable")[len(few.points) // 2]]
    rows = None if part is None else part.rows
    found = Found(places, total, optimiser, ends.interrupted, mirrors, below, rows)
    problem.reached.modes = found, 0
    return found


def _scouted(
    part: PartProblem, asked: int | None, steps: int, rng: np.random.Generator, progress: Progress
) -> tuple[Optimiser, _Pool, np.ndarray, Climb] | None:
    """The search on some of the rows; None where nothing is possible there, so that all rows must say why."""
    total = number_of_starts(part, asked)
    progress.stage("starts, on some of the rows", total)
    scout = Optimiser(part, steps)
    try:
        pool, chosen = _screened(part, scout, total, rng)
    except FitError:
        return None
    scout.scale = _sizes(pool.points)
    return scout, pool, chosen, scout.climb(chosen, progress)


def _on_all_rows(problem: Problem, optimiser: Optimiser, ends: Climb) -> Climb:
    """From the best places that were found on some of the rows up to those of all rows; the others are left out.

    Starts that ended together go on together. Where the user stopped the search, their density there is all there is.
    """
    groups = _groups(ends.log_density, features(problem, problem.constrain(ends.points)))[:MOST_FOLLOWED]
    leads = ends.points[[group[0] for group in groups]]
    finite = np.isfinite(optimiser.evaluate(leads)[0])
    groups = [group for group, fine in zip(groups, finite, strict=True) if fine]
    followed = optimiser.climb(leads[finite], Silent(), 0 if ends.interrupted else None)
    index = np.repeat(np.arange(len(followed.points)), [len(groups[i]) for i in followed.rows])
    interrupted = ends.interrupted or followed.interrupted
    return Climb(
        followed.points[index],
        followed.log_density[index],
        followed.status[index],
        followed.gradient_norms[index],
        interrupted,
        np.arange(len(index)),
    )


def _screened(problem: Problem, optimiser: Optimiser, total: int, rng: np.random.Generator) -> tuple[_Pool, np.ndarray]:
    """All finite candidates, and `total` points among them (or their neighbours) to start from."""
    maker = CandidateMaker(problem, rng)
    wanted = max(FEWEST_CANDIDATES, CANDIDATES_PER_START * total)
    if problem.data_size * wanted > CANDIDATES_PER_START * STARTS_BUDGET:
        wanted = max(total, FEWEST_STARTS)
    pool = _finite(optimiser, np.empty((0, problem.dimension)))
    refused = pool.points
    for _ in range(CANDIDATE_ROUNDS):
        points = maker.draw(wanted)
        refused = points if len(points) else refused
        pool = pool.join(_finite(optimiser, points))
        if len(pool.points) >= min(total, wanted // 8):
            break
    if not len(pool.points):
        raise _no_start(problem, refused)
    starts = pool
    if len(pool.points) < total:
        # Few are finite (a hard constraint, say): the neighbourhoods of those, wide and narrow.
        near = pool.points[rng.integers(len(pool.points), size=wanted)]
        scale = 0.3 * 10.0 ** -rng.integers(4, size=(wanted, 1))
        starts = pool.join(_finite(optimiser, near + scale * (1 + 0.1 * np.abs(near)) * rng.normal(size=near.shape)))
    if len(starts.points) < total:
        starts = starts.take(np.arange(total) % len(starts.points))
    # Half by height, half at random from the rest: good ones, and different ones.
    order = np.argsort(-starts.values, kind="stable")
    best, rest = order[: -(-total // 2)], order[-(-total // 2) :]
    chosen = np.concatenate([best, rng.permutation(rest)[: total - len(best)]])
    return pool, starts.points[chosen]


def _sizes(points: np.ndarray) -> np.ndarray:
    """The size of each coordinate of candidates `(n, dimension)`: half of what lies between their quartiles."""
    low, high = np.quantile(points, [0.25, 0.75], axis=0)
    sizes = 0.5 * (high - low)
    return np.where(sizes > 0, sizes, 1.0)


def _finite(optimiser: Optimiser, points: np.ndarray) -> _Pool:
    values, _ = optimiser.evaluate(points)
    return _Pool(points, values).take(np.flatnonzero(np.isfinite(values)))


def _places(
    problem: Problem,
    optimiser: Optimiser,
    ends: Climb,
    params: dict[str, np.ndarray],
    groups: list[list[int]],
    span: np.ndarray,
) -> tuple[Place, ...]:
    """The modes that groups of ends are."""
    margin = np.maximum(FAR, 0.5 * (span[1] - span[0]))
    far = (ends.points < span[0] - margin) | (ends.points > span[1] + margin)
    latents = problem.marginal.program.latents
    edged = [name for name, site in latents.items() if kind_of(site.support)[0] in LOGITS]
    names = np.array([name for name, shape in problem.shapes.items() for _ in range(math.prod(shape))])
    logits = np.isin(names, edged)
    far |= logits & (np.abs(ends.points) > LARGEST_LOGIT)
    places = []
    for group in groups:
        finished = [i for i in group if ends.status[i] == CONVERGED]
        lead = (finished or group)[0]
        # Where the arithmetic saturates, far out, the gradient may vanish too: that is no maximum.
        kind = MAXIMUM if finished else UNFINISHED
        if far[lead].any():
            # With the Jacobian a density that ends level has no finite mass: a runaway all the same.
            most = np.where(logits, LARGEST_LOGIT, np.inf)
            inwards = np.where(far[lead], np.sign(span.mean(axis=0) - ends.points[lead]), 0.0)
            level = _ends_level(optimiser, np.clip(ends.points[lead], -most, most), inwards)
            kind = EDGE if finished and level and not problem.jacobian else UNBOUNDED
        places.append(
            Place(
                ends.points[lead],
                {name: leaf[lead] for name, leaf in params.items()},
                float(ends.log_density[lead]),
                len(group),
                kind,
                tuple(dict.fromkeys(str(name) for name in names[far[lead]])),
                ends.gradient_norms[lead],
            )
        )
    rank = {MAXIMUM: 0, EDGE: 0, UNFINISHED: 1, UNBOUNDED: 2}
    # A maximum inside goes before an edge of the same height.
    return tuple(sorted(places, key=lambda p: (rank[p.kind], SAME_MODE * (p.kind == EDGE) - p.log_density)))


def _ends_level(optimiser: Optimiser, point: np.ndarray, inwards: np.ndarray) -> bool:
    """Whether the density rises ever less on the way out to a point, as at an edge, or goes on as before."""
    heights, _ = optimiser.evaluate(np.stack([point, point + BACK * inwards, point + 2 * BACK * inwards]))
    last, before = heights[0] - heights[1], heights[1] - heights[2]
    return bool(last < max(0.5 * before, LEVEL * max(1.0, abs(heights[0]))))


def reached(problem: Problem, found: Found, points: np.ndarray) -> np.ndarray:
    """For each of `points` `(n, dimension)` the index of the place that lies uphill of it, or -1: `(n,)`.

    This tells which mode a draw belongs to, whatever its labels.
    """
    ends = found.optimiser.climb(points, Silent())
    if ends.interrupted:
        raise KeyboardInterrupt  # what is known of some of them would be taken for all
    params = problem.constrain(ends.points)
    heights = np.array([place.log_density for place in found.places])
    same = np.abs(ends.log_density[:, None] - heights) < SAME_MODE
    same &= apart(problem, [place.params for place in found.places], params, found.mirrors) <= 1
    return np.where(same.any(axis=1), same.argmax(axis=1), -1)


def apart(
    problem: Problem,
    places: Sequence[dict[str, np.ndarray]],
    params: dict[str, np.ndarray],
    mirrors: tuple[tuple[str, ...], ...],
) -> np.ndarray:
    """How far points `{site: (n, ...)}` are from places, whatever the labels, in units of what counts as equal.

    Returns:
        The largest difference of any value, `(n, place)`.
    """
    both = {n: np.concatenate([np.stack([place[n] for place in places]), leaf]) for n, leaf in params.items()}
    found = features(problem, both, mirrors)
    away = np.abs(found[0, len(places) :, None] - found[:, None, : len(places)])
    return away.max(axis=3).min(axis=0)


def features(problem: Problem, params: dict[str, np.ndarray], mirrors: tuple[tuple[str, ...], ...] = ()) -> np.ndarray:
    """Each site's values in increasing order, in units of what counts as equal: `(copy, n, all)`.

    Permuting the labels permutes the values of each site, so copies of a mode agree in this. Where some sites are
    reflected with the labels there are several copies, of which the first is the point itself.
    """
    copies = [params]
    for names in mirrors:
        copies += [{n: _reflected(problem, n, v) if n in names else v for n, v in one.items()} for one in copies]
    columns = []
    for name in params:
        leaves = np.concatenate([one[name] for one in copies])
        values = np.nan_to_num(np.sort(leaves.reshape(len(leaves), -1), axis=1))
        unit = np.maximum(SAME_SPREAD * np.ptp(values, axis=0), SAME_SIZE * np.abs(values).max(axis=0))
        columns.append(values / np.maximum(unit, 1e-300))
    return np.concatenate(columns, axis=1).reshape(len(copies), -1, sum(c.shape[1] for c in columns))


def _reflected(problem: Problem, name: str, value: np.ndarray) -> np.ndarray:
    middle = mirror.centre(problem.marginal.program.latents[name].support)
    assert middle is not None
    return 2 * middle - value


def _groups(log_density: np.ndarray, features: np.ndarray) -> list[list[int]]:
    """Indices that belong together, by falling density; an end belongs to a group with any of its copies."""
    groups: list[list[int]] = []
    for i in map(int, np.argsort(-log_density, kind="stable")):
        for group in groups:
            near = log_density[group[0]] - log_density[i] < SAME_MODE
            if near and np.any(np.abs(features[0, group[0]] - features[:, i]).max(axis=1) <= 1):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _no_start(problem: Problem, points: np.ndarray) -> FitError:
    """Say which terms are not finite: rows of an observed site, or the prior and factors."""
    remedy = (
        "run mg.check(model, ...); look at the priors' scale and support, and at any factor that can be -inf "
        "or NaN: some prior draws must be possible."
    )
    if not len(points):
        what = "every draw from the prior is at the edge of its support or not finite, so there is no start"
        return FitError(compose(what, remedy=remedy))
    params = problem.constrain(points[:BLAMED])
    rows = problem.log_likelihood(params)
    blamed = []
    for name, terms in rows.items():
        bad = np.argwhere(~np.isfinite(terms).any(axis=0))
        if terms.size and len(bad):
            first = ", ".join(str(index[0] if len(index) == 1 else tuple(map(int, index))) for index in bad[:5])
            where = f" (the first: {first})" if terms.ndim > 1 else ""
            blamed.append(f"{name!r}: {len(bad)} of {terms[0].size} terms are impossible at every start{where}")
        elif not np.isfinite(terms.reshape(len(terms), -1)).all(axis=1).any():
            blamed.append(f"{name!r}: some term is impossible at every start, though none at all of them")
    if not blamed:
        blamed = ["the data's terms are finite at some starts, so a prior or a factor is not"]
    blamed += _huge(problem)
    what = f"none of the starts has a finite log density; {'; '.join(blamed)}"
    return FitError(compose(what, remedy=remedy))


def _huge(problem: Problem) -> list[str]:
    """Values of the data whose squares are no numbers: they are impossible under most distributions."""
    words = []
    for name, site in getattr(problem.marginal.program, "observed", {}).items():
        value = np.asarray(site.value)
        huge = np.argwhere(np.abs(value) > HUGE) if value.dtype.kind in "fiu" else np.empty((0, value.ndim), int)
        if len(huge):
            first = huge[0].tolist()
            at = ", ".join(map(str, first))
            words.append(f"{name!r} holds {value[tuple(first)]:g} (row {at}), whose square is too large for a number")
    return words
