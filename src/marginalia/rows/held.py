"""Arrays of a program that may vary along the rows of the data, laid out with the rows innermost.

Each axis of a value is made of *atoms*: sizes whose product is its length, so that a reshape which merges or splits
axes only regroups atoms. One atom may be the rows (`ROWS`). The array that is held has one axis per atom, in order,
the rows moved to the end; an atom along which nothing changes is held with length one. So `mu[z]` over a million rows
and 20 states is held as (20, 1), and a block of rows of a K x N x D table as (K, D, block).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from marginalia.rows.quadratic import Form

ROWS = -1
"""The atom that stands for the rows of the data."""

type Atoms = tuple[int, ...]
type Axes = tuple[Atoms, ...]


class Unreadable(Exception):
    """An operation meets the rows in a way that blocks of rows cannot follow; the ordinary evaluation can."""


class TooLarge(Unreadable):
    """What would be computed once from the data, or for one row, is larger than what is spared."""


@dataclass(frozen=True, eq=False)
class Held:
    """A value: its axes in atoms, and its array with the rows last."""

    array: Any
    axes: Axes
    form: Form | None = field(default=None, repr=False)
    """The same value as a sum of products of parameters and data, while only sums and products have touched it."""

    def __post_init__(self) -> None:
        if self.atoms.count(ROWS) > 1:
            raise Unreadable("rows that meet other rows")

    @property
    def atoms(self) -> Atoms:
        return tuple(a for axis in self.axes for a in axis)

    @property
    def row_axis(self) -> int | None:
        return next((i for i, axis in enumerate(self.axes) if ROWS in axis), None)

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    def held(self) -> tuple[int, ...]:
        """Length held of each atom, in the order of the atoms."""
        return in_order(tuple(self.array.shape), self.atoms)

    def without_form(self) -> Held:
        return self if self.form is None else replace(self, form=None)


def in_order(shape: tuple[int, ...], atoms: Atoms) -> tuple[int, ...]:
    """Lengths with the rows last, put in the order of the atoms."""
    if ROWS not in atoms:
        return shape
    place = atoms.index(ROWS)
    return (*shape[:place], shape[-1], *shape[place:-1])


def rows_last(order: Sequence[Any], atoms: Sequence[int]) -> tuple[Any, ...]:
    """What is listed in the order of the atoms, with that of the rows moved to the end."""
    if ROWS not in atoms:
        return tuple(order)
    place = list(atoms).index(ROWS)
    return (*order[:place], *order[place + 1 :], order[place])


def ordinary(array: Any, shape: tuple[int, ...] | None = None) -> Held:
    """An array without rows; `shape` is the value's where the array is of length one along some axes."""
    shape = tuple(np.shape(array)) if shape is None else shape
    axes = tuple((n,) if n != 1 else () for n in shape)
    kept = [h for h, n in zip(np.shape(array), shape, strict=True) if n != 1]
    return Held(array.reshape(tuple(kept)), axes)


def sizes(axes: Axes, rows: int) -> tuple[int, ...]:
    """Lengths of the axes."""
    return tuple(math.prod(rows if a == ROWS else a for a in axis) for axis in axes)


def dense(value: Held, rows: int) -> Any:
    """The ordinary array of a value without rows (broadcasts over the rows included)."""
    if value.row_axis is not None and value.array.shape[-1] != 1:
        raise Unreadable("all rows at once")
    full = tuple(rows if a == ROWS else a for a in rows_last(value.atoms, value.atoms))
    array = jnp.broadcast_to(value.array, full)
    atoms = value.atoms
    if ROWS in atoms:
        array = jnp.moveaxis(array, -1, atoms.index(ROWS))
    return array.reshape(sizes(value.axes, rows))


def refine(value: Held, axes: Axes, rows: int) -> Held:
    """The same value with its axes in the atoms of `axes`; an axis of length one takes them without being repeated."""
    if value.axes == axes:
        return value
    lengths = list(value.held())
    shape: list[int] = []
    at = 0
    for own, wanted in zip(value.axes, axes, strict=True):
        held = lengths[at : at + len(own)]
        at += len(own)
        if own == wanted:
            shape += held
        elif all(h == 1 for h in held):
            shape += [1] * len(wanted)
        elif ROWS in own or ROWS in wanted or math.prod(held) != math.prod(wanted):
            raise Unreadable(f"axes of atoms {own} and {wanted}")
        else:
            shape += list(wanted)
    atoms = [a for axis in axes for a in axis]
    if ROWS in value.atoms and ROWS not in atoms:
        raise Unreadable("rows that end")
    # The rows stay innermost: only what is not the rows is regrouped.
    return Held(value.array.reshape(rows_last(shape, atoms)), axes, value.form)


def common_axes(values: Sequence[Held], rows: int) -> Axes:
    """Atoms in which all values can be held; axes of length one take those of the others."""
    ranks = {len(v.axes) for v in values if v.axes}
    if len(ranks) > 1:
        raise Unreadable("values of different rank")
    rank = ranks.pop() if ranks else 0
    axes: list[Atoms] = []
    for i in range(rank):
        found = [v.axes[i] for v in values if v.axes and v.axes[i]]
        held = [_held_of(v, i) for v in values if v.axes and v.axes[i]]
        wide = [a for a, h in zip(found, held, strict=True) if any(n != 1 for n in h)]
        with_rows = [a for a in found if ROWS in a]
        finest = max(wide, key=len) if wide else (max(found, key=len) if found else ())
        axes.append(with_rows[0] if with_rows else finest)
    return tuple(axes)


def _held_of(value: Held, axis: int) -> tuple[int, ...]:
    start = sum(len(a) for a in value.axes[:axis])
    return value.held()[start : start + len(value.axes[axis])]


def align(values: Sequence[Held], rows: int) -> tuple[Axes, list[Any]]:
    """Arrays of several values of one shape, brought to one order of atoms (lengths one where nothing changes)."""
    axes = common_axes(values, rows)
    arrays = []
    for value in values:
        if value.axes:
            arrays.append(refine(value, axes, rows).array)
        else:
            arrays.append(value.array.reshape((1,) * sum(len(a) for a in axes)))
    return axes, arrays


def broadcast_all(arrays: Sequence[Any]) -> list[Any]:
    """Arrays of one rank, each at the common shape."""
    shape = np.broadcast_shapes(*[tuple(a.shape) for a in arrays])
    return [a if tuple(a.shape) == shape else jnp.broadcast_to(a, shape) for a in arrays]
