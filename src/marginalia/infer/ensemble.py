"""Many short chains in step, begun around the modes; superchains say whether they have forgotten where.

Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman (2022), "Nested R-hat": chains that begin at one point
make a superchain, and the means of superchains are compared as R-hat compares chains. Chains may then be far
too short for R-hat, as long as they are many.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from marginalia.infer import check, diagnostics, edge, modes
from marginalia.infer.checkpoint import NOWHERE, Checkpoint, leaves, rebuild
from marginalia.infer.chees import Numbers, State, Stepper, begin, restarted
from marginalia.infer.jumps import Jumps, jumps_between
from marginalia.infer.options import Ensemble
from marginalia.infer.problem import Problem, key_data
from marginalia.infer.progress import Progress
from marginalia.infer.reached import UNJUDGED
from marginalia.infer.result import Result, stopped
from marginalia.infer.search import search
from marginalia.precision import in_float64
from marginalia.running import Threads

BLOCK = 25  # steps between two tellings of progress, or savings
LARGEST_NESTED_RHAT = 1.01
FEWEST_EFFECTIVE = 400
BETWEEN_JUMPS = 5  # steps between two jumps, where there are modes to jump between
METRIC_AT = (1 / 3, 2 / 3)  # parts of the tuning after which the metric is taken from the chains
METRIC_STEPS = 50  # last steps of all chains that make it
FEW_CHAINS = 16  # so many are run long enough for R-hat itself; more are judged by nested R-hat
HOPELESS_RHAT = 1.2  # after the first doubling: such chains sit in different modes, and more draws do not help


def run(
    problem: Problem,
    options: Ensemble,
    rng: np.random.Generator,
    progress: Progress,
    checkpoint: Checkpoint = NOWHERE,
) -> Result:
    """Draw from the posterior; what it raises, and what an interrupt does, are as in `nuts.run`."""
    stepper = Stepper(problem, options.tune, options.target_accept, BLOCK)
    with Threads(1) as pool:
        compiling = pool.submit(in_float64(stepper.compile))
        clock = time.perf_counter()
        weighed = search(problem, options.starts, rng, progress, checkpoint.part("modes"))
        seconds_starts = time.perf_counter() - clock
        compiling.result()
    result = sample(problem, stepper, weighed, options, rng, progress, checkpoint)
    return dataclasses.replace(result, info={**result.info, "seconds_starts": seconds_starts})


def sample(
    problem: Problem,
    stepper: Stepper,
    weighed: modes.Modes,
    options: Ensemble,
    rng: np.random.Generator,
    progress: Progress,
    checkpoint: Checkpoint = NOWHERE,
) -> Result:
    """Draw from the posterior, the modes being known."""
    clock = time.perf_counter()
    first = _begin(problem, weighed, options, rng)
    root = weighed.comparable[0].curvature.root if weighed.comparable else np.eye(problem.dimension)
    jumps = jumps_between(problem, weighed)
    stepper.block = BLOCK if jumps is None else BETWEEN_JUMPS
    moving = _Moving(stepper, options, key_data(rng), first, root, jumps, progress, checkpoint.part("chains"))
    after, wanted = _until_content(problem, moving, options)
    made = _unjudged(problem, options, after)
    draws, stats, asked = made.draws, made.stats, made.info["options"]
    report = weighed.found.report(problem.jacobian, weighed.chosen)
    missed = _missed(problem, weighed, after)
    findings = stopped(moving.interrupted, len(after.points), wanted) + missed
    findings += judge(draws, stats, asked)
    findings += edge.findings(weighed.found.optimiser, after.points, after.diverging)
    info = {
        "options": asked,
        "agreement": report.sentence,
        "starts": weighed.found.total,
        "nested_rhat": {name: float(v) for name, v in _worst(nested_rhat(draws, options.superchains)).items()},
        "step_size": float(after.step_size[-1]),
        "leapfrog_steps": float(after.leaps.mean()),
        "divergences": int(after.diverging.sum()),
        "gradient_evaluations": sum(int(piece.leaps.sum()) for piece in moving.pieces) * options.chains,
        "missed_modes": bool(missed),
        "interrupted": moving.interrupted,
        "seconds_sampling": time.perf_counter() - clock,
    }
    return Result("ensemble", draws, stats, report, findings, info)


def _until_content(problem: Problem, moving: _Moving, options: Ensemble) -> tuple[Numbers, int]:
    """The draws asked for; then, up to `max_draws`, twice as many until nothing is found that more would mend.

    Returns:
        What was kept of the steps after tuning, and how many there should be.
    """
    wanted = options.draws
    while True:
        moving.advance(options.tune + wanted)
        after = moving.after(options.tune, wanted)
        if not len(after.points):
            raise KeyboardInterrupt
        if moving.interrupted or 2 * wanted > (options.max_draws or 0) or after.diverging.any():
            return after, wanted
        draws = problem.one_labelling(_unjudged(problem, options, after).draws, after.log_density.T)
        doubt = check.doubt(draws)
        if not doubt.any or (wanted > options.draws and doubt.worst_rhat > HOPELESS_RHAT):
            return after, wanted
        wanted *= 2


def _unjudged(problem: Problem, options: Ensemble, after: Numbers) -> Result:
    """The draws after tuning; they are what the run has in hand from now on."""
    stats = {
        "lp": after.log_density.T,
        "energy": after.energy.T,
        "diverging": after.diverging.T,
        "acceptance_rate": after.accept.T,
        "n_steps": np.tile(after.leaps, (options.chains, 1)),
        "step_size": np.tile(after.step_size, (options.chains, 1)),
    }
    draws = problem.constrain(np.swapaxes(after.points, 0, 1))
    result = Result("ensemble", draws, stats, info={"options": dataclasses.asdict(options)})
    problem.reached.keep(result, UNJUDGED)
    return result


def _missed(problem: Problem, weighed: modes.Modes, after: Numbers) -> tuple[str, ...]:
    """Say which modes no chain has visited; whether chains agree on those of comparable mass, nested R-hat says."""
    one = np.swapaxes(after.points, 0, 1).reshape(1, -1, problem.dimension)
    return modes.unvisited(problem, weighed, one)


def judge(draws: dict[str, np.ndarray], stats: dict[str, np.ndarray], options: dict[str, Any]) -> tuple[str, ...]:
    """R-hat of few chains and nested R-hat of many, effective draws of all chains together, and divergences."""
    chains, length = stats["lp"].shape
    out: list[str] = []
    if length < 4:
        out.append(f"Only {length} draws per chain: convergence cannot be judged. Ask for more draws.")
    elif chains <= FEW_CHAINS:
        out += check.mixing(draws)
    else:
        nested = _worst(nested_rhat(draws, options["superchains"]))
        high = {name: value for name, value in nested.items() if value > LARGEST_NESTED_RHAT}
        if high:
            names = ", ".join(f"{name} ({value:.2f})" for name, value in high.items())
            out.append(
                f"The superchains do not agree: nested R-hat is above {LARGEST_NESTED_RHAT} for {names}. The chains "
                'still know where they began. Raise tune and draws; where modes are apart, use method="smc".'
            )
        table = check.convergence(draws)
        least = {n: np.nanmin(np.concatenate([b.ravel(), t.ravel()]), initial=np.inf) for n, (_, b, t) in table.items()}
        low = {name: value for name, value in least.items() if value < FEWEST_EFFECTIVE}
        if low:
            names = ", ".join(f"{name} ({value:.0f})" for name, value in low.items())
            out.append(
                f"Few effective draws: below {FEWEST_EFFECTIVE} for {names}. Estimates and intervals of these are "
                "noisy. Ask for more draws or chains."
            )
    divergent = int(stats["diverging"].sum())
    if divergent:
        out.append(
            f"{divergent} of {chains * length} draws diverged: the sampler could not follow the density there, and "
            'estimates may be biased. Raise target_accept (0.9, say), or use method="nuts".'
        )
    return tuple(out)


def nested_rhat(draws: dict[str, np.ndarray], superchains: int) -> dict[str, np.ndarray]:
    """Nested R-hat of each element: `{site: site shape}`; NaN where an element never changes."""
    out = {}
    for name, value in draws.items():
        numbers = diagnostics.nested_rhat(np.asarray(value, float).reshape(*value.shape[:2], -1), superchains)
        out[name] = numbers.reshape(value.shape[2:])
    return out


def _worst(nested: dict[str, np.ndarray]) -> dict[str, Any]:
    """The largest of each site; 1 where nothing of it ever changes, as with the one weight of one component."""
    return {name: np.nanmax(value, initial=1.0) for name, value in nested.items()}


def _begin(problem: Problem, weighed: modes.Modes, options: Ensemble, rng: np.random.Generator) -> State:
    """Superchains around the modes, as many at each as its mass deserves, and one at least."""
    counts = modes.shares(weighed, options.superchains)
    parts = [modes.around(problem, weighed, count, rng, mode) for mode, count in enumerate(counts)]
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    each = options.chains // options.superchains
    return begin(*(np.repeat(column, each, axis=0) for column in columns))


class _Moving:
    """Chains on their way: a block of steps at a time; twice in the tuning the metric is taken from the chains."""

    def __init__(
        self,
        stepper: Stepper,
        options: Ensemble,
        bits: np.ndarray,
        state: State,
        root: np.ndarray,
        jumps: Jumps | None,
        progress: Progress,
        checkpoint: Checkpoint,
    ) -> None:
        self.interrupted = False
        self._stepper, self._tune, self._bits, self._jumps = stepper, options.tune, bits, jumps
        self._progress, self._checkpoint = progress, checkpoint
        self._renewals = [int(part * options.tune) for part in METRIC_AT]
        # What the next step depends on changes at once, so that an interrupt finds it in step.
        self._held = state, root, 0, list[Numbers]()
        saved = checkpoint.load()
        if saved is not None:
            joined = [np.split(part, saved["blocks"]) for part in saved["joined"]]
            pieces = [Numbers(*block) for block in zip(*joined, strict=True)]
            self._held = rebuild(state, saved["state"]), saved["root"], saved["renewed"], pieces

    @property
    def pieces(self) -> list[Numbers]:
        """All blocks so far, those of the tuning included."""
        return self._held[3]

    def after(self, tune: int, draws: int) -> Numbers:
        """The first `draws` steps after the tuning, or as many as there are."""
        if not self.pieces:
            raise KeyboardInterrupt
        kept = Numbers(*(np.concatenate(parts) for parts in zip(*self.pieces, strict=True)))
        return Numbers(*(part[tune : tune + draws] for part in kept))

    def _kept(self) -> dict[str, Any]:
        state, root, renewed, pieces = self._held
        joined = [np.concatenate(part) for part in zip(*pieces, strict=True)]
        return {"state": leaves(state), "root": root, "renewed": renewed, "joined": joined, "blocks": len(pieces)}

    def advance(self, steps: int) -> None:
        """On to so many steps in all, or a little more; stops when interrupted."""
        self._progress.stage("sampling (steps of all chains)", steps)
        try:
            block = self._stepper.block
            while len(self.pieces) * block < steps:
                state, root, renewed, pieces = self._held
                state, numbers = self._stepper(state, root, self._bits)
                pieces = [*pieces, numbers]
                done = len(pieces) * block
                if renewed < len(self._renewals) and self._renewals[renewed] <= done < self._tune:
                    renewed += 1
                    root, state = _metric(pieces, root, self._jumps), restarted(state)
                if self._jumps is not None:
                    rng = np.random.default_rng([*map(int, self._bits), int(state.count), 1])
                    now = self._jumps(state.points, state.log_density, state.gradients, rng)
                    state = state._replace(points=now[0], log_density=now[1], gradients=now[2])
                self._held = state, root, renewed, pieces
                about = f"{numbers.leaps.mean():.0f} leaps, accept {numbers.accept.mean():.2f}"
                self._progress.update(min(done, steps), about)
                self._checkpoint.save(self._kept, now=done >= steps)
        except KeyboardInterrupt:
            if self.pieces:
                self._checkpoint.save(self._kept, now=True)
            self.interrupted = True


def _metric(pieces: list[Numbers], root: np.ndarray, jumps: Jumps | None) -> np.ndarray:
    """A root of the covariance of the chains' last steps, each around its mode, drawn a little to the metric so far."""
    points = np.concatenate([piece.points for piece in pieces])[-METRIC_STEPS:]
    flat = points.reshape(-1, points.shape[2])
    flat = flat if jumps is None else jumps.around_means(flat)
    size, weight = flat.shape[1], points.shape[1]
    covariance = np.atleast_2d(np.cov(flat.T))
    part = weight / (weight + size)
    try:
        return np.linalg.cholesky(part * covariance + (1 - part) * root @ root.T)
    except np.linalg.LinAlgError:
        return root
