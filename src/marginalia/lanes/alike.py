"""Terms that are alike are read once: what a Python loop wrote out a thousand times becomes one array again.

`for t in range(T): z = sample(f"z_{t}", Categorical(trans[z]))` gives T terms that compute the same thing from other
variables. Each output of a jaxpr is cut back to the equations that involve discretes; outputs whose equations are the
same, up to the names of variables, form a `Batch`: the equations once, vectorised, over operands stacked along a new
first axis. Neither the tables nor the compiled program grow with T then. Operands that all share are not stacked, and
operands that are themselves computed alike, without discretes, are computed in one go too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpyro
from jax.extend import core

from marginalia.jaxpr import constants
from marginalia.jaxpr.known import Lazy
from marginalia.lanes.interpret import Node, force, run, run_closed
from marginalia.lanes.value import Lane, Value, broadcast, constant, namespace

FEWEST = 4
"""Terms that must be alike before they are read as one."""
LONGEST = 200
"""Equations of one term beyond which it is not compared with others."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Outputs that are alike: `closed` maps leaves, some of them stacked, to all of the outputs stacked."""

    members: tuple[int, ...]
    closed: core.ClosedJaxpr
    leaves: tuple[Any, ...]
    """Per operand: an atom that all share, a tuple of atoms to be stacked, or a `Batch` that computes the stack."""


@dataclass(frozen=True, eq=False)
class Alike:
    """A jaxpr's outputs: some in batches, the others (`single`) one by one."""

    jaxpr: core.Jaxpr
    batches: tuple[Batch, ...]
    single: tuple[int, ...]


def find_alike(jaxpr: core.Jaxpr, sources: Sequence[Any], kinds: Sequence[Any]) -> Alike:
    """Outputs that may be read together.

    `sources` says of each input what a discrete is like (None for other inputs): only what involves discretes is put
    together, and only discretes that are equally described. Outputs of different `kinds` are kept apart.
    """
    inputs = dict(zip(jaxpr.invars, sources, strict=True))
    touched = {v for v, about in inputs.items() if about is not None}
    maker: dict[Any, Any] = {}
    for equation in jaxpr.eqns:
        maker.update((v, equation) for v in equation.outvars)
        if any(v in touched for v in equation.invars if isinstance(v, core.Var)):
            touched.update(equation.outvars)
    order = {id(equation): i for i, equation in enumerate(jaxpr.eqns)}
    within = {v: e for v, e in maker.items() if v in touched}
    found: dict[Any, list[tuple[int, _Cut]]] = {}
    for i, output in enumerate(jaxpr.outvars):
        if isinstance(output, core.Var) and output in within:
            cut = _cut_back(output, within, order, inputs)
            if cut is not None:
                found.setdefault((kinds[i], cut.key), []).append((i, cut))
    batches = []
    for members in found.values():
        if len(members) >= FEWEST:
            batch = _batch([i for i, _ in members], [cut for _, cut in members], maker, order, inputs)
            if batch is not None:
                batches.append(batch)
    taken = {i for batch in batches for i in batch.members}
    single = tuple(i for i in range(len(jaxpr.outvars)) if i not in taken)
    return Alike(jaxpr, tuple(batches), single)


def run_alike(
    alike: Alike, constants_: Sequence[Node], inputs: Sequence[Node]
) -> list[tuple[tuple[int, ...], bool, Node]]:
    """Interpret: `(outputs, stacked, node)`; a stacked node holds its outputs along its first axis."""
    wanted = list(dict.fromkeys(v for batch in alike.batches for v in _atoms(batch) if isinstance(v, core.Var)))
    outputs = [*(alike.jaxpr.outvars[i] for i in alike.single), *wanted]
    nodes = run(alike.jaxpr, constants_, inputs, outputs)
    results: list[tuple[tuple[int, ...], bool, Node]] = [
        ((i,), False, node) for i, node in zip(alike.single, nodes, strict=False)
    ]
    leaves = dict(zip(wanted, nodes[len(alike.single) :], strict=True))
    results += [(batch.members, True, _evaluate(batch, leaves)) for batch in alike.batches]
    return results


# ---- finding ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Cut:
    """One output cut back: its equations in order, its leaves in order, and a key that is equal for alike ones."""

    output: Any
    equations: tuple[Any, ...]
    leaves: tuple[Any, ...]
    key: Any


