"""Parameter-free arithmetic in NumPy, so that index arrays and state tables never cost a compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def _convert(x: np.ndarray, new_dtype: Any) -> np.ndarray | None:
    if x.dtype.kind == "f" and np.dtype(new_dtype).kind in "iu":
        # NaN and what is out of range become something else in NumPy than in XLA.
        bounds = np.iinfo(new_dtype)
        if not ((x > float(bounds.min)) & (x < float(bounds.max))).all():
            return None
    return x.astype(new_dtype, copy=False)


def _divide(x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """Not of integers: XLA's result by zero is its own."""
    return np.true_divide(x, y, dtype=x.dtype) if x.dtype == y.dtype and x.dtype.kind == "f" else None


def _integer_power(x: np.ndarray, y: int) -> np.ndarray:
    return np.asarray(x) ** y


def _remainder(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """XLA's remainder takes the sign of the dividend; by zero, an integer's is the dividend."""
    return np.where(y == 0, x, np.fmod(x, np.where(y == 0, 1, y)))


def _select(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    which, *spread = np.broadcast_arrays(which, *cases)
    return np.take_along_axis(np.stack(spread), which.astype(np.int64)[None], axis=0)[0]


def _clamp(low: np.ndarray, x: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(x, low), high)


ELEMENTWISE: dict[str, Callable[..., np.ndarray | None]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "sign": np.sign,
    "abs": np.abs,
    "max": np.maximum,
    "min": np.minimum,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "select_n": _select,
    "clamp": _clamp,
    "convert_element_type": _convert,
    "div": _divide,
    "integer_pow": _integer_power,
    "square": np.square,
    "copy": np.asarray,  # no array is changed in place
    "stop_gradient": np.asarray,
}
"""Operations that mean the same in NumPy as in XLA for every dtype met here."""

INTEGER_ONLY: dict[str, Callable[..., np.ndarray]] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.bitwise_not,
    "rem": _remainder,
}


def _broadcast_in_dim(x: np.ndarray, *, shape: tuple[int, ...], broadcast_dimensions: tuple[int, ...]) -> np.ndarray:
    own = [1] * len(shape)
    for axis, place in enumerate(broadcast_dimensions):
        own[place] = x.shape[axis]
    return np.broadcast_to(x.reshape(own), shape)


def _iota(*, dtype: Any, shape: tuple[int, ...], dimension: int) -> np.ndarray:
    own = [1] * len(shape)
    own[dimension] = shape[dimension]
    return np.broadcast_to(np.arange(shape[dimension]).astype(dtype).reshape(own), shape)


def _slice(x: np.ndarray, *, start_indices: Any, limit_indices: Any, strides: Any) -> np.ndarray:
    steps = strides or (1,) * x.ndim
    return x[tuple(slice(*ends) for ends in zip(start_indices, limit_indices, steps, strict=True))]


def _all(x: np.ndarray, *, axes: tuple[int, ...]) -> np.ndarray | None:
    return np.asarray(x.all(tuple(axes))) if x.dtype.kind == "b" else None


def _any(x: np.ndarray, *, axes: tuple[int, ...]) -> np.ndarray | None:
    return np.asarray(x.any(tuple(axes))) if x.dtype.kind == "b" else None


STRUCTURAL: dict[str, tuple[Callable[..., np.ndarray | None], tuple[str, ...]]] = {
    "broadcast_in_dim": (_broadcast_in_dim, ("shape", "broadcast_dimensions")),
    "iota": (_iota, ("dtype", "shape", "dimension")),
    "reshape": (lambda x, *, new_sizes: np.reshape(x, new_sizes), ("new_sizes",)),
    "squeeze": (lambda x, *, dimensions: np.squeeze(x, tuple(dimensions)), ("dimensions",)),
    "transpose": (lambda x, *, permutation: np.transpose(x, permutation), ("permutation",)),
    "slice": (_slice, ("start_indices", "limit_indices", "strides")),
    "concatenate": (lambda *parts, dimension: np.concatenate(parts, dimension), ("dimension",)),
    "reduce_and": (_all, ("axes",)),
    "reduce_or": (_any, ("axes",)),
}
"""Operations that only move elements or ask about all of them, each with the parameters that say which."""

_KEPT_PARAMETERS = {"convert_element_type": ("new_dtype",), "integer_pow": ("y",)}


def elementwise(name: str, params: dict[str, Any], tables: list[Any]) -> np.ndarray | None:
    """Evaluate an elementwise primitive on NumPy arrays, or None when NumPy is not known to agree."""
    if not all(isinstance(t, np.ndarray) for t in tables):
        return None
    function = ELEMENTWISE.get(name)
    if function is None and all(t.dtype.kind in "iub" for t in tables):
        function = INTEGER_ONLY.get(name)
    if function is None:
        return None
    kept = {key: params[key] for key in _KEPT_PARAMETERS.get(name, ())}
    with np.errstate(all="ignore"):
        result = function(*tables, **kept)
    return None if result is None else np.asarray(result)


def evaluate(primitive: Any, params: dict[str, Any], arguments: list[np.ndarray]) -> list[np.ndarray]:
    """Evaluate any primitive on known arguments, at once and outside every trace."""
    fast = elementwise(primitive.name, params, arguments)
    if fast is None:
        fast = _moved(primitive.name, params, arguments)
    if fast is not None:
        return [fast]
    with jax.ensure_compile_time_eval():
        outputs = bind(primitive, params, *arguments)
        return [concrete(o) for o in outputs]


def _moved(name: str, params: dict[str, Any], arguments: list[Any]) -> np.ndarray | None:
    if name not in STRUCTURAL or not all(isinstance(a, np.ndarray) for a in arguments):
        return None
    function, kept = STRUCTURAL[name]
    return function(*arguments, **{key: params[key] for key in kept})


def concrete(array: Any) -> Any:
    """A NumPy array; random keys have no such form and stay what they are."""
    return array if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended) else np.asarray(array)


def bind(primitive: Any, params: dict[str, Any], *arguments: Any) -> list[Any]:
    """Apply a primitive and always give a list."""
    bound = primitive.get_bind_params(params)
    if isinstance(bound, tuple):  # JAX 0.11 gives the called functions apart
        functions, bound = bound
        arguments = (*functions, *arguments)
    outputs = primitive.bind(*arguments, **bound)
    return list(outputs) if primitive.multiple_results else [outputs]
