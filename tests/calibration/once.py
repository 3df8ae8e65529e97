"""Fits of one program to many data sets with one compilation of everything.

`mg.fit` compiles anew for each call, seconds for what then runs in a tenth of one. Here the parts that compile (the
density, the optimiser, the samplers) are made once per program and handed to every call, and the data are an argument
of all of them. All else is `mg.fit` as it is: starts, choice, draws, relabelling and verdict.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

import marginalia as mg
from marginalia import fitting
from marginalia.infer import auto, bridge, driver, laplace, nuts, smc, starts
from marginalia.infer.densities import Densities
from marginalia.infer.problem import Problem
from marginalia.marginal.kernel import Kernel
from marginalia.ondraws import OnDraws
from marginalia.precision import float64


class CompiledDensities(Densities):
    """Compiles at the first call only."""

    def compile(self) -> None:
        if self._compiled is None:
            super().compile()


class CompiledSampler(nuts.Sampler):
    """Compiles at the first call only."""

    def compile(self) -> None:
        if self._compiled is None:
            super().compile()


@contextlib.contextmanager
def fitting_of(program: Callable[..., None], first: np.ndarray) -> Iterator[Callable[..., Any]]:
    """A function `(y, method, random_seed) -> Fit` for data of the shape of `first`.

    >>> with fitting_of(model, y[0]) as fit:
    ...     fits = [fit(one, mg.NUTS(), 1) for one in y]
    """
    marginal = mg.marginalize(program, first)
    data = [
        i
        for i, value in enumerate(marginal.kernel.data)
        if np.shape(value) == first.shape and np.array_equal(value, first)
    ]
    if not data:
        raise RuntimeError("the program closes over no array that is the data")
    opened = functools.partial(Kernel, open_data=frozenset(data))
    with float64():
        marginal.kernel = opened(marginal.program)
    kernel, engine = marginal.kernel, OnDraws(marginal)
    problem = Problem(marginal, jacobian=True)

    def same_problem(other: Any, *, jacobian: bool, one_labelling: Any, mirrors: Any) -> Problem:
        if not jacobian:
            raise RuntimeError("the density here has the Jacobian")
        problem.marginal, problem.data = other, other.kernel.data
        problem.one_labelling, problem.mirrors = one_labelling, mirrors
        return problem

    def same_engine(other: Any) -> OnDraws:
        engine.marginal, engine.program = other, other.program
        engine.__dict__["_data"] = other.kernel.data
        return engine

    def fit(y: np.ndarray, method: Any, random_seed: int) -> Any:
        again = mg.marginalize(program, y)
        kernel.data, again.kernel = again.kernel.data, kernel
        return mg.fit(again, method=method, random_seed=random_seed, progressbar=False)

    once = functools.cache
    optimiser, sampler, mover = once(starts.Optimiser), once(CompiledSampler), once(smc.Mover)
    densities, path = once(CompiledDensities), once(bridge.Bridge)
    with contextlib.ExitStack() as patches:
        for module, name, other in (
            (driver, "Problem", same_problem),
            (fitting, "OnDraws", same_engine),
            (starts, "Optimiser", optimiser),
            (nuts, "Sampler", sampler),
            (laplace, "Densities", densities),
            (auto, "Densities", densities),
            (smc, "Mover", mover),
            (smc, "Bridge", path),
            (bridge, "Kernel", opened),
        ):
            patches.enter_context(mock.patch.object(module, name, other))
        yield fit