def _cut_back(output: Any, within: dict[Any, Any], order: dict[int, int], inputs: dict[Any, Any]) -> _Cut | None:
    """The equations among `within` that lead to an output; None where they are too many."""
    needed: dict[int, Any] = {}
    waiting = [output]
    while waiting:
        equation = within.get(waiting.pop())
        if equation is None or id(equation) in needed:
            continue
        if len(needed) == LONGEST or equation.effects:
            return None
        needed[id(equation)] = equation
        waiting.extend(v for v in equation.invars if isinstance(v, core.Var))
    equations = sorted(needed.values(), key=lambda e: order[id(e)])
    place: dict[Any, Any] = {}
    leaves: list[Any] = []
    words: list[Any] = []
    for equation in equations:
        operands = []
        for atom in equation.invars:
            if not isinstance(atom, core.Var):
                operands.append(("leaf", len(leaves), _about(atom, None)))
                leaves.append(atom)
                continue
            if atom not in place:
                place[atom] = ("leaf", len(leaves), _about(atom, inputs.get(atom)))
                leaves.append(atom)
            operands.append(place[atom])
        parameters = tuple((name, _comparable(value)) for name, value in sorted(equation.params.items()))
        words.append((equation.primitive, parameters, tuple(operands)))
        place.update((v, ("step", len(words), i)) for i, v in enumerate(equation.outvars))
    return _Cut(output, tuple(equations), tuple(leaves), (tuple(words), place[output]))


def _about(atom: Any, source: Any) -> Any:
    return (tuple(atom.aval.shape), atom.aval.dtype, bool(getattr(atom.aval, "weak_type", False)), source)


def _comparable(value: Any) -> Any:
    """A parameter as a key: by value where it has one, programs by what they do, else by identity."""
    if isinstance(value, core.ClosedJaxpr):
        return (_program_key(value.jaxpr), tuple(id(c) for c in value.consts))
    if isinstance(value, core.Jaxpr):
        return _program_key(value)
    place = _library_place(value)
    if place is not None:
        return place
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


_LIBRARIES = tuple(str(Path(module.__file__ or "").parent) for module in (jax, numpyro))


_WRAPPERS = ("custom_derivatives.py", "custom_transpose.py")
"""Where JAX wraps rules of others: a place there says nothing about the rule."""


def _library_place(value: Any) -> str | None:
    """Where a rule for derivatives is written, if that is in JAX or NumPyro: made anew at each use, yet the same."""
    about: Any = getattr(value, "debug_info", None)
    filename = getattr(about, "func_filename", None)
    if filename is None or not str(filename).startswith(_LIBRARIES) or str(filename).endswith(_WRAPPERS):
        return None
    return str(about.func_src_info)


def _program_key(jaxpr: core.Jaxpr) -> Any:
    """A program up to the names of its variables."""
    names: dict[Any, int] = {}

    def atom(x: Any) -> Any:
        if isinstance(x, core.Var):
            return (names.setdefault(x, len(names)), _about(x, None))
        value = np.asarray(x.val)
        return (value.tobytes(), value.shape, _about(x, None))

    lines = [tuple(atom(v) for v in (*jaxpr.constvars, *jaxpr.invars))]
    for equation in jaxpr.eqns:
        parameters = tuple((name, _comparable(value)) for name, value in sorted(equation.params.items()))
        ends = tuple(atom(v) for v in (*equation.invars, *equation.outvars))
        lines.append((equation.primitive, parameters, ends))
    return (tuple(lines), tuple(atom(v) for v in jaxpr.outvars))


