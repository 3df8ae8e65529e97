"""Discretes without a largest value: how much of a sum is lost where their support is cut, and where to cut it.

At given parameters four numbers say what the cut of a discrete x at K loses, each the worst over x's elements:

*tail*: P(x >= K) in the worst state of the discretes that x depends on, from the last two probabilities kept: in the
families read here (Poisson, negative binomial, geometric) the ratio of neighbours never grows by more than
(K - 1) / (K - 2) beyond K.
*proved*: tail times the largest value that what reads x can take (1 for probabilities, the peak for densities of a
location) over the sum of x's component. No more than this part of the sum can be lost.
*mass*: the part of the prior that is missing, all discretes of the component summed out; it sees what the tail cannot
(chains of Poissons, whose worst state before is no bound) as far as rounding lets it.
*falling*: the probabilities of x given the data, summed in blocks at the end of what is kept, fall from block to block
at least geometrically; the rest is less than a geometric series if they go on so. A term that rises again beyond the
cut goes unseen, which is why it never decides alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from marginalia.errors import Refusal, compose
from marginalia.lanes.value import Value, full_ids
from marginalia.marginal.eliminate import eliminate
from marginalia.marginal.tabulate import Factor
from marginalia.marginal.units import components_of, components_read

if TYPE_CHECKING:
    from marginalia.marginal.kernel import Kernel

LONGEST = 2**14
"""Values kept of one discrete, at most."""
PROVED_UP_TO = 2**9
"""Values up to which a cut is moved on for the sake of a proof, where the falling bound is content already."""


@dataclass(frozen=True)
class Lost:
    """What the cut of one discrete may lose, the worst over its elements and all parameters seen (see above)."""

    kept: int
    proved: float
    tail: float
    mass: float
    falling: float

    def proves(self, most: float) -> bool:
        return self.proved <= most

    def accepted(self, most: float) -> bool:
        """Whether no more than `most` is lost, for all that can be seen."""
        return self.proves(most) or (self.tail <= most and self.mass <= 0.0 and self.falling <= most)

    def settled(self, most: float) -> bool:
        """Whether nothing would be gained by keeping more values."""
        return self.proves(most) or (self.accepted(most) and (self.kept >= PROVED_UP_TO or np.isnan(self.proved)))

    def words(self, most: float) -> str:
        if self.proves(most):
            return f"at most {self.proved:.1e} of a sum is lost (proved)"
        if not np.isfinite(self.falling):
            return "its terms do not fall where they are cut"
        if not self.accepted(most):
            return f"up to {max(self.tail, self.mass, self.falling):.1e} of its probability lies beyond the cut"
        return f"about {self.falling:.1e} of a sum is lost if its terms go on falling as they do at the cut"


@dataclass(frozen=True)
class Cuts:
    """How many values are kept of each endless discrete, and what is known to be lost; empty where there is none."""

    lost: Mapping[str, Lost]
    most: float

    @property
    def settled(self) -> bool:
        return all(lost.settled(self.most) for lost in self.lost.values())

    @property
    def accepted(self) -> bool:
        return all(lost.accepted(self.most) for lost in self.lost.values())

    def wider(self) -> dict[str, int]:
        """Twice as many values of those that lose too much."""
        return {n: x.kept if x.settled(self.most) else 2 * x.kept for n, x in self.lost.items()}

    def refusal(self, why: str) -> Refusal:
        """In words: no cut is wide enough."""
        name, lost = next((n, x) for n, x in self.lost.items() if not x.accepted(self.most))
        return Refusal(
            compose(
                "the sum over this discrete without a largest value cannot be cut where enough is kept",
                where=f"site '{name}'",
                expected=f"at most {self.most:.0e} of the sum lost (max_lost)",
                got=f"{lost.words(self.most)}, with its first {lost.kept} values kept; {why}",
                remedy="if the parameters are out of all reason, give the rate a narrower prior; where the terms grow "
                "with the value, the sum may be infinite; `mg.limits(max_lost=..., max_states=...)` sets the limits.",
            )
        )


def losses(kernel: Kernel, found: Mapping[str, Any]) -> Cuts:
    """`lost_mass` of one or many points, as numbers: the worst."""
    lost = {}
    for name, bounds in found.items():
        values = {key: np.asarray(value) for key, value in bounds.items()}
        worst = {key: float(np.max(value)) for key, value in values.items()}  # NaN (no proof) stays NaN
        lost[name] = Lost(len(kernel.program.discretes[name].values), **worst)
    return Cuts(lost, kernel.limits.max_lost)


def lost_mass(kernel: Kernel, params: Mapping[str, Any], data: Any) -> dict[str, dict[str, Any]]:
    """{endless discrete: the four bounds}, each the worst over its elements; to be traced.

    A proof that is not possible is NaN; prior mass is what is missing beyond rounding, so 0 or less is none.
    """
    factors = kernel.tabulate(params, data)
    terms, graph = kernel.program.terms, kernel.plan.graph
    laned = [f for f in factors if f.value.lanes]
    tables = kernel.tables(factors)
    log_z = eliminate(kernel.plan, tables).log_z
    priors = [
        (t if terms[f.terms[0]].kind == "discrete" else jnp.zeros_like(t), shape)
        for f, (t, shape) in zip(laned, tables, strict=True)
    ]
    missing = _missing(kernel, eliminate(kernel.plan, priors).log_z)
    posterior = kernel.posterior(params, data)
    peak = _peaks(kernel, params)
    found = {}
    for i, (name, site) in enumerate(kernel.program.discretes.items()):
        if not site.endless:
            continue
        components = np.asarray(graph.component)[kernel.states.offsets[i] : kernel.states.offsets[i + 1]]
        # A sum of nothing but zeros may have all that it holds beyond the cut.
        empty = ~(log_z[components] > -jnp.inf)
        log_tail = _log_tail(kernel, factors, i, name)
        if log_tail is None:
            tail, proved = jnp.zeros(()), jnp.full((), jnp.nan)
        else:
            log_tail = jnp.broadcast_to(log_tail, site.shape).reshape(-1)
            tail = jnp.exp(log_tail)
            part = jnp.exp(log_tail + peak[components] - log_z[components])
            proved = jnp.where(jnp.isnan(peak[components]), jnp.nan, jnp.where(empty | jnp.isnan(part), jnp.inf, part))
        found[name] = {
            "proved": jnp.max(proved),
            "tail": jnp.max(jnp.where(jnp.isnan(tail), jnp.inf, tail)),
            "mass": jnp.max(missing[components]),
            "falling": jnp.max(jnp.where(empty, jnp.inf, _falling(posterior[name]).reshape(-1))),
        }
    return found


ROUNDING = 1e-14
"""Of prior mass, per discrete of a component."""
SERIES = 1e-5
"""Probabilities of NumPyro's negative binomials add up to 1 no better than this."""


