"""Identities that follow one another, held as where they start: a million rows need no array of a million numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FEWEST = 4096
"""So many identities or fewer are an array."""


@dataclass(frozen=True)
class Run:
    """`np.arange(start, start + size).reshape(shape)`, written out by `np.asarray`.

    What moves or drops positions gives a run where its result is one, and an array where it is not.
    """

    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def stop(self) -> int:
        return self.start + self.size

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.arange(self.start, self.stop, dtype=np.int32 if dtype is None else dtype).reshape(self.shape)

    def reshape(self, shape: tuple[int, ...]) -> Run:
        assert math.prod(shape) == self.size
        return Run(self.start, tuple(shape))

    def transpose(self, order: Sequence[int]) -> Run | np.ndarray:
        long = [axis for axis in order if self.shape[axis] != 1]
        if long == sorted(long):
            return Run(self.start, tuple(self.shape[axis] for axis in order))
        return np.asarray(self).transpose(order)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and self.ndim == 1:
            start, stop, step = index.indices(self.size)
            if step == 1:
                return run(self.start + start, (max(stop - start, 0),))
        elif isinstance(index, Run) and self.ndim == 1 and index.stop <= self.size:
            return Run(self.start + index.start, index.shape)
        elif isinstance(index, int) and self.ndim == 2 and self.shape[0] == 1:
            return np.asarray(self)[index] if index else Run(self.start, self.shape[1:])
        elif isinstance(index, tuple) and all(isinstance(i, slice) for i in index):
            whole = [i == slice(None) or i.indices(n) == (0, n, 1) for i, n in zip(index, self.shape, strict=False)]
            if all(whole):
                return self
        return np.asarray(self)[index]


type Ids = np.ndarray | Run


def run(start: int, shape: tuple[int, ...]) -> Ids:
    """Identities from `start` on, in rows of the given shape: a run where there are many."""
    found = Run(int(start), tuple(shape))
    return found if found.size > FEWEST else np.asarray(found)


def as_run(ids: Ids) -> Run | None:
    """The same identities as a run, None where they are none."""
    if isinstance(ids, Run):
        return ids
    if ids.size == 0 or ids.size > FEWEST:
        return None
    start = int(ids.reshape(-1)[0])
    same = start >= 0 and np.array_equal(ids.reshape(-1), np.arange(start, start + ids.size))
    return Run(start, tuple(ids.shape)) if same else None


def beyond(ids: Ids) -> int:
    """The first number that none of the identities reaches."""
    return ids.stop if isinstance(ids, Run) else int(ids.max(initial=-1)) + 1


def places(ids: Ids) -> Any:
    """What picks these positions out of a flat array."""
    return slice(ids.start, ids.stop) if isinstance(ids, Run) else ids
