"""The elimination plan: in which rounds the discretes are summed out, decided once, from the graph alone.

A round eliminates many discretes at once, no two of which share a factor. All those that look alike (same number of
states, same number and sizes of neighbours) form a group and are handled by one array operation: the independent
elements of a mixture are one group without neighbours; the rows under a group-level latent are one group whose
message goes to their parent; a chain halves in every round. The cheapest discretes go first (weighted minimum degree),
so trees cost no more than their tables, and a clique beyond the limit is refused before anything is computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from marginalia.lanes import bounds
from marginalia.lanes.run import Ids, Run
from marginalia.lanes.sums import Count
from marginalia.marginal.chain import Chains, find_chains
from marginalia.marginal.count import Counted, find_counted
from marginalia.marginal.graph import Batch, Graph, neighbours
from marginalia.marginal.pieces import Piece, pieces_of


@dataclass(frozen=True, eq=False)
class Group:
    """Discretes eliminated by one array operation; `neighbours[j, s]` is the j-th neighbour of the s-th of them."""

    variables: Ids
    states: int
    neighbours: np.ndarray
    neighbour_states: tuple[int, ...]
    pieces: tuple[Piece, ...]
    message: int | None
    """Index of the batch that its message becomes, None at a root."""

    @property
    def elements(self) -> int:
        return len(self.variables)

    @property
    def clique(self) -> int:
        """Joint states of one discrete and its neighbours."""
        return self.states * math.prod(self.neighbour_states)


@dataclass(frozen=True, eq=False)
class Plan:
    graph: Graph
    rounds: tuple[tuple[Group | Chains | Counted, ...], ...]
    root_components: Ids
    """Component of each root, in the order in which the rounds meet them."""
    ordered: bool = field(default=False)

    @property
    def largest_clique(self) -> int:
        return max((g.clique for r in self.rounds for g in r), default=1)

    @property
    def numbers(self) -> int:
        return sum(g.clique * g.elements for r in self.rounds for g in r)


def make_plan(graph: Graph, counts: Sequence[Count] = ()) -> Plan:
    """Decide the rounds. Raises `Refusal` when some clique exceeds the limits.

    The parts of a sum wait until they can be convolved, and the sum waits for them.
    """
    if isinstance(graph.component, Run):
        return _apart(graph)
    live = {i: b for i, b in enumerate(graph.batches) if len(b.scope)}
    next_batch = len(graph.batches)
    remaining = np.ones(graph.n, bool)
    rounds: list[tuple[Group | Chains | Counted, ...]] = []
    roots: list[np.ndarray] = []
    waiting = list(counts)
    while remaining.any():
        first, other = neighbours(list(live.values()), graph.n)
        counted = find_counted(graph, live, waiting, first, other, next_batch)
        if counted is not None:
            _guard(graph, counted.count.identities, counted.shared, counted.clique)
            next_batch += 1
            live = _without(live, counted.variables, graph.n)
            live[counted.message] = Batch(counted.scope)
            remaining[counted.variables] = False
            waiting.remove(counted.count)
            rounds.append((counted,))
            continue
        ready = remaining.copy()
        for count in waiting:
            ready[count.parents[count.parents >= 0]] = False
            ready[count.identities] = False
        if not ready.any():
            _refuse_counts(graph, waiting)
        inner = _inner(graph, ready, first, other)
        chains = [] if len(inner) else find_chains(graph, live, remaining, ready, first, other)
        if chains:
            # A chain is a whole component: nothing else reads its discretes, and it leaves no message.
            for chain in chains:
                roots.append(graph.component[chain.order[:, 0]])
                remaining[chain.variables] = False
            live = _without(live, np.concatenate([chain.variables for chain in chains]), graph.n)
            rounds.append(tuple(chains))
            continue
        chosen = inner if len(inner) else _choose(graph, ready, first, other)
        groups = []
        for variables, adjacent in _alike(graph, chosen, first, other):
            shape = tuple(int(k) for k in graph.sizes[adjacent[:, 0]]) if len(adjacent) else ()
            states = int(graph.sizes[variables[0]])
            _guard(graph, variables, adjacent, states * math.prod(shape))
            pieces = pieces_of(graph.n, live, variables, adjacent)
            message = None
            if len(adjacent):
                message = next_batch
                next_batch += 1
            else:
                roots.append(graph.component[variables])
            groups.append(Group(variables, states, adjacent, shape, pieces, message))
        live = _without(live, chosen, graph.n)
        for group in groups:
            if group.message is not None:
                live[group.message] = Batch(group.neighbours)
        remaining[chosen] = False
        rounds.append(tuple(groups))
    found = np.concatenate(roots) if roots else np.zeros(0, int)
    ordered = bool(np.array_equal(found, np.arange(len(found))))
    return Plan(graph, tuple(rounds), found, ordered)


def _apart(graph: Graph) -> Plan:
    """One round, a group for each site, where no two discretes meet."""
    groups = []
    for a, b in itertools.pairwise(graph.offsets.tolist()):
        if a == b:
            continue
        own = Run(a, (b - a,))
        nobody = np.zeros((0, b - a), np.int64)
        states = int(graph.sizes[a])
        _guard(graph, own, nobody, states)
        read = enumerate(batch.scope for batch in graph.batches)
        pieces = tuple(Piece(i, None, (0,), None) for i, ids in read if isinstance(ids, Run) and ids.start == a)
        groups.append(Group(own, states, nobody, (), pieces, None))
    return Plan(graph, (tuple(groups),), Run(0, (graph.n,)), True)


def _refuse_counts(graph: Graph, waiting: list[Count]) -> None:
    """Sums whose parts are tied to each other beyond the sum have no convolution."""
    parts = np.unique(np.concatenate([c.parents[c.parents >= 0] for c in waiting]))
    states = math.prod(int(k) for k in graph.sizes[parts])
    bounds.refuse_clique(bounds.describe_variables(parts, graph.names, graph.offsets), states, states)


def _choose(graph: Graph, remaining: np.ndarray, first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The discretes of the next round: cheap ones, no two of them neighbours."""
    log_size = np.log(graph.sizes)
    cost = np.where(remaining, log_size, np.inf)
    np.add.at(cost, first, log_size[other])
    candidates = _candidates(cost, remaining, float(log_size.max()))
    blocked = np.zeros(graph.n, bool)
    both = candidates[first] & candidates[other]
    contested = np.zeros(graph.n, bool)
    contested[first[both]] = True
    free = np.flatnonzero(candidates & ~contested)
    chosen = [free]
    if contested.any():
        starts = np.searchsorted(first, np.arange(graph.n + 1))
        picked = []
        order = np.flatnonzero(contested)
        for v in order[np.argsort(cost[order], kind="stable")]:
            if not blocked[v]:
                picked.append(v)
                blocked[other[starts[v] : starts[v + 1]]] = True
        chosen.append(np.asarray(sorted(picked)))
    return np.concatenate(chosen).astype(np.int64)


