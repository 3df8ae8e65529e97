"""The forward pass of a chain with one transition for all steps, in scaled linear space.

Probabilities are kept relative to each step's largest, so that a step is a product with a matrix and needs no
exponential (Rabiner 1989, section V.A). What is lost to underflow at a step is below 1e-308 of its mass, and what
follows can raise its share by no more than the spread within a column of the transition; where that spread is too
large, or a transition is impossible, the pass is made in logarithms.

A long sequence is cut into segments whose transfer matrices are found side by side, then joined (as in a parallel
scan), so that the innermost loop runs along the segments and not along K states. The derivative is the forward-backward
algorithm: expected numbers of states and transitions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.marginal.semiring import log_sum
from marginalia.rows.streaming import everywhere

WIDEST_SPREAD = 100.0
"""Nats between the largest and the smallest entry of a column of the transition that linear space bears.

Float64 bears 708. A step lowers a share by no more than the spread, and so does the start of a segment in its transfer
matrix, or what follows a step. The joint of two states is divided by their total, which twice the spread makes small,
and each derivative divides by it once more.
"""

MOST_STATES = 12
"""A transfer matrix costs K^3 a step, a vector K^2: beyond so many states segments do not pay."""

SEGMENTS = 128
SHORTEST_SEGMENT = 16


def log_z(start: Any, transition: Any, emission: Any) -> Any:
    """log of the sum over all paths, per sequence.

    `start` (K, B): log-factors of the first state; `transition` (K, K): of a state given the one before; `emission`
    (T, K, B): of each later state by itself. Differentiable any number of times, forwards and backwards.
    """
    return _log_z(start, transition, emission)


@jax.custom_jvp
def _log_z(start: Any, transition: Any, emission: Any) -> Any:
    return jax.lax.cond(
        _bearable(transition), _linear_value, _log_value, start, jnp.asarray(transition), jnp.asarray(emission)
    )


@_log_z.defjvp
def _(primals: Any, tangents: Any) -> Any:
    value, (of_start, of_transition, of_emission) = jax.lax.cond(
        _bearable(primals[1]), _linear_slopes, _log_slopes, *[jnp.asarray(p) for p in primals]
    )
    start, transition, emission = tangents
    pushed = jnp.sum(of_start * start, 0)
    pushed = pushed + jnp.einsum("ijb,ij->b", of_transition, transition)
    pushed = pushed + jnp.sum(of_emission * emission, (0, 1))
    return value, pushed


def _bearable(transition: Any) -> Any:
    fixed = jax.lax.stop_gradient(transition)
    spread = jnp.max(fixed, 0) - jnp.min(fixed, 0)
    return everywhere(jnp.all(spread < WIDEST_SPREAD))


# ---- in logarithms -------------------------------------------------------------------------------------------------


def _log_value(start: Any, transition: Any, emission: Any) -> Any:
    return _log_of_each(start, transition[..., None], emission)


def _log_of_each(start: Any, transition: Any, emission: Any) -> Any:
    """The same with a transition for each sequence, (K, K, B or 1)."""

    def step(before: Any, own: Any) -> tuple[Any, None]:
        return log_sum(before[:, None] + transition) + own, None

    return log_sum(jax.lax.scan(step, start, emission)[0])


def _log_slopes(start: Any, transition: Any, emission: Any) -> Any:
    wide = jnp.broadcast_to(transition[..., None], (*transition.shape, start.shape[1]))

    def total(*arguments: Any) -> tuple[Any, Any]:
        each = _log_of_each(*arguments)
        return jnp.sum(each), each

    slopes, each = jax.grad(total, (0, 1, 2), has_aux=True)(start, wide, emission)
    return each, slopes


# ---- in scaled linear space ----------------------------------------------------------------------------------------


def _positive(x: Any) -> Any:
    """A scale to divide by: 1 where there is nothing."""
    x = jax.lax.stop_gradient(x)
    return jnp.where(x > 0, x, 1.0)


def _finite(x: Any) -> Any:
    x = jax.lax.stop_gradient(x)
    return jnp.where(jnp.isfinite(x), x, 0.0)


def _log(x: Any) -> Any:
    """log of a sum of probabilities: -inf where it is 0."""
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), jnp.where(x == 0, -jnp.inf, jnp.nan))


class _Scaled:
    """Factors relative to their largest: `first` (K, B), `matrix` (K, K), `weights` (steps, K, segments x B)."""

    def __init__(self, start: Any, transition: Any, emission: Any):
        steps, k, b = emission.shape
        self.k, self.b = k, b
        self.segments = _segments(steps, k, b)
        self.length = -(-steps // self.segments)
        column = jax.lax.stop_gradient(jnp.max(transition, 0))
        self.matrix = jnp.exp(transition - column)
        raised = emission + column[:, None]
        top = _finite(jnp.max(raised, 1, keepdims=True))
        weights = jnp.exp(raised - top)
        missing = self.segments * self.length - steps
        self.there = None
        if missing:
            # Steps beyond the end leave everything as it is.
            weights = jnp.concatenate([weights, jnp.ones((missing, k, b), weights.dtype)])
            inside = np.arange(self.segments * self.length) < steps
            self.there = np.repeat(inside.reshape(self.segments, self.length).T, b, axis=1)[:, None]
        # (segment, step, K, B) -> (step, K, segment x B): what goes on side by side lies side by side.
        weights = weights.reshape((self.segments, self.length, k, b)).transpose((1, 2, 0, 3))
        self.weights = weights.reshape((self.length, k, self.segments * b))
        bottom = _finite(jnp.max(start, 0))
        self.first = jnp.exp(start - bottom)
        self.total = bottom + jnp.sum(top[:, 0], 0)

    def onward(self, before: Any) -> Any:
        """Probabilities (..., K, side by side) one step on, the emission still to come."""
        if self.k > MOST_STATES:
            return jnp.einsum("...kb,kj->...jb", before, self.matrix)
        # Written out, so that each product runs along the segments.
        return sum(before[..., i, None, :] * self.matrix[i][:, None] for i in range(self.k))

    def back(self, after: Any) -> Any:
        if self.k > MOST_STATES:
            return jnp.einsum("...jb,kj->...kb", after, self.matrix)
        return sum(after[..., j, None, :] * self.matrix[:, j][:, None] for j in range(self.k))

    def inside(self) -> Any:
        """Which steps are there: something to scan along, `None` where all are."""
        return None if self.there is None else jnp.asarray(self.there)

    def kept(self, here: Any, new: Any, old: Any) -> Any:
        return new if here is None else jnp.where(here, new, old)


def _segments(steps: int, k: int, b: int) -> int:
    if k > MOST_STATES or steps < 4 * SHORTEST_SEGMENT or b >= SEGMENTS:
        return 1
    return max(1, min(-(-SEGMENTS // b), steps // SHORTEST_SEGMENT))


def _transfers(scaled: _Scaled) -> tuple[Any, Any]:
    """The product of each segment's steps, (K, K, segment, B), relative to its scale, and the log of that scale."""
    k, width = scaled.k, scaled.segments * scaled.b
    unit = jnp.broadcast_to(jnp.eye(k, dtype=scaled.weights.dtype)[..., None], (k, k, width))

    def step(carry: Any, inputs: Any) -> tuple[Any, None]:
        product, scale = carry
        weights, here = inputs
        new = scaled.kept(here, scaled.onward(product) * weights, product)
        size = _positive(jnp.max(new, (0, 1)))
        return (new / size, scale + jnp.log(size)), None

    (product, scale), _ = jax.lax.scan(
        step, (unit, jnp.zeros(width, scaled.weights.dtype)), (scaled.weights, scaled.inside())
    )
    shape = (scaled.segments, scaled.b)
    return product.reshape((k, k, *shape)), scale.reshape(shape)