def _batch(
    members: list[int], cuts: list[_Cut], maker: dict[Any, Any], order: dict[int, int], inputs: dict[Any, Any]
) -> Batch | None:
    """The equations of alike outputs once, vectorised; None where there is nothing to tell the outputs apart."""
    model = cuts[0]
    leaves: list[Any] = []
    axes: list[int | None] = []
    for own in zip(*(cut.leaves for cut in cuts), strict=True):
        if all(_same(atom, own[0]) for atom in own[1:]):
            leaves.append(own[0])
            axes.append(None)
            continue
        computed = _computed_alike(own, maker, order, inputs)
        axes.append(None if computed is own[0] else 0)
        leaves.append(own if computed is None else computed)
    if not any(axis == 0 for axis in axes):
        return None

    def once(*values: Any) -> Any:
        given = list(zip(model.leaves, values, strict=True))
        environment = {atom: value for atom, value in given if isinstance(atom, core.Var)}
        literals = iter([value for atom, value in given if not isinstance(atom, core.Var)])
        for equation in model.equations:
            arguments = [environment[a] if isinstance(a, core.Var) else next(literals) for a in equation.invars]
            results = constants.bind(equation.primitive, equation.params, *arguments)
            environment.update(zip(equation.outvars, results, strict=True))
        return environment[model.output]

    avals = []
    for atom, axis in zip(model.leaves, axes, strict=True):
        shape = tuple(atom.aval.shape)
        avals.append(jax.ShapeDtypeStruct((len(members), *shape) if axis == 0 else shape, atom.aval.dtype))
    try:
        closed = jax.make_jaxpr(jax.vmap(once, in_axes=tuple(axes)))(*avals)
    except NotImplementedError:
        return None  # an operation that JAX cannot vectorise, such as a call back to Python
    return Batch(tuple(members), closed, tuple(leaves))


def _computed_alike(own: tuple[Any, ...], maker: dict[Any, Any], order: dict[int, int], inputs: dict[Any, Any]) -> Any:
    """Leaves that are computed, without discretes, by alike equations: as a batch, or one for all if they are equal."""
    if not all(isinstance(atom, core.Var) and atom in maker for atom in own):
        return None
    cuts = [_cut_back(atom, maker, order, inputs) for atom in own]
    found = [cut for cut in cuts if cut is not None and cut.key == (cuts[0].key if cuts[0] else None)]
    if len(found) < len(own):
        return None
    if all(_same(a, b) for cut in found[1:] for a, b in zip(cut.leaves, found[0].leaves, strict=True)):
        return own[0]
    return _batch(list(range(len(own))), found, {}, order, inputs)


def _same(atom: Any, other: Any) -> bool:
    if isinstance(atom, core.Var) or isinstance(other, core.Var):
        return atom is other
    return equal_to_the_bit(np.asarray(atom.val), np.asarray(other.val))


def equal_to_the_bit(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal, 0.0 and -0.0 told apart."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _atoms(batch: Batch) -> list[Any]:
    found: list[Any] = []
    for leaf in batch.leaves:
        if isinstance(leaf, Batch):
            found.extend(_atoms(leaf))
        else:
            found.extend(leaf if isinstance(leaf, tuple) else [leaf])
    return found


# ---- evaluating -------------------------------------------------------------------------------------------------


def _evaluate(batch: Batch, leaves: dict[Any, Node]) -> Node:
    def value(atom: Any) -> Value:
        return force(leaves[atom]) if isinstance(atom, core.Var) else _literal(atom)

    operands: list[Node] = []
    for leaf in batch.leaves:
        if isinstance(leaf, Batch):
            operands.append(_evaluate(leaf, leaves))
        elif isinstance(leaf, tuple):
            operands.append(stack([value(atom) for atom in leaf]))
        else:
            operands.append(value(leaf))
    (node,) = run_closed(batch.closed, operands)
    return node


def _literal(atom: Any) -> Value:
    return constant(np.asarray(atom.val, dtype=atom.aval.dtype))


def stack(values: Sequence[Value]) -> Value:
    """Values of one shape along a new first axis; lanes of the same place become one lane."""
    lanes = []
    for own in zip(*(v.lanes for v in values), strict=True):
        shape = np.broadcast_shapes(*(lane.ids.shape for lane in own))
        lanes.append(Lane(np.stack([np.broadcast_to(lane.ids, shape) for lane in own]), own[0].size))
    count = len(lanes)
    arrays = [v.array for v in values]
    held = np.broadcast_shapes(*(tuple(a.shape) for a in arrays))
    xp = namespace(*arrays)
    same = xp is np and all(equal_to_the_bit(np.asarray(a), np.asarray(arrays[0])) for a in arrays)
    array = np.expand_dims(arrays[0], count) if same else xp.stack([broadcast(a, held) for a in arrays], axis=count)
    known = None
    if not lanes and all(v.known is not None for v in values):
        known = Lazy(lambda: np.stack([v.known.get() for v in values if v.known is not None]))
    return Value(array, (len(values), *values[0].shape), tuple(lanes), known)
