"""The parameters of distributions, checked in NumPy as a program is read, and told with its line.

NumPyro checks parameters as well, whenever a distribution is made. It does so with JAX: operation by operation, each
compiled when it is first met, and in vain where a program is traced, since it then knows no number. marginalia makes a
program's distributions many times, always under trace; so here NumPyro's constraints are applied to NumPy arrays, and
parameters that are traced but read no latent are checked when their numbers are known (`Pending`).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import get_opaque_trace_state
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.distribution import COERCIONS

from marginalia.errors import ModelError, compose
from marginalia.places import spoken, user_line
from marginalia.shared import InPlace


@dataclass(frozen=True)
class Pending:
    """A parameter whose number is not known while the program runs; `check` it when it is."""

    value: Any
    check: Callable[[Any], None]


_thread = threading.local()


@contextmanager
def checked_parameters() -> Iterator[list[Pending]]:
    """Check the parameters of all distributions that this thread makes; those under trace come in the list."""
    pending: list[Pending] = []
    readings = _thread.__dict__.setdefault("readings", [])  # one program may be read inside another
    with _checks.wanted():
        readings.append((pending, get_opaque_trace_state(convention="flax")))
        try:
            yield pending
        finally:
            readings.pop()


def _make(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A distribution checked here, where this thread reads a program."""
    readings = getattr(_thread, "readings", None)
    if not readings:
        return None
    if cls.validate_args is not Distribution.validate_args or cls.__new__ is not object.__new__:
        return None  # it has its own way to be checked or made
    for other in tuple(COERCIONS):  # a handler that makes something else of distributions has its turn
        if other is not _make and (made := other(cls, args, kwargs)) is not None:
            return made
    fn = cls.__new__(cls)
    fn.validate_args = functools.partial(_validate, fn, _not_given(cls, args, kwargs), *readings[-1])
    try:
        fn.__init__(*args, **kwargs)
    finally:
        del fn.validate_args
    return fn


# First in the list, so that handlers that take theirs off its end find it there.
_checks = InPlace(lambda: COERCIONS.insert(0, _make), lambda: COERCIONS.remove(_make))


def _not_given(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[str]:
    """Parameters that the caller could have given and did not: they are computed from others (a Cholesky factor)."""
    names = list(cls.__signature__.parameters)
    given = dict(zip(names, args, strict=False)) | kwargs
    return {name for name in names if given.get(name) is None}


def _validate(fn: Any, computed: set[str], pending: list[Pending], trace: Any, strict: bool = False) -> None:
    """In place of `Distribution.validate_args`."""
    for name, value in fn.get_args().items():
        constraint = fn.arg_constraints[name]
        if name in computed or constraints.is_dependent(constraint):
            continue
        check = functools.partial(_check, type(fn).__name__, name, constraint, user_line())
        if not isinstance(value, jax.core.Tracer):
            check(value)
        elif get_opaque_trace_state(convention="flax") == trace:  # not inside a loop, say: such a value is no output
            pending.append(Pending(value, check))


def _check(distribution: str, name: str, constraint: Any, line: Any, value: Any) -> None:
    array = np.asarray(value) if isinstance(value, jax.Array | float | int) else value
    with jax.ensure_compile_time_eval():
        inside = constraint(array)
    if isinstance(inside, jax.core.Tracer) or (bad := ~np.asarray(inside, bool)).sum() == 0:
        return
    place = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
    first = np.asarray(array)[place].tolist() if np.ndim(array) >= len(place) else value
    at = "" if bad.all() else f" at index {place[0] if len(place) == 1 else place} (counting from 0)"
    more = f", and {bad.sum() - 1} more such values" if at and bad.sum() > 1 else ""
    raise ModelError(
        compose(
            f"`{name}` of dist.{distribution} has a value that it cannot have",
            where=spoken(line),
            expected=in_words(constraint),
            got=f"{first}{at}{more}",
            remedy="correct it where the program or its data compute it.",
        )
    )


_WORDS = {
    "Positive": "positive numbers",
    "Nonnegative": "numbers of at least 0",
    "Boolean": "0 or 1",
    "IntegerNonnegative": "whole numbers 0, 1, 2, ...",
    "IntegerPositive": "whole numbers 1, 2, 3, ...",
    "UnitInterval": "numbers between 0 and 1",
    "Simplex": "nonnegative numbers that sum to 1",
    "Real": "finite numbers",
    "RealVector": "finite numbers",
    "RealMatrix": "finite numbers",
    "PositiveDefinite": "a symmetric positive definite matrix",
    "PositiveSemiDefinite": "a symmetric positive semidefinite matrix",
    "LowerCholesky": "a lower triangular matrix with a positive diagonal",
    "CorrCholesky": "the lower Cholesky factor of a correlation matrix",
    "CorrMatrix": "a correlation matrix",
    "OrderedVector": "increasing numbers",
}


def in_words(constraint: Any) -> str:
    """A constraint of NumPyro, or its text, as one says it."""
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    text = str(constraint)
    return _WORDS.get(text.split("(")[0].strip("<>"), f"values inside {text}")
