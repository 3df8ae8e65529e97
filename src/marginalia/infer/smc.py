"""Tempered sequential Monte Carlo: a cloud of points led from the prior to the posterior.

After Del Moral, Doucet and Jasra (2006), with temperatures chosen by the effective sample size (Jasra et al. 2011)
and Hamiltonian moves tuned on the cloud (Buchholz, Chopin and Jacob 2021).

Written here rather than on BlackJAX's `adaptive_tempered_smc`, since that one (1.7) evaluates the likelihood of all
points again to choose a temperature, keeps no account of ancestors (the error of the log evidence), gives NaN where
a hard constraint forbids part of the prior, and is one compiled loop, in which nothing can be saved or tuned.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from marginalia.errors import FitError, compose
from marginalia.infer import check
from marginalia.infer.bridge import Bridge
from marginalia.infer.checkpoint import NOWHERE, Checkpoint
from marginalia.infer.cloud import cloud_root
from marginalia.infer.options import SMC
from marginalia.infer.problem import Problem, as_key, key_data, workers
from marginalia.infer.progress import Progress
from marginalia.infer.reached import UNJUDGED, Cloud
from marginalia.infer.result import Result
from marginalia.precision import in_float64
from marginalia.running import Threads

TABLE_NUMBERS = 500_000  # numbers that one batch of points may fill
LARGEST_BATCH = 64
TARGET_ACCEPT = 0.8
FIRST_STEP_SIZE = 0.4
SHORTEST_STEP, LONGEST_STEP = 1e-3, 1.6
PATH = 1.5  # length of a trajectory in standard deviations: a quarter of an orbit
LONGEST_PATH = 10  # steps; where more are needed, more moves of every point serve as well
FORGOTTEN = 0.1  # correlation with the start of the moves below which they are enough
MOST_STAGES = 1000
PARTS = 1000  # of the way, in which progress is told
LATE = 10  # last temperatures, which say how fast they rise
STAGES_SEEN = 50  # temperatures after which it is told how many there will be
SLOW = 0.5  # correlation with the start of the moves above which points have hardly moved
FEWEST_POSSIBLE = 20
APART = 1.0  # nats between runs that are no longer noise


class NoEnd(FitError):
    """The posterior is not reached within what the run may cost; `reached` says how far it came."""

    def __init__(self, message: str, reached: str) -> None:
        super().__init__(message)
        self.reached = reached


@dataclass(frozen=True)
class Run:
    """One run on its way: everything that its next step depends on.

    Attributes:
        seed: Of this run; the randomness of a step comes from it and `steps`.
        points: `(n, dimension)`, with `prior`, `likelihood` `(n,)` and `gradients` of the tempered density.
        anchors: The points when the moves at this temperature began.
        root: The cloud's covariance is this times its transpose.
        eves: For each point the number of its ancestor among the draws from the prior.
        betas: Temperatures so far, from 0.
        moves: Moves made at this temperature.
        possible: Draws from the prior with a positive likelihood.
        rates: Acceptance rates at the last temperature.
        correlation: Of the points with where they were before the moves at the last temperature, the largest of any
            coordinate.
        moved: Moves made at the last temperature.
        gradients_made: In all.
    """

    seed: int
    points: np.ndarray
    prior: np.ndarray
    likelihood: np.ndarray
    gradients: np.ndarray
    anchors: np.ndarray
    root: np.ndarray
    eves: np.ndarray
    betas: list[float]
    log_evidence: float
    step_size: float
    steps: int
    moves: int
    possible: int
    rates: list[float]
    correlation: float
    moved: int = 0
    gradients_made: int = 0

    @property
    def done(self) -> bool:
        return self.betas[-1] == 1.0 and self.moves < 0


def run(
    problem: Problem,
    options: SMC,
    rng: np.random.Generator,
    progress: Progress,
    checkpoint: Checkpoint = NOWHERE,
    *,
    most_gradients: float = np.inf,
) -> Result:
    """Draw from the posterior, and estimate the evidence.

    Raises:
        FitError: A prior is improper, or no draw from the prior can have given the data.
        NoEnd: The temperatures rise so slowly that there is no end, or it takes more than `most_gradients`.
        KeyboardInterrupt: Stopped by the user; a cloud on its way is no posterior, and is left in `problem.reached`.
    """
    clock = time.perf_counter()
    mover = Mover(problem, Bridge(problem), options)
    saved: list[Run] | None = checkpoint.load()
    runs = [mover.first(int(bits[0])) for bits in key_data(rng, options.chains)] if saved is None else saved

    def kept() -> list[Run]:
        return runs

    progress.stage("from prior to posterior", PARTS)
    with Threads(min(workers(), len(runs))) as pool:
        try:
            while not all(one.done for one in runs):
                runs = list(pool.map(in_float64(mover.step), runs))
                slowest = min(runs, key=lambda one: one.betas[-1])
                progress.update(_done(slowest), _told(slowest))
                checkpoint.save(kept)
                spent = sum(one.gradients_made for one in runs)
                if spent > most_gradients and not all(one.done for one in runs):
                    raise _no_end(f"more than {most_gradients:,.0f} gradients are needed", slowest, spent)
        except KeyboardInterrupt:
            checkpoint.save(kept, now=True)
            problem.reached.cloud = _cloud(runs)
            raise
    draws = problem.constrain(np.stack([one.points for one in runs]))
    stats = {"lp": np.stack([one.prior + one.likelihood for one in runs])}
    problem.reached.keep(Result("smc", draws, stats), UNJUDGED)
    evidences = np.array([one.log_evidence for one in runs])
    value, error = evidence(evidences, [one.eves for one in runs], [len(one.betas) - 1 for one in runs])
    info = {
        "options": dataclasses.asdict(options),
        "log_evidence": value,
        "log_evidence_error": error,
        "log_evidences": evidences.tolist(),
        "temperatures": [one.betas for one in runs],
        "acceptance_rate": [float(np.mean(one.rates)) for one in runs],
        "step_size": [one.step_size for one in runs],
        "gradient_evaluations": sum(one.gradients_made for one in runs),
        "ancestors": [len(np.unique(one.eves)) for one in runs],
        "seconds_sampling": time.perf_counter() - clock,
    }
    findings = (*_findings(runs, evidences), *judge(draws, stats, dataclasses.asdict(options)))
    return Result("smc", draws, stats, None, findings, info)


def _cloud(runs: list[Run]) -> Cloud | None:
    """The points so far; None where a run still has those of the prior."""
    if not all(one.betas[-1] > 0 for one in runs):
        return None
    height = np.stack([one.prior + one.likelihood for one in runs])
    return Cloud(np.stack([one.points for one in runs]), height, [one.betas[-1] for one in runs])


def judge(draws: dict[str, np.ndarray], stats: dict[str, np.ndarray], options: dict[str, Any]) -> tuple[str, ...]:
    """Agreement of the runs. Relatives stand side by side among the draws, so the effective size counts them."""
    return check.chains(draws, stats, options)


def _no_end(what: str, one: Run, gradients: int) -> NoEnd:
    reached = f"at temperature {one.betas[-1]:.2g}, after {gradients:,} gradients"
    remedy = "lower target_ess, or use mg.NUTS: the data say very much more than the prior."
    return NoEnd(compose(f"the posterior is far: {what}", where="smc", got=reached, remedy=remedy), reached)


def _done(one: Run) -> int:
    """How much of the way from prior to posterior is behind, in parts of `PARTS`: temperatures rise by factors."""
    stages = len(one.betas) - 1
    return int(PARTS * stages / (stages + max(_stages_left(one.betas), 1))) if not one.done else PARTS


def _told(one: Run) -> str:
    left = _stages_left(one.betas)
    more = f", some {left:.0f} more" if np.isfinite(left) else ""
    return f"temperature {one.betas[-1]:.2g} ({len(one.betas) - 1} so far{more}), log evidence {one.log_evidence:.2f}"


def _stages_left(betas: list[float]) -> float:
    """How many temperatures are to come, if they go on to rise by the factor of late."""
    late = betas[-LATE:]
    if betas[-1] == 1.0:
        return 0.0
    if len(late) < 2 or late[0] == 0.0:
        return np.inf
    return float(-np.log(late[-1]) / np.log(late[-1] / late[0]) * (len(late) - 1))


def _findings(runs: list[Run], evidences: np.ndarray) -> tuple[str, ...]:
    out = []
    fewest = min(one.possible for one in runs)
    if fewest < FEWEST_POSSIBLE:
        out.append(
            f"Only {fewest} of {len(runs[0].points)} draws from the prior can have given the data (the others violate "
            "a hard constraint): the rest of the run hangs on these few. Raise draws, or put the constraint into a "
            "support (an ordered vector, say)."
        )
    if len(runs) > 1 and np.ptp(evidences) > 2 * APART:
        out.append(
            f"The runs disagree about the log evidence, by {np.ptp(evidences):.1f} nats: some have missed a mode, or "
            "the points are too few. Raise draws and moves."
        )
    stuck = max(one.correlation for one in runs)
    if stuck > SLOW:
        out.append(
            f"The points moved slowly: after {runs[0].moved} moves at the last temperature their correlation with "
            f"where they were is still {stuck:.2f}, so relatives stand close together. Raise moves."
        )
    return tuple(out)


def evidence(logs: np.ndarray, eves: list[np.ndarray], stages: list[int]) -> tuple[float, float]:
    """Log of the mean evidence of the runs, and its standard error.

    The error is that of the spread between runs, but no less than what the ancestors say inside them (Lee and
    Whiteley, Biometrika 2018; an upper bound, as resampling is systematic here): few runs agree by chance at times.
    """
    value = float(logsumexp(logs) - np.log(len(logs)))
    inside = float(np.mean([_by_ancestors(*pair) for pair in zip(eves, stages, strict=True)]))
    between = float(np.var(np.exp(logs - value), ddof=1)) if len(logs) > 1 else 0.0
    return value, float(np.sqrt(max(inside, between) / len(logs)))


def _by_ancestors(eves: np.ndarray, stages: int) -> float:
    """Relative variance of one run's evidence."""
    size = len(eves)
    shares = np.bincount(eves, minlength=size) / size
    return float(np.clip(1 - (size / (size - 1)) ** (stages + 1) * (1 - np.sum(shares**2)), 0, 1))