def _joined(scaled: _Scaled, product: Any) -> tuple[Any, Any, Any]:
    """Probabilities entering each segment (segment, K, B), those after the last, and the log of their scale."""

    def step(carry: Any, matrix: Any) -> tuple[Any, Any]:
        before, scale = carry
        new = jnp.sum(before[:, None] * matrix, 0)
        size = _positive(jnp.sum(new, 0))
        return (new / size, scale + jnp.log(size)), before

    size = _positive(jnp.sum(scaled.first, 0))
    (last, scale), entering = jax.lax.scan(step, (scaled.first / size, jnp.log(size)), jnp.moveaxis(product, 2, 0))
    return entering, last, scale


def _linear_value(start: Any, transition: Any, emission: Any) -> Any:
    scaled = _Scaled(start, transition, emission)
    if scaled.segments == 1:
        size = _positive(jnp.sum(scaled.first, 0))
        _, last, scale = _along(scaled, scaled.first / size)
        return scaled.total + jnp.log(size) + scale + _log(jnp.sum(last, 0))
    product, scales = _transfers(scaled)
    _, last, scale = _joined(scaled, product)
    return scaled.total + jnp.sum(scales, 0) + scale + _log(jnp.sum(last, 0))


def _along(scaled: _Scaled, entering: Any) -> tuple[Any, Any, Any]:
    """Probabilities before each step of all segments side by side, (step, K, side by side); the last; its log scale."""

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        before, scale = carry
        weights, here = inputs
        new = scaled.kept(here, scaled.onward(before) * weights, before)
        size = _positive(jnp.sum(new, 0))
        return (new / size, scale + jnp.log(size)), before

    zero = jnp.zeros(entering.shape[-1], entering.dtype)
    (last, scale), before = jax.lax.scan(step, (entering, zero), (scaled.weights, scaled.inside()))
    return before, last, scale


