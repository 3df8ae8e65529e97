"""The support of a distribution, applied to its log-density in one place.

NumPyro compares a value with a support only where validation is on, and not inside `scan`; what it computes for a value
outside is then whatever the formula gives, a finite number or NaN. Here the log-density of a value outside a support is
-inf, whatever the user's settings, also for the distributions that one is made of; and nothing is computed with such a
value, whose NaN would otherwise be in the gradient.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import transforms

_MIXTURES = ("_component_distribution", "_component_distributions")


def unchecked_log_prob(fn: Any, value: Any) -> Any:
    """The log-density of a value that is known to be inside the support."""
    return _unchecked(fn).log_prob(value)


def log_prob(fn: Any, value: Any, *, anywhere: bool = False) -> tuple[Any, Any]:
    """The log-density of `value` under `fn`, -inf outside the support; and whether it is inside, per element.

    `anywhere` says that the value may be outside a support that has no parameters (a missing value under a mask).
    """
    within = inside(fn, value)
    if anywhere or moves(fn):
        value = _moved_inside(fn, value, within)
    return jnp.where(within, _confined(fn, anywhere).log_prob(value), -jnp.inf), within


def inside(fn: Any, value: Any) -> Any:
    """Whether each element of `value` is in the support of `fn`."""
    if isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution):
        return inside(fn.base_dist, value)
    if isinstance(fn, dist.Independent):
        within = inside(fn.base_dist, value)
        return jnp.all(within, axis=tuple(range(-fn.reinterpreted_batch_ndims, 0)))
    if _transformed(fn):
        return _inside_transformed(fn, value)
    if fn.support is None:
        return jnp.ones(jnp.shape(value)[: jnp.ndim(value) - fn.event_dim], bool)
    own_check = type(fn)._validate_sample is not dist.Distribution._validate_sample
    within = fn._validate_sample(value) if own_check else fn.support(value)
    return _over_events(within, max(len(fn.batch_shape), jnp.ndim(value) - fn.event_dim))


def _over_events(within: Any, batch: int) -> Any:
    extra = jnp.ndim(within) - batch
    return jnp.all(within, axis=tuple(range(-extra, 0))) if extra > 0 else jnp.asarray(within)


def _transformed(fn: Any) -> bool:
    """Whether the support follows from the transforms and the base, and changes with their parameters.

    NumPyro gives the last transform's codomain, which is all reals for `AffineTransform(loc, scale)` of anything.
    """
    own = type(fn).support is dist.TransformedDistribution.support
    return (
        isinstance(fn, dist.TransformedDistribution)
        and own
        and bool(jax.tree.leaves((fn.transforms, fn.base_dist.support)))
    )


def _parts(transform: Any) -> list[Any]:
    if isinstance(transform, transforms.ComposeTransform):
        return [part for inner in transform.parts for part in _parts(inner)]
    return [transform]


def _inside_transformed(fn: Any, value: Any) -> Any:
    """Back through the transforms: each value inside what its transform reaches, the last inside the base's support."""
    batch = max(len(fn.batch_shape), jnp.ndim(value) - fn.event_dim)
    within: Any = jnp.ones((), bool)
    for part in reversed([p for t in fn.transforms for p in _parts(t)]):
        # The codomain of an affine transform takes its scale for positive.
        if not isinstance(part, transforms.AffineTransform):
            within = within & _over_events(part.codomain(value), batch)
        value = part.inv(value)
        within = within & _over_events(part.domain(value), batch)
    return within & _over_events(inside(fn.base_dist, value), batch)


def moves(fn: Any) -> bool:
    """Whether the support of a distribution, or of one that it is made of, changes with what is not known yet."""
    if isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution | dist.Independent):
        return moves(fn.base_dist)
    if any(name in fn.__dict__ for name in _MIXTURES):
        return True  # a component may have less of a support than the mixture
    known = (fn.support, fn.transforms, fn.base_dist) if _transformed(fn) else fn.support
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(known))


def _moved_inside(fn: Any, value: Any, within: Any) -> Any:
    """The value, with one from the support in place of each element that is outside."""
    shape = jnp.broadcast_shapes(jnp.shape(value), (*jnp.shape(within), *fn.event_shape))
    possible = _possible(fn, jnp.broadcast_to(value, shape))
    if possible is None:
        return value
    within = jnp.reshape(within, jnp.shape(within) + (1,) * fn.event_dim)
    return jnp.where(within, value, jnp.asarray(possible).astype(jnp.result_type(value)))


def _possible(fn: Any, like: Any) -> Any:
    """A value inside the support, of the shape of `like`; None where NumPyro knows none."""
    if isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution | dist.Independent):
        return _possible(fn.base_dist, like)
    if _transformed(fn):
        whole = transforms.ComposeTransform(fn.transforms)
        base = _possible(fn.base_dist, jnp.zeros(whole.inverse_shape(jnp.shape(like)), jnp.result_type(like)))
        return None if base is None else whole(base)
    if isinstance(fn, dist.IntervalCensoredDistribution):
        end = _possible(fn.base_dist, like[..., 0])
        return None if end is None else jnp.stack([end, end], -1)
    if type(fn)._validate_sample not in (dist.Distribution._validate_sample, dist.ImproperUniform._validate_sample):
        return None  # what it takes is not of the shape that its support is of
    try:
        return fn.support.feasible_like(like)
    except NotImplementedError:
        return None


def _apart(fn: Any, part_of: Callable[[Any], Any]) -> Any:
    """A copy that NumPyro does not check, with something else in place of each distribution that it is made of."""
    new = copy.copy(fn)
    new._validate_args = False
    for name, part in fn.__dict__.items():
        if isinstance(part, dist.Distribution):
            setattr(new, name, part_of(part))
        elif isinstance(part, list | tuple) and part and all(isinstance(p, dist.Distribution) for p in part):
            setattr(new, name, type(part)(part_of(p) for p in part))
    return new


def _unchecked(fn: Any) -> Any:
    return _apart(fn, _unchecked)


def _confined(fn: Any, anywhere: bool) -> Any:
    """A copy whose parts are confined to their own supports."""
    anywhere = anywhere or any(name in fn.__dict__ for name in _MIXTURES)
    new = _apart(fn, lambda part: _guarded(part, anywhere))
    if {"low", "high"} <= fn.__dict__.keys() and not fn.support.is_discrete:
        # Between equal bounds there is nothing, and the derivative of the width's logarithm, times zero, is NaN.
        wide = jnp.less(fn.low, fn.high)
        new.low, new.high = (jnp.where(wide, x, jax.lax.stop_gradient(x)) for x in (fn.low, fn.high))
    return new


def _guarded(part: Any, anywhere: bool) -> Any:
    new = _confined(part, anywhere)
    if not isinstance(part, dist.ExpandedDistribution | dist.MaskedDistribution | dist.Independent):
        new.log_prob = functools.partial(_guarded_log_prob, part, anywhere)
    return new


def _guarded_log_prob(fn: Any, anywhere: bool, value: Any, intermediates: Any = None) -> Any:
    if intermediates is not None:
        return fn.log_prob(value, intermediates)
    return log_prob(fn, value, anywhere=anywhere)[0]