class Mover:
    """The steps of a run: reweight and resample, or move every point; compiled once."""

    def __init__(self, problem: Problem, bridge: Bridge, options: SMC) -> None:
        self._problem = problem
        self._bridge = bridge
        self._options = options
        program = problem.marginal.program
        tables = [np.prod(site.shape) * len(site.values) for site in program.discretes.values()]
        widest = max([1.0, *tables, *(np.prod(site.shape) for site in program.observed.values())])
        self._batch = int(np.clip(TABLE_NUMBERS / widest, 1, LARGEST_BATCH))
        size, count = problem.dimension, options.draws
        number, whole = jax.ShapeDtypeStruct((), np.float64), jax.ShapeDtypeStruct((), np.int64)
        vector, matrix = (jax.ShapeDtypeStruct(shape, np.float64) for shape in ((count,), (count, size)))
        root = jax.ShapeDtypeStruct((size, size), np.float64)
        bits = jax.ShapeDtypeStruct((count, 2), np.uint32)
        cloud = (matrix, vector, vector, matrix)
        self._compiled = jax.jit(self._move).lower(cloud, bits, number, root, number, whole, problem.data).compile()

    def first(self, seed: int) -> Run:
        """Draws from the prior, at temperature 0."""
        size, count = self._problem.dimension, self._options.draws
        points = self._bridge.draw(count, np.random.default_rng([seed, 0]))
        nothing = np.full(count, -np.inf)
        cloud = (points, nothing, nothing, np.zeros_like(points))
        points, prior, likelihood, gradients, _ = self._call(cloud, 0.0, np.zeros((size, size)), 0.0, 1, seed, 0)
        possible = int(np.isfinite(likelihood).sum())
        if not possible:
            raise FitError(
                compose(
                    f"none of {count} draws from the prior can have given the data",
                    where="smc",
                    remedy="run mg.check(model, ...); look at the priors' scale and at factors of -inf, or raise "
                    "draws where a hard constraint leaves very little of the prior.",
                )
            )
        root = np.zeros((size, size))
        eves = np.arange(count)
        return Run(
            seed,
            points,
            prior,
            likelihood,
            gradients,
            points,
            root,
            eves,
            [0.0],
            0.0,
            FIRST_STEP_SIZE,
            1,
            -1,
            possible,
            [],
            1.0,
        )

    def step(self, one: Run) -> Run:
        """The next temperature, or one more move at this one."""
        if one.done:
            return one
        return self._hotter(one) if one.moves < 0 else self._moved(one)

    def _hotter(self, one: Run) -> Run:
        """Reweight for the next temperature, resample, and take the cloud's measure."""
        rng = np.random.default_rng([one.seed, one.steps])
        rise = next_rise(one.likelihood, 1.0 - one.betas[-1], self._options.target_ess)
        beta = min(one.betas[-1] + rise, 1.0)
        beta = 1.0 if 1.0 - beta < 1e-12 else beta
        stages = len(one.betas)
        if stages > STAGES_SEEN and stages + _stages_left(one.betas) > MOST_STAGES:
            raise _no_end(f"more than {MOST_STAGES} temperatures would be needed", one, one.gradients_made)
        logs = _times(rise, one.likelihood)
        weights = np.exp(logs - logsumexp(logs))
        root = cloud_root(one.points, weights)
        rows = systematic(weights, rng)
        points = one.points[rows]
        nothing = np.full(len(points), -np.inf)
        cloud = (points, nothing, nothing, np.zeros_like(points))
        _, prior, likelihood, gradients, _ = self._call(cloud, beta, root, 0.0, 1, one.seed, one.steps)
        return dataclasses.replace(
            one,
            points=points,
            prior=prior,
            likelihood=likelihood,
            gradients=gradients,
            anchors=points,
            root=root,
            eves=one.eves[rows],
            betas=[*one.betas, beta],
            log_evidence=one.log_evidence + float(logsumexp(logs) - np.log(len(logs))),
            steps=one.steps + 1,
            moves=0,
            rates=[],
            gradients_made=one.gradients_made + len(points),
        )

    def _moved(self, one: Run) -> Run:
        cloud = (one.points, one.prior, one.likelihood, one.gradients)
        length = int(np.clip(np.ceil(PATH / one.step_size), 1, LONGEST_PATH))
        points, prior, likelihood, gradients, accepted = self._call(
            cloud, one.betas[-1], one.root, one.step_size, length, one.seed, one.steps
        )
        rate = float(accepted.mean())
        step_size = float(np.clip(one.step_size * np.exp(rate - TARGET_ACCEPT), SHORTEST_STEP, LONGEST_STEP))
        remembered = correlation(one.anchors, points)
        enough = remembered < FORGOTTEN or one.moves + 1 >= self._options.moves
        return dataclasses.replace(
            one,
            points=points,
            prior=prior,
            likelihood=likelihood,
            gradients=gradients,
            step_size=step_size,
            steps=one.steps + 1,
            moves=-1 if enough else one.moves + 1,
            moved=one.moves + 1,
            gradients_made=one.gradients_made + length * len(points),
            rates=[*one.rates, rate],
            correlation=remembered,
        )

    def _call(
        self, cloud: tuple[np.ndarray, ...], beta: float, root: np.ndarray, size: float, length: int, seed: int, at: int
    ) -> tuple[np.ndarray, ...]:
        bits = key_data(np.random.default_rng([seed, at, 1]), len(cloud[0]))
        out = self._compiled(cloud, bits, beta, root, size, length, self._problem.data)
        return tuple(np.asarray(part) for part in out)

    def _move(
        self,
        cloud: Any,
        bits: jax.Array,
        beta: jax.Array,
        root: jax.Array,
        size: jax.Array,
        length: jax.Array,
        data: Any,
    ) -> Any:
        """One Hamiltonian move of every point; of step size 0 it evaluates the points where they are."""

        def one(arguments: Any) -> Any:
            point, own = arguments
            return self._move_one(point, own, beta, root, size, length, data)

        return jax.lax.map(one, (cloud, bits), batch_size=self._batch)

    def _move_one(
        self, point: Any, bits: jax.Array, beta: Any, root: Any, size: Any, length: Any, data: Any
    ) -> tuple[Any, ...]:
        start, prior, likelihood, gradient = point
        kick, jitter, coin = jax.random.split(as_key(bits), 3)
        momentum = jax.random.normal(kick, start.shape)
        step = size * jax.random.uniform(jitter, (), minval=0.7, maxval=1.3)

        def tempered(flat: Any) -> tuple[Any, tuple[Any, Any]]:
            ends = self._bridge.ends(flat, data)
            return ends[0] + jnp.where(beta > 0, beta * ends[1], 0.0), ends

        def leap(_: Any, carry: Any) -> Any:
            flat, moving, slope, *_ = carry
            moving = moving + 0.5 * step * (root.T @ slope)
            flat = flat + step * (root @ moving)
            (_, ends), slope = jax.value_and_grad(tempered, has_aux=True)(flat)
            slope = jnp.where(jnp.isfinite(slope), slope, 0.0)
            return flat, moving + 0.5 * step * (root.T @ slope), slope, *ends

        flat, moving, slope, new_prior, new_likelihood = jax.lax.fori_loop(
            0, length, leap, (start, momentum, gradient, prior, likelihood)
        )
        new_prior, new_likelihood = (_no_nan(part) for part in (new_prior, new_likelihood))
        heat = jnp.where(beta > 0, beta, 0.0)
        before = prior + jnp.where(heat > 0, heat * likelihood, 0.0) - 0.5 * momentum @ momentum
        after = new_prior + jnp.where(heat > 0, heat * new_likelihood, 0.0) - 0.5 * moving @ moving
        rise = jnp.where(jnp.isfinite(before), after - before, jnp.inf)
        chance = jnp.where(jnp.isfinite(after) | (size == 0), jnp.exp(jnp.minimum(rise, 0.0)), 0.0)
        taken = jnp.log(jax.random.uniform(coin)) < jnp.log(chance)
        new, old = (flat, new_prior, new_likelihood, slope), (start, prior, likelihood, gradient)
        return *(jnp.where(taken, a, b) for a, b in zip(new, old, strict=True)), chance


