"""A density written by hand as a distribution of NumPyro: a likelihood, a prior, or a component of a mixture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

from marginalia.errors import ModelError, compose
from marginalia.inversion import Table, enumerated, run_nuts, tabulated

_integrals: ContextVar[dict[int, Any] | None] = ContextVar("integrals", default=None)

GIVEN, LISTED, INVERTED, WALKED = "given", "listed", "inverted", "walked"


class Density(dist.Distribution):
    """A distribution that is known by its log density.

    Prediction needs no `sample`: in one dimension the distribution function is found by quadrature and inverted,
    values of a discrete are listed, and otherwise a short run of NUTS gives each draw (`predict()` says which).

    Args:
        log_prob: From values of shape `(..., *event_shape)` to their log densities, one each: `(...)`. It may close
            over latents; the shape of what it gives for one value is the batch shape.
        support: A constraint of NumPyro: where the density is positive.
        event_shape: Shape of one value.
        sample: From a key, a shape, and the params, to values of that shape, where you have a sampler.
        params: Further named arguments of `log_prob`, instead of closing over them: inside `scan`, say.

    Raises:
        ModelError: The log density is not a function, or does not give one number per value.

    Example:
        >>> mixture = lambda y: jax.nn.logsumexp(                               # doctest: +SKIP
        ...     jnp.log(w) + dist.Normal(mu, 1).log_prob(y[..., None]), axis=-1)
        >>> numpyro.sample("y", mg.Density(mixture, support=constraints.real), obs=y)  # doctest: +SKIP
    """

    arg_constraints: Mapping[str, Any] = {}
    pytree_data_fields = ("params", "_support")
    pytree_aux_fields = ("_density", "_sampler")

    def __init__(
        self,
        log_prob: Callable[..., Any],
        *,
        support: Any,
        event_shape: tuple[int, ...] = (),
        sample: Callable[..., Any] | None = None,
        params: Mapping[str, Any] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        event_shape = tuple(event_shape)
        _refuse_unusable(log_prob, support, sample)
        missing = len(event_shape) - support.event_dim
        if missing < 0:
            raise _refusal(
                "the support is one of longer values",
                f"a support of values of shape {event_shape}",
                f"{support}, of values with {support.event_dim} axes",
                "give event_shape, as in event_shape=(3,) for a simplex of three.",
            )
        self._density = log_prob
        self._sampler = sample
        self._support = constraints.independent(support, missing) if missing else support
        self.params = dict(params or {})
        kind = jnp.result_type(int if self._support.is_discrete else float)
        given = jax.eval_shape(
            lambda value: self._density(value, **self.params), jax.ShapeDtypeStruct(event_shape, kind)
        )
        super().__init__(tuple(jnp.shape(given)), event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        return self._support

    @property
    def way(self) -> str:
        """How draws are made: by the sampler given, from a list of values, by inversion, or by a walk of NUTS."""
        if self._sampler is not None:
            return GIVEN
        if self.event_shape:
            return WALKED
        return LISTED if self._support.is_discrete else INVERTED

    def log_prob(self, value: Any) -> Any:
        """Log densities of values `(..., *event_shape)`.

        Raises:
            ModelError: There is not one number per value.
        """
        found = jnp.asarray(self._density(jnp.asarray(value), **self.params))
        lead = jnp.shape(value)[: jnp.ndim(value) - len(self.event_shape)]
        wanted = jnp.broadcast_shapes(lead, self.batch_shape)
        if found.shape != wanted:
            raise _refusal(
                "the log density does not give one number per value",
                f"shape {wanted} for values of shape {jnp.shape(value)}",
                f"shape {found.shape}",
                "do not sum over rows, or say with event_shape that all rows are one value.",
            )
        return found

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draws of shape `sample_shape + batch_shape + event_shape`."""
        shape = tuple(sample_shape) + self.batch_shape + self.event_shape
        if self._sampler is None:
            if self.way == WALKED:
                return run_nuts(key, self.log_prob, self._support, shape)
            table = self.table()
            seen = _integrals.get()
            if seen is not None:
                seen[id(self)] = table.log_integral
            return table.draw(key, tuple(sample_shape))
        drawn = jnp.asarray(self._sampler(key, shape, **self.params))
        if drawn.shape != shape:
            raise _refusal(
                "the sampler does not give the shape that it was asked for",
                f"shape {shape}",
                f"shape {drawn.shape}",
                "sample(key, shape) is to give an array of exactly that shape.",
            )
        return drawn

    def table(self) -> Table:
        """The distribution of a number, laid out: what draws are made from, and the integral of the density."""
        make = enumerated if self._support.is_discrete else tabulated
        return make(self.log_prob, self._support, self.batch_shape)


@contextmanager
def watching_integrals() -> Iterator[dict[int, Any]]:
    """Collect the log integrals, by the identity of the `Density`, that quadrature finds while draws are made."""
    seen: dict[int, Any] = {}
    before = _integrals.set(seen)
    try:
        yield seen
    finally:
        _integrals.reset(before)


def find_density(fn: Any) -> Density | None:
    """The hand-written density inside a distribution, whatever expands, masks or groups it."""
    while not isinstance(fn, Density):
        if not hasattr(fn, "base_dist"):
            return None
        fn = fn.base_dist
    return fn


def _refuse_unusable(log_prob: Any, support: Any, sample: Any) -> None:
    if not callable(log_prob):
        raise _refusal("the log density is no function", "a function of the value", repr(log_prob), "")
    if not isinstance(support, constraints.Constraint):
        raise _refusal(
            "the support is no constraint",
            "one of numpyro.distributions.constraints: real, positive, interval(0, 1), ...",
            repr(support),
            "",
        )
    if sample is not None and not callable(sample):
        raise _refusal("the sampler is no function", "a function of key and shape, or None", repr(sample), "")


def _refusal(what: str, expected: str, got: str, remedy: str) -> ModelError:
    return ModelError(compose(what, where="mg.Density", expected=expected, got=got, remedy=remedy))
