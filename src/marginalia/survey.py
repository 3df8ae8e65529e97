"""The first pass over a program: which sites there are, with what shapes, supports, data and masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
from marginalia.lanes.supports import Bounds, bounds_over_states
from marginalia.parameters import Pending
from marginalia.steps import Steps
from marginalia.supports import inside
from marginalia.tracing import (
    AnyRows,
    is_discrete,
    masks_around,
    masks_of,
    peel,
    placeholder,
    reading,
    run_model,
)


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
            value = self.known((f"bound {i}", name)) if leaf is None else leaf
            if value is None:
                return None
            found.append(value)
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

    def leaves(site: dict[str, Any], step: Any) -> Any:
        return [jnp.asarray(leaf) for leaf in jax.tree.leaves(site["fn"].support)] if site["name"] == name else []

    def bounds(states: list[Any], latents: list[Any]) -> list[Any]:
        values = dict(zip([*names, *others], [*states, *latents], strict=True))
        return run_model(model, args, kwargs, values, look=leaves)[name]["seen"]

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
    wanted: Sequence[str],
    sites: dict[str, dict[str, Any]],
    known: Mapping[str, Bounds],
) -> dict[str, Bounds | None]:
    """Bounds of discretes over all states of the discretes before them (a binomial whose count is latent).

    In a loop a discrete may depend on its own last value. Each element depends on earlier ones only, so the bounds are
    what does not change any more when they are computed again and again from any bounds.
    """
    names = [n for n, s in sites.items() if s["kind"] == "discrete"]
    reals = [n for n, s in sites.items() if s["kind"] == "latent"]

    def ends(site: dict[str, Any], step: Any) -> Any:
        if site["name"] not in wanted:
            return {}
        return {end: jnp.asarray(x) for end, x in _ends(site, step, sites[site["name"]]["kept"]).items()}

    def bounds(states: list[Any], latents: list[Any]) -> list[Any]:
        values = dict(zip([*names, *reals], [*states, *latents], strict=True))
        found = run_model(model, args, kwargs, values, look=ends)
        return [found[n]["seen"][end] for n in wanted for end in ("low", "high")]

    found = bounds_over_states(
        bounds,
        [sites[n]["shape"] for n in names],
        [known.get(n) for n in names],
        [names.index(n) for n in wanted],
        [sites[n]["shape"] for n in reals],
    )
    return dict(zip(wanted, found, strict=True))


def survey(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], Survey]:
    """First pass: which sites there are, with what shapes, supports, data and masks."""
    sites: dict[str, dict[str, Any]] = {}
    outputs: list[Any] = []
    places: dict[tuple[str, ...], Any] = {}
    supports: dict[str, Any] = {}
    parameters: list[Pending] = []
    about: dict[str, dict[str, Any]] = {}

    def put(place: tuple[str, ...], value: Any) -> None:
        if isinstance(value, jax.core.Tracer):
            places[place] = len(outputs)
            outputs.append(value)
        else:
            places[place] = (np.asarray(value),)

    def look(site: dict[str, Any], step: Any) -> dict[str, Any]:
        about[site["name"]], found = _look(site, step)
        return found

    def run() -> list[Any]:
        steps = Steps(placeholder, look)
        with reading() as pending, handlers.trace() as trace, handlers.seed(rng_seed=0), steps, AnyRows({}):
            model(*args, **kwargs)
        for i, parameter in enumerate(pending):
            put(("parameter", str(i)), parameter.value)
        parameters.extend(replace(p, value=None) for p in pending)
        for name, site in trace.items():
            _survey_site(name, site, about.get(name, {}), steps.seen.get(name, {}), sites, put, supports)
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
        with reading(), Some(), handlers.trace() as trace, handlers.seed(rng_seed=0), Steps(placeholder):
            model(*args, **kwargs)
        sites = [site for site in trace.values() if site["type"] in ("sample", "deterministic")]
        for site in sites:
            if site["type"] == "sample" and site["is_observed"]:
                check_numeric(site["name"], site["value"])
        densities = [site["fn"].log_prob(site["value"]) for site in sites if site["type"] == "sample"]
        return [jnp.asarray(x) for x in (*densities, *(site["value"] for site in sites))]

    marks: list[Any] = []
    try:
        closed = jax.make_jaxpr(run)([jax.ShapeDtypeStruct((), jnp.result_type(int))] * MOST_PLATES)
    except (MarginaliaError, ValueError, TypeError, IndexError):
        return {}
    read = set().union(*dependencies(closed.jaxpr))
    return {name: drawn for i, (name, drawn) in enumerate(found.items()) if i not in read}


def _look(site: dict[str, Any], step: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a site says of itself where it stands: facts, and arrays."""
    fn, value = site["fn"], site["value"]
    if isinstance(fn, dist.Unit):
        return {"kind": "factor"}, {}
    base, mask = peel(fn)
    if site["is_observed"]:
        check_numeric(site["name"], value)
        check_shape(site["name"], fn, tuple(np.shape(value)))
        facts: dict[str, Any] = {"kind": "observed", "fn_name": type(base).__name__, "support_text": str(base.support)}
        facts |= {"element_dim": base.event_dim, "masks": masks_of(fn)}
        arrays = {"inside": inside(base, jnp.asarray(value))}
        if mask is not None:
            arrays["mask"] = _aligned(mask, step, np.ndim(value) - base.event_dim)
        return facts, arrays
    if not is_discrete(fn):
        leaves, structure = jax.tree.flatten(fn.support)
        # Numbers stay numbers; what is stacked along time lines up with the value's own axes.
        kept = [leaf if isinstance(leaf, int | float) else None for leaf in leaves]
        arrays = {
            f"bound {i}": _aligned(leaf, step, np.ndim(value))
            for i, (leaf, own) in enumerate(zip(leaves, kept, strict=True))
            if own is None
        }
        return {"kind": "latent", "support": (kept, structure)}, arrays
    endless = _may_be_endless(site["name"], base) and not hasattr(base.support, "upper_bound")
    return {"kind": "discrete", "endless": endless}, _ends(site, step)


