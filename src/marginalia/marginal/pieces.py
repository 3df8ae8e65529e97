"""Adding up factors: how elements of batches come together in one table of log-factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from marginalia.marginal.graph import Batch


@dataclass(frozen=True, eq=False)
class Piece:
    """Part of a batch that goes into a group's table: element e is added at slot `slots[e]`."""

    batch: int
    elements: np.ndarray | None
    axes: tuple[int, ...]
    """Place of each of the batch's lanes among (the discrete, its neighbours in order)."""
    slots: np.ndarray | None
    """None when element e belongs to slot e."""


def pieces_of(n: int, live: dict[int, Batch], variables: np.ndarray, adjacent: np.ndarray) -> tuple[Piece, ...]:
    """Which elements of the live batches go into a table over `variables` and their neighbours `adjacent`."""
    slot_of = np.full(n + 1, -1, np.int64)  # the last entry serves identity -1
    slot_of[variables[variables >= 0]] = np.flatnonzero(variables >= 0)
    pieces: list[Piece] = []
    for index, batch in live.items():
        scopes = np.asarray(batch.scope)
        for lane, scope in enumerate(scopes):
            slots = slot_of[scope]
            elements = np.flatnonzero(slots >= 0)
            if not len(elements):
                continue
            slots = slots[elements]
            places = np.zeros((len(batch.scope), len(elements)), np.int64)
            for i, ids in enumerate(scopes):
                if i != lane:
                    places[i] = 1 + np.argmax(adjacent[:, slots] == ids[elements], axis=0)
            pieces.extend(_by_places(index, batch, elements, slots, places, len(variables)))
    return tuple(pieces)


def _by_places(
    index: int, batch: Batch, elements: np.ndarray, slots: np.ndarray, places: np.ndarray, count: int
) -> list[Piece]:
    if (places == places[:, :1]).all():
        kinds, which = places[:, :1], np.zeros(len(elements), int)
    else:
        kinds, which = np.unique(places, axis=1, return_inverse=True)
        which = which.reshape(-1)
    pieces = []
    total = batch.scope.shape[1]
    for k in range(kinds.shape[1]):
        own = elements[which == k]
        at = slots[which == k]
        aligned = len(at) == count and np.array_equal(at, np.arange(count))
        pieces.append(
            Piece(
                index,
                None if len(own) == total else own,
                tuple(int(x) for x in kinds[:, k]),
                None if aligned else at,
            )
        )
    return pieces


def collect(pieces: Sequence[Piece], extent: tuple[int, ...], count: int, batches: dict[int, Any]) -> Any:
    """All pieces added up: a table of shape (extent..., count), its last axis of length one where nothing changes."""
    total: Any = jnp.zeros((*(1 for _ in extent), 1))
    scattered: dict[tuple[int, ...], list[tuple[Any, np.ndarray]]] = {}
    for piece in pieces:
        table = _arranged(piece, batches[piece.batch], extent)
        if piece.slots is None:
            total = total + table
        elif table.shape[-1] == 1:
            total = total + _repeated(table, piece.slots, count)
        else:
            scattered.setdefault(tuple(table.shape[:-1]), []).append((table, piece.slots))
    for parts in scattered.values():
        table = jnp.concatenate([t for t, _ in parts], axis=-1) if len(parts) > 1 else parts[0][0]
        total = total + segment_sum(table, np.concatenate([s for _, s in parts]), count)
    return jnp.broadcast_to(total, (*extent, total.shape[-1]))


def select(table: Any, elements: np.ndarray) -> Any:
    """Chosen positions of the last axis, as a slice where they are consecutive."""
    if table.shape[-1] == 1:
        return table
    start, stop = int(elements[0]), int(elements[-1]) + 1
    if stop - start == len(elements) and (np.diff(elements) == 1).all():
        return table[..., start:stop]
    return table[..., elements]


def _arranged(piece: Piece, table: Any, extent: tuple[int, ...]) -> Any:
    """A piece's table with its axes in the group's order, cut to the supports, of length one where it reads nothing."""
    if piece.elements is not None:
        table = select(table, piece.elements)
    order = sorted(range(len(piece.axes)), key=lambda i: piece.axes[i])
    table = table.transpose([*order, table.ndim - 1])
    sizes = [extent[piece.axes[i]] for i in order]
    table = table[tuple(slice(0, n) for n in sizes)]
    shape = [1] * len(extent)
    for i, n in zip(order, sizes, strict=True):
        shape[piece.axes[i]] = n
    return table.reshape((*shape, table.shape[-1]))


def _repeated(table: Any, slots: np.ndarray, count: int) -> Any:
    """One table added at many slots, possibly several times at one."""
    times = np.bincount(slots, minlength=count)
    if (times == times[0]).all():
        return table if times[0] == 1 else table * int(times[0])
    return jnp.where(times > 0, table * np.maximum(times, 1), 0.0)


def segment_sum(table: Any, slots: np.ndarray, count: int) -> Any:
    """Sum the elements (last axis) that share a slot."""
    order = np.argsort(slots, kind="stable")
    times = np.bincount(slots, minlength=count)
    if len(slots) == count * times[0] and (times == times[0]).all():
        if not np.array_equal(order, np.arange(len(order))):
            table = table[..., order]
        return table.reshape((*table.shape[:-1], count, int(times[0]))).sum(-1)
    return jnp.zeros((*table.shape[:-1], count), table.dtype).at[..., slots].add(table)
