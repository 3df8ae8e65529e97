"""Options of the inference methods: small frozen classes that check themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from marginalia.errors import OptionError, compose


def _whole(owner: object, name: str, least: int, *, or_none: bool = False) -> None:
    """Refuse a value that is not a whole number of at least `least`."""
    value = getattr(owner, name)
    if or_none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        expected = f"a whole number of at least {least}" + (", or None" if or_none else "")
        _refuse(owner, name, expected, value)


def _flag(owner: object, name: str) -> None:
    """Refuse a value that is neither True nor False."""
    value = getattr(owner, name)
    if not isinstance(value, bool):
        _refuse(owner, name, "True or False", value)


def _refuse(owner: object, name: str, expected: str, value: object) -> None:
    raise OptionError(
        compose(
            f"the option {name!r} has a value that makes no sense",
            where=type(owner).__name__,
            expected=expected,
            got=repr(value),
        )
    )


@dataclass(frozen=True)
class NUTS:
    """The No-U-Turn sampler, started at the best of many optimised points.

    Args:
        draws: Draws kept per chain.
        tune: Steps per chain that adapt step size and metric; they are thrown away.
        chains: Number of independent chains.
        target_accept: Acceptance rate that the step size aims at; nearer to 1 means smaller steps.
        max_tree_depth: A trajectory has at most `2**max_tree_depth - 1` steps.
        dense_mass: Adapt a full metric instead of a diagonal one.
        starts: Number of optimisations that look for the starting point. None means 64, fewer where one
            evaluation reads a great many data.

    Raises:
        OptionError: A value makes no sense.

    Example:
        >>> NUTS(draws=500, chains=2).tune
        1000
    """

    draws: int = 1000
    tune: int = 1000
    chains: int = 4
    target_accept: float = 0.8
    max_tree_depth: int = 10
    dense_mass: bool = False
    starts: int | None = None

    def __post_init__(self) -> None:
        _whole(self, "draws", 1)
        _whole(self, "tune", 0)
        _whole(self, "chains", 1)
        _whole(self, "max_tree_depth", 1)
        _whole(self, "starts", 1, or_none=True)
        _flag(self, "dense_mass")
        accept = self.target_accept
        number = isinstance(accept, float) and math.isfinite(accept)
        if not number or not 0.0 < accept < 1.0:
            _refuse(self, "target_accept", "a number between 0 and 1, both excluded", accept)


@dataclass(frozen=True)
class MAP:
    """The most probable parameters: the best of many optimised starts, polished.

    Args:
        starts: Number of optimisations. None means 64, fewer where one evaluation reads a great many data.
        steps: Most iterations of one optimisation.
        jacobian: Maximise the density of the unconstrained parameters (True) or of the parameters as the
            program names them (False, the usual meaning of MAP).

    Raises:
        OptionError: A value makes no sense.

    Example:
        >>> MAP(starts=100).jacobian
        False
    """

    starts: int | None = None
    steps: int = 1000
    jacobian: bool = False

    def __post_init__(self) -> None:
        _whole(self, "starts", 1, or_none=True)
        _whole(self, "steps", 1)
        _flag(self, "jacobian")


@dataclass(frozen=True)
class Auto:
    """Let the library choose the method. For now it is NUTS with its defaults."""
