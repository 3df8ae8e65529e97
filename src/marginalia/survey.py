"""The first pass over a program: which sites there are, with what shapes, supports, data and masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.extend import core
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.primitives import Messenger

from marginalia.data_checks import check_numeric
from marginalia.errors import DataError, MarginaliaError, ModelError, Refusal, compose
from marginalia.families import endless_of
from marginalia.jaxpr.known import known_values
from marginalia.jaxpr.reads import dependencies
from marginalia.lanes.bounds import current
from marginalia.lanes.supports import bounds_over_parents
from marginalia.parameters import Pending
from marginalia.tracing import AnyRows, Placeholder, is_discrete, peel, reading


class Survey:
    """What the first pass found, evaluated where it involves no latent."""

    def __init__(self, closed: core.ClosedJaxpr, places: dict[tuple[str, ...], Any], supports: dict[str, Any]):
        self._closed = closed
        self._places = places
        self._supports = supports
        self._known: list[Any] | None = None

    def _evaluate(self) -> list[Any]:
        if self._known is None:
            self._known = known_values(self._closed)
        return self._known

    def known(self, place: tuple[str, ...]) -> np.ndarray | None:
        """A value the survey put out, None where it is not there or depends on a latent."""
        index = self._places.get(place)
        if index is None:
            return None
        if not isinstance(index, int):
            return np.asarray(index[0])
        value = self._evaluate()[index]
        return None if value is None else value.get()

    def support(self, name: str) -> Any:
        """The constraint with its bounds as numbers, or None where they depend on other latents."""
        leaves, structure = self._supports[name]
        found = []
        for i, leaf in enumerate(leaves):
            value = self.known(("bound", name, str(i)))
            if value is None:
                return None
            found.append(value if isinstance(leaf, jax.core.Tracer) else leaf)
        return jax.tree.unflatten(structure, found)

    def bounds(self, name: str, cut: int | None) -> tuple[np.ndarray, np.ndarray] | None:
        """Lower and upper bound of a discrete, None where they are computed from a latent.

        `cut` is how many values are kept of a discrete that has no largest one.
        """
        low, high = self.known(("low", name)), self.known(("high", name))
        if cut is not None and low is not None:
            return low, low + (cut - 1)
        return None if low is None or high is None else (low, high)


def listed(
    name: str, shape: tuple[int, ...], bounds: tuple[np.ndarray, np.ndarray] | None
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """The support of a discrete, and the bounds of its elements where they differ."""
    if bounds is None:
        raise Refusal(
            compose(
                "the support of this discrete depends on a continuous latent",
                where=f"site '{name}'",
                expected="bounds that are known before the run, such as `dist.Binomial(10, p)`, or computed from "
                "other discretes",
                got="bounds computed from a continuous latent",
                remedy="give the largest possible bound as a number and let the probabilities beyond the latent "
                "bound be zero, for example with `numpyro.factor('bound', jnp.where(x <= n, 0., -jnp.inf))`.",
            )
        )
    low, high = bounds
    values = np.arange(int(np.min(low)), int(np.max(high)) + 1)
    if np.ptp(low) == 0 and np.ptp(high) == 0:
        return values, None
    return values, (np.broadcast_to(low, shape), np.broadcast_to(high, shape))


def refuse_support_from_discretes(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    name: str,
    sites: dict[str, dict[str, Any]],
) -> None:
    """A continuous latent whose support changes with a discrete has no common space for all states."""
    names = [n for n, s in sites.items() if s["kind"] == "discrete"]
    others = [n for n, s in sites.items() if s["kind"] == "latent"]

    def bounds(states: list[Any], latents: list[Any]) -> list[Any]:
        values = dict(zip([*names, *others], [*states, *latents], strict=True))
        with reading(), handlers.trace() as trace, handlers.seed(rng_seed=0), handlers.substitute(data=values):
            model(*args, **kwargs)
        return [jnp.asarray(leaf) for leaf in jax.tree.leaves(trace[name]["fn"].support)]

    whole = [jax.ShapeDtypeStruct(sites[n]["shape"], jnp.result_type(int)) for n in names]
    real = [jax.ShapeDtypeStruct(sites[n]["shape"], jnp.result_type(float)) for n in others]
    read = set().union(*dependencies(jax.make_jaxpr(bounds)(whole, real).jaxpr))
    found = [n for i, n in enumerate(names) if i in read]
    if found:
        who = ", ".join(f"'{n}'" for n in found)
        raise Refusal(
            compose(
                f"the support of this continuous latent depends on the discrete {who}",
                where=f"site '{name}'",
                expected="the same support for every state of the discretes",
                got="bounds computed from a discrete",
                remedy="sample it on a fixed support and scale it: `u = sample('u', Uniform(0, 1))`, then "
                "`x = low[z] + (high[z] - low[z]) * u`.",
            )
        )


def bounds_from_parents(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    name: str,
    sites: dict[str, dict[str, Any]],
    discretes: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray] | None:
    """Bounds of a discrete over all states of the discretes before it (a binomial whose count is latent)."""
    reals = [n for n, s in sites.items() if s["kind"] == "latent"]

    def bounds(parents: list[Any], latents: list[Any]) -> list[Any]:
        values = dict(zip([*discretes, *reals], [*parents, *latents], strict=True))
        seed = handlers.seed(rng_seed=0)
        with reading(), handlers.trace() as trace, seed, Placeholder(), handlers.substitute(data=values):
            model(*args, **kwargs)
        found: dict[tuple[str, ...], Any] = {}
        base, _ = peel(trace[name]["fn"])
        _put_bounds(name, base, found.__setitem__, endless=False)
        return [jnp.asarray(found["low", name]), jnp.asarray(found["high", name])]

    parents = [(d.shape, d.values) for d in discretes.values()]
    return bounds_over_parents(bounds, parents, [sites[n]["shape"] for n in reals])


def survey(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], Survey]:
    """First pass: which sites there are, with what shapes, supports, data and masks."""
    sites: dict[str, dict[str, Any]] = {}
    outputs: list[Any] = []
    places: dict[tuple[str, ...], Any] = {}
    supports: dict[str, Any] = {}
    parameters: list[Pending] = []

    def put(place: tuple[str, ...], value: Any) -> None:
        if isinstance(value, jax.core.Tracer):
            places[place] = len(outputs)
            outputs.append(value)
        else:
            places[place] = (np.asarray(value),)

    def run() -> list[Any]:
        with reading() as pending, handlers.trace() as trace, handlers.seed(rng_seed=0), Placeholder(), AnyRows({}):
            model(*args, **kwargs)
        for i, parameter in enumerate(pending):
            put(("parameter", str(i)), parameter.value)
        parameters.extend(replace(p, value=None) for p in pending)
        for name, site in trace.items():
            _survey_site(name, site, sites, put, supports)
        return outputs

    closed = jax.make_jaxpr(run)()
    if not any(s["kind"] in ("observed", "factor", "latent", "discrete") for s in sites.values()):
        raise ModelError(
            compose(
                "the program has no sample statement",
                where=getattr(model, "__name__", "model"),
                expected="a NumPyro program with latents and data",
                remedy="check that the function you passed is the model and calls `numpyro.sample`.",
            )
        )
    found = Survey(closed, places, supports)
    for i, parameter in enumerate(parameters):
        if (value := found.known(("parameter", str(i)))) is not None:
            parameter.check(value)
    return sites, found


MOST_PLATES = 16
"""Plates that draw rows are told from each other up to so many."""


def cut_before(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, int]:
    """Plates that would draw some of their rows, and whose data are those rows already, as a loader hands them over.

    With how many rows each draws. The program fits rows of that number, and nothing in it reads which rows these are;
    none are found where it cannot be run so.
    """
    found: dict[str, int] = {}

    class Some(Messenger):
        def process_message(self, message: dict[str, Any]) -> None:
            if message["type"] == "plate" and message["value"] is None and len(found) < MOST_PLATES:
                drawn = message["args"][1]
                message["value"] = marks[len(found)] + jnp.arange(drawn)
                found[message["name"]] = drawn

    def run(given: list[Any]) -> list[Any]:
        marks[:] = given
        with reading(), Some(), handlers.trace() as trace, handlers.seed(rng_seed=0), Placeholder():
            model(*args, **kwargs)
        sites = [site for site in trace.values() if site["type"] in ("sample", "deterministic")]
        densities = [site["fn"].log_prob(site["value"]) for site in sites if site["type"] == "sample"]
        return [jnp.asarray(x) for x in (*densities, *(site["value"] for site in sites))]

    marks: list[Any] = []
    try:
        closed = jax.make_jaxpr(run)([jax.ShapeDtypeStruct((), jnp.result_type(int))] * MOST_PLATES)
    except (MarginaliaError, ValueError, TypeError, IndexError):
        return {}
    read = set().union(*dependencies(closed.jaxpr))
    return {name: drawn for i, (name, drawn) in enumerate(found.items()) if i not in read}


def _survey_site(
    name: str,
    site: dict[str, Any],
    sites: dict[str, dict[str, Any]],
    put: Callable[..., None],
    supports: dict[str, Any],
) -> None:
    kind = site["type"]
    if kind == "plate":
        size, _ = site["args"]
        sites[name] = {"kind": "plate", "size": size, "drawn": site.get("drawn")}
        return
    if kind == "deterministic":
        shape = tuple(np.shape(site["value"]))
        sites[name] = {"kind": "deterministic", "shape": shape, "dims": _dims(name, site, shape, 0)}
        return
    if kind == "param":
        raise ModelError(
            compose(
                "`numpyro.param` has no prior, so there is no posterior for it",
                where=f"site '{name}'",
                remedy="use `numpyro.sample` with a prior (`dist.ImproperUniform` for a flat one).",
            )
        )
    if kind != "sample":
        return
    fn = site["fn"]
    if isinstance(fn, dist.Unit):
        sites[name] = {"kind": "factor"}
        return
    if site["is_observed"]:
        check_numeric(name, site["value"])
    shape = tuple(np.shape(site["value"]))
    event_dim = fn.event_dim
    common = {"shape": shape, "dims": _dims(name, site, shape, event_dim), "event_dim": event_dim}
    base, mask = peel(fn)
    if site["is_observed"]:
        check_shape(name, fn, shape)
        sites[name] = {
            "kind": "observed",
            "fn_name": type(base).__name__,
            "support_text": str(base.support),
            **common,
        }
        put(("value", name), site["value"])
        if mask is not None:
            put(("mask", name), mask)
        put(("inside", name), base.support(jnp.asarray(site["value"])))
        return
    if not is_discrete(fn):
        sites[name] = {"kind": "latent", **common}
        leaves, structure = jax.tree.flatten(fn.support)
        supports[name] = (leaves, structure)
        for i, leaf in enumerate(leaves):
            put(("bound", name, str(i)), leaf)
        return
    known = endless_of(base) is not None or current().vouches(name)
    endless = known and not hasattr(base.support, "upper_bound")
    sites[name] = {"kind": "discrete", "endless": endless, **common}
    _put_bounds(name, base, put, endless)


def _put_bounds(name: str, base: Any, put: Callable[..., None], endless: bool) -> None:
    support = base.support
    if base.event_shape:
        raise Refusal(
            compose(
                f"a latent {type(base).__name__} is a vector, which is not supported as a discrete",
                where=f"site '{name}'",
                expected="a discrete whose elements are whole numbers",
                remedy="sample `dist.Categorical` and use `jax.nn.one_hot(z, K)` where the vector is needed.",
            )
        )
    if support is constraints.boolean or type(support) is type(constraints.boolean):
        put(("low", name), 0)
        put(("high", name), 1)
    elif hasattr(support, "lower_bound") and hasattr(support, "upper_bound"):
        put(("low", name), support.lower_bound)
        put(("high", name), support.upper_bound)
    elif endless and hasattr(support, "lower_bound"):
        put(("low", name), support.lower_bound)
    else:
        raise Refusal(
            compose(
                f"a latent {type(base).__name__} has infinitely many states",
                where=f"site '{name}'",
                expected="a discrete with a finite support (Categorical, Bernoulli, Binomial, DiscreteUniform, ...), "
                "or a Poisson, negative binomial or geometric one, plain, zero-inflated or with a hurdle",
                got=str(support),
                remedy="say up to where it matters: `with mg.limits(up_to={'"
                + name
                + "': 500}): ...` sums its values up to 500 and no others.",
            )
        )


def check_shape(name: str, fn: Any, shape: tuple[int, ...]) -> None:
    if math.prod(shape) == 0:
        raise DataError(
            compose(
                "the data have no rows",
                where=f"site '{name}'",
                expected="at least one observation",
                got=f"an array of shape {shape}",
                remedy="check how the table was filtered.",
            )
        )
    base, _ = peel(fn)  # the axes that `.to_event` groups broadcast like any other
    event = tuple(base.event_shape)
    batch = (*fn.batch_shape, *fn.event_shape)[: len(fn.batch_shape) + len(fn.event_shape) - len(event)]
    own = shape[: len(shape) - len(event)] if len(shape) >= len(event) else None
    try:
        fits = own is not None and shape[len(own) :] == event
        joint = np.broadcast_shapes(own, batch) if fits and own is not None else None
    except ValueError:
        joint = None
    if joint is None or own is None or math.prod(joint) != math.prod(own):
        raise DataError(
            compose(
                "the data do not have the shape that the distribution gives",
                where=f"site '{name}'",
                expected=f"shape {tuple(fn.batch_shape) + tuple(event)}",
                got=f"shape {shape}"
                + (
                    ""
                    if joint is None
                    else f", which would broadcast to {joint} and count every observation "
                    f"{math.prod(joint) // max(math.prod(own or ()), 1)} times"
                ),
                remedy="compare the length of the data with the plates and with the arrays that index them; "
                "`mu[:, None]` and a missing `.to_event(1)` are the usual causes.",
            )
        )


def _dims(name: str, site: dict[str, Any], shape: tuple[int, ...], event_dim: int) -> tuple[str, ...]:
    dims = [f"{name}_dim_{i}" for i in range(len(shape))]
    batch = len(shape) - event_dim
    for frame in site.get("cond_indep_stack", ()):
        place = batch + frame.dim
        if 0 <= place < batch and shape[place] == frame.size and frame.name not in dims:
            dims[place] = frame.name
    return tuple(dims)