def _missing(kernel: Kernel, log_z: Any) -> Any:
    """Per component: the part of its prior that is missing, less what is allowed and what rounding may do.

    Not known, and so 0, where a discrete is masked: its states do not add up to 1.
    """
    graph, terms = kernel.plan.graph, kernel.program.terms
    size = np.bincount(np.asarray(graph.component), minlength=graph.n_components)
    masked = [
        part.scope
        for part in kernel.factors
        if part.scope.lanes and terms[part.terms[0]].kind == "discrete" and not terms[part.terms[0]].counts
    ]
    unknown = np.zeros(graph.n_components, bool)
    for scope in masked:
        unknown[components_read(graph, scope)] = True
    allowed = kernel.limits.max_lost + ROUNDING * size
    if kernel.program.peaks is not None and kernel.program.peaks.loose:
        allowed = allowed + SERIES * size
    missing = -jnp.expm1(log_z) - allowed
    return jnp.where(unknown, 0.0, jnp.where(jnp.isnan(missing), jnp.inf, missing))


def _peaks(kernel: Kernel, params: Mapping[str, Any]) -> Any:
    """Per component: the log of the largest value that all terms but the discretes' own can take; NaN if not known."""
    graph, program = kernel.plan.graph, kernel.program
    total: Any = jnp.zeros(graph.n_components)
    known = _known_peaks(kernel, params)
    for part in kernel.factors:
        if not part.scope.lanes:
            continue
        read = components_read(graph, part.scope)
        for term in part.terms:
            if not program.terms[term].counts and term not in known:
                total = total.at[np.unique(read)].set(jnp.nan)
    for values, components in known.values():
        flat = jnp.where(components >= 0, values, 0.0)
        total = total.at[np.maximum(components, 0)].add(flat)
    return total


