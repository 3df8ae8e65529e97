"""Arrays held by classes of equal elements.

A value of shape S has axes of its *own*, which are held in full, and others, along which each element belongs to a
class. The array has an axis for each of its own and one, the last, for the classes; `codes` says which class stands
where. The log-probability of 2400 yes-or-no answers to 8 questions, at 64 states, is held as (64, 16): what is equal
for all parameters is there once. The classes come from the data alone and are known before anything is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

MOST_CODES = 2**22
"""Elements beyond which no classes are looked for."""


class Unclassed(Exception):
    """The program is better evaluated as it is."""


@dataclass(frozen=True, eq=False)
class Classed:
    """`array[..., codes[i]]` is the element at i; `codes` has length one along own axes and where nothing changes."""

    array: Any
    shape: tuple[int, ...]
    own: tuple[int, ...]
    codes: np.ndarray

    @property
    def classes(self) -> int:
        return int(self.array.shape[-1])

    @property
    def varying(self) -> tuple[int, ...]:
        return tuple(axis for axis, n in enumerate(self.codes.shape) if n > 1)

    @property
    def known(self) -> bool:
        return isinstance(self.array, np.ndarray)

    @property
    def dtype(self) -> Any:
        return self.array.dtype


@dataclass
class Joins:
    """Partitions that were joined before; the same two give the same array of codes, which is found by its identity."""

    found: dict[Any, Any] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)
    """Holds what is known by its identity."""

    def cached(self, key: Sequence[Any], compute: Any, *alive: Any) -> Any:
        key = tuple(key)
        if key not in self.found:
            self.kept.append(alive)
            self.found[key] = compute()
        return self.found[key]

    def join(
        self, a: np.ndarray, classes_a: int, b: np.ndarray, classes_b: int
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Codes of the coarsest partition finer than both; which class of each its classes are (None: the same)."""
        if a is b:
            return a, None, None
        if classes_b == 1 and b.size == 1:
            return a, None, np.zeros(classes_a, np.int64)
        if classes_a == 1 and a.size == 1:
            return b, np.zeros(classes_b, np.int64), None

        def compute() -> Any:
            if classes_a == classes_b and a.shape == b.shape and np.array_equal(a, b):
                return a, None, None
            shape = np.broadcast_shapes(a.shape, b.shape)
            if math.prod(shape) > MOST_CODES:
                raise Unclassed
            keys = np.broadcast_to(a * classes_b + b, shape)
            used, codes = np.unique(keys, return_inverse=True)
            return codes.reshape(shape), used // classes_b, used % classes_b

        return self.cached(("join", id(a), id(b), classes_a, classes_b), compute, a, b)


def nothing(rank: int) -> np.ndarray:
    """Codes of a value of one class."""
    return np.zeros((1,) * rank, np.int64)


def in_full(array: Any) -> Classed:
    """A value all of whose axes are its own."""
    shape = tuple(int(n) for n in np.shape(array))
    own = tuple(axis for axis, n in enumerate(shape) if n != 1)
    return Classed(array.reshape((*(shape[a] for a in own), 1)), shape, own, nothing(len(shape)))


FEW = 8
"""A known array is held by classes where its elements are so many times more than the different ones among them."""


def known(array: np.ndarray) -> Classed:
    """A known array: by classes where many elements are equal, else in full."""
    array = np.asarray(array)
    if array.ndim == 0 or array.size == 1:
        return Classed(array.reshape(1), tuple(array.shape), (), nothing(array.ndim))
    found = by_classes(array)
    return found if found.classes * FEW <= array.size or found.classes == 1 else in_full(array)


def by_classes(array: np.ndarray) -> Classed:
    """A known array: equal elements are one class."""
    array = np.asarray(array)
    if array.size == 0:
        raise Unclassed
    codes, first = _bits(array.reshape(1, -1))
    if len(first) == 1:
        return Classed(array.reshape(-1)[:1], tuple(array.shape), (), nothing(array.ndim))
    return Classed(array.reshape(-1)[first], tuple(array.shape), (), codes.reshape(array.shape))


