"""Which parts of the data are independent once the discretes are summed out, and what each is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from marginalia.marginalize.graph import Graph, Scope
from marginalia.marginalize.value import full_ids
from marginalia.program import Program


@dataclass(frozen=True, eq=False)
class Unit:
    """An array of independent log-likelihood terms.

    `components` are the connected components whose log Z it holds, in order; None for a site without discretes,
    whose own elementwise log-probability it is (`term`).
    """

    name: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    sites: tuple[str, ...]
    components: np.ndarray | None = None
    term: int = -1


def find_units(
    program: Program, graph: Graph, factors: Sequence[tuple[int, bool, Scope, np.ndarray]]
) -> tuple[Unit, ...]:
    """Units of the log-likelihood: rows where rows are independent, else groups; joint outcomes stay one unit."""
    units: list[Unit] = []
    members: dict[int, np.ndarray] = {}
    for t, term in enumerate(program.terms):
        if term.kind not in ("observed", "factor"):
            continue
        own = [(summed, scope) for index, summed, scope, _ in factors if index == t]
        if not any(scope.lanes for _, scope in own):
            units.append(Unit(term.name, term.shape, _dims(program, term.name, term.shape), (term.name,), None, t))
            continue
        members[t] = _component_of_elements(graph, own, term.shape)
    touching: dict[int, list[int]] = {}
    for t, component in members.items():
        for c in np.unique(component[component >= 0]):
            touching.setdefault(int(c), []).append(t)
    if len(members) == 1:
        keyed: dict[tuple[int, ...], np.ndarray] = {(next(iter(members)),): np.asarray(sorted(touching), int)}
    else:
        lists: dict[tuple[int, ...], list[int]] = {}
        for c, touched in touching.items():
            lists.setdefault(tuple(touched), []).append(c)
        keyed = {terms: np.asarray(sorted(c), int) for terms, c in lists.items()}
    return (*units, *(_unit(program, terms, components, members) for terms, components in keyed.items()))


def _component_of_elements(graph: Graph, own: Sequence[tuple[bool, Scope]], shape: tuple[int, ...]) -> np.ndarray:
    """The component of each element of a term; with a sum inside, all components it touches."""
    if len(own) == 1 and not own[0][0]:
        scope = own[0][1]
        first = np.full(scope.elements, -1, np.int64)
        for lane in scope.lanes:
            ids = full_ids(lane, scope.shape).reshape(-1)
            first = np.where(first < 0, ids, first)
        return np.where(first >= 0, graph.component[np.maximum(first, 0)], -1)
    read = [np.unique(lane.ids) for _, scope in own for lane in scope.lanes]
    ids = np.concatenate(read)
    return graph.component[ids[ids >= 0]]


def _unit(program: Program, terms: tuple[int, ...], components: np.ndarray, members: dict[int, np.ndarray]) -> Unit:
    names = tuple(program.terms[t].name for t in terms)
    name = "+".join(names if len(names) <= 4 else (names[0], "...", names[-1]))
    for t in terms:
        term = program.terms[t]
        order = members[t]
        single = len(order) == len(components) == int(np.prod(term.shape)) and len(np.unique(order)) == len(order)
        if single and np.array_equal(np.sort(order), components):
            return Unit(name, term.shape, _dims(program, term.name, term.shape), names, order)
    return Unit(name, (len(components),), (f"{name}_unit",), names, components)


def _dims(program: Program, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    site = program.observed.get(name)
    if site is not None and site.shape == shape:
        return site.dims
    if site is not None and site.shape[: len(shape)] == shape:
        return site.dims[: len(shape)]
    return tuple(f"{name}_dim_{i}" for i in range(len(shape)))
