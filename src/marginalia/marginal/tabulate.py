"""From a program to its factors: every term of the density as a table over the discretes that it reads."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.jaxpr.known import Lazy
from marginalia.lanes.alike import Alike, find_alike, run_alike
from marginalia.lanes.bounds import Context, current, speaking_of
from marginalia.lanes.interpret import Sum
from marginalia.lanes.run import run
from marginalia.lanes.sums import Register
from marginalia.lanes.value import Lane, Value, plain, take
from marginalia.marginal.graph import Scope, summed_first
from marginalia.program import Discrete, Program


@dataclass(frozen=True, eq=False)
class Factor:
    """One array of log-factors; `terms` are the program's terms that it comes from.

    `axes` are those that a term sums over: without any, the elements are the term's own. Alike terms are `stacked`
    along a first axis; else there is one.
    """

    terms: tuple[int, ...]
    value: Value
    scale: np.ndarray
    axes: tuple[int, ...]
    stacked: bool = False

    def of(self, term: int) -> Value:
        """The part that comes from one of the terms."""
        return take(self.value, 0, self.terms.index(term)) if self.stacked else self.value


class Part(NamedTuple):
    """The static half of a factor."""

    terms: tuple[int, ...]
    stacked: bool
    axes: tuple[int, ...]
    scope: Scope
    scale: np.ndarray
    summed: tuple[int, ...] = ()
    """Axes of the factor that are summed before it goes into the plan; of length one in its scope."""


def part_of(factor: Factor) -> Part:
    value = factor.value
    summed = summed_first(value.shape, value.lanes, factor.scale, int(factor.stacked))
    shape = tuple(1 if axis in summed else n for axis, n in enumerate(value.shape))
    return Part(factor.terms, factor.stacked, factor.axes, Scope(shape, value.lanes), factor.scale, summed)


def summed_table(value: Value, axes: tuple[int, ...]) -> Any:
    """The value's table, summed along axes on which none of its lanes changes."""
    array, lanes = jnp.asarray(value.array), len(value.lanes)
    for axis in axes:
        if array.shape[lanes + axis] == 1:
            array = array * value.shape[axis]
    held = [lanes + axis for axis in axes if array.shape[lanes + axis] != 1]
    return jnp.sum(array, axis=tuple(held), keepdims=True) if held else array


@dataclass(frozen=True, eq=False)
class States:
    """Flat identities of all elements of all discretes."""

    names: tuple[str, ...]
    offsets: np.ndarray
    sizes: np.ndarray
    site: np.ndarray

    @staticmethod
    def of(program: Program) -> States:
        names = tuple(program.discretes)
        counts = [math.prod(d.shape) for d in program.discretes.values()]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        supports = np.asarray([len(d.values) for d in program.discretes.values()], np.int64)
        return States(names, offsets, _each(supports, counts), _each(np.arange(len(names)), counts))


def _each(values: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Each value as often as its count says; a single one is held once."""
    return np.broadcast_to(values, counts) if len(counts) == 1 else np.repeat(values, counts)


SMALL = 4096
"""Constants of up to so many numbers are part of the program: what is computed from them alone is computed once."""


def alike_terms(program: Program) -> Alike:
    """Which terms are read together."""
    sources = [None] * len(program.latents) + [len(d.values) for d in program.discretes.values()]
    kinds = [(term.kind, term.shape, term.counts) for term in program.terms]
    return find_alike(program.jaxpr.jaxpr, sources, kinds)


def apart(program: Program) -> Alike:
    """Every term read by itself."""
    return Alike(program.jaxpr.jaxpr, (), tuple(range(len(program.terms))))


def tabulate(
    program: Program,
    states: States,
    params: Mapping[str, Any],
    data: Sequence[Any],
    alike: Alike,
    register: Register | None = None,
    open_data: frozenset[int] = frozenset(),
) -> list[Factor]:
    """All factors of the program at the given parameters (tracers or arrays).

    `alike` says which terms are read together. `register` collects the sums that became discretes of their own; their
    identities follow those of the program's.
    `open_data` are places in `data` whose values may differ from the program's own, so that nothing rests on those.
    """
    inputs: list[Value] = [plain(jnp.asarray(params[name])) for name in program.latents]
    for i, discrete in enumerate(program.discretes.values()):
        rank = len(discrete.shape)
        ids = run(states.offsets[i], discrete.shape)
        array = np.asarray(discrete.values, jnp.result_type(int)).reshape((-1,) + (1,) * rank)
        if discrete.bounds is not None:
            # What is computed for a value beyond an element's own support is never used: better a value inside it
            # than one for which the program has no number (NaN).
            array = np.clip(array, *discrete.bounds)
        inputs.append(Value(array, discrete.shape, (Lane(ids, len(discrete.values)),)))
    constants = [
        plain(jnp.asarray(x)) if i in open_data else _constant(x, own)
        for i, (x, own) in enumerate(zip(data, program.jaxpr.consts, strict=True))
    ]
    register = Register(int(states.offsets[-1])) if register is None else register
    context = Context(current(), states.names, states.offsets, "the log-probability", register)
    factors: list[Factor] = []
    with speaking_of(context):
        for i, term in enumerate(program.terms):
            if term.kind == "discrete" and program.discretes[term.name].bounds is not None:
                place = len(program.latents) + list(program.discretes).index(term.name)
                own = _own_support(program.discretes[term.name], inputs[place])
                factors.append(Factor((i,), own, _scale_like(np.asarray(term.scale, float), own.shape), ()))
        for terms, stacked, node in run_alike(alike, constants, inputs):
            scale = _scale_of(program, terms, stacked, node.shape)
            if not isinstance(node, Sum):
                factors.append(Factor(terms, node, scale, (), stacked))
                continue
            for part in node.terms:
                wide = scale
                for axis in sorted(part.axes):
                    wide = np.expand_dims(wide, axis)
                factors.append(Factor(terms, part.spread(), wide, part.axes, stacked))
    return factors


def _scale_of(program: Program, terms: tuple[int, ...], stacked: bool, shape: tuple[int, ...]) -> np.ndarray:
    scales = [np.asarray(program.terms[t].scale, float) for t in terms]
    if not stacked:
        return _scale_like(scales[0], shape)
    if all((scale == 1.0).all() for scale in scales):
        return np.ones((1,) * len(shape))
    return np.stack([np.broadcast_to(_scale_like(scale, shape[1:]), shape[1:]) for scale in scales])


def _constant(traced: Any, own: Any) -> Value:
    shape = tuple(np.shape(own))
    known = Lazy(functools.partial(np.asarray, own))
    extended = jax.dtypes.issubdtype(jnp.result_type(own), jax.dtypes.extended)
    if math.prod(shape) <= SMALL and not extended:
        return Value(np.asarray(own), shape, (), known)
    return Value(jnp.asarray(traced), shape, (), known)


def _own_support(discrete: Discrete, value: Value) -> Value:
    """A factor that forbids the values beyond each element's own support, also where the site itself is masked."""
    assert discrete.bounds is not None
    low, high = discrete.bounds
    values = discrete.values.reshape((-1,) + (1,) * len(discrete.shape))
    return replace(value, array=np.where((values >= low) & (values <= high), 0.0, -np.inf))


def _scale_like(scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return scale.reshape((1,) * (len(shape) - scale.ndim) + scale.shape)
