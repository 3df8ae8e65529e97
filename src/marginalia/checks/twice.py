"""The same data observed at two sites: they would count twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marginalia.checks.findings import Finding
from marginalia.checks.survey import Seen

ENOUGH_FRACTIONS, ENOUGH_WHOLE = 8, 20
"""Distinct values from which equal arrays are taken for copies; below, two columns may agree by accident."""


def observed_twice(sites: Sequence[Seen]) -> list[Finding]:
    """Pairs of sites that share numbers in memory, or all of whose values are equal and many.

    What a mask hides is not observed, so two sites with opposite masks share nothing. An array of one value only, such
    as the zeros of a penalty, is no data.
    """
    observed = [s for s in sites if s.kind == "observed" and s.value is not None and s.value.size and not s.masked_out]
    if len(observed) < 2:
        return []
    pairs = _by_memory(observed)
    for pair, count in _by_value(observed).items():
        pairs.setdefault(pair, count)
    return [_finding(observed[a], observed[b], n) for (a, b), n in sorted(pairs.items())]


def _by_memory(observed: Sequence[Seen]) -> dict[tuple[int, int], int]:
    """How many elements each pair of sites shares."""
    elements, owners = [], []
    for i, seen in enumerate(observed):
        if seen.elements is None or seen.value is None or not _varies(seen.value):
            continue
        own = np.unique(seen.elements[seen.used])
        elements.append(own)
        owners.append(np.full(len(own), i))
    if len(elements) < 2:
        return {}
    where, owner = np.concatenate(elements), np.concatenate(owners)
    order = np.argsort(where, kind="stable")
    where, owner = where[order], owner[order]
    pairs: dict[tuple[int, int], int] = {}
    # Elements of one place in memory lie side by side; a place that k sites read is k long.
    for step in range(1, len(elements)):
        same = where[step:] == where[:-step]
        if not same.any():
            break
        both, counts = np.unique(np.stack([owner[:-step][same], owner[step:][same]]), axis=1, return_counts=True)
        for (a, b), count in zip(both.T, counts, strict=True):
            key = (int(a), int(b))
            pairs[key] = pairs.get(key, 0) + int(count)
    return pairs


def _by_value(observed: Sequence[Seen]) -> dict[tuple[int, int], int]:
    first: dict[bytes, int] = {}
    pairs: dict[tuple[int, int], int] = {}
    for i, seen in enumerate(observed):
        values = np.asarray(seen.value, float)[seen.used].reshape(-1)
        if not _telling(values):
            continue
        before = first.setdefault(values.tobytes(), i)
        if before != i:
            pairs[before, i] = values.size
    return pairs


def _varies(value: np.ndarray) -> bool:
    return bool((value != value.reshape(-1)[0]).any())


def _telling(values: np.ndarray) -> bool:
    """Whether another array with these very values must be a copy."""
    whole = not np.any(values != np.round(values))
    enough = ENOUGH_WHOLE if whole else ENOUGH_FRACTIONS
    return values.size >= enough and len(np.unique(values[np.isfinite(values)])) >= enough


def _finding(first: Seen, second: Seen, count: int) -> Finding:
    largest = max(int(first.used.sum()), int(second.used.sum()))
    share = f"the same {count} values" if count == largest else f"{count} values that are the same"
    return Finding(
        "twice",
        f"sites '{first.name}' and '{second.name}'",
        "the same data are observed twice, so they count twice and every interval comes out too narrow",
        expected="each value observed at one site",
        got=share,
        remedy="a mixture observes its data once: draw which part holds, `z = numpyro.sample('z', dist.Categorical(w))`"
        ", and observe with its parameters, `numpyro.sample('y', dist.Normal(loc[z], scale[z]), obs=y)`. Adding or "
        "scaling what `numpyro.sample(..., obs=y)` returns changes nothing: it returns the data.",
    )
