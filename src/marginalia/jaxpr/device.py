"""Arrays of data as JAX holds them, each copied once at most."""

from __future__ import annotations

import math
import weakref
from typing import Any

import jax
import numpy as np

_LINE = 64
"""Bytes to which JAX wants memory aligned: what is not is copied."""


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array not yet filled that JAX takes over as it is."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size].view(dtype).reshape(shape)


_copies: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
"""The arrays that `copied` has made, by where they lie."""


def copied(array: np.ndarray) -> np.ndarray:
    """A copy that nobody writes to, and that JAX takes over as it is; the array itself where it is such a copy."""
    if is_copy(array):
        return array
    if array.dtype.hasobject or type(array) is not np.ndarray:
        new = np.array(array, copy=True, subok=True)
    else:
        new = aligned(array.shape, array.dtype)
        np.copyto(new, array)
    # NumPy lets views refer to what owns the memory, past all that lies between.
    owner: Any = new
    while isinstance(owner, np.ndarray):
        owner.setflags(write=False)
        _copies[id(owner)] = owner
        owner = owner.base
    return new


def is_copy(array: np.ndarray) -> bool:
    """Whether an array is, or looks at, what `copied` has made."""
    at: Any = array
    while isinstance(at, np.ndarray) and not at.flags.writeable:
        if _copies.get(id(at)) is at:
            return True
        at = at.base
    return False


def on_device(array: Any) -> Any:
    """The array as JAX holds it, also when first asked for inside a trace; `array` must not change afterwards."""
    with jax.ensure_compile_time_eval():
        return jax.device_put(array)


def owned(array: Any) -> Any:
    """The same for an array that is the user's and may change: a copy.

    `jnp.asarray` copies twice where memory is not aligned, which doubles the peak of memory for large data.
    """
    if isinstance(array, jax.Array):
        return array
    array = np.asarray(array)
    if is_copy(array):
        return on_device(array)
    held = aligned(array.shape, array.dtype)
    np.copyto(held, array)
    return on_device(held)
