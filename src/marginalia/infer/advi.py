"""Variational inference: the nearest approximation of a family, climbed to from the best mode, and judged.

Kucukelbir, Tran, Ranganath, Gelman and Blei (2017), "Automatic differentiation variational inference".
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from typing import Any

import jax
import numpy as np

from marginalia.errors import FitError, compose
from marginalia.infer import guides, modes, starts
from marginalia.infer.ascent import LARGE, LARGEST_RHAT, Ascent, Climbed
from marginalia.infer.candidates import kind_of
from marginalia.infer.checkpoint import NOWHERE, Checkpoint
from marginalia.infer.curvature import Curvature, curvature_at
from marginalia.infer.explicit import ExplicitDiscretes
from marginalia.infer.guides import Frame, Guide
from marginalia.infer.optimise import Optimiser
from marginalia.infer.options import ADVI
from marginalia.infer.pareto import LARGEST_K, k_hat
from marginalia.infer.problem import Problem
from marginalia.infer.progress import Progress
from marginalia.infer.result import Result, Variables
from marginalia.infer.targets import AllRows, SomeRows, Target
from marginalia.marginal.batches import make_batches
from marginalia.precision import in_float64
from marginalia.running import Threads

START_STEPS = 500
RATE = 0.05
RATE_FLOW = 0.01  # the weights of a network move less
SAME_DENSITY = 1e-9
MOST_COMBINATIONS = 64
EVALUATIONS = 200_000_000  # draws x data elements: beyond this fewer draws are judged by their exact density
FEWEST_JUDGED = 200
MOST_REFUSED = 20  # rounds of draws, where the density forbids most of them


def run(
    problem: Problem,
    options: ADVI,
    rng: np.random.Generator,
    progress: Progress,
    checkpoint: Checkpoint = NOWHERE,
) -> Result:
    """Approximate the posterior.

    Returns:
        A result with one chain of independent draws from the approximation. Its group `approximation` has the ELBO
        of every step, and mean and covariance in the unconstrained space, where the coordinates are named.

    Raises:
        FitError: No start has a finite density, or the approximation lies where the density is zero.
        Refusal: The rows cannot be taken in batches.
        KeyboardInterrupt: Stopped by the user before the first hundred steps. Later the approximation reached so
            far is used, and the findings say so.
    """
    size = problem.dimension
    guide = guides.make_guide(options.family, size, options.rank)
    target = _target(problem, options)
    ascent = Ascent(
        target,
        guide,
        _optimizer(options),
        options.samples,
        options.estimator,
        decays=options.optimizer is None,
        **_kept(problem, options, target),
    )
    clock = time.perf_counter()
    with Threads(1) as pool:
        # The ascent compiles while the starts run.
        compiling = pool.submit(in_float64(ascent.compile), guides.frame_at(np.zeros(size), None, options.family))
        # Where starts are looked for on some of the rows, the density of all is needed soon after.
        pool.submit(in_float64(problem.evaluator.compile))
        found = starts.find(problem, options.starts, START_STEPS, rng, progress)
        if found.interrupted:
            raise KeyboardInterrupt
        weighed = modes.weigh(found)
        frame = _frame(problem, weighed, options.family)
        optimiser = found.optimiser
        target.anchor(frame.centre, optimiser)
        compiling.result()
    seconds_starts = time.perf_counter() - clock
    clock = time.perf_counter()
    climbed = ascent.run(frame, options.steps, rng, progress, checkpoint)
    seconds_climbing = time.perf_counter() - clock

    if isinstance(target, ExplicitDiscretes):
        target.follow(lambda count: frame.place(guide_draws(guide, climbed.parameters, count, rng)))
    judged = int(np.clip(EVALUATIONS // problem.data_size, FEWEST_JUDGED, options.draws))
    points, stats, possible = _draw(optimiser, guide, frame, climbed.parameters, (options.draws, judged), rng)
    report = found.report(problem.jacobian, weighed.chosen)
    mean, covariance = _moments(guide, frame, climbed.parameters, points)
    approximation: Variables = {
        "elbo": (("step",), climbed.elbo),
        "coordinate": (("coordinate",), np.array(guides.names(problem.shapes))),
        "mean": (("coordinate",), mean),
        "covariance": (("coordinate", "other_coordinate"), covariance),
        "other_coordinate": (("other_coordinate",), np.array(guides.names(problem.shapes))),
    }
    if isinstance(target, ExplicitDiscretes):
        approximation |= target.variables()
    elbo = (stats["lp"] - stats["log_q"])[:, :judged]
    draws = problem.constrain(points[None])
    recorded = _recorded(options)
    findings = (*_ascent_findings(climbed, options), *_rival_findings(weighed), *_forbidden_findings(possible))
    info = {
        "options": recorded,
        "agreement": report.sentence,
        "starts": found.total,
        "steps": len(climbed.elbo),
        "converged": climbed.converged,
        "elbo": float(elbo.mean()),
        "elbo_error": float(elbo.std() / math.sqrt(elbo.size)),
        "k_hat": k_hat(elbo),
        "draws_judged": min(judged, options.draws),
        "r_hat_of_iterates": climbed.r_hat,
        "error_of_iterates": climbed.error,
        "possible_part": possible,
        "interrupted": climbed.interrupted,
        "seconds_starts": seconds_starts,
        "seconds_climbing": seconds_climbing,
    }
    found_ = (*findings, *judge(draws, stats, recorded))
    return Result("advi", draws, stats, report, found_, info, {"approximation": approximation})


def judge(draws: dict[str, np.ndarray], stats: dict[str, np.ndarray], options: dict[str, Any]) -> tuple[str, ...]:
    """What the importance ratios of the draws say about the approximation; NaN is a draw that was not judged."""
    ratios = np.asarray(stats["lp"] - stats["log_q"])
    k = k_hat(ratios[~np.isnan(ratios)])
    if math.isnan(k):
        return ("Too few draws to judge the approximation by its Pareto k-hat. Ask for at least 100.",)
    if k <= LARGEST_K:
        return ()
    family = options.get("family", "mean-field")
    richer = "a richer family (full-rank, flow) or " if family in ("mean-field", "low-rank") else ""
    return (
        f"The {family} approximation is not the posterior: the Pareto k-hat of its importance ratios is {k:.2f}, "
        f"above {LARGEST_K}. Its means may do as a first look; its spreads, intervals and tails do not. "
        f"Use {richer}method='nuts'.",
    )


def _optimizer(options: ADVI) -> Any:
    if options.optimizer is not None:
        return options.optimizer
    import optax  # only this method needs it

    return optax.adam(RATE_FLOW if options.family == "flow" else RATE)


def _target(problem: Problem, options: ADVI) -> Target:
    """All rows at each step, or as many as the options or the model's own plate say."""
    if options.discretes == "explicit":
        return ExplicitDiscretes(problem)
    drawn = tuple(getattr(problem.marginal.program, "drawn", {}).values())
    batch = options.batch_size if options.batch_size is not None else drawn[0] if len(drawn) == 1 else None
    return AllRows(problem) if batch is None else SomeRows(problem, make_batches(problem.marginal, batch))


