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
    if fast is not None:
        return [fast]
    with jax.ensure_compile_time_eval():
        outputs = bind(primitive, params, *arguments)
        return [concrete(o) for o in outputs]


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
