"""Checks that the options classes share: each names the class, the option, what was expected and what came."""

from __future__ import annotations

import math

from marginalia.errors import OptionError, compose


def whole(owner: object, name: str, least: int, *, or_none: bool = False) -> None:
    """Refuse a value that is not a whole number of at least `least`."""
    value = getattr(owner, name)
    if or_none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        expected = f"a whole number of at least {least}" + (", or None" if or_none else "")
        refuse(owner, name, expected, value)


def of_chains(owner: object) -> None:
    """Refuse senseless values of what all samplers of chains have in common: draws, tune, chains and starts."""
    whole(owner, "draws", 1)
    whole(owner, "tune", 0)
    whole(owner, "chains", 1)
    whole(owner, "starts", 1, or_none=True)


def flag(owner: object, name: str) -> None:
    """Refuse a value that is neither True nor False."""
    value = getattr(owner, name)
    if not isinstance(value, bool):
        refuse(owner, name, "True or False", value)


def one_of(owner: object, name: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not among the words `allowed`."""
    value = getattr(owner, name)
    if not isinstance(value, str) or value not in allowed:
        refuse(owner, name, "one of " + ", ".join(repr(word) for word in allowed), value)


def refuse(owner: object, name: str, expected: str, value: object) -> None:
    raise OptionError(
        compose(
            f"the option {name!r} has a value that makes no sense",
            where=type(owner).__name__,
            expected=expected,
            got=repr(value),
        )
    )


def positive(owner: object, name: str, *, or_none: bool = False) -> None:
    """Refuse a value that is no finite number above 0."""
    value = getattr(owner, name)
    if or_none and value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value <= 0:
        refuse(owner, name, "a number above 0" + (", or None" if or_none else ""), value)


def fraction(owner: object, name: str) -> None:
    """Refuse a value that is no number between 0 and 1, both excluded."""
    value = getattr(owner, name)
    number = isinstance(value, float) and math.isfinite(value)
    if not number or not 0.0 < value < 1.0:
        refuse(owner, name, "a number between 0 and 1, both excluded", value)
