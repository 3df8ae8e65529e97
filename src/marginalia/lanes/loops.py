"""`scan` over discretes: read as array operations along time wherever nothing is remembered for ever.

A hidden Markov model's loop carries its last state only: what enters step t is what left step t - 1, which is a
shift of an array. A carried value that depends on carried values only through finitely many steps (lags of one, two,
...) is such a shift, so the whole loop becomes one vectorised step over shifted arrays, and its size does not grow
with its length. Carried values that read no discrete (a time index, a trend) stay a loop and enter as an array. Only a
loop that mixes discretes without end is written out step by step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from marginalia.jaxpr import constants
from marginalia.jaxpr.calls import scan_counts
from marginalia.jaxpr.known import Lazy
from marginalia.jaxpr.reads import dependencies
from marginalia.lanes.interpret import Node, call, force, generic, known_outputs, run_closed
from marginalia.lanes.structure import concatenate, on_axes, slice_value
from marginalia.lanes.value import Value, insert_axis, materialize, plain, take

MAX_UNROLLED = 64
"""Steps that are written out when a loop cannot be read along time; longer ones are read as reading everything."""


@dataclass(frozen=True, eq=False)
class Loop:
    """A scan's parts. Inputs are in the order of its equation: constants, carried, scanned."""

    body: core.ClosedJaxpr
    length: int
    reverse: bool
    constants: list[Value]
    initial: list[Value]
    scanned: list[Value]

    @property
    def n_carry(self) -> int:
        return len(self.initial)


@call("scan")
def scan(equation: Any, nodes: list[Node]) -> list[Node]:
    """Read a loop: plainly where it reads no discrete, along time where it can be, else step by step."""
    values = [force(node) for node in nodes]
    if not any(v.lanes for v in values):
        known = known_outputs(equation, values)
        arrays = constants.bind(equation.primitive, equation.params, *[materialize(v).array for v in values])
        return [plain(a, known[i] if known else None) for i, a in enumerate(arrays)]
    n_constants, n_carry = scan_counts(equation)
    loop = Loop(
        equation.params["jaxpr"],
        equation.params["length"],
        bool(equation.params["reverse"]),
        values[:n_constants],
        values[n_constants : n_constants + n_carry],
        values[n_constants + n_carry :],
    )
    along = _along_time(loop, {i for i, v in enumerate(equation.outvars) if not isinstance(v, core.DropVar)})
    if along is not None:
        return list(along)
    if loop.length > MAX_UNROLLED:
        return list(generic(equation, values))
    return list(_step_by_step(loop))


def _step_by_step(loop: Loop) -> list[Value]:
    carry = loop.initial
    collected: list[list[Value]] = [[] for _ in range(loop.length)]
    steps = range(loop.length - 1, -1, -1) if loop.reverse else range(loop.length)
    for t in steps:
        inputs = [*loop.constants, *carry, *[take(x, 0, t) for x in loop.scanned]]
        outputs = [force(o) for o in run_closed(loop.body, inputs)]
        carry, collected[t] = outputs[: loop.n_carry], outputs[loop.n_carry :]
    stacked = [concatenate([insert_axis(v, 0) for v in column], 0) for column in zip(*collected, strict=True)]
    return [*carry, *stacked]


# ---- along time -------------------------------------------------------------------------------------------------


def _along_time(loop: Loop, used: set[int]) -> list[Value] | None:
    """The loop's outputs as array operations over time, or None when discretes are remembered without end.

    Outputs that are not `used` are stood in for: a program may carry a random key that nothing reads.
    """
    reads = dependencies(loop.body.jaxpr)
    n_c, n_k = len(loop.constants), loop.n_carry
    needed = _needed_carries(reads, used, n_c, n_k)
    laned = _laned_carries(loop, reads) & needed
    order = _topological(laned, {j: {i - n_c for i in reads[j] if n_c <= i < n_c + n_k} & laned for j in laned})
    if order is None or loop.length == 0:
        return None
    scanned = [_reversed(x) if loop.reverse else x for x in loop.scanned]
    entering: list[Value | None] = [None] * n_k
    avals: list[Any] = [v.aval for v in loop.body.jaxpr.outvars]
    outputs = [plain(_dummy(a)) for a in avals[:n_k]]
    outputs += [_stand_in((loop.length, *a.shape)) for a in avals[n_k:]]
    free = sorted(needed - laned)
    if free:
        for j, (sequence, last) in zip(free, _plain_loop(loop, free, reads, scanned), strict=True):
            entering[j], outputs[j] = sequence, last
    for j in order:
        (left,) = _all_steps(loop, entering, scanned, [j])
        size = loop.initial[j].rank
        before = slice_value(left, [0] * (size + 1), [loop.length - 1, *left.shape[1:]], [1] * (size + 1))
        entering[j] = concatenate([insert_axis(loop.initial[j], 0), before], 0)
        outputs[j] = take(left, 0, loop.length - 1)
    wanted = sorted(i for i in used if i >= n_k)
    for i, value in zip(wanted, _all_steps(loop, entering, scanned, wanted), strict=True):
        outputs[i] = _reversed(value) if loop.reverse else value
    return outputs