def _kept(problem: Problem, options: ADVI, target: Target) -> dict[str, Any]:
    """Where the compiled ascent is kept for the next fit; nowhere if it holds what only this one has."""
    if options.optimizer is not None or isinstance(target, ExplicitDiscretes):
        return {}
    batch = target.batch if isinstance(target, SomeRows) else None
    key = "ascent", options.family, options.rank, options.samples, options.estimator, batch
    return {"programs": problem.programs, "key": key}


def _recorded(options: ADVI) -> dict[str, Any]:
    """The options as JSON types."""
    optimizer = "adam" if options.optimizer is None else "given"
    return {**{f.name: getattr(options, f.name) for f in dataclasses.fields(options)}, "optimizer": optimizer}


def _frame(problem: Problem, weighed: modes.Modes, family: str) -> Frame:
    """Coordinates at the heaviest mode, in the copy whose components are in increasing order."""
    place = weighed.found.places[weighed.chosen]
    curvature: Curvature | None = weighed.comparable[0].curvature if weighed.comparable else None
    away = weighed.found.below is not None  # the place is no mode, so its copies are of no interest
    copy = None if away else ordered_copy(problem, weighed.found.optimiser, place)
    if copy is not None and curvature is not None:
        curvature = curvature_at(weighed.found.optimiser, copy, place.log_density)
    return guides.frame_at(weighed.centre if copy is None else copy, curvature, family)


def ordered_copy(problem: Problem, optimiser: Optimiser, place: starts.Place) -> np.ndarray | None:
    """The mode with its labels permuted so that its first real-valued site increases, or None.

    `fitting.finish` numbers components in this order, so the draws and the approximation speak of the same ones. It is
    a copy only where the density agrees, which is checked; None where it does not, or where the order is right.
    """
    program = problem.marginal.program
    for K in sorted({len(site.values) for site in program.discretes.values()} - {1}):
        for axes in _component_axes({name: site.shape for name, site in program.latents.items()}, K):
            real = [name for name in axes if kind_of(program.latents[name].support)[0] == "real"]
            first = (real or list(axes))[0]
            value = np.asarray(place.params[first])
            corner = [value[tuple(k if i in axes[first] else 0 for i in range(value.ndim))] for k in range(K)]
            order = np.argsort(corner, kind="stable")
            if np.array_equal(order, np.arange(K)):
                continue
            moved = {name: np.asarray(value, float) for name, value in place.params.items()}
            for name, own in axes.items():
                for axis in own:
                    moved[name] = np.take(moved[name], order, axis=axis)
            point = problem.unconstrain({name: value[None] for name, value in moved.items()})[0]
            density = optimiser.evaluate(point[None])[0][0]
            if abs(density - place.log_density) <= SAME_DENSITY * max(1.0, abs(place.log_density)):
                return point
    return None


