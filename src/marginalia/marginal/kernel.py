"""The pure functions of a marginalised program, to be traced inside `precision.float64()`.

All take constrained parameters and `data` (the arrays that the program closes over), so that nothing large is baked
into a compiled program.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from marginalia.classes.density import FEWEST_NUMBERS, ByClasses, by_equal_elements
from marginalia.errors import Refusal, compose
from marginalia.lanes import bounds
from marginalia.lanes.bounds import describe_variables
from marginalia.lanes.run import beyond, places
from marginalia.lanes.sums import Register
from marginalia.lanes.value import materialize
from marginalia.marginal.drawing import drawer, roughly
from marginalia.marginal.eliminate import Eliminated, constants_of, cut, eliminate, go_back
from marginalia.marginal.graph import Graph, build_graph
from marginalia.marginal.plan import Plan, make_plan
from marginalia.marginal.semiring import Semiring, log_max, log_sum
from marginalia.marginal.tabulate import Factor, Part, States, alike_terms, apart, part_of, summed_table, tabulate
from marginalia.marginal.units import find_units
from marginalia.marginal.unread import without_unread
from marginalia.precision import float64
from marginalia.program import Program
from marginalia.rows.streaming import Streamed, Whole, stream

NO_TABLE = 2**62
"""More numbers than any table has: where only blocks of rows are held, their size is bounded anyhow."""


class Kernel:
    """Density, likelihood, memberships, draws and modes of one program, its discretes summed out."""

    def __init__(
        self,
        program: Program,
        open_data: frozenset[int] = frozenset(),
        *,
        counting: bool = True,
        complete: bool = False,
    ):
        """`open_data` are places in `data` that will hold other values: nothing is decided by those of the program.

        Without `counting` no sum of discretes becomes a discrete of its own. A `complete` kernel also tabulates what no
        data reach; any other leaves it out, and its `program` is one without.
        """
        self.whole_program = program
        self.program = program = program if complete else without_unread(program)
        self.open_data = open_data
        self.states = States.of(program)
        self.closed: tuple[Any, ...] = tuple(program.jaxpr.consts)
        self.asked = self.limits = bounds.current()
        self.too_large_whole: Refusal | None = None
        self.compiled: dict[Any, Any] = {}
        """What others have compiled of it, by a name of theirs: an equal program finds it again (`recall.py`)."""
        try:
            self._settle_structure(counting)
        except Refusal as refusal:
            if open_data:
                raise
            self._settle_by_rows(counting, refusal)

    @property
    def unread(self) -> list[str]:
        """Discretes that no data reach, left out of `program`: all that reads them adds up to 1."""
        return [name for name in self.whole_program.discretes if name not in self.program.discretes]

    @functools.cached_property
    def complete(self) -> Kernel:
        """The kernel of all discretes, for what is asked of those that no data reach; itself where there are none."""
        if not self.unread:
            return self
        with bounds.under(self.limits), float64():
            return Kernel(self.whole_program, self.open_data, complete=True)

    def _settle_by_rows(self, counting: bool, refusal: Refusal) -> None:
        """Tables too large to be held whole may yet be summed in blocks of rows; what else is refused stays so."""
        self.limits = replace(self.limits, max_numbers=NO_TABLE)
        try:
            with bounds.under(self.limits):
                self._settle_structure(counting)
        except Refusal:
            raise refusal from None
        if isinstance(self.by_rows, Whole):
            raise refusal
        self.too_large_whole = refusal

    def _settle_structure(self, counting: bool) -> None:
        """The first way to read the terms that is not refused: alike ones together, sums as discretes of their own."""
        together = alike_terms(self.program)
        ways = [(together, True), (together, False)]
        if together.batches:
            # An operation without a rule is dearer where it is vectorised.
            ways += [(apart(self.program), True), (apart(self.program), False)]
        first: Refusal | None = None
        self.register = Register(0)
        for self.alike, self.counting in ways:
            if self.counting > counting or (counting and not self.counting and not self.register.counts):
                continue  # asked for without, or no sum was met that could be written out instead
            try:
                self._scan_structure()
            except Refusal as refusal:
                first = first or refusal
            else:
                return
        assert first is not None
        raise first

    def _scan_structure(self) -> None:
        """Trace the factors once, abstractly, and decide how their discretes are summed out."""
        program, states = self.program, self.states
        found: list[Factor] = []
        register = Register(int(states.offsets[-1]), closed=not self.counting)

        def run(params: dict[str, Any], data: tuple[Any, ...]) -> int:
            found[:] = tabulate(program, states, params, data, self.alike, register, self.open_data)
            return 0

        self.register = register
        jax.eval_shape(run, self.abstract_params(), self.closed)
        self.factors: tuple[Part, ...] = tuple(part_of(f) for f in found)
        self.held = tuple(tuple(f.value.array.shape) for f in found)
        scopes = [f.scope for f in self.factors if f.scope.lanes]
        graph = build_graph(scopes, states.sizes, states.site, states.names, states.offsets, register.counts)
        self.plan: Plan = make_plan(graph, register.counts)
        self.component_scale = _component_scale(program, graph, [f for f in self.factors if f.scope.lanes])
        self.units, self.leftovers = find_units(program, graph, self.factors)

    def tabulate(self, params: Mapping[str, Any], data: Any, *, by_rows: bool = False) -> list[Factor]:
        """All factors as tables, under the limits that held when the program was read."""
        if self.too_large_whole is not None and not by_rows:
            raise Refusal(
                compose(
                    "what is asked for each row needs tables that are too large to be held for all rows at once",
                    got=str(self.too_large_whole).split("got: ")[-1].splitlines()[0],
                    remedy="ask for some of the rows at a time (`fit.membership(rows[:10_000])`, "
                    "`marginal.rebind(rows[:10_000])`); the density itself and all sampling work on all rows.",
                )
            )
        register = Register(int(self.states.offsets[-1]), closed=not self.counting)
        with bounds.under(self.limits):
            return tabulate(
                self.program, self.states, params, data[: len(self.closed)], self.alike, register, self.open_data
            )

    def tables(self, factors: list[Factor]) -> list[tuple[Any, tuple[int, ...]]]:
        """Table and shape of each factor that reads discretes, as the plan takes them."""
        pairs = zip(factors, self.factors, strict=True)
        return [(summed_table(f.value, part.summed), part.scope.shape) for f, part in pairs if f.value.lanes]

    @functools.cached_property
    def by_rows(self) -> Streamed | Whole:
        """The density in blocks of the data's rows, or why it is evaluated whole."""
        if self.open_data:
            return Whole("its data are not known beforehand")
        with float64():
            return stream(self.log_density_whole, self.abstract_params(), self.closed)

    @functools.cached_property
    def by_classes(self) -> ByClasses | None:
        """The density with elements whose data are equal computed once, None where hardly any are."""
        if self.open_data or self.register.computed < FEWEST_NUMBERS or isinstance(self.by_rows, Streamed):
            return None
        with float64():
            return by_equal_elements(self.log_density_whole, self.abstract_params(), self.closed)

    @functools.cached_property
    def data(self) -> tuple[Any, ...]:
        """What the program closes over, then what is computed from that once for an evaluation by rows.

        What the latter takes as it is stands there as None.
        """
        if not isinstance(self.by_rows, Streamed):
            return self.closed
        return (*self.closed, *(None if i in self.by_rows.borrowed else x for i, x in enumerate(self.by_rows.data)))

    @property
    def numbers_read(self) -> int:
        """Numbers of data that one evaluation of the density reads."""
        read = self.by_rows.data if isinstance(self.by_rows, Streamed) else self.closed
        return sum(int(np.size(x)) for x in read if x is not None)

    @property
    def additions(self) -> int:
        """Operations that sum the tables of one evaluation, about."""
        return sum(4 * g.clique * g.elements * max(len(g.pieces), 1) for r in self.plan.rounds for g in r)

    @property
    def operations(self) -> int:
        """Operations of one evaluation of the density, about."""
        return int(self.register.computed) + self.additions

    def abstract_params(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {n: jax.ShapeDtypeStruct(s.shape, jnp.result_type(float)) for n, s in self.program.latents.items()}

    # ---- densities ------------------------------------------------------------------------------------------

    def log_density(self, params: Mapping[str, Any], data: Any) -> Any:
        """log p(observed, params), the discretes summed out; a scalar, no Jacobian."""
        if isinstance(self.by_rows, Streamed):
            own, rows = data[: len(self.closed)], data[len(self.closed) :]
            return self.by_rows(params, self.by_rows.lent(rows, own))
        if self.by_classes is not None:
            return self.by_classes(params, data)
        return self.log_density_whole(params, data)

    def log_density_whole(self, params: Mapping[str, Any], data: Any) -> Any:
        """The same as one table of all rows, which `by_rows` takes apart."""
        factors = self.tabulate(params, data, by_rows=True)
        total = sum((_total(f) for f in factors if not f.value.lanes), jnp.zeros(()))
        tables = self.tables(factors)
        scales = [f.scale for f in factors if f.value.lanes]
        for index, elements, values in constants_of(self.plan.graph, tables):
            weight = _flat_scale(scales[index], tables[index][1], elements)
            total = total + _weighted(values, weight, tables[index][1], elements)
        log_z = eliminate(self.plan, tables).log_z
        return total + jnp.sum(log_z if self.component_scale is None else _scaled(log_z, self.component_scale))

    def log_likelihood(self, params: Mapping[str, Any], data: Any) -> dict[str, Any]:
        """Per independent unit after the sum: log p(unit | params), before any scale."""
        factors = self.tabulate(params, data)
        kinds = [self.program.terms[f.terms[0]].kind for f in factors]
        laned = [(f, k) for f, k in zip(factors, kinds, strict=True) if f.value.lanes]
        tables = self.tables(factors)
        log_z = eliminate(self.plan, tables).log_z
        if any(kind == "latent" for _, kind in laned):
            # The latents that hang on a discrete are given here: p(data, latents) / p(latents).
            silent = [
                (jnp.zeros_like(t), s) if kind in ("observed", "factor") else (t, s)
                for (t, s), (_, kind) in zip(tables, laned, strict=True)
            ]
            log_z = log_z - eliminate(self.plan, silent).log_z
        log_z = self._with_leftovers(log_z, factors)
        result = {}
        for unit in self.units:
            if unit.components is not None:
                result[unit.name] = log_z[places(unit.components)].reshape(unit.shape)
            else:
                own = [f for f in factors if unit.term in f.terms and not f.value.lanes and not f.axes]
                values = sum(jnp.asarray(materialize(f.of(unit.term)).array) for f in own)
                result[unit.name] = jnp.broadcast_to(values, unit.shape)
        return result

    def _with_leftovers(self, log_z: Any, factors: list[Factor]) -> Any:
        """log Z per component with what the terms say besides: elements that read no discrete."""
        # Terms that read nothing (a sum over no elements, say) are units of their own, after the components.
        named = [u.components for u in self.units if u.components is not None] + [p.targets for p in self.leftovers]
        size = max((beyond(targets) for targets in named), default=0)
        log_z = jnp.concatenate([log_z, jnp.zeros(max(size - len(log_z), 0))])
        for part in self.leftovers:
            value = factors[part.factor].value
            if part.source is not None:
                values = cut((jnp.asarray(value.array), value.shape), part.source)
            else:
                values = jnp.asarray(materialize(value).array).reshape(-1)
            log_z = log_z.at[part.targets].add(jnp.broadcast_to(values, part.targets.shape))
        return log_z

    # ---- recovery -------------------------------------------------------------------------------------------

    def _eliminate(self, params: Mapping[str, Any], data: Any, semiring: Semiring, unary: Any = None) -> Eliminated:
        factors = self.tabulate(params, data)
        return eliminate(self.plan, self.tables(factors), semiring, unary)

    def component_densities(self, params: Mapping[str, Any], data: Any, unary: Any) -> Any:
        """log Z of each connected component of the factor graph, with `unary` (discretes x states) added."""
        return self._eliminate(params, data, log_sum, unary).log_z

    def posterior(self, params: Mapping[str, Any], data: Any) -> dict[str, Any]:
        """{site: site shape + (K,)}: P(z = k | observed, params), the gradient of log Z.

        Of the discretes of `program`; for those that no data reach ask `complete`.
        """
        if not self.states.names:
            return {}
        widest = int(self.states.sizes.max())

        def total(unary: Any) -> Any:
            return jnp.sum(self._eliminate(params, data, log_sum, unary).log_z)

        table = jax.grad(total)(jnp.zeros((len(self.states.sizes), widest)))
        return self._by_site(table)

    def _by_site(self, table: Any) -> dict[str, Any]:
        result = {}
        for i, (name, site) in enumerate(self.program.discretes.items()):
            own = table[self.states.offsets[i] : self.states.offsets[i + 1], : len(site.values)]
            result[name] = own.reshape((*site.shape, len(site.values)))
        return result

    def _values(self, states: Any) -> dict[str, Any]:
        result = {}
        for i, (name, site) in enumerate(self.program.discretes.items()):
            own = states[self.states.offsets[i] : self.states.offsets[i + 1]]
            result[name] = jnp.asarray(site.values)[own].reshape(site.shape)
        return result

    def sample(self, params: Mapping[str, Any], data: Any, key: Any) -> dict[str, Any]:
        """A joint draw of all discretes given the observed and the parameters.

        What no data reach is drawn from its own distribution, given the others.
        """
        if self.unread:
            key, own = jax.random.split(key)
            drawn = self._sample_read(params, data, key)
            sites = self.whole_program.trace({**params, **drawn}, own)
            return {n: drawn[n] if n in drawn else sites[n]["value"] for n in self.whole_program.discretes}
        return self._sample_read(params, data, key)

    def _sample_read(self, params: Mapping[str, Any], data: Any, key: Any) -> dict[str, Any]:
        eliminated = self._eliminate(params, data, log_sum)

        def choose(table: Any, place: tuple[Any, ...]) -> Any:
            own = functools.reduce(jax.random.fold_in, place, key)
            return jax.random.categorical(own, table, axis=0)

        return self._values(go_back(self.plan, eliminated, choose))

    def mode(self, params: Mapping[str, Any], data: Any) -> dict[str, Any]:
        """The jointly most probable values of the discretes of `program`; of all of them, those of `complete`."""
        eliminated = self._eliminate(params, data, log_max)
        return self._values(go_back(self.plan, eliminated, lambda table, _: jnp.argmax(table, axis=0)))

    def clamped(self, params: Mapping[str, Any], data: Any, unary: Any) -> Any:
        """The log density with `unary` (discretes x states) added; -inf forbids a state. No scale is applied."""
        factors = self.tabulate(params, data)
        tables = self.tables(factors)
        total = sum((jnp.sum(materialize(f.value).array) for f in factors if not f.value.lanes), jnp.zeros(()))
        for index, elements, values in constants_of(self.plan.graph, tables):
            total = total + _weighted(values, None, tables[index][1], elements)
        return total + jnp.sum(eliminate(self.plan, tables, log_sum, unary).log_z)

    def site_densities(self, params: Mapping[str, Any], data: Any) -> dict[str, Any]:
        """{site: its best log-probability per element over the states of its discretes}, to find what is not finite."""
        factors = self.tabulate(params, data)
        result: dict[str, Any] = {}
        for f in factors:
            if f.axes:
                continue
            for term in f.terms:
                value = f.of(term)
                table = jnp.asarray(materialize(value).array)
                lanes = len(value.lanes)
                best = jnp.max(table, axis=tuple(range(lanes))) if lanes else table
                result[self.program.terms[term].name] = best
        return result

    # ---- unconstrained space --------------------------------------------------------------------------------

    def constrain(self, unconstrained: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """Unconstrained reals to parameters, with log |det J|."""
        return self.program.constrain(unconstrained)

    def unconstrain(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return self.program.unconstrain(params)

    def prior(self, key: Any) -> dict[str, Any]:
        """One draw of the continuous latents from the prior."""
        return self.program.prior(key)

    @functools.cached_property
    def draw_prior(self) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """Many draws nearly from it, of words of random bits `(n, 2)`, compiled once and quickly."""
        size = sum(math.prod(latent.shape) for latent in self.program.latents.values())
        return drawer(functools.partial(self.program.prior, instead=roughly), size)

    @functools.cached_property
    def unconstrained_shapes(self) -> dict[str, tuple[int, ...]]:
        if self.program.fixed_supports:
            return {
                name: tuple(dist.biject_to(latent.support).inverse_shape(latent.shape))
                for name, latent in self.program.latents.items()
            }
        found = jax.eval_shape(self.unconstrain, self.abstract_params())
        return {name: tuple(x.shape) for name, x in found.items()}


def _total(factor: Factor) -> Any:
    """The sum of a factor without discretes, scaled."""
    array = jnp.asarray(materialize(factor.value).array)
    if (factor.scale == 1.0).all():
        return jnp.sum(array)
    return jnp.sum(jnp.where(factor.scale == 0.0, 0.0, array * factor.scale))


def _scaled(log_z: Any, scale: np.ndarray) -> Any:
    return jnp.where(scale == 0.0, 0.0, log_z * scale)


def _flat_scale(scale: np.ndarray, shape: tuple[int, ...], elements: np.ndarray | None) -> np.ndarray | None:
    if (scale == 1.0).all():
        return None
    flat = np.broadcast_to(scale, shape).reshape(-1)
    return flat if elements is None else flat[elements]


def _weighted(values: Any, weight: np.ndarray | None, shape: tuple[int, ...], elements: np.ndarray | None) -> Any:
    count = math.prod(shape) if elements is None else len(elements)
    values = jnp.broadcast_to(values, (count,))
    return jnp.sum(values if weight is None else _scaled(values, weight))


def _component_scale(program: Program, graph: Graph, factors: list[Part]) -> np.ndarray | None:
    """One scale per connected component, applied after the sum; unequal ones under one sum are refused."""
    if all((f.scale == 1.0).all() for f in factors):
        return None
    found = np.full(graph.n_components, np.nan)
    setter = np.full(graph.n_components, -1)
    for batch in graph.batches:
        if batch.source is None or not len(batch.scope):
            continue
        part = factors[batch.source.factor]
        flat = np.broadcast_to(part.scale, part.scope.shape).reshape(-1)
        terms = np.repeat(part.terms, len(flat) // len(part.terms) if part.stacked else len(flat))
        if batch.source.elements is not None:
            flat, terms = flat[batch.source.elements], terms[batch.source.elements]
        component = np.asarray(graph.component[batch.scope[0]])
        new = np.isnan(found[component])
        found[component[new]] = flat[new]
        setter[component[new]] = terms[new]
        unequal = found[component] != flat
        if unequal.any():
            first = int(np.argmax(unequal))
            other = program.terms[setter[component[first]]].name
            who = describe_variables(batch.scope[:, first], graph.names, graph.offsets)
            raise Refusal(
                compose(
                    f"sites under one sum have different scales: '{program.terms[terms[first]].name}' has "
                    f"{flat[first]:g}, "
                    f"'{other}' has {found[component[first]]:g}",
                    where=f"discrete {who}",
                    expected="one scale for a discrete and all that reads it, since the scale multiplies the log of "
                    "their sum",
                    remedy="put the discrete and its data under the same `numpyro.handlers.scale` or plate.",
                )
            )
    return found
