"""The range that each number of a jaxpr can have when its inputs have ranges: interval arithmetic, in NumPy.

What comes out holds every value that the program can give, rounding included (Moore 1966): each operation's ends are
moved outwards by more than it rounds. An operation without a rule, like 0/0, says nothing: from -inf to inf. Integers
are whole numbers of any size, not those that wrap around at 2^63. An end at infinity stands for "no bound", so that 0
times it is 0.

Ranges forget that two operands are the same number. Where that would ruin log-sum-exp, a value remembers: `above` that
it is nowhere less than another along some axes (a maximum), `peak` that it is 0 or, after `exp`, 1 somewhere on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from marginalia.jaxpr.calls import inner_program


class Above(NamedTuple):
    """A maximum over some axes: of what, and at which of that one's axes each of its own lies (None: at none)."""

    of: Any
    places: tuple[int | None, ...]
    exact: bool


class Interval:
    """Arrays of smallest and largest values; both are the same object where the value is known."""

    __slots__ = ("above", "high", "log", "low", "peak")

    def __init__(self, low: Any, high: Any = None, above: Above | None = None, peak: tuple[int, ...] | None = None):
        self.low = np.asarray(low, float)
        self.high = self.low if high is None else np.asarray(high, float)
        self.above = above
        self.peak = peak
        self.log: Interval | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.low.shape

    @property
    def known(self) -> bool:
        return self.low is self.high or bool((self.low == self.high).all())


type Rule = Callable[..., Interval | list[Interval]]