def _component_axes(shapes: dict[str, tuple[int, ...]], K: int) -> list[dict[str, tuple[int, ...]]]:
    """Which axes of which sites may be component axes: all with one axis of length K each, and what else there is."""
    choices = []
    for name, shape in shapes.items():
        fitting = [i for i, n in enumerate(shape) if n == K]
        subsets = [c for r in range(len(fitting) + 1) for c in itertools.combinations(fitting, r)]
        choices.append([(name, subset) for subset in subsets])
    if math.prod(map(len, choices)) > MOST_COMBINATIONS:
        return []
    found = [{name: axes for name, axes in chosen if axes} for chosen in itertools.product(*choices)]
    usual = sum(any(len(subset) for _, subset in choice) for choice in choices)
    return sorted((axes for axes in found if axes), key=lambda axes: abs(sum(map(len, axes.values())) - usual))


def guide_draws(guide: Guide, phi: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws of a guide in its own coordinates, `(count, dimension)`."""
    return np.asarray(jax.jit(jax.vmap(guide.push, (None, 0)))(phi, rng.normal(size=(count, guide.noise))))


def _draw(
    optimiser: Optimiser,
    guide: Guide,
    frame: Frame,
    phi: np.ndarray,
    counts: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
    """Draws `(count, dimension)` that the density allows, their statistics, and the part that it allows.

    `counts` are how many, and how many of them the density is evaluated at; the others' is NaN.
    """
    count, judged = counts

    def push(noise: Any, phi: Any) -> tuple[Any, Any]:
        point = guide.push(phi, noise)
        return point, guide.log_density(phi, point)

    pushed = jax.jit(jax.vmap(push, (0, None)))
    kept: list[tuple[np.ndarray, ...]] = []
    drawn = number = 0
    for _ in range(MOST_REFUSED):
        point, log_q = (np.asarray(part) for part in pushed(rng.normal(size=(count, guide.noise)), phi))
        place = frame.place(point)
        log_p = np.full(count, np.nan)
        log_p[:judged], _ = optimiser.evaluate(place[:judged])
        good = ~np.isneginf(log_p)
        kept.append((place[good], log_p[good], log_q[good] - frame.log_det))
        drawn, number = drawn + count, number + int(good.sum())
        if number >= count:
            break
    else:
        raise FitError(
            compose(
                f"the density is zero at {1 - number / drawn:.0%} of the draws from the approximation",
                where="ADVI",
                remedy="a hard constraint cuts the posterior: express it by the support of a site (an ordered vector, "
                "say) instead of a factor of -inf, or use method='nuts'.",
            )
        )
    points, log_p, log_q = (np.concatenate(column)[:count] for column in zip(*kept, strict=True))
    return points, {"lp": log_p[None], "log_q": log_q[None]}, number / drawn


def _moments(guide: Guide, frame: Frame, phi: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance in the unconstrained space: of the Gaussian itself; of the draws for a flow."""
    if guide.moments is None:
        return points.mean(axis=0), np.atleast_2d(np.cov(points.T))
    mean, root = guide.moments(phi)
    wide = frame.root[:, None] * root if frame.root.ndim == 1 else frame.root @ root
    return frame.place(mean), wide @ wide.T


def _ascent_findings(climbed: Climbed, options: ADVI) -> tuple[str, ...]:
    steps = len(climbed.elbo)
    if climbed.interrupted:
        return (f"Interrupted after {steps} steps: the approximation is what was reached by then. Run again for all.",)
    if climbed.converged:
        return ()
    more = "Leave steps out, or raise it" if options.steps is not None else "Give another optimizer, or more samples"
    if climbed.r_hat >= LARGEST_RHAT:
        what = f"its iterates still drift (split R-hat {climbed.r_hat:.2f}, limit {LARGEST_RHAT})"
    else:
        what = f"its iterates are still noisy (error {climbed.error:.2f} standard deviations, limit {LARGE})"
    return (f"The ELBO has not converged after {steps} steps: {what}. {more}.",)


def _rival_findings(weighed: modes.Modes) -> tuple[str, ...]:
    if not weighed.rivals:
        return ()
    rival = weighed.rivals[0]
    return (
        f"The density has {len(weighed.comparable)} modes of comparable weight that are no copies with other labels, "
        f"and the approximation covers one of them; another holds about {rival.mass:.0%} of its mass. "
        "Use method='smc', or narrow the priors.",
    )


def _forbidden_findings(possible: float) -> tuple[str, ...]:
    if possible > 0.999:
        return ()
    return (
        f"{1 - possible:.1%} of the approximation lies where the density is zero (a hard constraint); it was cut off. "
        "Express the constraint by the support of a site, or use method='nuts'.",
    )
