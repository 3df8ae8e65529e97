"""Small programs evaluated in NumPy, operation by operation, where that is all they are worth.

A fit draws a few hundred starts from the prior and takes them to the real line and back: microseconds of arithmetic,
for which XLA compiles a tenth of a second and more each. Only operations that are listed here, and tested against XLA,
are evaluated so; a program with any other is for its caller to compile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from scipy import special

from marginalia.jaxpr.constants import ELEMENTWISE, INTEGER_ONLY, STRUCTURAL, elementwise

type Rule = Callable[..., np.ndarray | Sequence[np.ndarray]]

FLOATS: dict[str, Callable[..., np.ndarray]] = {
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "logistic": special.expit,
    "erf_inv": special.erfinv,
    "erf": special.erf,
    "erfc": special.erfc,
    "lgamma": special.gammaln,
    "pow": np.power,
    "is_finite": np.isfinite,
    "floor": np.floor,
}
"""Functions of floating-point numbers, equal to XLA's but for the last digits."""

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}
"""Programs inside a program, and the parameter that holds them."""


def in_numpy(function: Callable[..., Any], *examples: Any) -> Callable[..., Any] | None:
    """`function` on arrays of the shapes of `examples`, evaluated in NumPy; None if an operation is not listed here."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*examples)
    structure = jax.tree.structure(shape)
    needed = _needed(closed.jaxpr)
    if needed is None:
        return None

    def evaluated(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            outputs = _run(closed, needed, [np.asarray(a) for a in jax.tree.leaves(arguments)])
        return jax.tree.unflatten(structure, outputs)

    return evaluated


def _needed(jaxpr: core.Jaxpr) -> set[int] | None:
    """Places of the equations that an output needs; None if one of them cannot be evaluated here."""
    wanted = {v for v in jaxpr.outvars if isinstance(v, core.Var)}
    places = set()
    for i in range(len(jaxpr.eqns) - 1, -1, -1):
        equation = jaxpr.eqns[i]
        if not wanted.intersection(equation.outvars):
            continue
        name = equation.primitive.name
        if name in _CALLS:
            inner: Any = equation.params[_CALLS[name]]
            if _needed(inner.jaxpr) is None:
                return None
        elif not _known(name, equation):
            return None
        places.add(i)
        wanted.update(v for v in equation.invars if isinstance(v, core.Var))
    return places


def _known(name: str, equation: Any) -> bool:
    if name == "random_wrap":
        return equation.invars[0].aval.shape[-1:] == (4,)  # the one kind of key that is a scalar of 16 bytes here
    if any(_is_key(v.aval) for v in equation.invars):
        return name in STRUCTURAL or name in RULES
    if name in ("convert_element_type", "bitcast_convert_type"):
        (old,), (new,) = ([np.dtype(v.aval.dtype) for v in part] for part in (equation.invars, equation.outvars))
        if name == "bitcast_convert_type":
            return old.itemsize == new.itemsize  # else the shape changes
        return not (old.kind == "f" and new.kind in "iu")  # of NaN each makes something else
    if name == "pad":
        return all(low >= 0 and high >= 0 and inner == 0 for low, high, inner in equation.params["padding_config"])
    if name in INTEGER_ONLY or name == "div":
        whole = all(np.dtype(v.aval.dtype).kind in "iub" for v in equation.invars)
        return whole is (name in INTEGER_ONLY)
    return name in ELEMENTWISE or name in STRUCTURAL or name in FLOATS or name in RULES


def _run(closed: core.ClosedJaxpr, needed: set[int] | None, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    jaxpr = closed.jaxpr
    needed = _needed(jaxpr) if needed is None else needed
    assert needed is not None
    values: dict[Any, np.ndarray] = dict(zip(jaxpr.invars, inputs, strict=True))
    values.update(zip(jaxpr.constvars, (np.asarray(c) for c in closed.consts), strict=True))

    def read(atom: Any) -> np.ndarray:
        if isinstance(atom, core.Literal):
            about: Any = atom.aval
            return np.asarray(atom.val, dtype=about.dtype)
        return values[atom]

    for i, equation in enumerate(jaxpr.eqns):
        if i in needed:
            values.update(zip(equation.outvars, _evaluate(equation, [read(a) for a in equation.invars]), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _evaluate(equation: Any, given: list[Any]) -> list[np.ndarray]:
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        return _run(params[_CALLS[name]], None, given)
    if name in RULES:
        found: Any = RULES[name](*given, **params)
        results = list(found) if equation.primitive.multiple_results else [found]
    elif name in FLOATS:
        results = [FLOATS[name](*given)]
    elif name in STRUCTURAL:
        function, kept = STRUCTURAL[name]
        results = [function(*given, **{key: params[key] for key in kept})]
    else:
        results = [elementwise(name, params, given)]
        assert results[0] is not None, name
    about = [v.aval for v in equation.outvars]
    return [r if _is_key(a) else np.asarray(r, dtype=a.dtype) for r, a in zip(results, about, strict=True)]


def _is_key(aval: Any) -> bool:
    return jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended)


# ---- Reductions and moves of more kinds -------------------------------------------------------


def _reduction(function: Any) -> Rule:
    return lambda x, *, axes, **_: function.reduce(x, axis=tuple(axes), dtype=x.dtype)


def _running(function: Any) -> Rule:
    def run(x: np.ndarray, *, axis: int, reverse: bool) -> np.ndarray:
        return (
            np.flip(function.accumulate(np.flip(x, axis), axis=axis), axis) if reverse else function.accumulate(x, axis)
        )

    return run


def _pad(x: np.ndarray, value: np.ndarray, *, padding_config: Any) -> np.ndarray:
    return np.pad(x, [(low, high) for low, high, _ in padding_config], constant_values=value)


def _unstack(x: np.ndarray, *, axis: int) -> list[np.ndarray]:
    return [np.take(x, i, axis) for i in range(x.shape[axis])]


def _shifted(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    bits = 8 * x.dtype.itemsize
    unsigned = x.view(f"u{x.dtype.itemsize}")
    return np.where(by < bits, unsigned >> np.minimum(by, bits - 1).astype(unsigned.dtype), 0).astype(x.dtype)


def _dot_general(x: np.ndarray, y: np.ndarray, *, dimension_numbers: Any, **_: Any) -> np.ndarray:
    (summed_x, summed_y), (batch_x, batch_y) = dimension_numbers
    names = iter("abcdefghijklmnopqrstuvwxyz")
    own = {axis: next(names) for axis in range(x.ndim)}
    other = {j: own[i] for i, j in (*zip(summed_x, summed_y, strict=True), *zip(batch_x, batch_y, strict=True))}
    other |= {axis: next(names) for axis in range(y.ndim) if axis not in other}
    kept = [own[i] for i in batch_x]
    kept += [own[i] for i in range(x.ndim) if i not in (*batch_x, *summed_x)]
    kept += [other[j] for j in range(y.ndim) if j not in (*batch_y, *summed_y)]
    left, right = "".join(own[i] for i in range(x.ndim)), "".join(other[j] for j in range(y.ndim))
    return np.einsum(f"{left},{right}->{''.join(kept)}", x, y)


def _cholesky(x: np.ndarray, **_: Any) -> np.ndarray:
    """Of the lower triangles, as LAPACK reads them; one that is not positive definite has no root."""
    roots = np.full(x.shape, np.nan)
    for at in np.ndindex(x.shape[:-2]):
        try:
            roots[at] = np.linalg.cholesky(x[at])
        except np.linalg.LinAlgError:
            continue
    return roots


# ---- Random numbers: a key is a scalar of 16 bytes --------------------------------------------

_KEY = np.dtype("V16")


def _wrap(words: np.ndarray, *, impl: Any) -> np.ndarray:
    return np.ascontiguousarray(words).view(_KEY)[..., 0]


def _unwrap(keys: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(keys)[..., None].view(np.uint32)


def _random(keys: np.ndarray, count: int) -> np.ndarray:
    """Of each key `count` random words of 64 bits (Philox; Salmon et al. 2011), along a last axis."""
    words = np.ascontiguousarray(keys).reshape(-1, 1).view(np.uint64)
    drawn = [np.random.Philox(key=pair).random_raw(count) for pair in words]
    return np.array(drawn, np.uint64).reshape((*keys.shape, count))


def _split(keys: np.ndarray, *, shape: tuple[int, ...]) -> np.ndarray:
    return _random(keys, 2 * math.prod(shape)).view(_KEY).reshape((*keys.shape, *shape))


def _bits(keys: np.ndarray, *, bit_width: int, shape: tuple[int, ...]) -> np.ndarray:
    count = math.prod(shape)
    words = _random(keys, max(1, -(-count * bit_width // 64)))
    return words.view(f"u{bit_width // 8}")[..., :count].reshape((*keys.shape, *shape))


RULES: dict[str, Rule] = {
    "reduce_sum": _reduction(np.add),
    "reduce_prod": _reduction(np.multiply),
    "reduce_max": _reduction(np.maximum),
    "reduce_min": _reduction(np.minimum),
    "cumsum": _running(np.add),
    "cumprod": _running(np.multiply),
    "pad": _pad,
    "rev": lambda x, *, dimensions: np.flip(x, tuple(dimensions)),
    "stack": lambda *parts, axis: np.stack(parts, axis),
    "unstack": _unstack,
    "shift_right_logical": _shifted,
    "bitcast_convert_type": lambda x, *, new_dtype: np.ascontiguousarray(x).view(new_dtype),
    "dot_general": _dot_general,
    "cholesky": _cholesky,
    "random_wrap": _wrap,
    "random_unwrap": _unwrap,
    "random_split": _split,
    "random_bits": _bits,
}
"""Operations with parameters of their own."""