def _no_nan(value: Any) -> Any:
    return jnp.where(jnp.isfinite(value), value, -jnp.inf)


def _times(rise: float, likelihood: np.ndarray) -> np.ndarray:
    """rise * likelihood, -inf where a point is impossible."""
    possible = np.isfinite(likelihood)
    return np.where(possible, rise * np.where(possible, likelihood, 0.0), -np.inf)


def next_rise(likelihood: np.ndarray, most: float, target: float) -> float:
    """The longest step of the temperature that leaves `target` of the possible points effective, at most `most`."""
    wanted = np.log(target * np.isfinite(likelihood).sum())

    def log_ess(rise: float) -> float:
        logs = _times(rise, likelihood)
        return float(2 * logsumexp(logs) - logsumexp(2 * logs))

    if log_ess(most) >= wanted:
        return most
    low, high = -40.0, np.log(most)  # bisection on the log: the first temperatures may be tiny
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if log_ess(np.exp(middle)) >= wanted else (low, middle)
    return float(np.exp(low))


def systematic(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices drawn in proportion to weights, in rising order, with one uniform number for all."""
    places = (rng.random() + np.arange(len(weights))) / len(weights)
    total = np.cumsum(weights)
    return np.minimum(np.searchsorted(total / total[-1], places), len(weights) - 1)


def correlation(before: np.ndarray, after: np.ndarray) -> float:
    """The largest correlation of a coordinate with itself before the moves."""
    a, b = (part - part.mean(axis=0) for part in (before, after))
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return float(np.max((a * b).sum(axis=0) / np.maximum(scale, 1e-300)))
