"""Data that vary from row to row: which of them are the same, equal rows counted, and how they are cut into blocks.

All of it reads the data where they lie. What is made is one array per leaf, in the order in which the blocks are read,
and not even that where the program's own array can be cut into blocks as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marginalia.jaxpr.device import aligned
from marginalia.rows.held import Held, TooLarge
from marginalia.rows.operations import varies

BLOCK_NUMBERS = 16384
"""Numbers that a block holds of its widest array: so much stays in a core's own cache."""

SHORTEST_BLOCK = 256

MOST_IN_BLOCK = 2**22
"""Numbers of its widest array that even the shortest block may hold."""


def cut(rows: int, width: int, longest: int) -> tuple[int, int]:
    """How many blocks, and how many rows in each, where a row has a table of `width` numbers.

    Blocks that come out even need no weights, and no row is repeated to fill the last.
    """
    if width > MOST_IN_BLOCK // 2:
        raise TooLarge(f"one row has a table of {width} numbers")
    shortest = min(SHORTEST_BLOCK, MOST_IN_BLOCK // width)
    block = min(max(BLOCK_NUMBERS // width, shortest), longest)
    blocks = -(-rows // block)
    # A block of one row would look like what is the same for all.
    several = np.arange(blocks, min(2 * blocks, rows // 2) + 1)
    even = several[rows % several == 0]
    if len(even):
        return int(even[0]), rows // int(even[0])
    return blocks, max(-(-rows // blocks), 2)


def in_blocks(array: np.ndarray, blocks: int, block: int) -> np.ndarray:
    """(atoms..., rows) as (blocks, atoms..., rows of a block), the last row repeated where the last block is short."""
    *lead, rows = array.shape
    held = aligned((blocks, *lead, block), array.dtype)
    full = rows // block
    _fill(held[:full], array[..., : full * block], full, block)
    if full < blocks:
        missing = blocks * block - rows
        rest = np.concatenate([array[..., full * block :], np.repeat(array[..., -1:], missing, axis=-1)], axis=-1)
        _fill(held[full:], rest, blocks - full, block)
    return held


def _fill(target: np.ndarray, array: np.ndarray, blocks: int, block: int) -> None:
    np.copyto(target, np.moveaxis(array.reshape((*array.shape[:-1], blocks, block)), -2, 0))


def same_memory(array: np.ndarray, other: np.ndarray) -> bool:
    """Whether both are the same numbers in the same order at the same place, whatever their shapes."""
    return (
        array.dtype == other.dtype
        and array.size == other.size
        and array.flags.c_contiguous
        and other.flags.c_contiguous
        and array.ctypes.data == other.ctypes.data
    )


def centred(array: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Where the columns lie and how far they reach from there; neither where a number is not finite."""
    if array.dtype.kind != "f":
        return None, None
    # NaN passes through both, and an infinity is one of them.
    low, high = array.min(-1, keepdims=True), array.max(-1, keepdims=True)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return None, None
    centre = array.mean(-1, keepdims=True)
    return centre, np.maximum(high - centre, centre - low)


def told_apart(values: dict[int, Held]) -> tuple[dict[int, Held], dict[int, Held]]:
    """What is the same for all rows, and what is not. One number everywhere is held as one number."""
    constants, varying = {}, {}
    for i, value in values.items():
        array = np.asarray(value.array)
        if array.size and is_one_number(array):
            constants[i] = _one_number(Held(array, value.axes))
        elif varies(value):
            varying[i] = Held(array, value.axes)
        else:
            constants[i] = Held(array, value.axes)
    return constants, varying


def once(value: Held) -> Held:
    """What is asked of the data, whether they are missing for one, held once where the answer is always the same."""
    return _one_number(value) if value.dtype == np.bool_ and value.array.size and is_one_number(value.array) else value


def _one_number(value: Held) -> Held:
    return Held(value.array[(slice(1),) * value.array.ndim].copy(), value.axes)


def is_one_number(array: np.ndarray) -> bool:
    """Whether all are the same, to the sign of a zero."""
    one, last = array[(0,) * array.ndim], array[(-1,) * array.ndim]
    # Most data are told apart by two of their numbers.
    if one != last:
        return False
    if array.dtype == np.bool_:
        return bool(array.all()) if one else not bool(array.any())
    if not bool((array == one).all()):
        return False
    return array.dtype.kind != "f" or bool((np.signbit(array) == np.signbit(one)).all())


def counted(varying: dict[int, Held], rows: int) -> tuple[dict[int, Held], np.ndarray | None]:
    """Equal rows once, with their number; as they are where few are equal."""
    some = slice(None, None, max(rows // 2000, 1))
    held = [np.asarray(v.array) for v in varying.values()]
    sample = [c for a in held for c in a[..., some].reshape((-1, len(range(rows)[some])))]
    if len(_codes(sample)[0]) > 0.5 * len(sample[0]):
        return varying, None
    first, times = _codes([a[at] for a in held for at in np.ndindex(a.shape[:-1])])
    if len(first) > 0.5 * rows:
        return varying, None
    return {i: Held(np.ascontiguousarray(v.array[..., first]), v.axes) for i, v in varying.items()}, times.astype(float)


def _codes(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Where each different row stands first, and how often it is there."""
    code = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        bits = column.view(f"i{column.itemsize}") if column.dtype.kind == "f" else column
        _, own = np.unique(bits, return_inverse=True)
        _, code = np.unique(code * (int(own.max()) + 1) + own, return_inverse=True)
    _, first, times = np.unique(code, return_index=True, return_counts=True)
    return first, times
