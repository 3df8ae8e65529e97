"""The factor graph: which elements of the discretes each element of each factor reads, pattern by pattern."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from marginalia.lanes.run import Ids, Run, as_run
from marginalia.lanes.value import Lane, full_ids

if TYPE_CHECKING:
    from marginalia.lanes.sums import Count


@dataclass(frozen=True, eq=False)
class Scope:
    """The static half of a factor: its shape and its lanes, without the table.

    Axes that are summed before anything else (`summed`, see `summed_first`) have length one.
    """

    shape: tuple[int, ...]
    lanes: tuple[Lane, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def run(self) -> Run | None:
        """The discretes that the elements read, one after the other, where each reads one and they are in order."""
        if len(self.lanes) != 1 or self.lanes[0].shape != self.shape:
            return None
        return as_run(self.lanes[0].held)


def summed_first(shape: tuple[int, ...], lanes: Sequence[Lane], scale: np.ndarray, kept: int = 0) -> tuple[int, ...]:
    """Axes along which a factor's elements all read the same discretes: their sum can stand for them.

    The columns of an event are such. The first `kept` axes stay, and all do where an element may read nothing.
    """
    axes = tuple(
        i
        for i, n in enumerate(shape)
        if i >= kept and n > 1 and scale.shape[i] == 1 and not any(lane.varies(i) for lane in lanes)
    )
    if not lanes or not axes:
        return ()
    return axes if all(isinstance(lane.held, Run) or (lane.held >= 0).all() for lane in lanes) else ()


@dataclass(frozen=True, eq=False)
class Source:
    """How a batch's table is cut from a factor's: which elements, which lanes kept, merged or fixed."""

    factor: int
    elements: np.ndarray | None
    """Flat positions of the factor's elements, None for all."""
    pattern: tuple[int, ...]
    """Per lane: itself, an earlier lane with the same identity (the diagonal), or -1 - s (fixed at state s)."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Elements that read equally many, distinct discretes: `scope[i, e]` is the i-th discrete of element e."""

    scope: Ids
    source: Source | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """All discretes (flat identities), their number of states, and the batches of factors between them.

    `component` is a run where there are many discretes and no factor reads two: each is a component of its own.
    """

    sizes: np.ndarray
    site: np.ndarray
    names: tuple[str, ...]
    offsets: np.ndarray
    batches: tuple[Batch, ...]
    component: Ids
    n_components: int

    @property
    def n(self) -> int:
        return len(self.sizes)


def build_graph(
    scopes: list[Scope],
    sizes: np.ndarray,
    site: np.ndarray,
    names: tuple[str, ...],
    offsets: np.ndarray,
    counts: Sequence[Count] = (),
) -> Graph:
    """Put the factors' scopes together; sums that are discretes of their own follow the program's discretes."""
    apart = None if counts else _apart(scopes, offsets)
    if apart is not None:
        n = len(sizes)
        return Graph(sizes, site, names, offsets, apart, Run(0, (n,)), n)
    batches: list[Batch] = []
    for i, scope in enumerate(scopes):
        batches.extend(split_by_pattern(i, scope))
    rows, columns = [], []
    for sums in counts:
        sizes = np.concatenate([sizes, np.full(len(sums.parents), sums.states)])
        site = np.concatenate([site, np.full(len(sums.parents), len(names))])
        names = (*names, "a sum of discretes")
        offsets = np.append(offsets, offsets[-1] + len(sums.parents))
        inside = sums.parents >= 0
        rows.append(np.broadcast_to(sums.identities[:, None], inside.shape)[inside])
        columns.append(sums.parents[inside])
    n = len(sizes)
    for batch in batches:
        for other in batch.scope[1:]:
            rows.append(batch.scope[0])
            columns.append(other)
    if rows:
        row, column = np.concatenate(rows), np.concatenate(columns)
        links = coo_matrix((np.ones(len(row), np.int8), (row, column)), shape=(n, n))
        count, label = connected_components(links, directed=False)
    else:
        count, label = n, np.arange(n)
    return Graph(sizes, site, names, offsets, tuple(batches), label, int(count))


def _apart(scopes: Sequence[Scope], offsets: np.ndarray) -> tuple[Batch, ...] | None:
    """The batches of many discretes of which no two meet, each factor over a whole site; None where it is otherwise."""
    if not any(isinstance(lane.held, Run) for scope in scopes for lane in scope.lanes):
        return None
    whole = {(int(a), int(b)) for a, b in itertools.pairwise(offsets)}
    batches = []
    for i, scope in enumerate(scopes):
        found = scope.run
        if found is None or (found.start, found.stop) not in whole:
            return None
        batches.append(Batch(found.reshape((1, found.size)), Source(i, None, (0,))))
    return tuple(batches)


def split_by_pattern(factor: int, scope: Scope) -> list[Batch]:
    """Split a factor's elements by which of their lanes are empty or coincide; usually one batch holds all."""
    ids = np.stack([full_ids(lane, scope.shape).reshape(-1) for lane in scope.lanes])
    count = len(ids)
    own = tuple(range(count))
    clean = bool((ids >= 0).all()) and all(
        not (ids[a] == ids[b]).any() for a in range(count) for b in range(a + 1, count)
    )
    if clean:
        return [Batch(ids, Source(factor, None, own))]
    pattern = np.tile(np.arange(count)[:, None], (1, ids.shape[1]))
    for a in range(count - 1, -1, -1):
        for b in range(a + 1, count):
            pattern[b] = np.where(ids[a] == ids[b], a, pattern[b])
    pattern = np.where(ids < 0, ids, pattern)
    kinds, which = np.unique(pattern, axis=1, return_inverse=True)
    which = which.reshape(-1)
    batches = []
    for k in range(kinds.shape[1]):
        elements = np.flatnonzero(which == k)
        kept = [i for i in range(count) if kinds[i, k] == i]
        chosen = None if len(elements) == ids.shape[1] else elements
        source = Source(factor, chosen, tuple(int(x) for x in kinds[:, k]))
        batches.append(Batch(ids[kept][:, elements], source))
    return batches


def neighbours(batches: list[Batch], n: int) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs (discrete, other discrete in some factor with it), each once, sorted."""
    codes: list[np.ndarray] = []
    for batch in batches:
        count = len(batch.scope)
        if count < 2:
            continue
        held = np.asarray(batch.scope)
        scope = held[:, held[0] >= 0].astype(np.int64)
        codes.extend(scope[a] * n + scope[b] for a in range(count) for b in range(count) if a != b)
    if not codes:
        empty = np.zeros(0, np.int64)
        return empty, empty
    unique = np.unique(np.concatenate(codes))
    return unique // n, unique % n
