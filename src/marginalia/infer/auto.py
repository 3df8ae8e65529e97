"""The choice of a method, by what is measured on the way: modes, their masses, and how Laplace's proposals fit.

1. Starts find the modes, and their curvature weighs them.
2. Where there is a shape to propose from, and parameters are few, a thousand proposals of Laplace are
   tried: their Pareto k-hat and their efficiency say whether they would do.
3. **Laplace**, if they fit (k-hat at most 0.7, at least a tenth as good as independent draws, and more than one
   start agrees on the mode) and the data are many, so that a gradient is dear and the posterior nearly Gaussian. The
   whole run is judged as any other, its k-hat included; where proposals are only too few, more are made. If anything
   else is found, the choice goes on. With few data it is not taken: of eight seeds on the galaxies one had a k-hat of
   less than 0.7 and a component's mean off by half its standard deviation, with nothing to be found in the draws.
4. Else, with few data and few parameters, the **ensemble**: Hamiltonian chains tuned together, which run on until the
   judge is content, up to a stated number of draws. Where there are several modes, chains begin at each and jump
   between them (`jumps.py`). If anything is found, a draw that diverged for one, the choice goes on.
5. Else **NUTS**, which runs on in the same way, jumps included.
6. Then **SMC**, if the chains have missed a mode or disagree where there are several; up to a stated number of
   gradients. If it finds no more than that, or cannot end, the draws of the chains are kept, with what was found.

What a road costs is counted in gradients, never in seconds: the same seed makes the same choice on a busy machine.

A draw of the chains needs some ten gradients, one after another; a draw of Laplace one density, all at the same time.
With few data both take less than the compilation, and chains also find their way to places that no start has seen,
so they are preferred there. The ensemble comes before NUTS because it is compiled already: it moves by the program
that has found the modes, where NUTS has one of its own that takes seconds to compile.
"""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import Future
from typing import Any

import numpy as np

from marginalia.errors import FitError
from marginalia.infer import check, ensemble, laplace, modes, nuts, smc
from marginalia.infer.checkpoint import NOWHERE, Checkpoint
from marginalia.infer.chees import Stepper
from marginalia.infer.densities import FEW_DATA, Densities
from marginalia.infer.options import NUTS, SMC, Auto, Ensemble, Laplace
from marginalia.infer.pareto import LARGEST_K
from marginalia.infer.problem import Problem
from marginalia.infer.progress import Progress
from marginalia.infer.reached import REFUSED
from marginalia.infer.result import Result
from marginalia.infer.search import search
from marginalia.precision import in_float64
from marginalia.running import Threads

MOST_DIMENSIONS = 150  # independent proposals in more are mostly refused
MOST_MOVED = 50  # parameters of the ensemble, whose metric is dense
MOST_WORK = 1.5e10  # operations, gradients times the work of one, that SMC or a prolonged NUTS may take: some 15 s
LEAST_EFFICIENCY = 0.1
USUAL_EFFICIENCY = 0.25  # below it, more proposals are made, to give as many effective draws
MORE_POINTS = 4  # times as many, where SMC's points or Laplace's proposals were too few
HOPELESS_RHAT = 1.1  # of Laplace's chains: four times the proposals would not do
NAMES = {"laplace": "Laplace", "ensemble": "the ensemble", "nuts": "NUTS", "smc": "SMC"}
MOST_BY_ENSEMBLE = 4000  # draws a chain: where these are too few, NUTS needs fewer gradients
TUNE_ENSEMBLE = 300  # steps: its metric begins with the curvature at the mode
SUPERCHAINS = 2
FEWEST_AGREEING = 2  # starts that must have reached the mode


