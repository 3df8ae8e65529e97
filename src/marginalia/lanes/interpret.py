"""Read a jaxpr as tables: every value with its lanes, evaluated only as often as what it reads demands.

One abstract interpretation does both halves of the work: it follows which elements of which discretes each value
reads (concretely, in NumPy) and evaluates the value for all their states (in JAX). Structural operations act on the
identities as they act on the values; elementwise operations unite lanes; an operation that mixes positions turns
them into lanes of their own; an operation without a rule is taken to mix everything, which is exact and only dearer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from marginalia.jaxpr import constants
from marginalia.jaxpr.known import Lazy
from marginalia.jaxpr.reads import live_equations
from marginalia.lanes import bounds
from marginalia.lanes.sums import count_sum
from marginalia.lanes.value import (
    Array,
    Lane,
    Value,
    aligned,
    constant,
    explode,
    foresee,
    guard,
    insert_axis,
    materialize,
    merge_equal_lanes,
    plain,
    table_over,
    take,
    unite,
)


@dataclass(frozen=True, eq=False)
class Term:
    """One summand: a value, the axes it is summed over, and linear steps that follow the sum, in order."""

    value: Value
    axes: tuple[int, ...] = ()
    after: tuple[tuple[str, Value | None], ...] = ()

    def then(self, name: str, factor: Value | None = None) -> Term:
        return replace(self, after=(*self.after, (name, factor)))

    def carried_out(self) -> Value:
        """The sum first, then what follows it: the sum itself may be a discrete."""
        value = fold("add", self.value, self.axes) if self.axes else self.value
        for name, factor in self.after:
            value = apply_elementwise(name, [value] if factor is None else [value, factor])
        return value

    def spread(self) -> Value:
        """What is to be added up, each position with what follows the sum: the factors of a density."""
        value = self.value
        for name, factor in self.after:
            if factor is None:
                value = apply_elementwise(name, [value])
                continue
            for axis in sorted(self.axes):
                factor = insert_axis(factor, axis)
            value = apply_elementwise(name, [value, replace(factor, shape=value.shape)])
        return value


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum over positions that reads many discretes, not yet carried out.

    As long as nothing nonlinear reads it, its terms stay separate factors of the density; `force` carries it out,
    over all joint states.
    """

    terms: tuple[Term, ...]
    shape: tuple[int, ...]


type Node = Value | Sum
type Rule = Callable[[Any, list[Value]], list[Value]]

RULES: dict[str, Rule] = {}
"""Primitives with a reading of their own: on values."""

