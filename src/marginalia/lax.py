"""JAX's own loops, branches and operations where numbers of 32 bits meet those of 64.

They are looked up in `jax.lax` by the program itself, which nothing else reaches: no handler, and no setting of JAX.
So a program that JAX refuses in 64 bits is run once more with wider ones in their place, on its thread alone and only
while it runs; other threads, and JAX itself, have JAX's.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from marginalia.shared import InPlace
from marginalia.widths import alike, paired, settle


class Widened:
    """A model that runs with loops and branches of `jax.lax` as wide as they need to be."""

    def __init__(self, model: Callable[..., Any]) -> None:
        functools.update_wrapper(self, model)
        self.inner = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _in_lax.wanted():
            before = getattr(_thread, "wide", False)
            _thread.wide = True
            try:
                return self.inner(*args, **kwargs)
            finally:
                _thread.wide = before


def _scan(scan: Any, f: Any, init: Any, xs: Any = None, *rest: Any, **options: Any) -> Any:
    def run(like: Callable[[Any, Any], Any], start: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            after, y = f(carry, x)
            return like(after, carry), y

        return scan(body, start, xs, *rest, **options)

    return settle(run, init)


def _while_loop(while_loop: Any, cond_fun: Any, body_fun: Any, init_val: Any) -> Any:
    return settle(lambda like, start: while_loop(cond_fun, lambda carry: like(body_fun(carry), carry), start), init_val)


def _fori_loop(fori_loop: Any, lower: Any, upper: Any, body_fun: Any, init_val: Any, **options: Any) -> Any:
    lower, upper = _equally_wide((lower, upper))

    def run(like: Callable[[Any, Any], Any], start: Any) -> Any:
        return fori_loop(lower, upper, lambda i, carry: like(body_fun(i, carry), carry), start, **options)

    return settle(run, init_val)


def _cond(cond: Any, pred: Any, true_fun: Any, false_fun: Any, *operands: Any, **options: Any) -> Any:
    if options or not (callable(true_fun) and callable(false_fun)):
        return cond(pred, true_fun, false_fun, *operands, **options)
    return cond(pred, *alike([true_fun, false_fun], *operands), *operands)


def _switch(switch: Any, index: Any, branches: Any, *operands: Any, **options: Any) -> Any:
    return switch(index, alike(list(branches), *operands), *operands, **options)


def _operation(operation: Any, *operands: Any, **options: Any) -> Any:
    return operation(*_equally_wide(operands), **options)


def _equally_wide(operands: Any) -> Any:
    """Arrays of one kind as wide as the widest."""
    leaves, structure = jax.tree.flatten(operands)
    dtypes = [leaf.dtype if hasattr(leaf, "dtype") else None for leaf in leaves]

    def widest(own: Any) -> Any:
        return max([own, *(d for d in dtypes if d is not None and paired(own, d))], key=lambda d: d.itemsize)

    wide = [
        leaf if d is None or widest(d) == d else jnp.asarray(leaf, widest(d))
        for leaf, d in zip(leaves, dtypes, strict=True)
    ]
    return jax.tree.unflatten(structure, wide)


# fmt: off
_OPERATIONS = (
    "add", "atan2", "bitwise_and", "bitwise_or", "bitwise_xor", "clamp", "complex", "concatenate", "div", "dot",
    "dot_general", "dynamic_update_index_in_dim", "dynamic_update_slice", "dynamic_update_slice_in_dim", "eq", "ge",
    "gt", "le", "lt", "max", "min", "mul", "ne", "pad", "pow", "rem", "select", "select_n", "sub",
)
# fmt: on
_thread = threading.local()


def _where_wide(original: Any, wide: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def either(*args: Any, **kwargs: Any) -> Any:
        if not getattr(_thread, "wide", False):
            return original(*args, **kwargs)
        return wide(original, *args, **kwargs)

    return either


_ORIGINAL: dict[str, Any] = {
    name: getattr(jax.lax, name) for name in ("scan", "while_loop", "fori_loop", "cond", "switch", *_OPERATIONS)
}
_WIDE = {name: _where_wide(original, globals().get(f"_{name}", _operation)) for name, original in _ORIGINAL.items()}


def _put(functions: dict[str, Any]) -> None:
    for name, function in functions.items():
        setattr(jax.lax, name, function)


_in_lax = InPlace(lambda: _put(_WIDE), lambda: _put(_ORIGINAL))
