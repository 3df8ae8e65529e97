"""Ranges of functions of one number: the rules of interval arithmetic for what grows, falls or waves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from marginalia.jaxpr.intervals import RULES, Interval, Rule, inverse, moved_out, rule

GROWING: dict[str, tuple[Callable[[np.ndarray], np.ndarray], tuple[float, float], tuple[float, float]]] = {
    "exp": (np.exp, (-np.inf, np.inf), (0.0, np.inf)),
    "exp2": (np.exp2, (-np.inf, np.inf), (0.0, np.inf)),
    "expm1": (np.expm1, (-np.inf, np.inf), (-1.0, np.inf)),
    "log": (np.log, (0.0, np.inf), (-np.inf, np.inf)),
    "log1p": (np.log1p, (-1.0, np.inf), (-np.inf, np.inf)),
    "sqrt": (np.sqrt, (0.0, np.inf), (0.0, np.inf)),
    "cbrt": (np.cbrt, (-np.inf, np.inf), (-np.inf, np.inf)),
    "tanh": (np.tanh, (-np.inf, np.inf), (-1.0, 1.0)),
    "sinh": (np.sinh, (-np.inf, np.inf), (-np.inf, np.inf)),
    "asinh": (np.arcsinh, (-np.inf, np.inf), (-np.inf, np.inf)),
    "atan": (np.arctan, (-np.inf, np.inf), (-np.pi / 2, np.pi / 2)),
    "logistic": (special.expit, (-np.inf, np.inf), (0.0, 1.0)),
    "erf": (special.erf, (-np.inf, np.inf), (-1.0, 1.0)),
    "erf_inv": (special.erfinv, (-1.0, 1.0), (-np.inf, np.inf)),
    "digamma": (special.digamma, (0.0, np.inf), (-np.inf, np.inf)),
}
"""Functions that grow, the numbers that they take, and between which theirs lie."""


LARGEST = float(np.finfo(float).max)


def _grows(name: str) -> Rule:
    function, (first, last), (least, most) = GROWING[name]

    def grown(equation: Any, x: Interval) -> Interval:
        found = moved_out(equation, function(np.clip(x.low, first, last)), function(np.clip(x.high, first, last)), 16)
        if name in ("exp", "exp2", "expm1", "sinh"):  # too large for a double, it is not infinite
            found = Interval(np.where(x.low < np.inf, np.minimum(found.low, LARGEST), found.low), found.high)
        # Outside there is no number, of which nothing is known; `1 - exp(-x)` may be there by rounding alone.
        beside = 1e-9 if np.dtype(equation.outvars[0].aval.dtype).itemsize >= 8 else 1e-4
        outside = (x.low < first - beside) | (x.high > last + beside)
        low = np.where(outside, -np.inf, np.maximum(found.low, least))
        high = np.where(outside, np.inf, np.minimum(found.high, most))
        known = x.log if name == "log" else None
        if known is not None and known.shape == low.shape:
            low, high = np.maximum(low, known.low), np.minimum(high, known.high)
        result = Interval(low, high, None, x.peak if name == "exp" else None)
        result.log = x if name == "exp" else None
        return result

    return grown


for _name in GROWING:
    RULES[_name] = _grows(_name)


@rule("rsqrt")
def _inverse_root(equation: Any, x: Interval) -> Interval:
    root = Interval(np.sqrt(np.maximum(x.low, 0.0)), np.sqrt(np.maximum(x.high, 0.0)))
    turned = inverse(root)
    return moved_out(equation, turned.low, turned.high, 6)


@rule("erfc")
def _complement(equation: Any, x: Interval) -> Interval:
    found = moved_out(equation, special.erfc(x.high), special.erfc(x.low), 64)
    return Interval(np.maximum(found.low, 0.0), np.minimum(found.high, 2.0))


@rule("bessel_i0e")
def _bessel(equation: Any, x: Interval) -> Interval:
    """Between 0 and 1, and falling as its argument goes away from 0."""
    far = np.maximum(np.abs(x.low), np.abs(x.high))
    near = np.where((x.low <= 0) & (x.high >= 0), 0.0, np.minimum(np.abs(x.low), np.abs(x.high)))
    found = moved_out(equation, special.i0e(far), special.i0e(near), 64)
    return Interval(np.maximum(found.low, 0.0), np.minimum(found.high, 1.0))


@rule("abs")
def _absolute(equation: Any, x: Interval) -> Interval:
    low, high = np.abs(x.low), np.abs(x.high)
    inside = (x.low <= 0) & (x.high >= 0)
    # A peak of 1 and numbers that are not negative stay what they are (log-sum-exp).
    return x if (x.low >= 0).all() else Interval(np.where(inside, 0.0, np.minimum(low, high)), np.maximum(low, high))


@rule("sign")
def _sign(equation: Any, x: Interval) -> Interval:
    return Interval(np.sign(x.low), np.sign(x.high))


@rule("floor")
def _floor(equation: Any, x: Interval) -> Interval:
    return Interval(np.floor(x.low), np.floor(x.high))


@rule("ceil")
def _ceil(equation: Any, x: Interval) -> Interval:
    return Interval(np.ceil(x.low), np.ceil(x.high))


@rule("round")
def _round(equation: Any, x: Interval) -> Interval:
    """To even numbers or away from 0, where it is between two."""
    ends = [(np.rint(e), np.trunc(e + np.copysign(0.5, e))) for e in (x.low, x.high)]
    return Interval(np.minimum(*ends[0]), np.maximum(*ends[1]))


@rule("sin", "cos")
def _wave(equation: Any, x: Interval) -> Interval:
    """Neither changes faster than its argument."""
    function = np.sin if equation.primitive.name == "sin" else np.cos
    middle = np.where(np.isfinite(x.low) & np.isfinite(x.high), (x.low + x.high) / 2, 0.0)
    radius = np.maximum(x.high - middle, middle - x.low) + 1e-15 * (1.0 + np.abs(middle))
    found = function(middle)
    return Interval(np.maximum(found - radius, -1.0), np.minimum(found + radius, 1.0))


LOWEST_LGAMMA = 1.4616321449683623


@rule("lgamma")
def _lgamma(equation: Any, x: Interval) -> Interval:
    """Falls to its lowest point and grows after it; of negative numbers nothing is said."""
    ends = special.gammaln(np.maximum(x.low, 0.0)), special.gammaln(np.maximum(x.high, 0.0))
    inside = (x.low <= LOWEST_LGAMMA) & (x.high >= LOWEST_LGAMMA)
    low = np.where(inside, special.gammaln(LOWEST_LGAMMA), np.minimum(*ends))
    found = moved_out(equation, low - 1e-15, np.maximum(*ends) + 1e-15, 64)
    negative = x.low < 0
    return Interval(np.where(negative, -np.inf, found.low), np.where(negative, np.inf, found.high))


@rule("igamma", "igammac", "regularized_incomplete_beta")
def _probability(equation: Any, *operands: Interval) -> Interval:
    """Distribution functions of gamma and beta variates: by their ends, which they follow in one direction each."""
    name, slack = equation.primitive.name, 1e-10
    if name == "regularized_incomplete_beta":
        a, b, x = operands
        ends = special.betainc(a.high, b.low, x.low), special.betainc(a.low, b.high, x.high)
    else:
        a, x = operands
        ends = special.gammainc(a.high, x.low), special.gammainc(a.low, x.high)
        if name == "igammac":
            ends = special.gammaincc(a.low, x.high), special.gammaincc(a.high, x.low)
    low, high = (np.where(np.isnan(e), other, e) for e, other in zip(ends, (0.0, 1.0), strict=True))
    return Interval(np.maximum(low * (1 - slack), 0.0), np.minimum(high * (1 + slack), 1.0))
