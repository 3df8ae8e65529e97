"""Which parts of the data are independent once the discretes are summed out, and what each is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from marginalia.lanes.value import full_ids
from marginalia.marginal.graph import Graph, Scope, Source
from marginalia.program import Program


@dataclass(frozen=True, eq=False)
class Unit:
    """An array of independent log-likelihood terms.

    `components` are the connected components whose log Z it holds, in order (beyond the graph's own: elements that
    read no discrete beside some that do); None for a site without discretes,
    whose own elementwise log-probability it is (`term`).
    """

    name: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    sites: tuple[str, ...]
    components: np.ndarray | None = None
    term: int = -1


@dataclass(frozen=True, eq=False)
class Leftover:
    """Elements of a factor that read no discrete, in a term some of whose elements do.

    `targets` says for each where it is added: to the component that its own term's element reads, or, where that
    reads none, to a place of its own after the components. `source` cuts the elements from a table with lanes; None
    where the whole factor has none.
    """

    factor: int
    source: Source | None
    targets: np.ndarray


type Parts = Sequence[tuple[int, tuple[int, ...], Scope, np.ndarray]]


def find_units(program: Program, graph: Graph, factors: Parts) -> tuple[tuple[Unit, ...], tuple[Leftover, ...]]:
    """Units of the log-likelihood: rows where rows are independent, else groups; joint outcomes stay one unit."""
    units: list[Unit] = []
    members: dict[int, np.ndarray] = {}
    leftovers: list[Leftover] = []
    silent = _silent_batches(graph, factors)
    count = graph.n_components
    for t, term in enumerate(program.terms):
        if term.kind not in ("observed", "factor"):
            continue
        own = [f for f, (index, *_) in enumerate(factors) if index == t]
        if not any(factors[f][2].lanes for f in own):
            units.append(Unit(term.name, term.shape, _dims(program, term.name, term.shape), (term.name,), None, t))
            continue
        first = _first_components(graph, [factors[f] for f in own], term.shape)
        alone = np.flatnonzero(first < 0)
        first[alone] = count + np.arange(len(alone))
        count += len(alone)
        read = [components_read(graph, factors[f][2]) for f in own]
        members[t] = first if not any(factors[f][1] for f in own) else np.concatenate([*read, first[alone]])
        for f in own:
            leftovers.extend(_leftovers(f, factors[f], silent.get(f, []), term.shape, first))
    touching: dict[int, list[int]] = {}
    for t, component in members.items():
        for c in np.unique(component):
            touching.setdefault(int(c), []).append(t)
    if len(members) == 1:
        keyed: dict[tuple[int, ...], np.ndarray] = {(next(iter(members)),): np.asarray(sorted(touching), int)}
    else:
        lists: dict[tuple[int, ...], list[int]] = {}
        for c, touched in touching.items():
            lists.setdefault(tuple(touched), []).append(c)
        keyed = {terms: np.asarray(sorted(c), int) for terms, c in lists.items()}
    units.extend(_unit(program, terms, components, members) for terms, components in keyed.items())
    return tuple(units), tuple(leftovers)


def _silent_batches(graph: Graph, factors: Parts) -> dict[int, list[Source]]:
    """Per factor with lanes: its elements that read nothing all the same."""
    laned = [f for f, (_, _, scope, _) in enumerate(factors) if scope.lanes]
    found: dict[int, list[Source]] = {}
    for batch in graph.batches:
        if batch.source is not None and not len(batch.scope):
            found.setdefault(laned[batch.source.factor], []).append(batch.source)
    return found


def _places(scope: Scope, axes: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """For every element of a factor the flat element of its term that it is part of."""
    places = np.arange(int(np.prod(shape))).reshape(shape)
    for axis in sorted(axes):
        places = np.expand_dims(places, axis)
    return np.broadcast_to(places, scope.shape).reshape(-1)


def _first_components(graph: Graph, own: Parts, shape: tuple[int, ...]) -> np.ndarray:
    """Per element of a term: a component that it reads, -1 for none."""
    found = np.full(int(np.prod(shape)), -1, np.int64)
    for _, axes, scope, _ in own:
        places = _places(scope, axes, shape)
        for lane in scope.lanes:
            ids = full_ids(lane, scope.shape).reshape(-1)
            new = (ids >= 0) & (found[places] < 0)
            found[places[new]] = graph.component[ids[new]]
    return found


def components_read(graph: Graph, scope: Scope) -> np.ndarray:
    ids = np.concatenate([np.zeros(0, np.int64), *(np.unique(lane.ids) for lane in scope.lanes)]).astype(np.int64)
    return graph.component[ids[ids >= 0]]


def _leftovers(
    factor: int,
    part: tuple[int, tuple[int, ...], Scope, np.ndarray],
    silent: Sequence[Source],
    shape: tuple[int, ...],
    first: np.ndarray,
) -> list[Leftover]:
    _, axes, scope, _ = part
    targets = first[_places(scope, axes, shape)]
    if not scope.lanes:
        return [Leftover(factor, None, targets)]
    return [Leftover(factor, s, targets if s.elements is None else targets[s.elements]) for s in silent]


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