def run(
    problem: Problem,
    options: Auto,
    rng: np.random.Generator,
    progress: Progress,
    checkpoint: Checkpoint = NOWHERE,
) -> Result:
    """Choose a method and draw from the posterior; `info["choice"]` says which, and why.

    Raises:
        FitError: No start has a finite density.
        KeyboardInterrupt: Stopped by the user before there was one draw.
    """
    densities = Densities(problem)
    many = problem.data_size >= FEW_DATA
    tries = problem.dimension <= MOST_DIMENSIONS
    sampler = nuts.Sampler(problem, _nuts(options), MOST_WORK / problem.work)
    chains = _ensemble(options) if problem.dimension <= MOST_MOVED and not many else None
    problem.evaluator.follows = chains is not None
    with Threads(1) as pool:
        # What will most likely be needed compiles while the starts run.
        compiling: list[Future[Any]] = [pool.submit(in_float64(problem.evaluator.compile))]
        compiling += [pool.submit(in_float64(densities.compile))] if many and tries else []
        compiling += [] if (tries and many) or chains else [pool.submit(in_float64(sampler.compile))]
        clock = time.perf_counter()
        weighed = search(problem, options.starts, rng, progress, checkpoint.part("modes"))
        seconds_starts = time.perf_counter() - clock
        for job in compiling:
            job.result()
    # The pilot has randomness of its own: a resumed run tries the same proposals.
    own, rng = rng.spawn(2)
    proposal = laplace.propose(problem, weighed, None) if weighed.comparable and tries else None
    tried = laplace.pilot(proposal, densities, own) if proposal else None
    if proposal and tried and many and _fits(weighed, tried):
        proposal, tried = laplace.with_lighter_tails(proposal, tried, densities, own)
    several, some = len(weighed.comparable) > 1, len(weighed.every) > 1
    measured = _measured(problem, weighed, tried)
    reasons: list[str] = []
    result = None
    if proposal and tried and many and _fits(weighed, tried):
        result = _by_laplace(problem, options, weighed, proposal, tried, densities, rng, progress, checkpoint)
        if result is None:
            measured.append("Laplace did not pass the checks")
        else:
            reasons.append("its proposals fit" + (", and visit each mode as often as it deserves" if some else ""))
    if result is None and chains and weighed.comparable:
        result = _by_ensemble(problem, chains, weighed, rng, progress, checkpoint, measured, reasons)
    if result is None:
        result = nuts.sample(problem, sampler, weighed, rng, progress, checkpoint)
        reasons.append("it follows the density wherever it leads" if many else "with so few data gradients are cheap")
    if some and result.method != "laplace" and not result.info["interrupted"]:
        missed = result.info["missed_modes"]
        if missed or (several and result.findings):
            what = "missed a mode" if missed else "did not agree on the modes"
            reasons[-1:] = [f"{NAMES[result.method]} {what}"]
            problem.reached.keep(result, REFUSED)
            result = _tempered(problem, options, weighed, rng, progress, checkpoint, reasons) or result
        elif several:
            reasons.append("its chains jump between the modes")
    made = next(iter(result.draws.values())).shape[1]
    if made > options.draws:
        reasons.append(f"{made} draws a chain, not {options.draws}, to have enough effective ones")
    info = {
        **result.info,
        "choice": f"{_capital(NAMES[result.method])} was chosen ({', '.join(measured)}): {'; '.join(reasons)}.",
        "k_hat": tried.k_hat if tried and result.method != "laplace" else result.info.get("k_hat"),
        "seconds_starts": seconds_starts,
    }
    return dataclasses.replace(result, info=info)


def _by_laplace(
    problem: Problem,
    options: Auto,
    weighed: modes.Modes,
    proposal: laplace.Proposal,
    tried: laplace.Pilot,
    densities: Densities,
    rng: np.random.Generator,
    progress: Progress,
    checkpoint: Checkpoint,
) -> Result | None:
    """Laplace's result, with more proposals where the first are too few; None where anything else is found in it."""
    draws = options.draws * max(1, int(np.ceil(USUAL_EFFICIENCY / tried.efficiency)))
    while True:
        chosen = Laplace(draws, options.chains, starts=options.starts)
        own, kept = rng.spawn(1)[0], checkpoint.part(f"laplace{draws}")
        result = laplace.sample(problem, chosen, weighed, proposal, tried, densities, own, progress, kept)
        if not result.findings or result.info["interrupted"]:
            return result
        problem.reached.keep(result, REFUSED)
        doubt = check.doubt(problem.one_labelling(result.draws, result.stats["lp"]))
        draws *= MORE_POINTS
        hopeless = doubt.worst_rhat > HOPELESS_RHAT or result.info["k_hat"] > laplace.SAFE_K
        if not doubt.any or hopeless or draws > options.max_draws:
            return None


