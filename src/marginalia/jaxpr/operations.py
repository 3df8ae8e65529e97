"""The range of what an operation gives, from the ranges of what it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from marginalia.jaxpr.ranges import (
    MONOTONE,
    REAL,
    UNIT,
    Maybe,
    Range,
    add,
    integer_power,
    inverse,
    join,
    multiply,
    negative,
    power,
    product,
    running_sum,
    total,
)

# fmt: off
_KEEPING = frozenset({
    "broadcast_in_dim", "copy", "dynamic_slice", "expand_dims", "gather", "optimization_barrier", "reduce_max",
    "reduce_min", "reduce_precision", "reshape", "rev", "slice", "split", "squeeze", "stop_gradient", "cummax",
    "cummin", "transpose", "unstack",
})
"""Operations that give some of the first operand's numbers."""

_JOINING = frozenset({"concatenate", "dynamic_update_slice", "pad", "scatter", "select_n", "sort", "stack"})
"""Operations that give some of all operands' numbers."""

_TRUTHS = frozenset({
    "and", "eq", "ge", "gt", "is_finite", "le", "lt", "ne", "not", "or", "reduce_and", "reduce_or", "xor",
})
# fmt: on


def range_of_operation(equation: Any, ranges: Sequence[Maybe]) -> list[Maybe]:
    """One range per output; that of an operation without a rule is finite where its operands are."""
    name = equation.primitive.name
    if any(getattr(v.aval.dtype, "kind", "") == "c" for v in equation.outvars):
        found = REAL if all(r is not None for r in ranges) else None  # of a complex number: that it is finite
    else:
        found = _of_one(equation, name, ranges)
    return [found] * len(equation.outvars)


def _of_one(equation: Any, name: str, ranges: Sequence[Maybe]) -> Maybe:
    if name in _KEEPING:
        return ranges[0]
    if name == "convert_element_type":
        return _converted(ranges[0], equation)
    if name == "select_n":
        return join(ranges[1:])
    if name in _JOINING:
        return join(_operands(name, ranges))
    if name in _TRUTHS:
        return UNIT if _kind(equation.outvars[0]) == "b" else REAL
    if name == "iota":
        n = equation.params["shape"][equation.params["dimension"]]
        return Range(0.0, float(max(n - 1, 0)), False, False)
    if name in _WITH_SHAPES:
        known = [r for r in ranges if r is not None]
        return _WITH_SHAPES[name](equation, *known) if len(known) == len(ranges) else None
    if name == "clamp":
        return _clamped(ranges)
    if any(r is None for r in ranges):
        return _of_infinite(name, ranges)
    whole = [r for r in ranges if r is not None]
    if name in _BINARY:
        return _BINARY[name](*whole)
    return MONOTONE[name](*whole) if name in MONOTONE else REAL


def _kind(atom: Any) -> str:
    return str(np.dtype(atom.aval.dtype).kind)


def _operands(name: str, ranges: Sequence[Maybe]) -> Sequence[Maybe]:
    """Those of the operands that are no places."""
    if name == "scatter":
        return [ranges[0], *ranges[2:]]
    return ranges[:2] if name == "dynamic_update_slice" else ranges


def _converted(x: Maybe, equation: Any) -> Maybe:
    if _kind(equation.invars[0]) == "f" and _kind(equation.outvars[0]) in "iu":
        return REAL
    return x


def _clamped(ranges: Sequence[Maybe]) -> Maybe:
    """Between its bounds, whatever is clamped, unless that is no number."""
    low, x, high = ranges
    if low is None or high is None:
        return x
    x = REAL if x is None else x
    return _larger(low, _smaller(x, high))


def _of_infinite(name: str, ranges: Sequence[Maybe]) -> Maybe:
    """Of operands that may be infinite: what is finite all the same."""
    return Range(-1.0, 1.0, False, False) if name in ("tanh", "erf", "sign") else None


def _smaller(x: Range, y: Range) -> Range:
    high, high_open = min((x.high, not x.high_open), (y.high, not y.high_open))
    both = join([x, y]) or REAL
    return Range(both.low, high, both.low_open, not high_open)


def _larger(x: Range, y: Range) -> Range:
    return negative(_smaller(negative(x), negative(y)))


def _divide(x: Range, y: Range) -> Maybe:
    own = inverse(y)
    return None if own is None else multiply(x, own)


_BINARY: dict[str, Callable[..., Maybe]] = {
    "add": add,
    "add_any": add,
    "sub": lambda x, y: add(x, negative(y)),
    "mul": multiply,
    "div": _divide,
    "pow": power,
    "max": _larger,
    "min": _smaller,
    "rem": lambda x, y: REAL if y.nonzero else None,
}


def _count(equation: Any) -> int:
    return math.prod(equation.invars[0].aval.shape[axis] for axis in equation.params["axes"])


def _contraction(equation: Any, x: Range, y: Range) -> Range:
    (axes, _), _ = equation.params["dimension_numbers"]
    return total(multiply(x, y), math.prod(equation.invars[0].aval.shape[axis] for axis in axes))


_WITH_SHAPES: dict[str, Callable[..., Maybe]] = {
    "integer_pow": lambda equation, x: integer_power(x, equation.params["y"]),
    "reduce_sum": lambda equation, x: total(x, _count(equation)),
    "reduce_prod": lambda equation, x: product(x, _count(equation)),
    "cumsum": lambda equation, x: running_sum(x, equation.invars[0].aval.shape[equation.params["axis"]]),
    "cumprod": lambda equation, x: product(x, 2),
    "dot_general": _contraction,
    "argmax": lambda equation, x: REAL,
    "argmin": lambda equation, x: REAL,
}
