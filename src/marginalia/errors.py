"""Every error that marginalia shows to a user.

A message says what is wrong, where (site, column, row), what was expected, what was got and what to do.
"""

from __future__ import annotations


class MarginaliaError(Exception):
    """Base class of all errors that marginalia raises on purpose."""


class DataError(MarginaliaError, ValueError):
    """The data cannot be used: a wrong shape, a missing value, a value outside a support."""


class ModelError(MarginaliaError, ValueError):
    """The program cannot be read, or a site of it cannot be what it is declared to be."""


class Refusal(MarginaliaError, NotImplementedError):
    """The discretes of this program cannot be summed out exactly within the limits.

    Raised instead of an approximate or wrong density. The message names the variables, the number of states,
    the limit and the remedy.
    """


class OptionError(MarginaliaError, ValueError):
    """An option of a method or command has a value that makes no sense."""


class FitError(MarginaliaError, RuntimeError):
    """Inference could not start or cannot answer: no finite start, or a verb that this fit cannot serve."""


class MarginaliaWarning(UserWarning):
    """A fit was made, but something about it is wrong: the warning says what, and what to do."""


class Message(str):
    """The text of an error that still knows its parts."""

    what: str
    where: str
    expected: str
    got: str
    remedy: str


def compose(what: str, *, where: str = "", expected: str = "", got: str = "", remedy: str = "") -> Message:
    """Put the parts of a message together, in the order in which a person reads them."""
    parts = [f"{where}: {what}" if where else what]
    if expected:
        parts.append(f"Expected {expected}.")
    if got:
        parts.append(f"Got {got}.")
    if remedy:
        parts.append(f"Remedy: {remedy}")
    first, *rest = parts
    first = first if first.endswith((".", "!", "?")) else first + "."
    message = Message(" ".join([first, *rest]))
    message.what, message.where, message.expected, message.got, message.remedy = what, where, expected, got, remedy
    return message
