"""Which numbers in memory an array holds: two arrays that share some are the same data, whatever their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from marginalia.jaxpr.calls import inner_program


def addresses(array: Any) -> np.ndarray | None:
    """The address of every element; None for a single number, which Python copies about.

    They mean something only as long as the array is alive.
    """
    view = np.asarray(array)
    if view.ndim == 0 or view.dtype.hasobject:
        return None
    start = view.__array_interface__["data"][0]
    offsets = np.zeros((), np.int64)
    for length, stride in zip(view.shape, view.strides, strict=True):
        offsets = offsets[..., None] + np.arange(length, dtype=np.int64) * stride
    return start + offsets


def identities(closed: core.ClosedJaxpr) -> list[np.ndarray | None]:
    """For every output of a jaxpr without inputs: the addresses it was copied from, None for new numbers."""
    return _read(closed, [])


def _read(closed: core.ClosedJaxpr, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
    jaxpr = closed.jaxpr
    known: dict[Any, np.ndarray | None] = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, value in zip(jaxpr.constvars, closed.consts, strict=True):
        known[variable] = addresses(value) if isinstance(value, np.ndarray) or hasattr(value, "__array__") else None

    def read(atom: Any) -> np.ndarray | None:
        return known.get(atom) if isinstance(atom, core.Var) else None

    for equation in jaxpr.eqns:
        arguments = [read(atom) for atom in equation.invars]
        inner = inner_program(equation)
        results: Sequence[np.ndarray | None] = [None] * len(equation.outvars)
        if inner is not None:
            results = _read(inner, arguments)
        elif equation.primitive.name in _MOVES and arguments[0] is not None:
            results = [_MOVES[equation.primitive.name](arguments[0], equation.params)]
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _sliced(x: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    strides = params["strides"] or (1,) * x.ndim
    return x[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def _reshaped(x: np.ndarray, params: dict[str, Any]) -> np.ndarray | None:
    return x.reshape(params["new_sizes"]) if params["dimensions"] is None else None


def _same(x: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    return x


_MOVES: dict[str, Callable[[np.ndarray, dict[str, Any]], np.ndarray | None]] = {
    "slice": _sliced,
    "squeeze": lambda x, p: np.squeeze(x, tuple(p["dimensions"])),
    "reshape": _reshaped,
    "expand_dims": lambda x, p: np.expand_dims(x, tuple(p["dimensions"])),
    "transpose": lambda x, p: np.transpose(x, p["permutation"]),
    "rev": lambda x, p: np.flip(x, tuple(p["dimensions"])),
    "convert_element_type": _same,
    "copy": _same,
    "device_put": _same,
    "stop_gradient": _same,
}
"""Operations that move numbers without changing them."""
