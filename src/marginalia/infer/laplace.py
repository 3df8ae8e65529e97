"""Draws around the modes, made exact: Student-t proposals in the shape of each mode, accepted or not.

The proposals do not depend on where the chain is (the independence Metropolis step: Tierney 1994; Liu 1996),
so all densities are evaluated in batches, beforehand. Several modes of comparable mass give a mixture of
proposals, each mode with the weight of its Laplace mass. The ratios of density to proposal are importance
ratios too: the shape k of the generalised Pareto distribution that fits their upper tail says whether the
proposals reach everywhere (Vehtari, Simpson, Gelman, Yao and Gabry 2024, "Pareto smoothed importance
sampling": below 0.7 estimates converge at a usable rate).
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln, logsumexp

from marginalia.errors import FitError, compose
from marginalia.infer import check, modes
from marginalia.infer.checkpoint import NOWHERE, Checkpoint
from marginalia.infer.curvature import MOST_DIMENSIONS
from marginalia.infer.densities import Densities
from marginalia.infer.options import Laplace
from marginalia.infer.pareto import LARGEST_K, k_hat
from marginalia.infer.problem import Problem
from marginalia.infer.progress import Progress
from marginalia.infer.reached import UNJUDGED
from marginalia.infer.result import UNBOUNDED, Result, stopped
from marginalia.infer.search import search
from marginalia.precision import in_float64
from marginalia.running import Threads

PILOT = 1000  # proposals that say where the chains begin, and how well the proposals fit
FEWEST_DF = 5.0
LIGHTER = (10.0, 30.0, 100.0)  # degrees of freedom that are considered where the first proposals fit
WORTH = 1.1  # times as efficient, to be worth a pilot of their own
SAFE_K = 0.5  # k-hat that lighter tails must keep: the variance of the ratios is then finite


@dataclass(frozen=True)
class Proposal:
    """A mixture of multivariate Student-t distributions, one around each mode."""

    centres: np.ndarray  # (mode, dimension)
    roots: np.ndarray  # (mode, dimension, dimension): root @ root.T is the scale matrix
    weights: np.ndarray  # (mode,)
    df: float

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Points `(count, dimension)`."""
        size = self.centres.shape[1]
        which = rng.choice(len(self.weights), size=count, p=self.weights)
        noise = rng.normal(size=(count, size)) * np.sqrt(self.df / rng.chisquare(self.df, size=(count, 1)))
        points = np.empty((count, size))
        for j, root in enumerate(self.roots):
            points[which == j] = self.centres[j] + noise[which == j] @ root.T
        return points

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Of `points` `(n, dimension)`: `(n,)`."""
        size, df = self.centres.shape[1], self.df
        constant = gammaln((df + size) / 2) - gammaln(df / 2) - 0.5 * size * np.log(df * np.pi)
        parts = []
        for centre, root, weight in zip(self.centres, self.roots, self.weights, strict=True):
            distance = (np.linalg.solve(root, (points - centre).T) ** 2).sum(axis=0)
            scale = np.linalg.slogdet(root)[1]
            parts.append(np.log(weight) + constant - scale - 0.5 * (df + size) * np.log1p(distance / df))
        return logsumexp(np.stack(parts), axis=0)


@dataclass(frozen=True)
class Pilot:
    """Proposals with their log densities and log importance ratios, and the k-hat of these."""

    points: np.ndarray
    log_density: np.ndarray
    log_ratio: np.ndarray
    k_hat: float

    @property
    def efficiency(self) -> float:
        """Effective draws per proposal under importance sampling, between 0 and 1."""
        ratio = np.exp(self.log_ratio - self.log_ratio.max())
        return float(ratio.sum() ** 2 / (ratio**2).sum() / len(ratio))


def run(
    problem: Problem,
    options: Laplace,
    rng: np.random.Generator,
    progress: Progress,
    checkpoint: Checkpoint = NOWHERE,
) -> Result:
    """Draw from the posterior by proposals around its modes.

    Raises:
        FitError: No start has a finite density, or no mode has the curvature of a peak.
        KeyboardInterrupt: Stopped by the user before there was one draw. Later the draws made so far are
            returned, and the findings say so.
    """
    densities = Densities(problem)
    with Threads(1) as pool:
        compiling = pool.submit(in_float64(densities.compile))
        clock = time.perf_counter()
        weighed = search(problem, options.starts, rng, progress, checkpoint.part("modes"))
        proposal = propose(problem, weighed, options.df)
        seconds_starts = time.perf_counter() - clock
        compiling.result()
    tried = pilot(proposal, densities, rng)
    if options.df is None:
        proposal, tried = with_lighter_tails(proposal, tried, densities, rng)
    result = sample(problem, options, weighed, proposal, tried, densities, rng, progress, checkpoint)
    return dataclasses.replace(result, info={**result.info, "seconds_starts": seconds_starts})


def propose(problem: Problem, weighed: modes.Modes, df: float | None) -> Proposal:
    """The proposals that the modes suggest.

    Raises:
        FitError: There is no mode with the curvature of a peak.
    """
    if not weighed.comparable:
        what = "the density has no mode at which it curves down in all directions, so there is no shape to propose from"
        if problem.dimension > MOST_DIMENSIONS:
            what = f"with {problem.dimension} parameters the curvature of the modes is not computed"
        remedy = 'use method="nuts"; where the density grows without bound, give scales and weights a proper prior.'
        raise FitError(compose(what, where="Laplace", remedy=remedy))
    masses = np.array([mode.mass for mode in weighed.every])
    return Proposal(
        np.stack([mode.point for mode in weighed.every]),
        np.stack([mode.curvature.root for mode in weighed.every]),
        masses / masses.sum(),
        max(FEWEST_DF, float(problem.dimension)) if df is None else float(df),
    )


def pilot(proposal: Proposal, densities: Densities, rng: np.random.Generator, count: int = PILOT) -> Pilot:
    """Some proposals, to see how well they fit.

    Raises:
        FitError: The density is finite at none of them.
    """
    points = proposal.sample(count, rng)
    values = densities(points)
    if not np.isfinite(values).any():
        what = f"the density is finite at none of {count} points around the mode"
        remedy = 'use method="nuts"; look at factors that can be -inf or NaN.'
        raise FitError(compose(what, where="Laplace", remedy=remedy))
    log_ratio = values - proposal.log_density(points)
    return Pilot(points, values, log_ratio, k_hat(log_ratio))


def with_lighter_tails(
    proposal: Proposal, tried: Pilot, densities: Densities, rng: np.random.Generator
) -> tuple[Proposal, Pilot]:
    """Proposals whose tails suit the density as the pilot saw it, tried in turn; the first ones unless these fit.

    Heavy tails are safe, but where the posterior is nearly Gaussian, as with many data, a quarter of the proposals are
    refused for their sake. What lighter ones would give is estimated from the same points.
    """
    best = max(LIGHTER, key=lambda df: _expected_efficiency(dataclasses.replace(proposal, df=df), tried))
    lighter = dataclasses.replace(proposal, df=best)
    if best <= proposal.df or _expected_efficiency(lighter, tried) < WORTH * tried.efficiency:
        return proposal, tried
    again = pilot(lighter, densities, rng, PILOT // 2)
    fits = again.k_hat <= SAFE_K and again.efficiency > tried.efficiency
    return (lighter, again) if fits else (proposal, tried)


def _expected_efficiency(other: Proposal, tried: Pilot) -> float:
    """Effective draws per proposal from another distribution, by importance sampling: (E w)^2 / E(w w')."""
    log_other = tried.log_density - other.log_density(tried.points)
    both = tried.log_ratio + log_other
    usable = np.isfinite(both)
    total = 2 * logsumexp(tried.log_ratio[usable]) - np.log(len(both)) - logsumexp(both[usable])
    return float(np.exp(total))


def sample(
    problem: Problem,
    options: Laplace,
    weighed: modes.Modes,
    proposal: Proposal,
    tried: Pilot,
    densities: Densities,
    rng: np.random.Generator,
    progress: Progress,
    checkpoint: Checkpoint = NOWHERE,
) -> Result:
    """Draw from the posterior, proposals and pilot being known.

    Proposals and uniforms come from `rng` alone, so a checkpoint keeps but the densities.
    """
    clock = time.perf_counter()
    chains = options.chains
    # Each chain begins at a proposal drawn by its importance ratio, so there is nothing to tune or to throw away.
    chance = np.exp(tried.log_ratio - tried.log_ratio.max())
    at = rng.choice(len(chance), size=chains, p=chance / chance.sum())
    points = proposal.sample(options.draws * chains, rng)
    uniforms = rng.random((options.draws, chains))
    progress.stage("proposals", len(points))
    kept = checkpoint.part("proposals")
    values = [np.empty(0) if (saved := kept.load()) is None else saved]

    def made() -> np.ndarray:
        return np.concatenate(values)

    interrupted = False
    try:
        for block in densities.blocks(points[len(values[0]) :]):
            values.append(block)
            progress.update(sum(map(len, values)))
            kept.save(made)
    except KeyboardInterrupt:
        interrupted = True
        kept.save(made, now=True)
    log_density = made()
    length = len(log_density) // chains
    if length == 0:
        raise KeyboardInterrupt
    log_density = log_density[: length * chains]
    points = points[: length * chains]
    log_ratio = log_density - proposal.log_density(points)
    taken, which, rate = _metropolis(log_ratio.reshape(length, chains), tried.log_ratio[at], uniforms[:length])
    # Rows of the starting points come before those of the proposals.
    rows = np.where(which < 0, np.arange(chains), chains + which * chains + np.arange(chains)).T
    all_points = np.concatenate([tried.points[at], points])[rows]
    lp = np.concatenate([tried.log_density[at], log_density])[rows]
    k = k_hat(np.concatenate([tried.log_ratio, log_ratio]))
    draws = problem.constrain(all_points)
    stats = {"lp": lp, "accepted": taken.T, "acceptance_rate": rate.T}
    report = weighed.found.report(problem.jacobian, weighed.chosen)
    problem.reached.keep(Result("laplace", draws, stats, report), UNJUDGED)
    findings = stopped(interrupted, length, options.draws) + _findings(weighed, k) + judge(draws, stats, {})
    info = {
        "options": dataclasses.asdict(options),
        "agreement": report.sentence,
        "starts": weighed.found.total,
        "k_hat": k,
        "modes": len(proposal.weights),
        "df": proposal.df,
        "acceptance_rate": float(taken.mean()),
        "density_evaluations": len(tried.log_ratio) + len(log_ratio),
        "interrupted": interrupted,
        "seconds_sampling": time.perf_counter() - clock,
    }
    return Result("laplace", draws, stats, report, findings, info)


def judge(draws: dict[str, np.ndarray], stats: dict[str, np.ndarray], options: dict[str, Any]) -> tuple[str, ...]:
    """R-hat and effective sample sizes; k-hat is judged once, with the run.

    A chain of proposals that do not depend on where it is cannot be stuck without k-hat saying so: one will do.
    """
    length = stats["lp"].shape[1]
    if length < 4:
        return (f"Only {length} draws per chain: convergence cannot be judged. Ask for more draws.",)
    return tuple(check.mixing(draws, one_will_do=True))


def _metropolis(
    log_ratio: np.ndarray, begin: np.ndarray, uniforms: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accept or keep, in order; `log_ratio` and `uniforms` `(draw, chain)`, `begin` `(chain,)`.

    Returns:
        Whether each proposal was accepted, the draw whose proposal the chain sits at (-1: where it began), and
        the probability of acceptance, each `(draw, chain)`.
    """
    now, at = begin.copy(), np.full(len(begin), -1)
    taken = np.empty(log_ratio.shape, bool)
    which, rate = np.empty(log_ratio.shape, int), np.empty(log_ratio.shape)
    for i, proposed in enumerate(log_ratio):
        rate[i] = np.exp(np.minimum(0.0, proposed - now))
        taken[i] = uniforms[i] < rate[i]
        now = np.where(taken[i], proposed, now)
        at = np.where(taken[i], i, at)
        which[i] = at
    return taken, which, rate


def _findings(weighed: modes.Modes, k: float) -> tuple[str, ...]:
    out = []
    if not k <= LARGEST_K:
        out.append(
            f"These draws are no posterior: the Pareto k-hat of the proposals is {k:.2f}, above {LARGEST_K}, so "
            "they hardly reach some part of it, and means and intervals may be far off. "
            'Use method="nuts".'
        )
    if weighed.uneven:
        out.append(
            "Components coincide at one of several modes and not at another, so the modes have different numbers of "
            'copies with other labels, and their shares of the draws may be wrong. Use method="smc".'
        )
    best = weighed.found.places[weighed.chosen]
    away = [p for p in weighed.found.places if p.kind == UNBOUNDED and p.log_density > best.log_density]
    if away:
        sites = ", ".join(repr(name) for name in dict.fromkeys(name for place in away for name in place.far_sites))
        out.append(
            f"From {sum(place.count for place in away)} of {weighed.found.total} starts the density grew without "
            f"bound while {sites} ran away; these draws know nothing of that. Give scales a prior that keeps them "
            'from 0 (LogNormal, InverseGamma), or use method="nuts".'
        )
    return tuple(out)
