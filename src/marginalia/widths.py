"""Where numbers of 32 bits meet those of 64: loops and branches are given the wider of both.

A program that starts a loop from `jnp.zeros(n, jnp.int32)` runs under JAX's own setting, in which all whole numbers
have 32 bits. Here they have 64, and JAX wants what leaves a loop to be like what entered it, and branches to be alike.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.contrib.control_flow.cond import wrap_fn
from numpyro.primitives import Messenger

_WIDTHS = {"i": (4, 8), "u": (4, 8), "f": (4, 8), "c": (8, 16)}
"""Kinds of numbers whose width is a setting of JAX, with both widths in bytes."""


def paired(x: Any, y: Any) -> bool:
    """Whether two dtypes differ in their width alone, by JAX's setting."""
    kind = getattr(x, "kind", "")
    return x != y and kind == getattr(y, "kind", None) and {x.itemsize, y.itemsize} == set(_WIDTHS.get(kind, ()))


def dtypes(tree: Any) -> Any:
    """The dtype of each leaf."""
    return jax.tree.map(jnp.result_type, tree)


def _of_one_structure(first: Any, second: Any) -> bool:
    trees: list[Any] = [jax.tree.structure(tree) for tree in (first, second)]
    return bool(trees[0] == trees[1])


def widest(first: Any, second: Any) -> Any:
    """Leaf by leaf the wider of two trees of dtypes; the first where they differ otherwise."""
    if not _of_one_structure(first, second):
        return first
    return jax.tree.map(lambda x, y: max(x, y, key=lambda d: d.itemsize) if paired(x, y) else x, first, second)


def cast(tree: Any, wanted: Any) -> Any:
    """The same values, as wide as `wanted` says; what differs otherwise is left for JAX to refuse."""
    if not _of_one_structure(tree, wanted):
        return tree
    return jax.tree.map(lambda x, d: jnp.asarray(x, d) if paired(jnp.result_type(x), d) else x, tree, wanted)


def settle(run: Callable[[Callable[[Any, Any], Any], Any], Any], start: Any) -> Any:
    """Run a loop from a start wide enough for all that the loop makes of it.

    `run(like, start)` runs it, and gives each new value of what is carried to `like(new, old)`, which gives it back as
    wide as the old.
    """
    while True:
        found = [dtypes(start)]

        def like(new: Any, old: Any, found: list[Any] = found) -> Any:
            found.append(dtypes(new))
            return cast(new, dtypes(old))

        result = run(like, start)
        wide = functools.reduce(widest, found)
        if wide == found[0]:
            return result
        start = cast(start, wide)


def alike(branches: Sequence[Callable[..., Any]], *operands: Any) -> list[Callable[..., Any]]:
    """Branches whose values are of the same width."""
    wide = functools.reduce(widest, [dtypes(jax.eval_shape(branch, *operands)) for branch in branches])
    return [lambda *given, branch=branch: cast(branch(*given), wide) for branch in branches]


class WideLoops(Messenger):
    """NumPyro's `scan` and `cond`, their loops and branches as wide as they need to be."""

    def process_message(self, message: dict[str, Any]) -> None:
        if message["type"] != "control_flow":
            return
        wrapper = message["fn"]
        if wrapper.__name__ == "scan_wrapper":
            message["fn"] = functools.partial(_scan, wrapper)
        elif wrapper.__name__ == "cond_wrapper":
            message["fn"] = _cond


def _scan(wrapper: Callable[..., Any], f: Callable[..., Any], init: Any, *rest: Any, **kwargs: Any) -> Any:
    def run(like: Callable[[Any, Any], Any], start: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            after, y = f(carry, x)
            return like(after, carry), y

        return wrapper(body, start, *rest, **kwargs)

    return settle(run, init)


def _cond(
    which: Any, first: Any, second: Any, operand: Any, rng_key: Any = None, substitute_stack: Any = (), **_: Any
) -> Any:
    """As NumPyro's own; enumeration, which that refuses, does not come here."""
    given = (rng_key, operand)
    branches = alike([wrap_fn(f, substitute_stack) for f in (first, second)], given)
    return jax.lax.cond(which, *branches, given)
