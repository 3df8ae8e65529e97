"""Ranges of what moves, picks, adds up or repeats: the rules of interval arithmetic for whole arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from marginalia.jaxpr.calls import scan_counts
from marginalia.jaxpr.constants import STRUCTURAL
from marginalia.jaxpr.interpreted import RULES as MOVES
from marginalia.jaxpr.intervals import RULES, Above, Interval, hull, rule, run, unknown

MOST_PICKED = 256
"""Places along one axis that an unknown index is tried at one by one; beyond, it may pick anything."""
MOST_STEPS = 20_000
"""Equations times steps of a loop that are followed."""


def _moved(function: Callable[..., Any], kept: tuple[str, ...] | None) -> Callable[..., Any]:
    """Both ends go where the values go."""

    def rule_(equation: Any, *operands: Interval) -> Interval | list[Interval]:
        params = equation.params if kept is None else {key: equation.params[key] for key in kept}
        low = function(*[x.low for x in operands], **params)
        high = low if all(x.low is x.high for x in operands) else function(*[x.high for x in operands], **params)
        if isinstance(low, list):
            return [Interval(*ends) for ends in zip(low, high, strict=True)]
        return Interval(low, high)

    return rule_


for _name, (_function, _kept) in STRUCTURAL.items():
    if _name not in ("reduce_and", "reduce_or"):
        RULES[_name] = _moved(_function, _kept)
for _name in ("stack", "unstack", "rev"):
    RULES[_name] = _moved(MOVES[_name], None)
RULES["tile"] = _moved(lambda x, *, reps: np.tile(x, reps), ("reps",))


def _placed(found: Any, x: Interval, places: tuple[int | None, ...] | None) -> Interval:
    """A maximum whose axes were moved remembers where they were."""
    assert isinstance(found, Interval)
    if x.above is not None and places is not None:
        found.above = x.above._replace(places=places)
    return found


_broadcast_plainly, _reshape_plainly, _squeeze_plainly = (
    RULES[name] for name in ("broadcast_in_dim", "reshape", "squeeze")
)


@rule("broadcast_in_dim")
def _broadcast(equation: Any, x: Interval, *_: Interval) -> Interval:
    shape, dims = equation.params["shape"], equation.params["broadcast_dimensions"]
    places: list[int | None] = [None] * len(shape)
    if x.above is not None:
        for own, new in enumerate(dims):
            places[new] = x.above.places[own] if x.shape[own] == shape[new] else None
    return _placed(_broadcast_plainly(equation, x), x, tuple(places))


@rule("reshape", "squeeze")
def _reshape(equation: Any, x: Interval, *_: Interval) -> Interval:
    plainly = _reshape_plainly if equation.primitive.name == "reshape" else _squeeze_plainly
    shape = tuple(equation.outvars[0].aval.shape)
    places = None
    if x.above is not None and [n for n in x.shape if n != 1] == [n for n in shape if n != 1]:
        kept = iter([p for p, n in zip(x.above.places, x.shape, strict=True) if n != 1])
        places = tuple(None if n == 1 else next(kept) for n in shape)
    return _placed(plainly(equation, x), x, places)


@rule("pad")
def _pad(equation: Any, x: Interval, value: Interval) -> Interval:
    config = equation.params["padding_config"]
    if not all(low >= 0 and high >= 0 and inner == 0 for low, high, inner in config):
        return hull([unknown(tuple(equation.outvars[0].aval.shape))])
    width = [(low, high) for low, high, _ in config]
    low = np.pad(x.low, width, constant_values=float(value.low))
    return Interval(low, np.pad(x.high, width, constant_values=float(value.high)))


@rule("split")
def _split(equation: Any, x: Interval) -> list[Interval]:
    at = np.cumsum(equation.params["sizes"])[:-1]
    parts = [np.split(end, at, equation.params["axis"]) for end in (x.low, x.high)]
    return [Interval(*ends) for ends in zip(*parts, strict=True)]


@rule("sort")
def _sort(equation: Any, *operands: Interval) -> list[Interval]:
    """The i-th smallest of larger numbers is larger."""
    axis = equation.params["dimension"]
    if len(operands) == 1:
        return [Interval(np.sort(operands[0].low, axis), np.sort(operands[0].high, axis))]
    return [_spread_over(x, (axis,)) for x in operands]


def _spread_over(x: Interval, axes: tuple[int, ...]) -> Interval:
    """Whatever is taken along some axes."""
    low, high = x.low.min(axes, keepdims=True), x.high.max(axes, keepdims=True)
    return Interval(np.broadcast_to(low, x.shape), np.broadcast_to(high, x.shape))


# ---- Sums and other reductions -----------------------------------------------------------------------


def _summed(equation: Any, low: Any, high: Any, size: Any, count: int) -> Interval:
    """Ends of a sum moved outwards by what adding so many numbers of that size may round."""
    dtype = np.dtype(equation.outvars[0].aval.dtype)
    if dtype.kind in "iub":
        return Interval(low, high)
    slack = 2.0 * (count + 2) * float(np.finfo(dtype if dtype.itemsize >= 4 else np.float32).eps)
    size = np.where(np.isfinite(size), size, 0.0)
    return Interval(low - slack * size, high + slack * size)


def _sizes(x: Interval) -> np.ndarray:
    return np.maximum(*(np.where(np.isfinite(end), np.abs(end), 0.0) for end in (x.low, x.high)))


@rule("reduce_sum")
def _sum(equation: Any, x: Interval) -> Interval:
    axes = tuple(equation.params["axes"])
    count = int(np.prod([x.shape[a] for a in axes]))
    found = _summed(equation, x.low.sum(axes), x.high.sum(axes), _sizes(x).sum(axes), count)
    if x.peak is not None and set(x.peak) <= set(axes) and (x.low >= 0).all():
        # Of numbers that are not negative one is 1 (log-sum-exp).
        others = int(np.prod([x.shape[a] for a in axes if a not in x.peak]))
        found.low = np.maximum(found.low, others * (1.0 - 1e-6))
    return found


@rule("cumsum")
def _running_sum(equation: Any, x: Interval) -> Interval:
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    add = functools.partial(MOVES["cumsum"], axis=axis, reverse=reverse)
    return _summed(equation, add(x.low), add(x.high), add(_sizes(x)), x.shape[axis])


@rule("cummax", "cummin")
def _running_order(equation: Any, x: Interval) -> Interval:
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    function = np.maximum if equation.primitive.name == "cummax" else np.minimum

    def along(end: np.ndarray) -> np.ndarray:
        turned = np.flip(end, axis) if reverse else end
        found = function.accumulate(turned, axis=axis)
        return np.flip(found, axis) if reverse else found

    return Interval(along(x.low), along(x.high))


@rule("reduce_max")
def _largest(equation: Any, x: Interval) -> Interval:
    axes = tuple(equation.params["axes"])
    kept = tuple(i for i in range(len(x.shape)) if i not in axes)
    return Interval(x.low.max(axes), x.high.max(axes), Above(x, kept, True))


@rule("reduce_min")
def _smallest(equation: Any, x: Interval) -> Interval:
    axes = tuple(equation.params["axes"])
    return Interval(x.low.min(axes), x.high.min(axes))


@rule("reduce_and")
def _all(equation: Any, x: Interval) -> Interval:
    axes = tuple(equation.params["axes"])
    return Interval(x.low.min(axes, initial=1.0), x.high.min(axes, initial=1.0))


@rule("reduce_or")
def _any(equation: Any, x: Interval) -> Interval:
    axes = tuple(equation.params["axes"])
    return Interval(x.low.max(axes, initial=0.0), x.high.max(axes, initial=0.0))


@rule("reduce_prod")
def _product(equation: Any, x: Interval) -> Interval:
    """Of numbers that are not negative."""
    axes = tuple(equation.params["axes"])
    shape = tuple(equation.outvars[0].aval.shape)
    if (x.low < 0).any():
        return unknown(shape)
    count = int(np.prod([x.shape[a] for a in axes]))
    low, high = x.low.prod(axes), np.where((x.high == 0).any(axes), 0.0, x.high.prod(axes))
    slack = 1e-15 * (count + 2)
    return Interval(low * (1 - slack), high * (1 + slack))


@rule("argmax", "argmin")
def _where(equation: Any, x: Interval) -> Interval:
    (axis,) = equation.params["axes"]
    if x.known:
        return Interval(getattr(np, equation.primitive.name)(x.low, axis))
    shape = tuple(equation.outvars[0].aval.shape)
    return Interval(np.zeros(shape), np.full(shape, float(x.shape[axis] - 1)))


@rule("dot_general")
def _dot(equation: Any, x: Interval, y: Interval) -> Interval:
    """By centres and radii where both have ranges, else by the signs of what is known (Rump 1999)."""
    dims = equation.params["dimension_numbers"]
    multiply: Callable[..., Any] = functools.partial(MOVES["dot_general"], dimension_numbers=dims)
    count = int(np.prod([x.shape[a] for a in dims[0][0]]))
    size = multiply(_sizes(x), _sizes(y))
    if not all(np.isfinite(end).all() for end in (x.low, x.high, y.low, y.high)):
        return _dot_without_bounds(equation, multiply, x, y)
    if x.known or y.known:
        first, second = (x, y) if y.known else (y, x)
        known = second.low
        parts = np.maximum(known, 0.0), np.minimum(known, 0.0)

        def times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return multiply(a, b) if y.known else multiply(b, a)

        low = times(first.low, parts[0]) + times(first.high, parts[1])
        high = times(first.high, parts[0]) + times(first.low, parts[1])
    else:
        middle = [(v.low + v.high) / 2 for v in (x, y)]
        radius = [np.maximum(v.high - m, m - v.low) for v, m in zip((x, y), middle, strict=True)]
        centre = multiply(*middle)
        far = multiply(np.abs(middle[0]), radius[1]) + multiply(radius[0], np.abs(middle[1]) + radius[1])
        low, high = centre - far, centre + far
    return _summed(equation, low, high, size, 2 * count)


def _dot_without_bounds(equation: Any, multiply: Callable[..., Any], x: Interval, y: Interval) -> Interval:
    """What is never negative stays so; an end that touches infinity, unless times 0, is none."""
    none = [(~np.isfinite(v.low) | ~np.isfinite(v.high)).astype(float) for v in (x, y)]
    other = [((v.low != 0) | (v.high != 0)).astype(float) for v in (x, y)]
    touched = multiply(none[0], other[1]) + multiply(other[0], none[1]) > 0
    positive = bool((x.low >= 0).all() and (y.low >= 0).all())
    finite = []
    for v in (x, y):
        bounded = np.isfinite(v.low) & np.isfinite(v.high)
        finite.append(Interval(np.where(bounded, v.low, 0.0), np.where(bounded, v.high, 0.0)))
    inside: Any = _dot(equation, *finite)
    low = np.where(touched, 0.0 if positive else -np.inf, inside.low)
    return Interval(low, np.where(touched, np.inf, inside.high))


# ---- Picking -------------------------------------------------------------------------------------------


def _starts(indices: Interval, dims: Any, sizes: Any, shape: tuple[int, ...]) -> dict[int, Interval]:
    """Where each indexed axis of the operand is entered, one per element of the index array, kept inside."""
    found = {}
    for place, axis in enumerate(dims.start_index_map):
        last = float(shape[axis] - sizes[axis])
        found[axis] = Interval(
            np.clip(indices.low[..., place], 0.0, last), np.clip(indices.high[..., place], 0.0, last)
        )
    return found


def _gathered(equation: Any, end: np.ndarray, starts: dict[int, np.ndarray]) -> np.ndarray:
    dims, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape = tuple(equation.outvars[0].aval.shape)
    batch_axes = [i for i in range(len(shape)) if i not in dims.offset_dims]
    removed = {*dims.collapsed_slice_dims, *dims.operand_batching_dims}
    within = iter(dims.offset_dims)
    places = []
    for axis in range(end.ndim):
        place = np.zeros([1] * len(shape), int)
        if axis not in removed:
            at = next(within)
            place = place + np.arange(sizes[axis]).reshape([-1 if i == at else 1 for i in range(len(shape))])
        if axis in starts:
            wide = [1] * len(shape)
            for i, n in zip(batch_axes, starts[axis].shape, strict=True):
                wide[i] = n
            place = place + starts[axis].astype(int).reshape(wide)
        if axis in dims.operand_batching_dims:
            beside = dims.start_indices_batching_dims[dims.operand_batching_dims.index(axis)]
            at = batch_axes[beside]
            place = place + np.arange(end.shape[axis]).reshape([-1 if i == at else 1 for i in range(len(shape))])
        places.append(place)
    return np.broadcast_to(end[tuple(places)] if places else end, shape)


@rule("gather")
def _gather(equation: Any, x: Interval, indices: Interval) -> Interval:
    """At known places exactly; at unknown ones whatever lies between the first and the last that they may be."""
    dims, sizes, mode = (equation.params[key] for key in ("dimension_numbers", "slice_sizes", "mode"))
    shape = tuple(equation.outvars[0].aval.shape)
    starts = _starts(indices, dims, sizes, x.shape)
    if mode is not None and "FILL" in str(mode):
        last = [x.shape[axis] - sizes[axis] for axis in dims.start_index_map]
        if (indices.low < 0).any() or (indices.high > np.asarray(last)).any():
            return unknown(shape)  # outside stands NaN, or what else was asked for
    vague = [axis for axis, s in starts.items() if not s.known]
    if not vague:
        exact = {axis: s.low for axis, s in starts.items()}
        return Interval(_gathered(equation, x.low, exact), _gathered(equation, x.high, exact))
    if len(vague) == 1 and x.shape[vague[0]] <= MOST_PICKED:
        axis = vague[0]
        parts = []
        for at in range(int(starts[axis].low.min()), int(starts[axis].high.max()) + 1):
            here = {a: s.low for a, s in starts.items()}
            here[axis] = np.clip(float(at), starts[axis].low, starts[axis].high)
            parts.append(Interval(_gathered(equation, x.low, here), _gathered(equation, x.high, here)))
        return hull(parts)
    return Interval(np.broadcast_to(x.low.min(), shape), np.broadcast_to(x.high.max(), shape))


@rule("dynamic_slice")
def _dynamic_slice(equation: Any, x: Interval, *starts: Interval) -> Interval:
    sizes = equation.params["slice_sizes"]
    if len(starts) != len(x.shape) or not all(s.known for s in starts):
        low = np.broadcast_to(x.low.min(), sizes)
        return Interval(low, np.broadcast_to(x.high.max(), sizes))
    first = [int(np.clip(s.low, 0, n - k)) for s, n, k in zip(starts, x.shape, sizes, strict=True)]
    place = tuple(slice(f, f + k) for f, k in zip(first, sizes, strict=True))
    return Interval(x.low[place], x.high[place])


# ---- Programs in a program -------------------------------------------------------------------------------


@rule("cond")
def _cond(equation: Any, index: Interval, *operands: Interval) -> list[Interval]:
    branches = equation.params["branches"]
    first, last = (int(np.clip(end, 0, len(branches) - 1)) for end in (index.low, index.high))
    results = [run(branch, operands) for branch in branches[first : last + 1]]
    return [hull(parts) for parts in zip(*results, strict=True)]


@rule("scan")
def _scan(equation: Any, *operands: Interval) -> list[Interval]:
    """Step by step, if it is short enough."""
    body, length = equation.params["jaxpr"], equation.params["length"]
    if length * len(body.jaxpr.eqns) > MOST_STEPS:
        return [unknown(tuple(v.aval.shape)) for v in equation.outvars]
    constants, carried = scan_counts(equation)
    held, state = list(operands[:constants]), list(operands[constants : constants + carried])
    scanned = operands[constants + carried :]
    steps: list[list[Interval]] = []
    order: Sequence[int] = range(length)
    for t in reversed(order) if equation.params["reverse"] else order:
        results = run(body, [*held, *state, *(Interval(x.low[t], x.high[t]) for x in scanned)])
        state = results[:carried]
        steps.append(results[carried:])
    if equation.params["reverse"]:
        steps.reverse()
    stacked = []
    for i, v in enumerate(equation.outvars[carried:]):
        parts = [step[i] for step in steps]
        if not parts:
            stacked.append(unknown(tuple(v.aval.shape)))
            continue
        stacked.append(Interval(np.stack([p.low for p in parts]), np.stack([p.high for p in parts])))
    return [*state, *stacked]
