"""The log evidence of a fit, from those methods that estimate it."""

from __future__ import annotations

from typing import NamedTuple

from marginalia.errors import FitError, compose
from marginalia.infer import Result


class LogEvidence(NamedTuple):
    """Log evidence and the standard error of that log.

    Example:
        >>> value, standard_error = fit.log_evidence    # doctest: +SKIP
    """

    value: float
    standard_error: float


def evidence_of(result: Result) -> LogEvidence:
    """What the method has found.

    Raises:
        FitError: The method estimates no evidence.
    """
    info = result.info
    if "log_evidence" not in info:
        raise FitError(
            compose(
                f"the method {result.method!r} estimates no evidence",
                where="log_evidence",
                remedy='fit with method="smc".',
            )
        )
    return LogEvidence(info["log_evidence"], info["log_evidence_error"])
