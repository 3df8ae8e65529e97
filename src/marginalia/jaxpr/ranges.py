"""Between which numbers a value of a program lies, read off its operations: where a slope is certainly finite.

An interval whose infinite ends are always open, so that a value that has one is finite. `None` stands for a value
that may be infinite or no number. Rounding is not followed: what underflows counts as positive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Range:
    """Numbers between `low` and `high`; an open end is not reached."""

    low: float
    high: float
    low_open: bool = True
    high_open: bool = True

    @property
    def positive(self) -> bool:
        return self.low > 0 or (self.low == 0 and self.low_open)

    @property
    def nonzero(self) -> bool:
        return self.positive or self.high < 0 or (self.high == 0 and self.high_open)

    def above(self, bound: float) -> bool:
        return self.low > bound or (self.low == bound and self.low_open)

    def below(self, bound: float) -> bool:
        return self.high < bound or (self.high == bound and self.high_open)


type Maybe = Range | None

REAL = Range(-math.inf, math.inf)
POSITIVE = Range(0.0, math.inf)
NONNEGATIVE = Range(0.0, math.inf, False, True)
UNIT = Range(0.0, 1.0, False, False)
LADDER = (POSITIVE, NONNEGATIVE, REAL)


def range_of_array(array: Any) -> Maybe:
    """Of known numbers."""
    array = np.asarray(array)
    if array.size == 0:
        return UNIT
    if array.dtype.kind not in "iufb":
        return REAL
    low, high = float(array.min()), float(array.max())
    return Range(low, high, False, False) if math.isfinite(low) and math.isfinite(high) else None


def join(ranges: Sequence[Maybe]) -> Maybe:
    """The smallest that holds all."""
    found = [r for r in ranges if r is not None]
    if len(found) < len(ranges) or not found:
        return None
    low, high = min(r.low for r in found), max(r.high for r in found)
    return Range(
        low,
        high,
        all(r.low_open for r in found if r.low == low),
        all(r.high_open for r in found if r.high == high),
    )


def within(inner: Maybe, outer: Maybe) -> bool:
    """Whether everything in `inner` is in `outer`."""
    return outer is None or (inner is not None and join([inner, outer]) == outer)


def widened(before: Maybe, after: Maybe) -> Maybe:
    """A range of few, that holds both: what a loop carries settles soon."""
    both = join([before, after])
    return next((step for step in LADDER if both is not None and within(both, step)), None)


# ---- Operations -------------------------------------------------------------------------------


def _sum(x: float, y: float) -> float:
    return x + y if math.isfinite(x) and math.isfinite(y) else (x if math.isinf(x) else y)


def add(x: Range, y: Range) -> Range:
    return Range(_sum(x.low, y.low), _sum(x.high, y.high), x.low_open or y.low_open, x.high_open or y.high_open)


def negative(x: Range) -> Range:
    return Range(-x.high, -x.low, x.high_open, x.low_open)


def multiply(x: Range, y: Range) -> Range:
    ends = []
    for a, a_open in ((x.low, x.low_open), (x.high, x.high_open)):
        for b, b_open in ((y.low, y.low_open), (y.high, y.high_open)):
            closed = (not a_open and not b_open) or (a == 0 and not a_open) or (b == 0 and not b_open)
            ends.append((0.0 if a == 0 or b == 0 else a * b, not closed))
    low, high = min(e for e, _ in ends), max(e for e, _ in ends)
    return _finite(low, high, all(o for e, o in ends if e == low), all(o for e, o in ends if e == high))


def _finite(low: float, high: float, low_open: bool, high_open: bool) -> Range:
    """Products of large ends may overflow: an infinite end is open."""
    return Range(low, high, low_open or math.isinf(low), high_open or math.isinf(high))


def inverse(x: Range) -> Maybe:
    if not x.nonzero:
        return None

    def of(end: float, sign: float) -> float:
        return sign * math.inf if end == 0 else 1.0 / end

    sign = 1.0 if x.positive else -1.0
    return _finite(of(x.high, sign), of(x.low, sign), x.high_open, x.low_open)


def square(x: Range) -> Range:
    ends = sorted([(abs(x.low), x.low_open), (abs(x.high), x.high_open)])
    (small, small_open), (large, large_open) = ends
    if not x.nonzero:
        small, small_open = 0.0, False
    if ends[0][0] == ends[1][0]:
        large_open = x.low_open and x.high_open
    return _finite(_power(small, 2), _power(large, 2), small_open, large_open)


def _power(x: float, n: int) -> float:
    try:
        return x**n
    except OverflowError:
        return math.inf


def integer_power(x: Range, n: int) -> Maybe:
    if n == 0:
        return Range(1.0, 1.0, False, False)
    if n < 0:
        own = integer_power(x, -n)
        return None if own is None else inverse(own)
    found = square(x) if n % 2 == 0 else x
    rest = square(x)
    for _ in range((n - 1) // 2):
        found = multiply(found, rest)
    return found


def monotone(function: Callable[[float], float]) -> Callable[[Range], Range]:
    """The range of an increasing function that is finite where its argument is."""

    def of(x: Range) -> Range:
        return _finite(function(x.low), function(x.high), x.low_open, x.high_open)

    return of


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _expm1(x: float) -> float:
    try:
        return math.expm1(x)
    except OverflowError:
        return math.inf


def exp(x: Range) -> Range:
    found = monotone(_exp)(x)
    return Range(found.low, found.high, found.low_open or found.low == 0, found.high_open)


def logistic(x: Range) -> Range:
    def of(end: float) -> float:
        return 1.0 / (1.0 + _exp(-end))

    low, high = of(x.low), of(x.high)
    return Range(low, high, x.low_open or low == 0, x.high_open or high == 1)


def log(x: Range) -> Maybe:
    return monotone(lambda end: math.log(end) if end > 0 else -math.inf)(x) if x.positive else None


def log1p(x: Range) -> Maybe:
    return monotone(lambda end: math.log1p(end) if end > -1 else -math.inf)(x) if x.above(-1.0) else None


def root(x: Range) -> Maybe:
    return monotone(math.sqrt)(x) if x.low >= 0 else None


def power(x: Range, y: Range) -> Maybe:
    if not x.positive:
        return None
    if x.below(1.0) and y.low >= 0:
        return Range(0.0, 1.0, True, False)
    return POSITIVE


def magnitude(x: Range) -> Range:
    if x.low >= 0:
        return x
    if x.high <= 0:
        return negative(x)
    return Range(0.0, max(-x.low, x.high), False, x.low_open or x.high_open)


def total(x: Range, count: int) -> Range:
    """Of a sum of `count` values."""
    return multiply(x, Range(float(count), float(count), False, False)) if count else UNIT


def product(x: Range, count: int) -> Range:
    """Of a product of `count` values."""
    if count <= 1:
        return join([x, Range(1.0, 1.0, False, False)]) or REAL
    if x.low >= 0:
        return Range(0.0, 1.0 if x.high <= 1 else math.inf, x.positive, x.high > 1 or x.high_open)
    return REAL


def running_sum(x: Range, count: int) -> Range:
    return join([total(x, 1), total(x, max(count, 1))]) or REAL


MONOTONE: dict[str, Callable[[Range], Maybe]] = {
    "exp": exp,
    "exp2": lambda x: POSITIVE,
    "expm1": monotone(_expm1),
    "log": log,
    "log1p": log1p,
    "log2": lambda x: REAL if x.positive else None,
    "sqrt": root,
    "cbrt": lambda x: POSITIVE if x.positive else REAL,
    "rsqrt": lambda x: POSITIVE if x.positive else None,
    "logistic": logistic,
    "tanh": lambda x: Range(-1.0 if x.low < 0 else 0.0, 1.0, x.low < 0 or x.low_open, True),
    "erf": lambda x: Range(-1.0 if x.low < 0 else 0.0, 1.0, x.low < 0 or x.low_open, True),
    "erfc": lambda x: Range(0.0, 2.0),
    "erf_inv": lambda x: REAL if x.above(-1.0) and x.below(1.0) else None,
    "atanh": lambda x: REAL if x.above(-1.0) and x.below(1.0) else None,
    "asin": lambda x: REAL if x.above(-1.0) and x.below(1.0) else None,
    "acos": lambda x: REAL if x.above(-1.0) and x.below(1.0) else None,
    "acosh": lambda x: NONNEGATIVE if x.above(1.0) else None,
    "sin": lambda x: Range(-1.0, 1.0, False, False),
    "cos": lambda x: Range(-1.0, 1.0, False, False),
    "lgamma": lambda x: REAL if x.positive else None,
    "digamma": lambda x: REAL if x.positive else None,
    "abs": magnitude,
    "neg": negative,
    "square": square,
    "sign": lambda x: Range(-1.0, 1.0, False, False),
    "floor": lambda x: _finite(math.floor(x.low) if math.isfinite(x.low) else x.low, x.high, False, x.high_open),
    "ceil": lambda x: _finite(x.low, math.ceil(x.high) if math.isfinite(x.high) else x.high, x.low_open, False),
    "round": lambda x: REAL,
}
"""Elementwise operations on one value; None where a pole cannot be excluded."""
