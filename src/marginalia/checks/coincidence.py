"""Shapes that match only by accident: rows paired with components because there are as many of both.

Two things must come together. In the program's jaxpr an axis of a latent meets the rows of a site position by
position, though its name (its plate's) is another. And with one row more, the last one twice, a plate or latent of the
rows grows, that axis does not, and the program no longer fits together. A latent with one value for every row grows
along; a program that writes its number of rows as a number tells nothing, and is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend import core

from marginalia.checks.findings import Finding
from marginalia.checks.survey import Survey, shapes
from marginalia.jaxpr.calls import inner_program
from marginalia.lanes.interpret import ELEMENTWISE
from marginalia.program import Program, Site

type Label = tuple[str, str]
"""The name of an axis, and the site it is an axis of."""
type Labels = tuple[frozenset[Label], ...]
"""For every axis: which axes of latents lie along it."""


@dataclass(frozen=True)
class Meeting:
    """The leading axis of a site, and the axis of latents that lies along it under another name."""

    site: str
    rows: str
    other: str
    carriers: tuple[str, ...]
    size: int


def coincidences(program: Program) -> list[Finding]:
    """Rows that are paired with something else of the same number, only because the number is the same."""
    perturbed: dict[int, Survey | None] = {}
    found: dict[tuple[str, str], Finding] = {}
    for meeting in meetings(program):
        if meeting.size not in perturbed:
            perturbed[meeting.size] = _with_one_row_more(program, meeting.size)
        after = perturbed[meeting.size]
        if after is not None and not after.complete and _parts(program, meeting, after):
            found.setdefault((meeting.rows, meeting.other), _finding(meeting))
    return list(found.values())


def meetings(program: Program) -> Iterator[Meeting]:
    """Where an axis of some latent lies along the leading axis of another site."""
    inputs = {**program.latents, **program.discretes}
    sites: dict[str, Site] = {**inputs, **program.observed}
    labels = _labels(program.jaxpr, [_own_labels(site) for site in inputs.values()])
    for term, axes in zip(program.terms, labels, strict=True):
        site = sites.get(term.name)
        if site is None or not site.shape or not axes or term.shape[0] != site.shape[0]:
            continue
        foreign = sorted({dim for dim, _ in axes[0]} - {site.dims[0]})
        for dim in foreign:
            carriers = tuple(sorted({s for d, s in axes[0] if d == dim} - {site.name}))
            yield Meeting(site.name, site.dims[0], dim, carriers, site.shape[0])


def _with_one_row_more(program: Program, rows: int) -> Survey | None:
    """The program on data whose arrays of that many rows have the last one twice; None where there is no such array."""
    grown = 0

    def more(leaf: Any) -> Any:
        nonlocal grown
        if isinstance(leaf, np.ndarray | jax.Array) and leaf.ndim and leaf.shape[0] == rows:
            grown += 1
            as_array = np.asarray(leaf)
            return np.concatenate([as_array, as_array[-1:]])
        return leaf

    args, kwargs = jax.tree.map(more, (program.args, dict(program.kwargs)))
    return shapes(program.model, args, kwargs) if grown else None


def _parts(program: Program, meeting: Meeting, after: Survey) -> bool:
    """Whether something of the program grew with the rows, and the other axis did not."""
    size = _size_after(program, meeting.other, meeting.carriers, after)
    rows = _size_after(program, meeting.rows, (meeting.site,), after)
    return size == meeting.size and rows != meeting.size and _grew(program, meeting.size, after)


def _grew(program: Program, size: int, after: Survey) -> bool:
    """Whether some plate, or an axis of some latent, has one more: not the data, which are given."""
    if any(size == program.plates.get(name) and size + 1 == now[-1] for name, now in after.plates.items()):
        return True
    for site in (*program.latents.values(), *program.discretes.values()):
        now_shape = after.sites[site.name].shape if site.name in after.sites else ()
        if len(now_shape) == len(site.shape) and (size, size + 1) in zip(site.shape, now_shape, strict=True):
            return True
    return False


def _size_after(program: Program, dim: str, carriers: Sequence[str], after: Survey) -> int | None:
    if dim in program.plates:
        return after.plates[dim][-1] if dim in after.plates else None
    sites: dict[str, Site] = {**program.latents, **program.discretes, **program.observed}
    for name in carriers:
        seen, site = after.sites.get(name), sites[name]
        if seen is not None and dim in site.dims and len(seen.shape) == len(site.shape):
            return seen.shape[site.dims.index(dim)]
    return None


def _finding(meeting: Meeting) -> Finding:
    who = ", ".join(f"'{c}'" for c in meeting.carriers)
    return Finding(
        "coincidence",
        f"site '{meeting.site}'",
        f"its {meeting.size} rows ('{meeting.rows}') are paired one by one with the {meeting.size} elements of {who} "
        f"('{meeting.other}'), which fits only because both are {meeting.size}",
        expected="an index that says which element belongs to which row",
        got=f"a program that no longer fits together with one row more: '{meeting.other}' stays {meeting.size}",
        remedy="index with a discrete or a group, such as `mu[z]`; if every row really has an element of its own, draw "
        "it in the plate of the rows.",
    )


# ---- which axes of latents lie along which axis ------------------------------------------------------------------


def _own_labels(site: Site) -> Labels:
    pairs = zip(site.dims, site.shape, strict=True)
    return tuple(frozenset({(dim, site.name)}) if n > 1 else frozenset() for dim, n in pairs)


def _labels(closed: core.ClosedJaxpr, inputs: Sequence[Labels]) -> list[Labels]:
    """For every output: its axes' labels. An operation that mixes positions, or that has no rule, loses them."""
    known: dict[Any, Labels] = dict(zip(closed.jaxpr.invars, inputs, strict=True))

    def of(atom: Any) -> Labels:
        found = known.get(atom) if isinstance(atom, core.Var) else None
        return _none(atom) if found is None else found

    for equation in closed.jaxpr.eqns:
        arguments = [of(atom) for atom in equation.invars]
        inner = inner_program(equation)
        name = equation.primitive.name
        if inner is not None:
            results = _labels(inner, arguments)
        elif name in ELEMENTWISE:
            results = [_united(equation, arguments)]
        elif name in _RULES:
            results = [_RULES[name](equation, arguments[0])]
        else:
            results = [_none(v) for v in equation.outvars]
        known.update(zip(equation.outvars, results, strict=True))
    return [of(atom) for atom in closed.jaxpr.outvars]


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(getattr(atom.aval, "shape", ()))