def _aligned(array: Any, step: Any, rank: int) -> Any:
    """An array of a step of a loop with as many axes as what it lines up with, before time comes in front."""
    if step is None:
        return array
    return jnp.reshape(array, (1,) * (rank - np.ndim(array)) + np.shape(array))


def _survey_site(
    name: str,
    site: dict[str, Any],
    about: dict[str, Any],
    seen: dict[str, Any],
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
    shape = tuple(np.shape(site["value"]))
    event_dim = fn.event_dim
    facts = dict(about)
    if "support" in facts:
        supports[name] = facts.pop("support")
    sites[name] = {"shape": shape, "dims": _dims(name, site, shape, event_dim), "event_dim": event_dim, **facts}
    for key, value in seen.items():
        put((key, name), value)
    if facts["kind"] == "observed":
        put(("value", name), site["value"])
        around = masks_around(fn, about["masks"])
        sites[name]["complete"] = around is None and "mask" not in seen
        if around is not None:  # by a handler around a loop
            own = seen.get("mask")
            put(("mask", name), around if own is None else own & around)


def _may_be_endless(name: str, base: Any) -> bool:
    return endless_of(base) is not None or current().vouches(name)


def _ends(site: dict[str, Any], step: Any, kept: int | None = None) -> dict[str, Any]:
    """Smallest and largest value of a discrete; the latter if it has one, or `kept` values."""
    name = site["name"]
    base, _ = peel(site["fn"])
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
        ends = {"low": 0, "high": 1}
    elif hasattr(support, "lower_bound") and hasattr(support, "upper_bound"):
        ends = {"low": support.lower_bound, "high": support.upper_bound}
    elif _may_be_endless(name, base) and hasattr(support, "lower_bound"):
        ends = {"low": support.lower_bound}
        if kept is not None:
            ends["high"] = support.lower_bound + (kept - 1)
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
    return {end: _aligned(value, step, np.ndim(site["value"])) for end, value in ends.items()}


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