def _bits(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which columns are equal to the bit: a code for each, and where each code is first met."""
    if columns.shape[0] == 1 and columns.dtype.itemsize in (1, 2, 4, 8):
        words = np.ascontiguousarray(columns[0]).view(f"u{columns.dtype.itemsize}")
    else:
        rows = np.ascontiguousarray(columns.T)
        words = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).reshape(-1)
    _, first, codes = np.unique(words, return_index=True, return_inverse=True)
    return codes.reshape(-1), first


def shrunk(value: Classed, joins: Joins) -> Classed:
    """A known value with classes that turned out equal put together."""
    if not value.known:
        return value
    if value.classes == 1:
        if not value.own:
            return value
        found = known(value.array[..., 0])
        if found.own:
            return value
        lengths = tuple(n if a in value.own else 1 for a, n in enumerate(value.shape))
        return Classed(found.array, value.shape, (), found.codes.reshape(lengths) if found.classes > 1 else value.codes)
    codes, first = _bits(value.array.reshape(-1, value.classes))
    if len(first) == value.classes:
        return value

    def compute() -> np.ndarray:
        return nothing(len(value.shape)) if len(first) == 1 else codes[value.codes]

    new = joins.cached(("shrunk", id(value.codes), codes.tobytes()), compute, value.codes)
    return Classed(value.array[..., first], value.shape, value.own, new)


def used_only(array: Any, codes: np.ndarray, shape: tuple[int, ...], own: tuple[int, ...]) -> Classed:
    """A value whose codes may leave some classes out."""
    used, new = np.unique(codes, return_inverse=True)
    new = nothing(codes.ndim) if len(used) == 1 else new.reshape(codes.shape)
    return Classed(picked(array, used), shape, own, new)


def picked(array: Any, classes: np.ndarray | None) -> Any:
    """Some classes, in order, possibly repeated."""
    if classes is None or (len(classes) == array.shape[-1] and np.array_equal(classes, np.arange(len(classes)))):
        return array
    if isinstance(array, np.ndarray):
        return array[..., classes]
    return array.at[..., classes].get(mode="promise_in_bounds", wrap_negative_indices=False)


def merged(value: Classed, axes: Sequence[int], joins: Joins) -> Classed:
    """Some own axes as classes."""
    for axis in axes:
        place, classes = value.own.index(axis), value.classes
        n = value.array.shape[place]
        array = value.array.swapaxes(place, -2) if place == value.array.ndim - 2 else _second_last(value.array, place)
        array = array.reshape((*array.shape[:-2], n * classes))

        def compute(value: Classed = value, axis: int = axis, n: int = n, classes: int = classes) -> np.ndarray:
            along = np.arange(n).reshape([n if i == axis else 1 for i in range(len(value.shape))])
            return along * classes + value.codes

        codes = joins.cached(("merged", id(value.codes), axis, n, classes), compute, value.codes)
        value = Classed(array, value.shape, tuple(a for a in value.own if a != axis), codes)
    return value


def _second_last(array: Any, place: int) -> Any:
    order = [i for i in range(array.ndim) if i != place]
    return array.transpose([*order[:-1], place, order[-1]])


def owned(value: Classed, axis: int, joins: Joins) -> Classed:
    """One axis as an own one, the others by classes still."""
    if axis in value.own or value.shape[axis] == 1:
        return value
    n = value.shape[axis]
    rest = tuple(1 if a == axis else m for a, m in enumerate(value.codes.shape))

    def compute() -> tuple[np.ndarray, np.ndarray]:
        lines = np.moveaxis(value.codes, axis, 0)
        columns, which = np.unique(lines.reshape(len(lines), -1), axis=1, return_inverse=True)
        codes = nothing(len(rest)) if columns.shape[1] == 1 else which.reshape(rest)
        return np.broadcast_to(columns, (n, columns.shape[1])), codes

    columns, codes = joins.cached(("owned", id(value.codes), axis, n), compute, value.codes)
    array = picked(value.array, columns.reshape(-1)).reshape((*value.array.shape[:-1], *columns.shape))
    own = tuple(sorted((*value.own, axis)))
    place = own.index(axis)
    if place != array.ndim - 2:
        order = [i for i in range(array.ndim) if i != array.ndim - 2]
        array = array.transpose([*order[:place], array.ndim - 2, *order[place:]])
    return Classed(array, value.shape, own, codes)


def spread(value: Classed) -> Classed:
    """The same with every axis its own."""
    varying = value.varying
    if not varying:
        return value
    if math.prod(value.codes.shape) > MOST_CODES:
        raise Unclassed
    flat = value.codes.reshape(-1)
    lead = value.array.shape[:-1]
    array = picked(value.array, flat).reshape((*lead, *(value.codes.shape[a] for a in varying)))
    axes = (*value.own, *varying)
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    if order != list(range(len(axes))):
        array = array.transpose(order)
    return Classed(array[..., None], value.shape, tuple(sorted(axes)), nothing(len(value.shape)))


def dense(value: Classed) -> Any:
    """The ordinary array."""
    value = spread(value)
    held = [value.shape[a] if a in value.own else 1 for a in range(len(value.shape))]
    array = value.array.reshape(held)
    if tuple(held) == value.shape:
        return array
    return (np if isinstance(array, np.ndarray) else jnp).broadcast_to(array, value.shape)


def lifted(value: Classed, rank: int) -> Classed:
    """A scalar among arrays."""
    if len(value.shape) == rank:
        return value
    if value.shape:
        raise Unclassed
    return Classed(value.array, (1,) * rank, (), nothing(rank))


def align(values: Sequence[Classed], joins: Joins) -> tuple[tuple[int, ...], np.ndarray, list[Any]]:
    """Own axes and codes in which all values can be held, and their arrays, of length one where nothing changes.

    Where hardly any two elements are equal, all axes become own ones, unless all is known.
    """
    rank = max(len(v.shape) for v in values)
    values = [lifted(v, rank) for v in values]
    own = {a for v in values for a in v.own}
    varying = {a for v in values for a in v.varying}
    both = own & varying
    if both:
        values = [merged(v, [a for a in v.own if a in both], joins) for v in values]
        own -= both
    codes, classes = values[0].codes, values[0].classes
    picks: list[np.ndarray | None] = [None]
    for v in values[1:]:
        codes, first, second = joins.join(codes, classes, v.codes, v.classes)
        if first is not None:
            picks = [first if p is None else p[first] for p in picks]
        picks.append(second)
        classes = classes if first is None else len(first)
    elements = math.prod(codes.shape)
    if elements > 1 and 2 * classes > elements and not all(v.known for v in values):
        return align([spread(v) for v in values], joins)
    axes = tuple(sorted(own))
    arrays = []
    for v, pick in zip(values, picks, strict=True):
        array = v.array if v.classes == 1 else picked(v.array, pick)
        lengths = [array.shape[v.own.index(a)] if a in v.own else 1 for a in axes]
        arrays.append(array.reshape((*lengths, array.shape[-1])))
    return axes, codes, arrays
