"""Which parts of the data are independent once the discretes are summed out, and what each is called."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from marginalia.lanes.run import Ids, Run, beyond
from marginalia.lanes.value import Lane
from marginalia.marginal.graph import Graph, Source
from marginalia.marginal.tabulate import Part
from marginalia.program import Program

MOST_CODED = 62
"""Terms whose sets fit the bits of one integer."""


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
    components: Ids | None = None
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


def find_units(
    program: Program, graph: Graph, factors: Sequence[Part]
) -> tuple[tuple[Unit, ...], tuple[Leftover, ...]]:
    """Units of the log-likelihood: rows where rows are independent, else groups; joint outcomes stay one unit."""
    units: list[Unit] = []
    members: dict[int, Ids] = {}
    reached: dict[int, _Reached] = {}
    count = graph.n_components
    of_term: dict[int, list[_View]] = {}
    for part in factors:
        for position, t in enumerate(part.terms):
            of_term.setdefault(t, []).append(_View.of(part, position))
    for t, term in enumerate(program.terms):
        if term.kind not in ("observed", "factor"):
            continue
        own = of_term.get(t, [])
        if not any(view.lanes for view in own):
            units.append(Unit(term.name, term.shape, _dims(program, term.name, term.shape), (term.name,), None, t))
            continue
        whole = any(view.axes for view in own)
        shape = term.shape if whole else np.broadcast_shapes(*(view.shape for view in own))
        row = _run_of(graph, own, shape)
        if row is not None:
            reached[t], members[t] = _Reached(row, shape), row
            continue
        first = _first_components(graph, own, shape)
        alone = np.flatnonzero(first < 0)
        first[alone] = count + np.arange(len(alone))
        count += len(alone)
        reached[t] = _Reached(first, shape)
        read = [graph.component[ids[ids >= 0]] for view in own for ids in view.within(shape)]
        members[t] = np.concatenate([*read, first[alone]]) if whole else first
    leftovers = _leftovers(program, graph, factors, reached)
    keyed = _by_terms(members)
    units.extend(_unit(program, terms, components, members) for terms, components in keyed.items())
    return _told_apart(units), leftovers


def _told_apart(units: list[Unit]) -> tuple[Unit, ...]:
    """Units of the same name (long ones are shortened) get a number."""
    seen: dict[str, int] = {}
    found = []
    for unit in units:
        seen[unit.name] = seen.get(unit.name, 0) + 1
        again = seen[unit.name]
        if again == 1:
            found.append(unit)
            continue
        name = f"{unit.name} ({again})"
        dims = tuple(f"{name}_unit" if d == f"{unit.name}_unit" else d for d in unit.dims)
        found.append(replace(unit, name=name, dims=dims))
    return tuple(found)


def _by_terms(members: dict[int, Ids]) -> dict[tuple[int, ...], Ids]:
    """Components in order, keyed by the terms that say something of them."""
    runs = {t: (ids.start, ids.stop) for t, ids in members.items() if isinstance(ids, Run)}
    ends = sorted(set(runs.values()))
    if runs and len(runs) == len(members) and all(a[1] <= b[0] for a, b in itertools.pairwise(ends)):
        alike = {own: tuple(t for t in runs if runs[t] == own) for own in ends}
        return dict(sorted((terms, Run(a, (b - a,))) for (a, b), terms in alike.items()))
    members = {t: np.asarray(ids) for t, ids in members.items()}
    size = max((beyond(component) for component in members.values()), default=0)
    if len(members) <= MOST_CODED:
        code = np.zeros(size, np.int64)
        for place, component in enumerate(members.values()):
            code[component] |= 1 << place
        terms = list(members)
        found = np.flatnonzero(np.bincount(code)[1:]) + 1 if len(members) <= 16 else np.unique(code[code > 0])
        keyed = {tuple(t for p, t in enumerate(terms) if c >> p & 1): np.flatnonzero(code == c) for c in found.tolist()}
        return dict(sorted(keyed.items()))
    touching: dict[int, list[int]] = {}
    for t, component in members.items():
        for c in np.unique(component):
            touching.setdefault(int(c), []).append(t)
    lists: dict[tuple[int, ...], list[int]] = {}
    for c, touched in sorted(touching.items()):
        lists.setdefault(tuple(touched), []).append(c)
    return {terms_: np.asarray(c, int) for terms_, c in sorted(lists.items())}


@dataclass(frozen=True, eq=False)
class _View:
    """What one term has of a factor."""

    lanes: tuple[Lane, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    @staticmethod
    def of(part: Part, position: int) -> _View:
        shape = part.scope.shape
        if not part.stacked:
            return _View(part.scope.lanes, part.axes, shape)
        lanes = tuple(Lane(lane.ids[position if lane.varies(0) else 0], lane.size) for lane in part.scope.lanes)
        return _View(lanes, tuple(axis - 1 for axis in part.axes), shape[1:])

    def over(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The factor's shape where the term has this one: what was summed first may be written out again."""
        wide = list(shape)
        for axis in sorted(self.axes):
            wide.insert(axis, self.shape[axis])
        return tuple(wide)

    def within(self, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """The identities along each lane, flat."""
        return tuple(np.broadcast_to(lane.ids, self.over(shape)).reshape(-1) for lane in self.lanes)


@dataclass(frozen=True, eq=False)
class _Reached:
    """For each element of a term of some shape the component that it belongs to."""

    components: Ids
    shape: tuple[int, ...]


def _silent_batches(graph: Graph, factors: Sequence[Part]) -> dict[int, list[Source]]:
    """Per factor with lanes: its elements that read nothing all the same."""
    laned = [f for f, part in enumerate(factors) if part.scope.lanes]
    found: dict[int, list[Source]] = {}
    for batch in graph.batches:
        if batch.source is not None and not len(batch.scope):
            found.setdefault(laned[batch.source.factor], []).append(batch.source)
    return found


def _places(view: _View, shape: tuple[int, ...]) -> np.ndarray:
    """For every element of a term's factor the flat element of the term that it is part of."""
    places = np.arange(int(np.prod(shape))).reshape(shape)
    for axis in sorted(view.axes):
        places = np.expand_dims(places, axis)
    return np.broadcast_to(places, view.over(shape)).reshape(-1)


def _run_of(graph: Graph, own: Sequence[_View], shape: tuple[int, ...]) -> Run | None:
    """The components of a term's elements where they follow one another, None where they do not."""
    first = next((view for view in own if view.lanes), None)
    if first is None or first.axes or not isinstance(graph.component, Run) or first.shape != shape:
        return None
    held = first.lanes[0].held
    if not isinstance(held, Run) or held.shape != shape:
        return None
    found = graph.component[held]
    return Run(found.start, (found.size,))


def _first_components(graph: Graph, own: Sequence[_View], shape: tuple[int, ...]) -> np.ndarray:
    """Per element of a term: a component that it reads, -1 for none."""
    found = np.full(int(np.prod(shape)), -1, np.int64)
    for view in own:
        places = _places(view, shape)
        for ids in view.within(shape):
            new = (ids >= 0) & (found[places] < 0)
            found[places[new]] = graph.component[ids[new]]
    return found


def elements_read(
    graph: Graph, parts: Sequence[Part], term: int, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a term's flat elements and components that they read; `parts` are its factors."""
    found: list[np.ndarray] = [np.zeros((0, 2), np.int64)]
    for part in parts:
        view = _View.of(part, part.terms.index(term))
        places = _places(view, shape)
        component = np.full(len(places), -1, np.int64)
        for ids in view.within(shape):
            component = np.where(
                (ids >= 0) & (component < 0), np.asarray(graph.component)[np.maximum(ids, 0)], component
            )
        pairs = np.stack([places, component], axis=1)[component >= 0]
        found.append(np.unique(pairs, axis=0) if view.axes else pairs)
    elements, components = np.concatenate(found).T
    return elements, components


def _leftovers(
    program: Program, graph: Graph, factors: Sequence[Part], reached: dict[int, _Reached]
) -> tuple[Leftover, ...]:
    """`reached` says for each element of the terms that read something where it belongs."""
    silent = _silent_batches(graph, factors)
    found = []
    for f, part in enumerate(factors):
        if not all(t in reached for t in part.terms) or (part.scope.lanes and f not in silent):
            continue
        views = [(reached[t], _View.of(part, position)) for position, t in enumerate(part.terms)]
        targets = np.concatenate([np.asarray(own.components)[_places(view, own.shape)] for own, view in views])
        if not part.scope.lanes:
            found.append(Leftover(f, None, targets))
        found.extend(
            Leftover(f, source, targets if source.elements is None else targets[source.elements])
            for source in silent.get(f, [])
        )
    return tuple(found)


def _unit(program: Program, terms: tuple[int, ...], components: Ids, members: dict[int, Ids]) -> Unit:
    names = tuple(program.terms[t].name for t in terms)
    name = "+".join(names if len(names) <= 4 else (names[0], "...", names[-1]))
    for t in terms:
        term = program.terms[t]
        order = members[t]
        single = len(order) == len(components) == int(np.prod(term.shape))
        # `components` are distinct and in order, so equal ones sorted are distinct too.
        if single and (components == order if isinstance(order, Run) else np.array_equal(np.sort(order), components)):
            return Unit(name, term.shape, _dims(program, term.name, term.shape), names, order)
    return Unit(name, (len(components),), (f"{name}_unit",), names, components)


def _dims(program: Program, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    site = program.observed.get(name)
    if site is not None and site.shape == shape:
        return site.dims
    if site is not None and site.shape[: len(shape)] == shape:
        return site.dims[: len(shape)]
    return tuple(f"{name}_dim_{i}" for i in range(len(shape)))
