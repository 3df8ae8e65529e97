"""Draws near the prior, for starts and for tests of symmetry: a few hundred at most, so what counts is compilation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from marginalia.jaxpr.interpreted import in_numpy

QUICKLY = {"xla_backend_optimization_level": 0}
"""Options of the compiler for a program that runs a few hundred times for microseconds."""


MOST_SIDE_BY_SIDE = 256
MOST_NUMBERS = 2**20


def drawer(prior: Callable[[Any], dict[str, Any]], size: int) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """From a function of a key to one of words of random bits `(n, 2)`: n draws. `size` is how many numbers a draw has.

    The generator is the one that is a single operation of the compiler's, where JAX's usual one is hundreds; where the
    draws are made in NumPy, it is one of NumPy's. Which draws come from which bits is no promise.
    """

    def draw(bits: Any) -> dict[str, Any]:
        return prior(jax.random.wrap_key_data(jnp.concatenate([bits, bits ^ 0x9E3779B9]), impl="unsafe_rbg"))

    draws = side_by_side(draw, in_turn=True)

    def drawn(bits: np.ndarray) -> dict[str, np.ndarray]:
        return in_blocks(draws, bits, size)

    return drawn


def side_by_side(function: Callable[[Any], Any], *, in_turn: bool = False) -> Callable[[Any], Any]:
    """A small function of one thing as a function of things side by side, always of the same shapes.

    In NumPy if its operations are known there, else compiled, with the things `in_turn` where that is less to compile.
    """

    @functools.cache
    def made(structure: Any, shapes: tuple[tuple[tuple[int, ...], Any], ...]) -> Callable[[Any], Any]:
        example = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*about) for about in shapes])
        found = in_numpy(jax.vmap(function), example)
        if found is not None:
            return found
        mapped = (lambda things: jax.lax.map(function, things)) if in_turn else jax.vmap(function)
        return jax.jit(mapped, compiler_options=QUICKLY)

    def run(things: Any) -> Any:
        leaves, structure = jax.tree.flatten(things)
        return made(structure, tuple((np.shape(leaf), np.asarray(leaf).dtype) for leaf in leaves))(things)

    return run


def in_blocks(compiled: Callable[[Any], Any], given: Any, size: int) -> Any:
    """A function of things of `size` numbers side by side, on any number of them.

    It is called with as many as memory allows, always the same number, so compiled once: the last block is filled up.
    """
    count, block = len(jax.tree.leaves(given)[0]), int(np.clip(MOST_NUMBERS // max(size, 1), 1, MOST_SIDE_BY_SIDE))
    blocks = []
    for i in range(0, count, block):
        rows = np.minimum(np.arange(i, i + block), count - 1)
        blocks.append(jax.tree.map(np.asarray, compiled(jax.tree.map(lambda leaf, rows=rows: leaf[rows], given))))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *blocks)


def roughly(fn: Any, key: Any) -> Any:
    """A draw that is nearly one of `fn`, where an exact one needs a gamma variate; None elsewhere.

    A sampler of gamma variates, by rejection, is more to compile than all else in the prior of a mixture. Discretes,
    which latents may hang on, are drawn with a key of JAX's usual generator: its Poisson variates know no other.
    """
    if fn.support.is_discrete:
        return fn(rng_key=jax.random.wrap_key_data(jax.random.key_data(key).reshape(-1)[:2], impl="threefry2x32"))
    shape = fn.shape()
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    if type(fn) is dist.Gamma:
        return _gamma(key, fn.concentration, shape) / fn.rate
    if type(fn) is dist.InverseGamma:
        return fn.rate / _gamma(key, fn.concentration, shape)
    if type(fn) is dist.Dirichlet:
        parts = _gamma(key, fn.concentration, shape)
        return parts / jnp.sum(parts, axis=-1, keepdims=True)
    if type(fn) is dist.Beta:
        first, second = (
            _gamma(own, a, shape)
            for own, a in zip(jax.random.split(key), (fn.concentration1, fn.concentration0), strict=True)
        )
        return first / (first + second)
    return None


def _gamma(key: Any, concentration: Any, shape: tuple[int, ...]) -> Any:
    """Wilson and Hilferty (1931): the cube root of a gamma variate is nearly normal; from above 1 for shapes below."""
    a = jnp.broadcast_to(concentration, shape).astype(float)
    for_root, for_rest = jax.random.split(key)
    above = a + 1.0
    root = 1 - 1 / (9 * above) + jax.random.normal(for_root, shape) / (3 * jnp.sqrt(above))
    rest = jax.random.uniform(for_rest, shape, float, minval=1e-6)
    return above * jnp.maximum(root, 0.01) ** 3 * jnp.exp(jnp.log(rest) / a) + np.finfo(float).tiny
