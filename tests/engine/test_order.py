"""The order of elimination beside opt_einsum's paths on the same graphs: the largest clique is never larger.

That is why plans follow our own order (rounds of minimum cost) and not an einsum path: on these graphs it is as good or
better, and it takes what looks alike in one operation.
"""

from __future__ import annotations

import math

import numpy as np
import opt_einsum
import pytest

from marginalia.lanes.value import Lane
from marginalia.marginal.graph import Scope, build_graph
from marginalia.marginal.plan import make_plan


def grid(rows: int, columns: int) -> np.ndarray:
    place = np.arange(rows * columns).reshape(rows, columns)
    across = np.stack([place[:, :-1].ravel(), place[:, 1:].ravel()])
    return np.concatenate([across, np.stack([place[:-1].ravel(), place[1:].ravel()])], axis=1)


def crossed(rows: int, columns: int) -> np.ndarray:
    i, j = np.meshgrid(np.arange(rows), rows + np.arange(columns), indexing="ij")
    return np.stack([i.ravel(), j.ravel()])


def random(size: int, factors: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(size, width, replace=False) for _ in range(factors)]).T


GRAPHS = {
    "grid 3 x 8": grid(3, 8),
    "grid 5 x 5": grid(5, 5),
    "grid 4 x 20": grid(4, 20),
    "grid 8 x 8": grid(8, 8),
    "crossed 6 x 30": crossed(6, 30),
    "pairs of 40": random(40, 60, 2, 1),
    "pairs of 60": random(60, 80, 2, 2),
    "triples of 30": random(30, 25, 3, 0),
    "triples of 40": random(40, 30, 3, 1),
}


def ours(factors: np.ndarray, states: int) -> int:
    """Numbers in the largest table of our plan."""
    size = int(factors.max()) + 1
    alone = np.arange(size, dtype=np.int32)
    scopes = [
        Scope((factors.shape[1],), tuple(Lane(ids.astype(np.int32), states) for ids in factors)),
        Scope((size,), (Lane(alone, states),)),
    ]
    graph = build_graph(scopes, np.full(size, states), np.zeros(size, int), ("z",), np.array([0, size]))
    return make_plan(graph).largest_clique


def theirs(factors: np.ndarray, states: int) -> int:
    """The same of opt_einsum's path: all indices of its largest contraction."""
    terms = [*factors.T.tolist(), *[[v] for v in range(int(factors.max()) + 1)]]
    equation = ",".join("".join(opt_einsum.get_symbol(v) for v in term) for term in terms) + "->"
    _, info = opt_einsum.contract_path(equation, *[(states,) * len(t) for t in terms], optimize="auto", shapes=True)
    return max(states ** len(set(step[2].split("->")[0]) - {","}) for step in info.contraction_list)


@pytest.mark.parametrize("name", GRAPHS)
def test_no_larger_table_than_an_einsum_path_needs(name: str) -> None:
    assert ours(GRAPHS[name], 2) <= theirs(GRAPHS[name], 2)


def test_work_grows_with_the_number_of_crossed_columns_not_exponentially() -> None:
    largest = [ours(crossed(6, columns), 3) for columns in (6, 12, 24)]
    assert largest == [3**7] * 3
    assert math.log2(ours(grid(4, 40), 2)) == math.log2(ours(grid(4, 20), 2))
