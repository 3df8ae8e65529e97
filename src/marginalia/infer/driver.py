"""The one place that runs an inference method: options in, result out."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from marginalia.errors import OptionError, compose
from marginalia.infer import advi, auto, check, ensemble, laplace, metropolis, nuts, smc
from marginalia.infer import map as map_
from marginalia.infer import slice as slice_
from marginalia.infer.checkpoint import NOWHERE, Nowhere, OnDisk, identify, open_checkpoint
from marginalia.infer.options import ADVI, MAP, NUTS, SMC, Auto, Ensemble, Laplace, Metropolis, Slice
from marginalia.infer.problem import Labelling, Mirrors, Problem
from marginalia.infer.progress import Watched, make_progress
from marginalia.infer.result import Result
from marginalia.precision import float64

type Judge = Callable[[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]], tuple[str, ...]]


class Method(NamedTuple):
    """A method.

    Attributes:
        options: Its options class.
        run: From problem, options, randomness and progress to the result, `judge`'s sentences among its findings.
        judge: From draws, statistics and options (as a dict) to findings; asked again once draws are relabelled.
        jacobian: Whether its density includes the Jacobian.
        resumes: Whether `run` takes a checkpoint too, and goes on from what it holds. For the others a checkpoint
            keeps the seed and the finished result.
    """

    options: type
    run: Callable[..., Result]
    judge: Judge
    jacobian: Callable[[Any], bool]
    resumes: bool = False


def _always(options: Any) -> bool:
    return True


def _nothing(draws: dict[str, np.ndarray], stats: dict[str, np.ndarray], options: dict[str, Any]) -> tuple[str, ...]:
    return ()


# A new method: a module with `run(problem, options, rng, progress) -> Result`, an options class, a line here.
METHODS: dict[str, Method] = {
    "auto": Method(Auto, auto.run, _nothing, _always, resumes=True),  # its result is that of the method it chose
    "advi": Method(ADVI, advi.run, advi.judge, _always, resumes=True),
    "nuts": Method(NUTS, nuts.run, check.hmc, _always, resumes=True),
    "ensemble": Method(Ensemble, ensemble.run, ensemble.judge, _always, resumes=True),
    "laplace": Method(Laplace, laplace.run, laplace.judge, _always, resumes=True),
    "smc": Method(SMC, smc.run, smc.judge, _always, resumes=True),
    "metropolis": Method(Metropolis, metropolis.run, metropolis.judge, _always, resumes=True),
    "slice": Method(Slice, slice_.run, slice_.judge, _always, resumes=True),
    "map": Method(MAP, map_.run, _nothing, lambda options: options.jacobian),
}
COMPLETE = "complete"

type Options = ADVI | NUTS | SMC | Ensemble | Laplace | MAP | Metropolis | Slice | Auto


def options_from(method: str | Options) -> Options:
    """The options that a method's name stands for; options pass unchanged.

    Raises:
        OptionError: No method has this name, or it is neither a name nor options.

    Example:
        >>> options_from("nuts").draws
        1000
    """
    classes = {name: entry.options for name, entry in METHODS.items()}
    if isinstance(method, str) and method in classes:
        return classes[method]()
    if not isinstance(method, str) and type(method) in classes.values():
        return method
    known = ", ".join(repr(name) for name in classes)
    spelled = ", ".join(f"mg.{cls.__name__}(...)" for cls in classes.values())
    raise OptionError(
        compose(
            "there is no such method",
            where="method",
            expected=f"one of {known}, or {spelled}",
            got=repr(method),
        )
    )


def run(
    marginal: Any,
    options: str | Options = "auto",
    *,
    random_seed: int | None = None,
    progressbar: bool = True,
    checkpoint: str | Path | None = None,
    one_labelling: Labelling | None = None,
    mirrors: Mirrors | None = None,
) -> Result:
    """Infer the continuous latents of a marginal.

    Args:
        marginal: From `mg.marginalize`.
        options: A method's options or its name.
        random_seed: The same whole number gives byte-identical draws. None draws a number, which
            `info["random_seed"]` keeps.
        progressbar: Show progress on standard error.
        checkpoint: A file that keeps the state of the run. The same call goes on from there and ends in the same
            draws, byte for byte; when the run is complete it gives them at once.
        one_labelling: How draws are put under one labelling before a method judges them (see `Problem`).
        mirrors: Which sites are reflected when two labels change places (see `Problem`).

    Raises:
        DataError: The checkpoint is damaged, cannot be written, is of another model, of other data or versions, or
            another run has it open.
        OptionError: Unknown method, or a seed that is no whole number of at least 0.
        FitError: There are no continuous latents, or no start has a finite density.
        KeyboardInterrupt: Stopped by the user before there was anything to keep. Later there is a result, whose
            first finding says what it is: the draws so far, or else a mode, or points.
    """
    chosen = options_from(options)
    method = next(entry for entry in METHODS.values() if isinstance(chosen, entry.options))
    begun = time.perf_counter()
    kept, seed = _opened(checkpoint, marginal, chosen, random_seed)
    with contextlib.closing(kept), float64():
        done = kept.part(COMPLETE).load()
        if done is not None:
            return done
        jacobian = method.jacobian(chosen)
        problem = Problem(marginal, jacobian=jacobian, one_labelling=one_labelling, mirrors=mirrors).recalled()
        progress = Watched(make_progress(progressbar))
        more = (kept,) if method.resumes else ()
        try:
            # Chains run in threads already: more threads in each small triangular solve only wait for each other.
            with threadpool_limits(1, user_api="blas"):
                result = _run_or_stop(method, problem, chosen, np.random.default_rng(seed), progress, *more)
        finally:
            progress.close()
        info = {
            "options": dataclasses.asdict(chosen),
            "random_seed": seed,
            "dimension": problem.dimension,
            "seconds": time.perf_counter() - begun,
            "traces": problem.traces,
            **result.info,
        }
        result = dataclasses.replace(result, info=info)
        if not info.get("interrupted"):
            kept.only(COMPLETE, result)
    return result


def _run_or_stop(
    method: Method, problem: Problem, options: Any, rng: np.random.Generator, progress: Watched, *more: Any
) -> Result:
    """The method's result, or what there is where the user stopped it before it had draws."""
    try:
        return method.run(problem, options, rng, progress, *more)
    except KeyboardInterrupt:
        result = problem.reached.result(problem, progress.where)
        if result is None:
            raise
        return result


def _opened(
    path: str | Path | None, marginal: Any, options: Any, random_seed: int | None
) -> tuple[OnDisk | Nowhere, int]:
    """The checkpoint of this run, or nothing that looks like one; and the seed."""
    if path is None:
        return NOWHERE, _seed(random_seed)
    given = None if random_seed is None else _seed(random_seed)
    file = open_checkpoint(path, identify(marginal, options, given), lambda: _seed(None))
    return file, file.seed


def judge(result: Result, draws: dict[str, np.ndarray]) -> tuple[str, ...]:
    """What the method has to say of draws that came from a result: its own, or the same ones relabelled."""
    return METHODS[result.method].judge(draws, result.stats, result.info.get("options", {}))


def _seed(random_seed: int | None) -> int:
    if random_seed is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    whole = isinstance(random_seed, int | np.integer) and not isinstance(random_seed, bool)
    if not whole or random_seed < 0:
        raise OptionError(
            compose(
                "the seed makes no sense",
                where="random_seed",
                expected="a whole number of at least 0, or None",
                got=repr(random_seed),
            )
        )
    return int(random_seed)
