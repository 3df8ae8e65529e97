"""Checks of arguments and observed values, told with the argument or site, the row and the remedy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from marginalia.errors import DataError, ModelError, compose
from marginalia.parameters import in_words


def check_arguments(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with tables and series as arrays; text and mixed columns are refused with their row."""
    if not callable(model):
        raise ModelError(
            compose(
                "the model is not a function",
                expected="a NumPyro program (a Python function with `numpyro.sample` statements)",
                got=f"a {type(model).__name__}",
                remedy="pass the function itself, not its result: `mg.fit(model, y)`.",
            )
        )
    try:
        bound = inspect.signature(model).bind(*args, **kwargs)
    except (TypeError, ValueError) as error:
        if isinstance(error, TypeError):
            raise ModelError(
                compose(
                    f"the arguments do not fit the model: {error}",
                    where=f"{getattr(model, '__name__', 'model')}{_signature(model)}",
                    got=f"{len(args)} positional and {len(kwargs)} named arguments",
                    remedy="pass the model's own arguments after the model.",
                )
            ) from error
        names = [f"argument {i + 1}" for i in range(len(args))]
    else:
        names = list(bound.arguments)
    names += [f"argument {i + 1}" for i in range(len(names), len(args))]
    clean = tuple(_clean(value, names[i]) for i, value in enumerate(args))
    return clean, {name: _clean(value, name) for name, value in kwargs.items()}


def _signature(model: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(model))
    except (TypeError, ValueError):
        return "(...)"


def _clean(value: Any, name: str) -> Any:
    if hasattr(value, "to_numpy") and not isinstance(value, np.ndarray):
        value = value.to_numpy()
    if isinstance(value, list) and value and not isinstance(value[0], str):
        try:
            as_array = np.asarray(value)
        except ValueError:
            as_array = np.asarray(value, dtype=object)
        if as_array.dtype.kind in "OUS" and as_array.ndim == 1 and isinstance(value[0], int | float):
            value = np.asarray(value, dtype=object)
        elif as_array.dtype.kind in "fiub":
            value = as_array
    if isinstance(value, np.ndarray) and value.dtype.kind in "OUS" and value.size:
        return _numbers_from_objects(value, name)
    return value


def _numbers_from_objects(value: np.ndarray, name: str) -> np.ndarray:
    """Objects that are all numbers become numbers; anything else is refused at its first row."""
    flat = value.reshape(-1)
    for i, item in enumerate(flat):
        if isinstance(item, bool | int | float | np.number | np.bool_):
            continue
        row = int(np.unravel_index(i, value.shape)[0]) if value.ndim else 0
        raise DataError(
            compose(
                "text or a missing entry in numeric data"
                if isinstance(item, str) or item is None
                else "an entry that is not a number",
                where=f"argument '{name}', row {row}",
                expected="numbers",
                got=repr(item),
                remedy="convert the column to numbers first (missing values: drop the rows, or mask them with "
                "`numpyro.handlers.mask` in the model).",
            )
        )
    return value.astype(float)


def check_numeric(name: str, value: Any) -> None:
    """Refuse observed data that are not real numbers: dates, text, complex numbers, a sparse matrix."""
    _refuse_no_numbers(f"site '{name}'", value, "real numbers", "cmMOUSV")


def check_scanned(arrays: Any) -> None:
    """Refuse what a `scan` is to go through where JAX cannot: data that are not numbers, or have no steps."""
    where = "what a `scan` goes through"
    for value in jax.tree.leaves(arrays):
        _refuse_no_numbers(where, value, "arrays of numbers", "mMOUSV")
        if not np.ndim(value):
            raise DataError(
                compose(
                    "a number has no steps to go through",
                    where=where,
                    expected="arrays with an axis for the steps",
                    got=f"a {type(value).__name__} (each entry of a list or tuple is taken as an array of its own)",
                    remedy="make it one array with `np.asarray(...)`.",
                )
            )


def _refuse_no_numbers(where: str, value: Any, expected: str, kinds: str) -> None:
    """`kinds` are those of NumPy's types that are refused."""
    if hasattr(value, "toarray"):
        got, remedy = f"a {type(value).__name__}", "make it an array with .toarray()."
    else:
        dtype = getattr(value, "dtype", None)
        if dtype is None:
            if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value)):
                return
            dtype = np.asarray(value).dtype
        if isinstance(value, jax.Array):
            kinds = kinds.replace("V", "")  # bfloat16 has it
        if dtype.kind not in kinds:
            return
        got, remedy = f"the type {dtype}", "convert it to numbers first (dates to days since the first, say)."
    raise DataError(compose("the data are not numbers", where=where, expected=expected, got=got, remedy=remedy))


def check_observed(
    name: str,
    distribution: str,
    value: np.ndarray | None,
    mask: np.ndarray | None,
    inside: np.ndarray | None,
    element_dim: int,
    support: str,
) -> None:
    """Refuse observed values that are missing, infinite or outside the distribution's support."""
    if value is None:
        return
    value = np.asarray(value)
    bad = np.isnan(value) if value.dtype.kind == "f" else np.zeros(value.shape, bool)
    infinite = np.isinf(value) if value.dtype.kind == "f" else np.zeros(value.shape, bool)
    _refuse_first(
        name,
        bad,
        mask,
        value,
        element_dim,
        "a missing value (NaN)",
        "drop the row, or keep it and mask it: `with numpyro.handlers.mask(mask=~jnp.isnan(y)):` around the "
        "site (with `jnp.nan_to_num(y)` as data).",
        "numbers",
    )
    _refuse_first(
        name,
        infinite,
        mask,
        value,
        element_dim,
        "an infinite value",
        "remove the row or repair the value.",
        "finite numbers",
    )
    if inside is None:
        return
    _refuse_first(
        name,
        ~np.asarray(inside, bool),
        mask,
        value,
        element_dim,
        f"a value outside the support of {distribution}",
        "correct the value, or choose a distribution whose support contains it.",
        in_words(support),
    )


def _refuse_first(
    name: str,
    bad: np.ndarray,
    mask: np.ndarray | None,
    value: np.ndarray,
    element_dim: int,
    what: str,
    remedy: str,
    expected: str,
) -> None:
    if not bad.any():
        return
    if mask is not None:
        mask = np.asarray(mask, bool)
        own = bad.ndim - (value.ndim - element_dim)  # a mask is of elements, what is bad may be in one
        bad = bad & mask.reshape(mask.shape + (1,) * own)
        if not bad.any():
            return
    position = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
    row = position[0] if position else 0
    at = f"row {row}" + (f", position {position[1:]}" if len(position) > 1 else "")
    count = int(bad.sum())
    got = repr(value[position].item()) if bad.shape == value.shape else repr(value[row].tolist())
    raise DataError(
        compose(
            what,
            where=f"site '{name}', {at} (counting from 0)",
            expected=expected,
            got=got + (f", and {count - 1} more such values" if count > 1 else ""),
            remedy=remedy,
        )
    )
