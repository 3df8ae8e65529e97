"""float64 as a scope: nothing of the user's JAX settings is changed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import jax


def float64() -> AbstractContextManager[None]:
    """A scope in which JAX computes in double precision; the user's own setting returns at its end."""
    return jax.enable_x64(True)


def in_float64[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Run a function inside `float64()`."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with float64():
            return function(*args, **kwargs)

    return wrapped