def _known_peaks(kernel: Kernel, params: Mapping[str, Any]) -> dict[int, tuple[Any, np.ndarray]]:
    """{term: (largest log-densities of its elements, flat; the component of each, -1 for none)}."""
    program, found = kernel.program, {}
    assert program.peaks is not None
    states = [jnp.zeros(d.shape, int) for d in program.discretes.values()]
    values = core.jaxpr_as_fun(program.peaks.jaxpr)(*[params[n] for n in program.latents], *states)
    for term, value in zip(program.peaks.terms, values, strict=True):
        if term >= 0:
            found[term] = (jnp.ravel(value), components_of(kernel.plan.graph, kernel.factors, term, tuple(value.shape)))
    return found


def _log_tail(kernel: Kernel, factors: list[Factor], site: int, name: str) -> Any:
    """log P(x >= K) of each element, in the worst state of what x depends on.

    None where that includes endless discretes, whose worst state is no bound (a chain of Poissons).
    """
    first, stop = kernel.states.offsets[site], kernel.states.offsets[site + 1]
    program, states = kernel.program, kernel.states
    term = next(t for t, about in enumerate(program.terms) if about.name == name and about.kind == "discrete")
    own = [f for f in factors if term in f.terms]
    if len(own) != 1 or own[0].axes:
        return None
    value: Value = own[0].of(term)
    mine = np.arange(first, stop).reshape(program.discretes[name].shape)
    lanes = [
        i
        for i, lane in enumerate(value.lanes)
        if value.shape == mine.shape and (full_ids(lane, value.shape) == mine).all()
    ]
    if len(lanes) != 1:
        return None
    endless = np.array([program.discretes[n].endless for n in states.names])[states.site]
    for i, lane in enumerate(value.lanes):
        ids = np.unique(lane.ids)
        ids = ids[ids >= 0]
        if i != lanes[0] and ((ids >= len(endless)).any() or endless[ids].any()):
            return None
    table = jnp.moveaxis(jnp.asarray(value.array), lanes[0], 0)
    kept = len(program.discretes[name].values)
    last, before = table[kept - 1], table[kept - 2]
    ratio = last - before + np.log((kept - 1) / (kept - 2))
    tail = jnp.where(ratio < 0, last + ratio - jnp.log(-jnp.expm1(jnp.minimum(ratio, -1e-300))), jnp.inf)
    tail = jnp.where(last == -jnp.inf, -jnp.inf, tail)
    return jnp.max(tail, axis=tuple(range(len(value.lanes) - 1)))


def _falling(posterior: Any) -> Any:
    """What a geometric series beyond the end of P(x = k | data) (..., K) would add; inf where it does not fall."""
    kept = posterior.shape[-1]
    width = max(2, kept // 8)
    blocks = [jnp.sum(posterior[..., kept - (i + 1) * width : kept - i * width], axis=-1) for i in range(3)]
    last, middle, first = blocks
    slack = kept / (kept - 2 * width)
    ratio = slack * last / jnp.where(middle > 0, middle, 1.0)
    falls = (last * first <= slack * middle * middle) & (ratio < 1)
    rest = jnp.where(falls, last * ratio / jnp.where(falls, 1 - ratio, 1.0), jnp.inf)
    return jnp.where(last == 0, 0.0, jnp.where(jnp.isnan(last), jnp.inf, rest))
