"""Read a NumPyro program once: its sites, and one jaxpr of the log-probability of every element of every site."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.extend import core
from numpyro import handlers

from marginalia.arguments import keep
from marginalia.data_checks import check_arguments, check_observed
from marginalia.errors import DataError, Refusal, compose
from marginalia.families import gives_probabilities
from marginalia.jaxpr.device import owned
from marginalia.jaxpr.doubles import in_doubles
from marginalia.jaxpr.known import known_values
from marginalia.jaxpr.ranges import Maybe, Range, range_of_array
from marginalia.jaxpr.slopes import ranges_of_outputs, with_finite_slopes
from marginalia.lanes.bounds import current
from marginalia.lax import Widened
from marginalia.proper import is_proper, room
from marginalia.running import running
from marginalia.steps import Steps, given
from marginalia.supports import log_prob as log_prob_inside
from marginalia.supports import moves, unchecked_log_prob
from marginalia.survey import Survey, bounds_from_parents, cut_before, listed, refuse_support_from_discretes, survey
from marginalia.tracing import OnRows, is_discrete, masks_around, masks_of, peel, run_model


@dataclass(frozen=True)
class Site:
    """A named value of the program; `dims` names its axes after their plates."""

    name: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]


@dataclass(frozen=True)
class Latent(Site):
    """A continuous latent; `support` is its NumPyro constraint, None where it depends on other latents."""

    support: Any = None


@dataclass(frozen=True)
class Discrete(Site):
    """A discrete latent; `values` is its support.

    `bounds` are the smallest and the largest value of each element where these differ from element to element (a
    binomial with its own count per row), None where all elements have the whole support. An `endless` one has no
    largest value, and `values` are those that are kept. The support of an `inherited` one is computed from other
    discretes, and has no end where theirs have none.
    """

    values: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    bounds: tuple[np.ndarray, np.ndarray] | None = None
    endless: bool = False
    inherited: bool = False


@dataclass(frozen=True)
class Observed(Site):
    """Data."""

    value: Any = None


@dataclass(frozen=True)
class Term:
    """One array of log-probabilities: a site's, before its scale. `counts` means that none of them exceeds 0.

    `adds_to_one` says of a discrete's own that over all its values, those beyond a cut included, the probabilities add
    up to 1 whatever they depend on, and that no mask or scale changes this.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    scale: np.ndarray | float = 1.0
    counts: bool = False
    adds_to_one: bool = False


