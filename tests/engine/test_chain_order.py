"""Which components of a graph are taken as chains, and that as many components as rows cost no search each."""

from __future__ import annotations

import numpy as np
import pytest

from marginalia.lanes.value import Lane
from marginalia.marginal import chain
from marginalia.marginal.chain import Chains
from marginalia.marginal.graph import Scope, build_graph
from marginalia.marginal.plan import make_plan

STATES = 2


def path(length: int, lag: int = 1) -> list[tuple[int, int]]:
    return [(i, i + k) for k in range(1, lag + 1) for i in range(length - k)]


def shuffled(edges: list[tuple[int, int]], seed: int) -> list[tuple[int, int]]:
    new = np.random.default_rng(seed).permutation(1 + max(max(e) for e in edges))
    return [(int(new[a]), int(new[b])) for a, b in edges]


# edges, and the lag with which it is a chain (None: it is left to the general elimination)
COMPONENTS: dict[str, tuple[list[tuple[int, int]], int | None]] = {
    "a path": (path(20), 1),
    "a path whose names are mixed up": (shuffled(path(20), 0), 1),
    "a path with a lag of two": (path(24, 2), 2),
    "the same mixed up": (shuffled(path(24, 2), 1), 2),
    "a ring": ([*path(20), (0, 19)], 2),
    "a path that is short": (path(7), None),
    "a lag of two that is short": (path(15, 2), None),
    "all of nine meet": ([(i, j) for i in range(9) for j in range(i)], None),
    "a star": ([(0, i) for i in range(1, 20)], None),
    "a tree": ([((i - 1) // 2, i) for i in range(1, 31)], None),
}


# a chain of 20 with others that are local to each step: their edges, beside those of `path(20)`
LOCAL: dict[str, list[tuple[int, int]]] = {
    "one at each step": [(t, 20 + t) for t in range(20)],
    "two that meet": [e for t in range(20) for e in [(t, 20 + t), (t, 40 + t), (20 + t, 40 + t)]],
    "two in a row": [e for t in range(20) for e in [(t, 20 + t), (20 + t, 40 + t)]],
    "one at every other step": [(2 * t, 20 + t) for t in range(10)],
    "one between two steps": [e for t in range(19) for e in [(t, 20 + t), (t + 1, 20 + t)]],
}


def plan_of(parts: list[list[tuple[int, int]]]):
    edges, start, component = [], 0, []
    for number, part in enumerate(parts):
        edges += [(a + start, b + start) for a, b in part]
        size = 1 + max(max(e) for e in part)
        start += size
        component += [number] * size
    ids = np.array(edges).T
    pairs = Scope((ids.shape[1],), tuple(Lane(i.astype(np.int32), STATES) for i in ids))
    alone = Scope((start,), (Lane(np.arange(start, dtype=np.int32), STATES),))
    graph = build_graph([pairs, alone], np.full(start, STATES), np.zeros(start, int), ("z",), np.array([0, start]))
    return make_plan(graph), np.array(component), ids


def chains_of(plan) -> list[Chains]:
    return [group for groups in plan.rounds for group in groups if isinstance(group, Chains)]


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_is_a_chain_where_an_order_of_small_lag_exists(name):
    edges, lag = COMPONENTS[name]
    plan, _, _ = plan_of([edges])
    assert [c.lag for c in chains_of(plan)] == ([] if lag is None else [lag])


def test_beside_each_other_each_is_taken_for_what_it_is():
    plan, component, pairs = plan_of([edges for edges, _ in COMPONENTS.values()])
    found: dict[int, int] = {}
    for chains in chains_of(plan):
        for row in chains.order:
            ids = row[row >= 0]
            (number,) = set(component[ids])
            found[number] = chains.lag
            place = np.full(len(component), -1)
            place[ids] = np.arange(len(ids))
            inside = pairs[:, (place[pairs] >= 0).all(0)]
            assert len(ids) == (component == number).sum()
            assert np.abs(place[inside[0]] - place[inside[1]]).max() <= chains.lag
    assert found == {i: lag for i, (_, lag) in enumerate(COMPONENTS.values()) if lag is not None}


def test_many_components_whose_own_order_is_best_or_that_are_no_chains_are_not_searched(monkeypatch):
    searched: list[int] = []
    monkeypatch.setattr(chain, "_in_sequence", lambda links, ids, lag: searched.append(len(ids)) or (ids, lag))
    names = ["a path", "a path with a lag of two", "all of nine meet", "a star"]
    plan, _, _ = plan_of([COMPONENTS[name][0] for name in names for _ in range(50)])
    assert sorted((c.lag, len(c.order)) for c in chains_of(plan)) == [(1, 50), (2, 50)]
    assert not searched


@pytest.mark.parametrize("name", LOCAL)
def test_what_is_local_to_a_step_is_summed_before_the_chain(name):
    plan, _, _ = plan_of([[*path(20), *LOCAL[name]]])
    (found,) = chains_of(plan)
    assert (found.lag, len(found.order)) == (1, 1)
    # At an end of the chain it is all one which of two goes first.
    assert len(set(range(1, 19)) & set(found.variables)) == 18
    assert len(found.variables) <= 20
    assert max(g.clique for r in plan.rounds for g in r) <= STATES**3