def _linear_slopes(start: Any, transition: Any, emission: Any) -> Any:
    scaled = _Scaled(start, transition, emission)
    k, b, segments = scaled.k, scaled.b, scaled.segments
    one = jnp.ones((k, b), scaled.first.dtype)
    if segments == 1:
        size = _positive(jnp.sum(scaled.first, 0))
        entering, leaving = scaled.first / size, one
        before, last, scale = _along(scaled, entering)
        value = scaled.total + jnp.log(size) + scale + _log(jnp.sum(last, 0))
    else:
        product, scales = _transfers(scaled)
        into, last, scale = _joined(scaled, product)
        value = scaled.total + jnp.sum(scales, 0) + scale + _log(jnp.sum(last, 0))

        def step(after: Any, matrix: Any) -> tuple[Any, Any]:
            new = jnp.sum(matrix * after, 1)
            return new / _positive(jnp.max(new, 0)), after

        _, out = jax.lax.scan(step, one, jnp.moveaxis(product, 2, 0), reverse=True)
        entering = jnp.moveaxis(into, 0, 1).reshape((k, segments * b))
        leaving = jnp.moveaxis(out, 0, 1).reshape((k, segments * b))
        before, _, _ = _along(scaled, entering)

    def back(after: Any, inputs: Any) -> tuple[Any, Any]:
        weights, here = inputs
        seen = weights * after
        new = scaled.back(seen)
        new = scaled.kept(here, new / _positive(jnp.max(new, 0)), after)
        return new, seen

    earliest, seen = jax.lax.scan(back, leaving, (scaled.weights, scaled.inside()), reverse=True)
    # The joint of states l and l + 1 is before[l] * matrix * seen[l], up to its total.
    if k <= MOST_STATES:
        reached = scaled.onward(before)
    else:  # as an ordinary product of matrices: XLA is slow at others
        reached = jnp.moveaxis(jnp.moveaxis(before, 1, -1) @ scaled.matrix, -1, 1)
    joint = reached * seen
    total = jnp.sum(joint, 1, keepdims=True)
    some = total > 0
    share = jnp.where(some, 1.0 / jnp.where(some, total, 1.0), 0.0)
    if scaled.there is not None:
        share = jnp.where(jnp.asarray(scaled.there), share, 0.0)
    states = joint * share  # (step, K, segment x B)
    by_sequence = (scaled.length, k, segments, b)
    of_emission = states.reshape(by_sequence).transpose((2, 0, 1, 3)).reshape((segments * scaled.length, k, b))
    left, right = (x.reshape(by_sequence).transpose((3, 0, 2, 1)).reshape((b, -1, k)) for x in (before, seen * share))
    moves = jnp.moveaxis(jnp.swapaxes(left, 1, 2) @ right, 0, -1)
    of_transition = moves * scaled.matrix[..., None]
    first = earliest.reshape((k, segments, b))[:, 0] * scaled.first
    total = jnp.sum(first, 0)
    of_start = jnp.where(total > 0, first / jnp.where(total > 0, total, 1.0), 0.0)
    return value, (of_start, of_transition, of_emission[: emission.shape[0]])