@dataclass(frozen=True, eq=False)
class Program:
    """A NumPyro program, read: `jaxpr` maps latents and discretes (in order) to `terms` (in order).

    `drawn` are the plates that draw some of their rows anew in each run, with how many. The program is read on all
    rows, and `model` is the user's with these plates told so. `certain` are observed sites whose data are known to be
    inside the support.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    latents: dict[str, Latent]
    discretes: dict[str, Discrete]
    observed: dict[str, Observed]
    deterministics: dict[str, Site]
    plates: dict[str, int]
    terms: tuple[Term, ...]
    jaxpr: core.ClosedJaxpr
    fixed_supports: bool
    drawn: dict[str, int] = field(default_factory=dict)
    certain: frozenset[str] = frozenset()

    def looked_at(self, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The sites at the given values, as `log_probability` takes them. For use inside a JAX function."""
        return sites_looked_at(self.model, self.args, self.kwargs, values, self.certain)

    def trace(self, values: Mapping[str, Any], key: Any = None) -> dict[str, dict[str, Any]]:
        """Run the program with the given latents; the rest is drawn with `key`. For use inside a JAX function."""
        return run_model(self.model, self.args, self.kwargs, values, key)

    def constrain(self, unconstrained: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """Unconstrained reals to the latents' supports, with the log absolute Jacobian determinant."""

        def one(support: Any, x: Any) -> tuple[Any, Any]:
            transform = dist.biject_to(support)
            value = transform(x)
            return value, (value, transform.log_abs_det_jacobian(x, value))

        found = self._visit_supports(one, unconstrained)
        total = sum((jnp.sum(log_det) for _, log_det in found.values()), jnp.zeros(()))
        return {name: value for name, (value, _) in found.items()}, total

    def unconstrain(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse of `constrain`."""

        def one(support: Any, value: Any) -> tuple[Any, Any]:
            return value, dist.biject_to(support).inv(jnp.asarray(value, float))

        return self._visit_supports(one, params)

    def _visit_supports(
        self, visit: Callable[[Any, Any], tuple[Any, Any]], values: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Apply `visit(support, value)` to the given values, which gives a latent's value and what is wanted of it."""
        if self.fixed_supports:
            return {name: visit(latent.support, values[name])[1] for name, latent in self.latents.items()}
        wanted: dict[str, Any] = {}
        own = given(values)

        def choose(site: dict[str, Any], step: Any) -> Any:
            if site["name"] not in self.latents:
                return None
            value, wanted[site["name"]] = visit(site["fn"].support, own(site, step))
            return value

        steps = Steps(choose, lambda site, step: wanted.pop(site["name"], None))
        with running(), handlers.trace(), handlers.seed(rng_seed=0), steps:
            self.model(*self.args, **self.kwargs)
        return {name: steps.seen[name] for name in self.latents}

    def prior(self, key: Any, *, instead: Callable[[Any, Any], Any] | None = None) -> dict[str, Any]:
        """One draw of the latents from the prior; a value near the middle of the support where none can be drawn.

        `instead` may give another value, from the distribution of a site that is not observed and a key, or None.
        """

        def choose(site: dict[str, Any]) -> Any:
            if (
                site["type"] == "sample"
                and site["name"] in self.latents
                and isinstance(site["fn"], dist.ImproperUniform)
            ):
                transform = dist.biject_to(site["fn"].support)
                shape = transform.inverse_shape(site["fn"].shape(site["kwargs"]["sample_shape"]))
                return transform(jax.random.uniform(site["kwargs"]["rng_key"], shape, float, -2.0, 2.0))
            if instead is not None and site["type"] == "sample" and not site["is_observed"]:
                return instead(site["fn"], site["kwargs"]["rng_key"])
            return None

        with (
            running(),
            handlers.trace() as sites,
            handlers.substitute(substitute_fn=choose),
            handlers.seed(rng_seed=key),
        ):
            self.model(*self.args, **self.kwargs)
        return {name: sites[name]["value"] for name in self.latents}


FIRST_CUT = 64


def read(
    model: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    cuts: Mapping[str, int] | None = None,
) -> Program:
    """Read a NumPyro program. Call inside `precision.float64()`.

    `cuts` says how many values are kept of discretes that have no largest one.

    Raises `DataError` for unusable data, `ModelError` for a program that cannot be read, `Refusal` for a discrete
    whose support cannot be listed.
    """
    kwargs = dict(kwargs or {})
    args, kwargs = check_arguments(model, args, kwargs)
    model, args, kwargs = keep(model, args, kwargs)
    model, sites, tables = _surveyed(model, args, kwargs)
    whole = model.cut if isinstance(model, OnRows) else frozenset()
    drawn = {n: s["drawn"] for n, s in sites.items() if s["kind"] == "plate" and s["drawn"] and n not in whole}
    if drawn and not isinstance(model, OnRows):
        model = OnRows(model, {})
    latents: dict[str, Latent] = {}
    discretes: dict[str, Discrete] = {}
    bounds: dict[str, Any] = {}
    certain: set[str] = set()  # data that are inside their supports
    fixed = True
    for name, site in sites.items():
        if site["kind"] == "latent":
            support = tables.support(name)
            if support is None:
                refuse_support_from_discretes(model, args, kwargs, name, sites)
            fixed = fixed and support is not None
            latents[name] = Latent(name, site["shape"], site["dims"], support)
        elif site["kind"] == "discrete":
            site["kept"] = _values_kept(name, tables, cuts or {}) if site["endless"] else None
            bounds[name] = tables.bounds(name, site["kept"])
    inherited = [name for name, pair in bounds.items() if pair is None]
    if inherited:
        bounds |= bounds_from_parents(model, args, kwargs, inherited, sites, bounds)
    for name, pair in bounds.items():
        site = sites[name]
        support_ = listed(name, site["shape"], pair)
        own = name in inherited
        discretes[name] = Discrete(name, site["shape"], site["dims"], *support_, site["endless"], own)
    observed = {}
    for name, site in sites.items():
        if site["kind"] == "observed":
            value = tables.known(("value", name))
            observed[name] = Observed(name, site["shape"], site["dims"], value)
            check_observed(
                name,
                site["fn_name"],
                value,
                tables.known(("mask", name)),
                tables.known(("inside", name)),
                site["element_dim"],
                site["support_text"],
            )
            if site["complete"] and (within := tables.known(("inside", name))) is not None and within.all():
                certain.add(name)
    jaxpr, terms = _density(model, args, kwargs, latents, discretes, certain)
    # The user's arrays may change after this.
    jaxpr = core.ClosedJaxpr(jaxpr.jaxpr, [owned(x) for x in jaxpr.consts])
    deterministics = {n: Site(n, s["shape"], s["dims"]) for n, s in sites.items() if s["kind"] == "deterministic"}
    plates = {n: s["size"] for n, s in sites.items() if s["kind"] == "plate"}
    return Program(
        model,
        args,
        kwargs,
        latents,
        discretes,
        observed,
        deterministics,
        plates,
        terms,
        jaxpr,
        fixed,
        drawn,
        frozenset(certain),
    )


def _surveyed(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Any], dict[str, dict[str, Any]], Survey]:
    """The first pass, and the model that it is of, for programs that run as they are under JAX's own setting only.

    Where data were cut before, their plates take no other rows; where 32 bits meet 64, loops are wide.
    """
    try:
        return model, *survey(model, args, kwargs)
    except (DataError, ValueError, TypeError, AssertionError) as error:
        if isinstance(error, TypeError) and not isinstance(model, Widened | OnRows):
            with contextlib.suppress(TypeError):
                return _surveyed(Widened(model), args, kwargs)
        cut = {} if isinstance(model, OnRows) else cut_before(model, args, kwargs)
        if not cut:
            raise
    model = OnRows(model, {name: np.arange(drawn) for name, drawn in cut.items()}, frozenset(cut))
    return model, *survey(model, args, kwargs)


def _values_kept(name: str, tables: Survey, cuts: Mapping[str, int]) -> int:
    """How many values are kept of a discrete without a largest one: what the user says, or a first guess."""
    last, low = current().last_of(name), tables.known(("low", name))
    if last is None or low is None:
        return cuts.get(name, FIRST_CUT)
    return last + 1 - int(np.min(low))


def _density(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    latents: dict[str, Latent],
    discretes: dict[str, Discrete],
    certain: Collection[str],
) -> tuple[core.ClosedJaxpr, tuple[Term, ...]]:
    """Second pass: the jaxpr from latents and discretes to every site's elementwise log-probability."""
    terms: list[tuple[str, str, tuple[int, ...], bool, bool]] = []
    scales: list[Any] = []
    inner: list[int] = []
    rooms: list[int] = []  # terms of which there is a value only if an output, at the end, is not negative

    def run(params: list[Any], states: list[Any]) -> list[Any]:
        values = dict(zip([*latents, *discretes], [*params, *states], strict=True))
        sites = sites_looked_at(model, args, kwargs, values, certain)
        outputs, spaces = [], []
        for name, site in sites.items():
            if site["type"] != "sample":
                continue
            outputs.append(log_probability(name, site, discretes, sites))
            fn = site["fn"]
            kind = (
                "factor"
                if isinstance(fn, dist.Unit)
                else ("observed" if site["is_observed"] else "discrete" if name in discretes else "latent")
            )
            # A latent's probabilities sum to no more than 1 unless they are masked.
            base, mask = peel(fn)
            probability = is_discrete(fn) and gives_probabilities(base) and (kind == "observed" or mask is None)
            whole = kind == "discrete" and site["scale"] is None and is_proper(fn)
            if whole and (own_room := room(fn)) is not None:
                rooms.append(len(terms))
                spaces.append(own_room)
            terms.append((name, kind, tuple(np.shape(outputs[-1])), probability, whole))
            scales.append(site["scale"])
            # The axes of an event that is taken element by element come after those that a scale knows of.
            inner.append(site["about"]["events"])
        traced = [s for s in scales if isinstance(s, jax.core.Tracer)]
        return [*outputs, *traced, *spaces]

    floats = [jax.ShapeDtypeStruct(s.shape, jnp.result_type(float)) for s in latents.values()]
    whole = [jax.ShapeDtypeStruct(s.shape, jnp.result_type(int)) for s in discretes.values()]
    closed = jax.make_jaxpr(run)(floats, whole)
    extra = iter(known_values(closed)[len(terms) :])
    ranges = _ranges_of_inputs(latents, discretes)
    spaces = ranges_of_outputs(closed, ranges)[len(closed.jaxpr.outvars) - len(rooms) :] if rooms else []
    empty = {i for i, r in zip(rooms, spaces, strict=True) if r is None or r.low < 0}
    found: list[Term] = []
    for i, ((name, kind, shape, counts, whole_), scale, axes) in enumerate(zip(terms, scales, inner, strict=True)):
        if isinstance(scale, jax.core.Tracer):
            lazy = next(extra)
            if lazy is None:
                raise Refusal(
                    compose(
                        "the scale of this site depends on a latent",
                        where=f"site '{name}'",
                        expected="a scale that is a number or an array of numbers",
                        remedy="use `numpyro.factor` for a term whose weight is itself unknown.",
                    )
                )
            scale = lazy.get()
        own = np.asarray(1.0 if scale is None else scale)
        own = own.reshape((*own.shape, *(1,) * axes)) if own.ndim else own
        found.append(Term(name, kind, shape, own, counts, whole_ and i not in empty))
    if len(closed.jaxpr.outvars) > len(terms):
        whole_program = core.jaxpr_as_fun(closed)
        closed = jax.make_jaxpr(lambda *values: whole_program(*values)[: len(terms)])(*floats, *whole)
    return with_finite_slopes(in_doubles(closed), ranges), tuple(found)


def _ranges_of_inputs(latents: dict[str, Latent], discretes: dict[str, Discrete]) -> list[Maybe]:
    ranges: list[Maybe] = [_range_of_support(latent.support) for latent in latents.values()]
    for discrete in discretes.values():
        own = range_of_array(discrete.values)
        ranges.append(Range(own.low, np.inf, own.low_open) if discrete.endless and own is not None else own)
    return ranges


def _range_of_support(support: Any) -> Range:
    """Between which numbers a latent lies; its bounds are not reached."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support is dist.constraints.simplex:
        return Range(0.0, 1.0)
    low, high = getattr(support, "lower_bound", -np.inf), getattr(support, "upper_bound", np.inf)
    return Range(float(np.min(low)), float(np.max(high)))


def seen_of(name: str, sites: Mapping[str, Any]) -> Any:
    """What was observed of a partly observed discrete: NumPyro splits it in two sites, and a deterministic of both."""
    stem = name.removesuffix("_unobserved")
    twin = sites.get(f"{stem}_observed")
    if stem == name or twin is None or sites.get(stem, {}).get("type") != "deterministic":
        return None
    return twin["value"] if twin["type"] == "sample" and twin["is_observed"] else None


def sites_looked_at(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Any],
    certain: Collection[str],
) -> dict[str, dict[str, Any]]:
    """The program's sites with what `log_probability` needs of each, taken where it stands."""
    about: dict[str, dict[str, int]] = {}

    def look(site: dict[str, Any], step: Any) -> dict[str, Any]:
        about[site["name"]], arrays = _own_log_prob(site, step, certain)
        return arrays

    sites = run_model(model, args, kwargs, values, look=look)
    return {name: site | {"about": about.get(name)} for name, site in sites.items()}


def _own_log_prob(site: dict[str, Any], step: Any, certain: Collection[str]) -> tuple[dict[str, int], dict[str, Any]]:
    """The log-density of each element of a site where it stands, before its mask: facts, and arrays."""
    fn, mask = peel(site["fn"])
    facts = {"masks": masks_of(site["fn"]), "events": site["fn"].event_dim - fn.event_dim}
    value = site["value"]
    if site["is_observed"] and not isinstance(fn, dist.Unit):
        # Traced: NumPyro looks into concrete values, which are checked already. Of a dtype that nothing narrows.
        value = jnp.array(value, dtype=jnp.result_type(value), copy=True)
        # What is computed of a value, a logarithm say, must not be rounded as a narrow type is.
        kind = value.dtype.kind
        value = value.astype(jnp.result_type(float if kind == "f" else int)) if kind in "fiu" else value
    if isinstance(fn, dist.Unit) or (site["name"] in certain and not moves(fn)):
        found = {"log_prob": unchecked_log_prob(fn, value)}
    else:
        missing = site["is_observed"] and (mask is not None or step is not None)
        if missing and mask is not None and jnp.issubdtype(value.dtype, jnp.floating):
            # A masked value is never computed with: it may be missing, and its gradient must not be either.
            value = jnp.where(jnp.reshape(mask, jnp.shape(mask) + (1,) * fn.event_dim), value, jnp.nan)
        log_prob, within = log_prob_inside(fn, value, anywhere=missing)
        found = {"log_prob": log_prob, "inside": jnp.broadcast_to(within, log_prob.shape)}
    if mask is not None:
        found["mask"] = jnp.broadcast_to(mask, found["log_prob"].shape)
    return facts, found


def log_probability(name: str, site: dict[str, Any], discretes: dict[str, Discrete], sites: Mapping[str, Any]) -> Any:
    """The log-density of each element, of a site that was looked at."""
    found = site["seen"]
    log_prob, masks = found["log_prob"], [found["mask"]] if "mask" in found else []
    around = masks_around(site["fn"], site["about"]["masks"])
    if around is not None:
        masks.append(around)
    if not masks:
        return log_prob
    mask = functools.reduce(jnp.logical_and, masks)
    seen = seen_of(name, sites) if name in discretes else None
    # Elements that were observed have one state, and count for nothing themselves.
    masked = 0.0 if seen is None else jnp.where(site["value"] == seen, 0.0, -jnp.inf)
    log_prob = jnp.where(mask, log_prob, jnp.broadcast_to(jnp.asarray(masked, log_prob.dtype), log_prob.shape))
    if "inside" in found and name in discretes:  # a mask makes no value possible that is not
        log_prob = jnp.where(found["inside"], log_prob, -jnp.inf)
    return log_prob