def _none(atom: Any) -> Labels:
    return (frozenset(),) * len(_shape(atom))


def _united(equation: Any, arguments: Sequence[Labels]) -> Labels:
    rank = len(_shape(equation.outvars[0]))
    wide = [labels for labels in arguments if len(labels) == rank]
    return tuple(frozenset().union(*(labels[i] for labels in wide)) for i in range(rank))


def _broadcast(equation: Any, labels: Labels) -> Labels:
    out = list(_none(equation.outvars[0]))
    for axis, to in enumerate(equation.params["broadcast_dimensions"]):
        out[to] = labels[axis]
    return tuple(out)


def _reshaped(equation: Any, labels: Labels) -> Labels:
    """Axes of length one come and go; anything else mixes positions."""
    before, after = _shape(equation.invars[0]), _shape(equation.outvars[0])
    if [n for n in before if n != 1] != [n for n in after if n != 1]:
        return _none(equation.outvars[0])
    rest = iter([own for own, n in zip(labels, before, strict=True) if n != 1])
    return tuple(frozenset() if n == 1 else next(rest) for n in after)


def _transposed(equation: Any, labels: Labels) -> Labels:
    return tuple(labels[axis] for axis in equation.params["permutation"])


def _reduced(equation: Any, labels: Labels) -> Labels:
    return tuple(own for axis, own in enumerate(labels) if axis not in equation.params["axes"])


def _kept_where_whole(equation: Any, labels: Labels) -> Labels:
    before, after = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return tuple(own if n == m else frozenset() for own, n, m in zip(labels, before, after, strict=True))


_RULES: dict[str, Callable[[Any, Labels], Labels]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "expand_dims": _reshaped,
    "transpose": _transposed,
    "slice": _kept_where_whole,
    "cumsum": _kept_where_whole,
    "reduce_sum": _reduced,
    "reduce_max": _reduced,
    "reduce_min": _reduced,
    "reduce_prod": _reduced,
    "reduce_and": _reduced,
    "reduce_or": _reduced,
}