CALLS: dict[str, Callable[[Any, list[Node]], list[Node]]] = {}
"""Primitives that carry a program inside: on values or sums not yet carried out."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the reading of one or several primitives."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def call(
    *names: str,
) -> Callable[[Callable[[Any, list[Node]], list[Node]]], Callable[[Any, list[Node]], list[Node]]]:
    """Register the reading of a primitive that carries a program inside."""

    def register(
        function: Callable[[Any, list[Node]], list[Node]],
    ) -> Callable[[Any, list[Node]], list[Node]]:
        for name in names:
            CALLS[name] = function
        return function

    return register


def force(node: Node) -> Value:
    """Carry out a deferred sum."""
    if isinstance(node, Value):
        return node
    total: Value | None = None
    for term in node.terms:
        part = term.carried_out()
        total = part if total is None else apply_elementwise("add", [total, part])
    assert total is not None
    return total


def run(
    jaxpr: core.Jaxpr, constants_: Sequence[Node], inputs: Sequence[Node], outputs: Sequence[Any] | None = None
) -> list[Node]:
    """Interpret a jaxpr, to its outputs or to other variables in it; equations that none of them reads are skipped."""
    outputs = jaxpr.outvars if outputs is None else outputs
    environment: dict[core.Var, Node] = {}
    environment.update(zip(jaxpr.constvars, constants_, strict=True))
    environment.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Node:
        if isinstance(atom, core.Literal):
            aval: Any = atom.aval
            return constant(np.asarray(atom.val, dtype=aval.dtype))
        return environment[atom]

    for equation in live_equations(jaxpr, outputs):
        results = interpret_equation(equation, [read(atom) for atom in equation.invars])
        environment.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in outputs]


def run_closed(closed: core.ClosedJaxpr, inputs: Sequence[Node]) -> list[Node]:
    """Interpret a jaxpr together with the arrays it closes over."""
    return run(closed.jaxpr, [as_constant(c) for c in closed.consts], inputs)


def as_constant(array: Any) -> Value:
    return (
        constant(array) if isinstance(array, np.ndarray) else plain(jnp.asarray(array), Lazy(lambda: np.asarray(array)))
    )


def interpret_equation(equation: Any, nodes: list[Node]) -> list[Node]:
    name = equation.primitive.name
    deferred = _additive(equation, name, nodes)
    if deferred is not None:
        return [deferred]
    if name in CALLS:
        return CALLS[name](equation, nodes)
    values = [force(node) for node in nodes]
    known = known_outputs(equation, values)
    if name in RULES:
        outputs = RULES[name](equation, values)
    elif name in ELEMENTWISE:
        outputs = [apply_elementwise(name, values, equation.primitive, equation.params)]
    else:
        outputs = generic(equation, values)
    outputs = [merge_equal_lanes(o) if len(o.lanes) > 1 else o for o in outputs]
    context = bounds.context()
    if context is not None and context.register is not None:
        context.register.computed += sum(
            math.prod(o.array.shape) for o in outputs if not isinstance(o.array, np.ndarray)
        )
    return [replace(o, known=k) for o, k in zip(outputs, known, strict=True)] if known else list(outputs)


def known_outputs(equation: Any, values: list[Value]) -> list[Lazy] | None:
    """Lazily computed concrete outputs of an equation whose inputs involve neither parameters nor discretes."""
    if any(v.known is None or v.lanes for v in values):
        return None

    @functools.cache
    def compute() -> list[np.ndarray]:
        arguments = [v.known.get() for v in values if v.known is not None]
        return constants.evaluate(equation.primitive, equation.params, arguments)

    return [Lazy(functools.partial(lambda i: compute()[i], i)) for i in range(len(equation.outvars))]


# ---- sums kept apart -------------------------------------------------------------------------------------------


def _additive(equation: Any, name: str, nodes: list[Node]) -> Sum | None:
    """Keep a sum over positions as separate terms while only additive operations touch it."""
    if name == "reduce_sum":
        (node,) = nodes
        axes = tuple(equation.params["axes"])
        if isinstance(node, Sum):
            return None
        if any(node.lane_varies(axis) for axis in axes) and jnp.issubdtype(node.array.dtype, jnp.floating):
            shape = tuple(n for i, n in enumerate(node.shape) if i not in axes)
            return Sum((Term(node, axes),), shape)
        return None
    if not any(isinstance(node, Sum) for node in nodes):
        return None
    if name in ("add", "add_any", "sub"):
        shapes = {node.shape for node in nodes}
        if len(shapes) != 1:
            return None
        first, second = (terms_of(node) for node in nodes)
        if name == "sub":
            second = tuple(term.then("neg") for term in second)
        return Sum(first + second, nodes[0].shape)
    if name == "neg":
        return Sum(tuple(term.then("neg") for term in terms_of(nodes[0])), nodes[0].shape)
    if name in ("mul", "div") and isinstance(nodes[0], Sum) and isinstance(nodes[1], Value):
        factor = nodes[1]
        if factor.lanes or factor.shape != nodes[0].shape:
            return None
        return Sum(tuple(term.then(name, factor) for term in nodes[0].terms), nodes[0].shape)
    return None


def terms_of(node: Node) -> tuple[Term, ...]:
    return node.terms if isinstance(node, Sum) else (Term(node),)


# ---- elementwise -----------------------------------------------------------------------------------------------

# fmt: off
ELEMENTWISE = frozenset(
    {
        "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e",
        "bessel_i1e", "cbrt", "ceil", "clamp", "complex", "conj", "convert_element_type", "copy", "cos", "cosh",
        "digamma", "div", "eq", "eq_to", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt",
        "igamma", "igamma_grad_a", "igammac", "imag", "integer_pow", "is_finite", "le", "le_to", "lgamma", "log",
        "log1p", "log2", "logistic", "lt", "lt_to", "max", "min", "mul", "name", "ne", "neg", "nextafter", "not",
        "one_minus_square", "or", "polygamma", "population_count", "pow", "real", "reduce_precision",
        "regularized_incomplete_beta", "rem", "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic",
        "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor",
        "zeta",
    }
)
# fmt: on

_BY_NAME: dict[str, Any] = {
    "add": jax.lax.add,
    "neg": jax.lax.neg,
    "max": jax.lax.max,
    "min": jax.lax.min,
    "mul": jax.lax.mul,
    "and": jax.lax.bitwise_and,
    "or": jax.lax.bitwise_or,
    "xor": jax.lax.bitwise_xor,
    "div": jax.lax.div,
    "eq": jax.lax.eq,
    "select_n": jax.lax.select_n,
}


def apply_elementwise(
    name: str, values: Sequence[Value], primitive: Any = None, params: dict[str, Any] | None = None
) -> Value:
    """One value per position from the values at that position; lanes unite."""
    shapes = {v.shape for v in values if v.shape}
    # JAX lets elementwise operations meet axes of length one without a broadcast.
    shape = next(iter(shapes)) if len(shapes) == 1 else tuple(np.broadcast_shapes(*shapes))
    if all(v.is_plain() for v in values) and not all(isinstance(v.array, np.ndarray) for v in values):
        lanes: tuple[Lane, ...] = ()
        tables: list[Array] = [v.array for v in values]
    else:
        lanes, tables = aligned(values, shape)
    result: Any = constants.elementwise(name, params or {}, tables)
    if result is None:
        if primitive is None:
            result = _BY_NAME[name](*tables)
        else:
            (result,) = constants.bind(primitive, params or {}, *tables)
    return Value(result, shape, lanes)


def fold(name: str, value: Value, axes: Sequence[int]) -> Value:
    """Reduce along axes whose positions are different discretes, one position at a time.

    Never larger than its result, which has one table axis per discrete read, or one axis in all where the sum itself
    can be a discrete.
    """
    context = bounds.context()
    if name == "add" and context is not None:
        counted = count_sum(value, tuple(axes), context.register)
        if counted is not None:
            return counted
    foresee(value, axes)
    for axis in sorted(axes, reverse=True):
        if value.lane_varies(axis):
            total = take(value, axis, 0)
            for i in range(1, value.shape[axis]):
                total = apply_elementwise(name, [total, take(value, axis, i)])
            value = total
        else:
            value = reduce_plainly(name, value, axis)
    return value


def reduce_plainly(name: str, value: Value, axis: int) -> Value:
    """Reduce along an axis on which no lane changes."""
    held = value.physical[axis]
    n = value.shape[axis]
    array: Array = value.array
    place = len(value.lanes) + axis
    if held == 1 and n > 0 and name not in ("add", "mul", "xor"):
        array = array.squeeze(place)
    else:
        array = materialize(value, [axis]).array
        reducers = {"add": "sum", "mul": "prod", "max": "max", "min": "min", "and": "all", "or": "any"}
        if name == "xor" or (name in ("and", "or") and array.dtype != np.bool_):
            array = (
                jax.lax.reduce(array, np.zeros((), array.dtype), _BY_NAME[name], (place,))
                if name != "and"
                else (jax.lax.reduce(array, np.array(-1, array.dtype), _BY_NAME[name], (place,)))
            )
        else:
            keep: dict[str, Any] = {"dtype": array.dtype} if name in ("add", "mul") else {}
            if name in ("max", "min") and n == 0:
                keep["initial"] = -np.inf if name == "max" else np.inf
            array = getattr(jnp, reducers[name])(jnp.asarray(array), axis=place, **keep)
    lanes = tuple(lane.without([axis]) for lane in value.lanes)
    return Value(array, value.shape[:axis] + value.shape[axis + 1 :], lanes)


# ---- no rule: everything depends on everything ------------------------------------------------------------------


def generic(equation: Any, values: list[Value]) -> list[Value]:
    """An operation without a rule: each output may read all that its inputs read."""
    spread = [materialize(explode(v, range(v.rank))) for v in values]
    return vectorized(equation, spread)


def vectorized(equation: Any, values: list[Value]) -> list[Value]:
    """Apply a primitive once per joint state of lanes that do not change along any axis."""
    scalars = [_scalar_lanes(v) for v in values]
    lanes = unite(scalars)
    if not lanes:
        return [plain(o) for o in constants.bind(equation.primitive, equation.params, *[v.array for v in values])]
    for aval in (v.aval for v in equation.outvars):
        guard(lanes, tuple(aval.shape), [tuple(aval.shape)])
    function = functools.partial(constants.bind, equation.primitive, equation.params)
    outputs = over_lanes(function, [table_over(v, lanes) for v in scalars], len(lanes))
    result = []
    for output, variable in zip(outputs, equation.outvars, strict=True):
        shape = tuple(variable.aval.shape)
        own = tuple(Lane(lane.ids.reshape((1,) * len(shape)), lane.size) for lane in lanes)
        result.append(Value(output, shape, own))
    return result


def _scalar_lanes(value: Value) -> Value:
    """Lanes as scalars, so that values of different rank can be united."""
    return replace(value, lanes=tuple(Lane(lane.ids.reshape(()), lane.size) for lane in value.lanes))


def over_lanes(function: Callable[..., list[Any]], tables: list[Any], n: int) -> list[Any]:
    """Map a function over n leading table axes; an axis of length one is not mapped for that argument."""
    for place in reversed(range(n)):
        axes = [None if table.shape[place] == 1 else 0 for table in tables]
        function = _mapped(function, axes)
    squeezed = []
    for table in tables:
        drop = tuple(place for place in range(n) if table.shape[place] == 1)
        squeezed.append(jnp.asarray(table).reshape(tuple(s for p, s in enumerate(table.shape) if p not in drop)))
    return function(*squeezed)


def _mapped(function: Callable[..., list[Any]], axes: list[int | None]) -> Callable[..., list[Any]]:
    if all(a is None for a in axes):
        return lambda *arguments: [jnp.expand_dims(o, 0) for o in function(*arguments)]
    return jax.vmap(function, in_axes=tuple(axes), out_axes=0)