RULES: dict[str, Rule] = {}
"""Name of a primitive to a function of its equation and the ranges of its operands."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    def put(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return put


def unknown(shape: tuple[int, ...]) -> Interval:
    return Interval(np.broadcast_to(-np.inf, shape), np.broadcast_to(np.inf, shape))


def between(low: float, high: float, shape: tuple[int, ...]) -> Interval:
    return Interval(np.broadcast_to(low, shape), np.broadcast_to(high, shape))


def hull(parts: Sequence[Interval]) -> Interval:
    low = np.minimum.reduce([p.low for p in parts])
    return Interval(low, np.maximum.reduce([p.high for p in parts]))


def run(closed: core.ClosedJaxpr, inputs: Sequence[Interval]) -> list[Interval]:
    """The ranges of a program's outputs."""
    jaxpr = closed.jaxpr
    values: dict[Any, Interval] = dict(zip(jaxpr.invars, inputs, strict=True))
    values.update(zip(jaxpr.constvars, (exactly(c) for c in closed.consts), strict=True))

    def read(atom: Any) -> Interval:
        return exactly(atom.val) if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        values.update(zip(equation.outvars, apply(equation, [read(a) for a in equation.invars]), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def exactly(array: Any) -> Interval:
    """A known array; what has no order, such as a random key, is not known."""
    dtype = jax.dtypes.result_type(array) if not hasattr(array, "dtype") else array.dtype
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) or np.dtype(dtype).kind not in "fiub":
        return unknown(np.shape(array))
    return Interval(np.asarray(array).astype(float))


def apply(equation: Any, operands: list[Interval]) -> list[Interval]:
    """The ranges of one equation's outputs."""
    inner = inner_program(equation)
    with np.errstate(all="ignore"):
        if inner is not None:
            return run(inner, operands)
        own = RULES.get(equation.primitive.name)
        if own is None or any(0 in x.shape for x in operands):
            return [unknown(tuple(v.aval.shape)) for v in equation.outvars]
        found = own(equation, *operands)
    results = found if isinstance(found, list) else [found]
    return [_settled(r, v.aval) for r, v in zip(results, equation.outvars, strict=True)]


def _settled(found: Interval, aval: Any) -> Interval:
    """Ends of the output's own shape; not a number is no bound."""
    low, high = found.low, found.high
    shape = tuple(aval.shape)
    if low.shape != shape or high.shape != shape:
        low, high = np.broadcast_to(low, shape), np.broadcast_to(high, shape)
    elif not np.isnan(low).any() and not np.isnan(high).any():
        return found
    bad = np.isnan(low) | np.isnan(high)
    if bad.any():
        low, high = np.where(bad, -np.inf, low), np.where(bad, np.inf, high)
    settled = Interval(low, high, found.above, found.peak)
    settled.log = found.log
    return settled


# ---- Rounding ------------------------------------------------------------------------------------


def _whole(equation: Any) -> bool:
    return np.dtype(equation.outvars[0].aval.dtype).kind in "iub"


def moved_out(equation: Any, low: Any, high: Any, ulps: int = 2) -> Interval:
    """Ends moved outwards by some units in the last place of the output's own numbers."""
    low, high = np.asarray(low, float), np.asarray(high, float)
    dtype = np.dtype(equation.outvars[0].aval.dtype)
    if dtype.kind in "iub":
        # Whole numbers are exact as far as a double holds them.
        if max(np.max(np.abs(low), initial=0.0), np.max(np.abs(high), initial=0.0)) < 2.0**53:
            return Interval(low, high)
        dtype = np.dtype(float)
    about = np.finfo(dtype if dtype.kind == "f" and dtype.itemsize >= 4 else np.float32)
    step, least = ulps * float(about.eps), float(about.tiny)
    lower = np.where(np.isfinite(low), low - (step * np.abs(low) + least), low)
    higher = np.where(np.isfinite(high), high + (step * np.abs(high) + least), high)
    return Interval(lower, higher)


# ---- Arithmetic ----------------------------------------------------------------------------------


@rule("add", "add_any")
def _add(equation: Any, x: Interval, y: Interval) -> Interval:
    return moved_out(equation, x.low + y.low, x.high + y.high)


@rule("sub")
def _subtract(equation: Any, x: Interval, y: Interval) -> Interval:
    if y.above is not None and y.above.of is x and _aligned(y.above, x.shape):
        found = moved_out(equation, x.low - y.high, np.minimum(x.high - y.low, 0.0))
        axes = tuple(i for i in range(len(x.shape)) if i not in y.above.places)
        sure = y.above.exact and bool((y.low > -np.inf).all())
        return Interval(found.low, np.fmin(found.high, 0.0), None, axes if sure else None)
    if equation.invars[0] is equation.invars[1]:
        return between(0.0, 0.0, x.shape)
    return moved_out(equation, x.low - y.high, x.high - y.low)


def _aligned(above: Above, shape: tuple[int, ...]) -> bool:
    """Whether each element of a maximum stands beside those that it is the maximum of."""
    return len(above.places) == len(shape) and all(j is None or j == i for i, j in enumerate(above.places))


def _product(x: Any, y: Any) -> np.ndarray:
    return np.where((x == 0) | (y == 0), 0.0, x * y)


def _times(x: Interval, y: Interval) -> tuple[np.ndarray, np.ndarray]:
    ends = [_product(a, b) for a in (x.low, x.high) for b in (y.low, y.high)]
    return np.minimum.reduce(ends), np.maximum.reduce(ends)


@rule("mul")
def _multiply(equation: Any, x: Interval, y: Interval) -> Interval:
    if equation.invars[0] is equation.invars[1]:
        return _power(equation, x, 2)
    return moved_out(equation, *_times(x, y))


def inverse(x: Interval) -> Interval:
    """1 / x; nothing is known of it where x may have either sign."""
    positive, negative = (x.low >= 0) & (x.high > 0), (x.high <= 0) & (x.low < 0)
    of_low, of_high = 1.0 / np.where(x.low == 0, np.nan, x.low), 1.0 / np.where(x.high == 0, np.nan, x.high)
    low = np.where(positive | (negative & (x.high < 0)), of_high, -np.inf)
    high = np.where(negative | (positive & (x.low > 0)), of_low, np.inf)
    return Interval(low, high)


@rule("div")
def _divide(equation: Any, x: Interval, y: Interval) -> Interval:
    low, high = _times(x, inverse(y))
    if _whole(equation):
        return Interval(np.trunc(low), np.trunc(high))
    return moved_out(equation, low, high, 3)


@rule("neg")
def _negate(equation: Any, x: Interval) -> Interval:
    return Interval(-x.high, -x.low)


def _power(equation: Any, x: Interval, y: int) -> Interval:
    low, high = x.low ** abs(y), x.high ** abs(y)
    if y % 2 == 0:
        low, high = np.where((x.low <= 0) & (x.high >= 0), 0.0, np.minimum(low, high)), np.maximum(low, high)
    if y < 0:
        turned = inverse(Interval(low, high))
        low, high = turned.low, turned.high
    return moved_out(equation, low, high, 2 + 2 * abs(y))


@rule("integer_pow")
def _integer_power(equation: Any, x: Interval) -> Interval:
    return _power(equation, x, int(equation.params["y"]))


@rule("square")
def _square(equation: Any, x: Interval) -> Interval:
    return _power(equation, x, 2)


@rule("pow")
def _any_power(equation: Any, x: Interval, y: Interval) -> Interval:
    exponents = np.unique(y.low) if y.known else np.zeros(0)
    if len(exponents) == 1 and exponents[0] == np.round(exponents[0]) and abs(exponents[0]) < 100:
        return _power(equation, x, int(exponents[0]))
    low, high = _times(Interval(np.log(np.maximum(x.low, 0.0)), np.log(np.maximum(x.high, 0.0))), y)
    ends = [np.minimum(np.exp(low), np.exp(high)), np.maximum(np.exp(low), np.exp(high))]
    size = np.maximum(np.where(np.isfinite(low), np.abs(low), 0.0), np.where(np.isfinite(high), np.abs(high), 0.0))
    slack = 1.0 + 1e-14 * (2.0 + size)
    none = x.low < 0
    found = Interval(np.where(none, -np.inf, ends[0] / slack), np.where(none, np.inf, ends[1] * slack))
    if (x.low > 0).all():
        found.log = moved_out(equation, low, high, 16)
    return found


@rule("rem")
def _remainder(equation: Any, x: Interval, y: Interval) -> Interval:
    """The sign of the dividend, and less than the divisor: exact where nothing wraps around between the ends."""
    if x.known and y.known and (y.low != 0).all():
        return Interval(np.fmod(x.low, y.low))
    size = np.maximum(np.abs(y.low), np.abs(y.high)) - (1.0 if _whole(equation) else 0.0)
    high = np.where(x.high > 0, np.minimum(x.high, size), 0.0)
    low = np.where(x.low < 0, np.maximum(x.low, -size), 0.0)
    if y.known:
        same = (x.low >= 0) & (y.low > 0) & (np.floor(x.low / y.low) == np.floor(x.high / y.low)) & (x.high < 2.0**50)
        low = np.where(same, np.fmod(x.low, y.low), low)
        high = np.where(same, np.fmod(x.high, y.low), high)
    return Interval(low, high)


# ---- Order and choice --------------------------------------------------------------------------------


@rule("max")
def _maximum(equation: Any, x: Interval, y: Interval) -> Interval:
    found = Interval(np.maximum(x.low, y.low), np.maximum(x.high, y.high))
    for one, other in ((x, y), (y, x)):
        if one.above is not None and one.shape == found.shape:
            least = bool((other.high == -np.inf).all())
            found.above = one.above._replace(exact=one.above.exact and least)
    return found


@rule("min")
def _minimum(equation: Any, x: Interval, y: Interval) -> Interval:
    return Interval(np.minimum(x.low, y.low), np.minimum(x.high, y.high))


@rule("clamp")
def _clamp(equation: Any, low: Interval, x: Interval, high: Interval) -> Interval:
    return Interval(
        np.minimum(np.maximum(x.low, low.low), high.low), np.minimum(np.maximum(x.high, low.high), high.high)
    )


def _truth(sure: Any, never: Any) -> Interval:
    return Interval(np.asarray(sure, float), 1.0 - np.asarray(never, float))


@rule("lt", "le", "gt", "ge", "eq", "ne")
def _compare(equation: Any, x: Interval, y: Interval) -> Interval:
    name = equation.primitive.name
    if equation.invars[0] is equation.invars[1]:  # asked whether it is a number, which it is
        return between(*((1.0, 1.0) if name in ("le", "ge", "eq") else (0.0, 0.0)), x.shape)
    if name in ("gt", "ge"):
        x, y = y, x
    if name in ("lt", "gt"):
        return _truth(x.high < y.low, x.low >= y.high)
    if name in ("le", "ge"):
        return _truth(x.high <= y.low, x.low > y.high)
    same = (x.low == x.high) & (y.low == y.high) & (x.low == y.low)
    apart = (x.high < y.low) | (x.low > y.high)
    # A range without an end holds numbers of any size, infinity not among them.
    for one, other in ((x, y), (y, x)):
        apart |= (one.low == np.inf) & (one.high == np.inf) & (other.low < np.inf)
        apart |= (one.low == -np.inf) & (one.high == -np.inf) & (other.high > -np.inf) & (other.low > -np.inf)
    return _truth(same, apart) if name == "eq" else _truth(apart, same)


@rule("and", "or", "not", "xor")
def _logic(equation: Any, *operands: Interval) -> Interval:
    if np.dtype(equation.outvars[0].aval.dtype).kind != "b":
        return unknown(tuple(equation.outvars[0].aval.shape))
    x, y = operands[0], operands[-1]
    name = equation.primitive.name
    if name == "not":
        return Interval(1.0 - x.high, 1.0 - x.low)
    if name == "and":
        return Interval(np.minimum(x.low, y.low), np.minimum(x.high, y.high))
    if name == "or":
        return Interval(np.maximum(x.low, y.low), np.maximum(x.high, y.high))
    sure = (x.low == x.high) & (y.low == y.high)
    return Interval(np.where(sure, x.low != y.low, 0.0), np.where(sure, x.low != y.low, 1.0))


@rule("select_n")
def _select(equation: Any, which: Interval, *cases: Interval) -> Interval:
    low, high = np.full(cases[0].shape, np.inf), np.full(cases[0].shape, -np.inf)
    for i, case in enumerate(cases):
        may = (which.low <= i) & (which.high >= i)
        low = np.where(may, np.minimum(low, case.low), low)
        high = np.where(may, np.maximum(high, case.high), high)
    found = Interval(low, high)
    held = [c for c in cases if c.above is not None]
    if len(held) == 1 and which.above is not None and which.above == held[0].above:
        found.above = held[0].above  # a maximum where it is finite, and else what changes nothing
        found.low, found.high = held[0].low, held[0].high
        found.low, found.high = (np.where(np.isfinite(e), e, x) for e, x in ((found.low, low), (found.high, high)))
    return found


@rule("is_finite")
def _finite(equation: Any, x: Interval) -> Interval:
    sure = np.isfinite(x.low) & np.isfinite(x.high)
    never = np.isinf(x.low) & (x.low == x.high)
    return Interval(np.asarray(sure, float), 1.0 - np.asarray(never, float), x.above)


@rule("convert_element_type")
def _convert(equation: Any, x: Interval) -> Interval:
    old, new = (np.dtype(v.aval.dtype) for v in (equation.invars[0], equation.outvars[0]))
    if new.kind == "b":
        zero, never = (x.low == 0) & (x.high == 0), (x.low > 0) | (x.high < 0)
        return x if old.kind == "b" else _truth(never, zero)
    if old.kind == "f" and new.kind in "iu":
        return Interval(np.trunc(x.low), np.trunc(x.high))
    if new.kind == "f" and (new.itemsize >= old.itemsize or old.kind == "b"):
        return (
            x
            if old.kind in "fb" or np.max(np.abs(x.high), initial=0.0) < 2.0**53
            else moved_out(equation, x.low, x.high)
        )
    return x if new.kind in "iub" else moved_out(equation, x.low, x.high)


@rule("copy", "stop_gradient")
def _identity(equation: Any, x: Interval) -> Interval:
    return x


@rule("optimization_barrier")
def _barrier(equation: Any, *operands: Interval) -> list[Interval]:
    return list(operands)