MOST_MET = 3
"""A discrete that meets more others is not looked at for being inner."""


def _inner(graph: Graph, ready: np.ndarray, first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Discretes all of whose neighbours meet each other anyhow, no two of them neighbours; none where they are few.

    Such a discrete costs no table that the others do not need too: the component of a mixture at each step of a chain,
    a row under its group. A chain itself has two, its ends, which are left to it.
    """
    if not len(first):
        return np.zeros(0, np.int64)
    starts = np.searchsorted(first, np.arange(graph.n + 1))
    degree = np.diff(starts)
    codes = first * graph.n + other  # sorted
    found = ready & (degree >= 1) & (degree <= MOST_MET)
    for i, j in itertools.combinations(range(MOST_MET), 2):
        asked = np.flatnonzero(found & (degree > j))
        pair = other[starts[asked] + i] * graph.n + other[starts[asked] + j]
        at = np.minimum(np.searchsorted(codes, pair), len(codes) - 1)
        found[asked[codes[at] != pair]] = False
    # Of neighbours, the first: its own neighbours all meet, so the other may follow in the next round.
    beside = found[first] & found[other] & (other < first)
    found[first[beside]] = False
    component = np.asarray(graph.component)
    own = np.bincount(component[found], minlength=graph.n_components)
    members = np.bincount(component[ready & (degree > 0)], minlength=graph.n_components)
    many = (own > 2) & (own * 8 >= members)
    return np.flatnonzero(found & many[component])


def _candidates(cost: np.ndarray, remaining: np.ndarray, one_more: float) -> np.ndarray:
    """The cheapest discretes; those one neighbour dearer join when the cheapest are few.

    A chain has two cheap ends: without this it would be taken apart from the ends, one round per step.
    """
    cheapest = cost[remaining].min()
    candidates = remaining & (cost <= cheapest + 1e-9)
    if candidates.sum() * 4 < remaining.sum():
        wider = remaining & (cost <= cheapest + one_more + 1e-9)
        if wider.sum() * 2 >= remaining.sum():
            return wider
    return candidates


def _alike(
    graph: Graph, chosen: np.ndarray, first: np.ndarray, other: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Chosen discretes grouped by states, number of neighbours and their states."""
    starts = np.searchsorted(first, chosen)
    stops = np.searchsorted(first, chosen, side="right")
    degree = stops - starts
    groups = []
    for m in np.unique(degree):
        own = chosen[degree == m]
        at = starts[degree == m]
        adjacent = other[at[:, None] + np.arange(m)[None, :]] if m else np.zeros((len(own), 0), np.int64)
        order = np.argsort(graph.sizes[adjacent] * graph.n + adjacent, axis=1)
        adjacent = np.take_along_axis(adjacent, order, axis=1)
        key = np.concatenate([graph.sizes[own][:, None], graph.sizes[adjacent]], axis=1)
        if (key == key[0]).all():
            groups.append((own, adjacent.T))
            continue
        _, which = np.unique(key, axis=0, return_inverse=True)
        which = which.reshape(-1)
        groups.extend((own[which == k], adjacent[which == k].T) for k in range(which.max() + 1))
    return groups


def _guard(graph: Graph, variables: Ids, adjacent: np.ndarray, clique: int) -> None:
    bound = bounds.current()
    numbers = clique * len(variables)
    if clique > bound.max_states or numbers > bound.max_numbers:
        ids = np.concatenate([variables[:1], adjacent[:, 0]]) if len(adjacent) else variables
        who = bounds.describe_variables(ids, graph.names, graph.offsets)
        bounds.refuse_clique(who, clique, numbers)


def _without(live: dict[int, Batch], chosen: np.ndarray, n: int) -> dict[int, Batch]:
    """The batches with the elements dropped that read an eliminated discrete.

    Positions must stay those of the batch's table, so a partly used batch keeps its length and is emptied by -1.
    """
    gone = np.zeros(n + 1, bool)
    gone[chosen] = True
    kept: dict[int, Batch] = {}
    for index, batch in live.items():
        used = gone[batch.scope].any(axis=0)
        if not used.any():
            kept[index] = batch
        elif not used.all():
            kept[index] = Batch(np.where(used[None, :], -1, batch.scope), batch.source)
    return kept