def _by_ensemble(
    problem: Problem,
    options: Ensemble,
    weighed: modes.Modes,
    rng: np.random.Generator,
    progress: Progress,
    checkpoint: Checkpoint,
    measured: list[str],
    reasons: list[str],
) -> Result | None:
    """The ensemble's result, unless anything but a missed mode was found in it. Adds to `measured` or `reasons`."""
    stepper = Stepper(problem, options.tune, options.target_accept, ensemble.BLOCK)
    own = rng.spawn(1)[0]
    result = ensemble.sample(problem, stepper, weighed, options, own, progress, checkpoint.part("ensemble"))
    alone = len(weighed.comparable) == 1
    if not result.findings or result.info["interrupted"] or (alone and result.info["missed_modes"]):
        reasons.append("with so few data gradients are cheap")
        return result
    measured.append("the ensemble did not pass the checks")
    problem.reached.keep(result, REFUSED)
    return None


def _tempered(
    problem: Problem,
    options: Auto,
    weighed: modes.Modes,
    rng: np.random.Generator,
    progress: Progress,
    checkpoint: Checkpoint,
    reasons: list[str],
) -> Result | None:
    """SMC, with more points where the first are too few; None where it cannot begin or end. Adds to `reasons`."""
    draws, left = options.draws, MOST_WORK / problem.work
    while True:
        try:
            kept = checkpoint.part(f"smc{draws}")
            method = SMC(max(10, draws), options.chains)
            result = smc.run(problem, method, rng.spawn(1)[0], progress, kept, most_gradients=left)
        except smc.NoEnd as error:
            reasons.append(f"SMC was given up {error.reached}")
            return None
        except FitError:
            reasons.append("SMC cannot begin, as it needs draws from a proper prior")
            return None
        spent = result.info["gradient_evaluations"]
        left -= spent
        if not result.findings or draws * MORE_POINTS > options.max_draws or MORE_POINTS * spent > left:
            break
        problem.reached.keep(result, REFUSED)
        draws *= MORE_POINTS
    reasons.append("a cloud of points goes to each mode as often as it deserves")
    return dataclasses.replace(result, starts=weighed.found.report(problem.jacobian, weighed.chosen))


def _fits(weighed: modes.Modes, tried: laplace.Pilot) -> bool:
    """Whether Laplace's proposals would do, and all agree on the modes that they come from."""
    best = weighed.found.places[weighed.chosen]
    return tried.k_hat <= LARGEST_K and tried.efficiency >= LEAST_EFFICIENCY and best.count >= FEWEST_AGREEING


def _measured(problem: Problem, weighed: modes.Modes, tried: laplace.Pilot | None) -> list[str]:
    """What speaks for or against a method, in words."""
    out = [f"{problem.dimension} parameters, {problem.data_size} numbers of data"]
    out.append(f"{weighed.found.places[weighed.chosen].count} of {weighed.found.total} starts agree")
    if len(weighed.comparable) > 1:
        out.append(f"{len(weighed.comparable)} modes of comparable mass")
    if not weighed.comparable:
        out.append("no mode has the curvature of a peak")
    elif tried is None:
        out.append(f"more than {MOST_DIMENSIONS} parameters are too many for Laplace")
    else:
        out.append(f"Pareto k-hat of Laplace {tried.k_hat:.2f}")
    return out


def _ensemble(options: Auto) -> Ensemble | None:
    """As many chains as asked for, if they can be halved into superchains."""
    if options.chains < 2 * SUPERCHAINS or options.chains % SUPERCHAINS:
        return None
    return Ensemble(
        options.draws,
        min(options.tune, TUNE_ENSEMBLE),
        options.chains,
        SUPERCHAINS,
        starts=options.starts,
        max_draws=min(options.max_draws, max(MOST_BY_ENSEMBLE, options.draws)),
    )


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def _nuts(options: Auto) -> NUTS:
    return NUTS(options.draws, options.tune, options.chains, starts=options.starts, max_draws=options.max_draws)