def _needed_carries(reads: list[set[int]], used: set[int], n_c: int, n_k: int) -> set[int]:
    """Carried values that some used output reads, at this step or an earlier one."""
    needed = {i for i in used if i < n_k}
    waiting = set(used)
    while waiting:
        read = {i - n_c for o in waiting for i in reads[o] if n_c <= i < n_c + n_k}
        waiting = read - needed
        needed |= read
    return needed


def _stand_in(shape: tuple[int, ...]) -> Value:
    return Value(np.zeros((1,) * len(shape), bool), shape)


def _laned_carries(loop: Loop, reads: list[set[int]]) -> set[int]:
    """Carried values that read a discrete at some step."""
    n_c, n_k = len(loop.constants), loop.n_carry
    inputs = [*loop.constants, *loop.initial, *loop.scanned]
    laned = {j for j in range(n_k) if loop.initial[j].lanes}
    while True:
        more = {
            j
            for j in range(n_k)
            if any((i - n_c) in laned if n_c <= i < n_c + n_k else bool(inputs[i].lanes) for i in reads[j])
        } - laned
        if not more:
            return laned
        laned |= more


def _topological(nodes: set[int], needs: dict[int, set[int]]) -> list[int] | None:
    order: list[int] = []
    left = set(nodes)
    while left:
        ready = sorted(j for j in left if not (needs[j] & left))
        if not ready:
            return None
        order.extend(ready)
        left -= set(ready)
    return order


def _reversed(value: Value) -> Value:
    return on_axes(value, value.shape, lambda a, n: a[(slice(None),) * n + (slice(None, None, -1),)])


def _plain_loop(loop: Loop, free: list[int], reads: list[set[int]], scanned: list[Value]) -> list[tuple[Value, Value]]:
    """The carried values that read no discrete: what enters each step, and what is left at the end."""
    n_c, n_k = len(loop.constants), loop.n_carry
    avals: list[Any] = [v.aval for v in loop.body.jaxpr.invars]
    used = sorted(set().union(*(reads[j] for j in free)) | {n_c + j for j in free})
    inputs = [*loop.constants, *loop.initial, *scanned]
    body = core.jaxpr_as_fun(loop.body)

    def run(arrays: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        given = dict(zip(used, arrays, strict=True))

        def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
            now = dict(zip(free, carry, strict=True))
            arguments = []
            for i, aval in enumerate(avals):
                if n_c <= i < n_c + n_k:
                    arguments.append(now[i - n_c] if i - n_c in now else _dummy(aval))
                elif i >= n_c + n_k:
                    arguments.append(xs[moving.index(i)] if i in moving else _dummy(aval))
                else:
                    arguments.append(given.get(i, _dummy(aval)))
            outputs = body(*arguments)
            return [outputs[j] for j in free], carry

        moving = [i for i in used if i >= n_c + n_k]
        start = [given[n_c + j] for j in free]
        last, entering = jax.lax.scan(step, start, [given[i] for i in moving], length=loop.length)
        return entering, last

    entering, last = run([materialize(inputs[i]).array for i in used])
    known = _known_loop(run, [inputs[i] for i in used], len(free))
    return [
        (plain(sequence, known[i] if known else None), plain(end))
        for i, (sequence, end) in enumerate(zip(entering, last, strict=True))
    ]


def _dummy(aval: Any) -> Any:
    """Stands for an input that the wanted outputs do not read."""
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), aval.shape)
    return jnp.zeros(aval.shape, aval.dtype)


def _known_loop(run: Any, inputs: list[Value], count: int) -> list[Lazy] | None:
    if any(v.known is None for v in inputs):
        return None

    @functools.cache
    def compute() -> list[np.ndarray]:
        with jax.ensure_compile_time_eval():
            entering, _ = run([v.known.get() for v in inputs if v.known is not None])
            return [constants.concrete(x) for x in entering]

    return [Lazy(functools.partial(lambda i: compute()[i], i)) for i in range(count)]


def _all_steps(loop: Loop, entering: list[Value | None], scanned: list[Value], wanted: Sequence[int]) -> list[Value]:
    """The wanted outputs of the body at every step at once: the body with a leading time axis, read as tables."""
    body = core.jaxpr_as_fun(loop.body)
    avals: list[Any] = [v.aval for v in loop.body.jaxpr.invars]
    n_c, n_k = len(loop.constants), loop.n_carry

    def outputs(*arguments: Any) -> list[Any]:
        result = body(*arguments)
        return [result[i] for i in wanted]

    axes = [None if i < n_c else 0 for i in range(len(avals))]
    shapes = [
        jax.ShapeDtypeStruct(a.shape if i < n_c else (loop.length, *a.shape), a.dtype) for i, a in enumerate(avals)
    ]
    closed = jax.make_jaxpr(jax.vmap(outputs, in_axes=axes))(*shapes)
    values: list[Value] = list(loop.constants)
    for j in range(n_k):
        own = entering[j]
        if own is None:
            own = _stand_in((loop.length, *avals[n_c + j].shape))
        values.append(own)
    values.extend(scanned)
    return [force(o) for o in run_closed(closed, values)]
