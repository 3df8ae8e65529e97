"""Observed values that cannot be: missing, infinite, outside the support; and sites that a mask silences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from marginalia.checks.findings import Finding
from marginalia.checks.survey import Seen
from marginalia.data_checks import check_observed
from marginalia.errors import DataError


def impossible_values(seen: Seen) -> list[Finding]:
    """What is wrong with the values of an observed site: one finding for each way in which they are wrong."""
    if seen.kind != "observed" or seen.value is None:
        return []
    found = []
    for value, inside in _one_fault_at_a_time(seen.value, seen.inside):
        try:
            check_observed(seen.name, seen.distribution, value, seen.mask, inside, seen.element_dim, seen.support)
        except DataError as error:
            found.append(Finding.of_error("data", error))
    return found


def _one_fault_at_a_time(
    value: np.ndarray, inside: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    if value.dtype.kind != "f":
        yield value, inside
        return
    yield np.where(np.isinf(value), 0.0, value), None
    yield np.where(np.isnan(value), 0.0, value), None
    if inside is not None:
        finite = np.isfinite(value)
        event = tuple(range(min(inside.ndim, value.ndim), value.ndim))
        yield np.where(finite, value, 0.0), inside | ~finite.all(axis=event)


def silenced(seen: Seen) -> list[Finding]:
    """An observed site whose every value is masked."""
    if seen.kind != "observed" or not seen.masked_out:
        return []
    return [
        Finding(
            "masked",
            f"site '{seen.name}'",
            "every value is masked, so these data say nothing",
            expected="a mask that is true where a value counts",
            got=f"{seen.used.size} values, all masked",
            remedy="turn the mask round if it marks the missing values: `mask=~jnp.isnan(y)`.",
        )
    ]
