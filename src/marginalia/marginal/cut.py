"""Discretes without a largest value: how much of a sum is lost where their support is cut, and where to cut it.

Two bounds on the lost part of the sum over one discrete x, relative to what was summed, at given parameters:

*proved*: all that x is read by are probabilities of discretes, which never exceed 1. Then no more is lost than
P(x >= K) / Z, Z being the sum of x's component; and P(x >= K) follows from the last two probabilities kept, since in
the families read here (Poisson, negative binomial, geometric) the ratio of neighbours never grows by more than
(K - 1) / (K - 2) beyond K.

*falling*: the probabilities of x given the data, summed in blocks at the end of what is kept, fall from block to block
at least geometrically; if they go on so, as the families do, the rest is less than a geometric series. This needs no
bound on densities, but a term that rises again beyond the cut would go unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from marginalia.errors import Refusal, compose
from marginalia.lanes.value import Value
from marginalia.marginal.eliminate import eliminate
from marginalia.marginal.tabulate import Factor
from marginalia.marginal.units import components_read

if TYPE_CHECKING:
    from marginalia.marginal.kernel import Kernel

LONGEST = 2**14
"""Values kept of one discrete, at most."""
PROVED_UP_TO = 2**9
"""Values up to which a cut is moved on for the sake of a proof, where the falling bound is content already."""


@dataclass(frozen=True)
class Lost:
    """The largest part of a sum that the cut of one discrete may lose, over its elements and all parameters seen."""

    kept: int
    proved: float
    falling: float

    def accepted(self, most: float) -> bool:
        """Whether no more than `most` is lost."""
        return self.proved <= most or self.falling <= most

    def settled(self, most: float) -> bool:
        """Whether nothing would be gained by keeping more values."""
        no_proof = not np.isfinite(self.proved) or self.kept >= PROVED_UP_TO
        return self.proved <= most or (no_proof and self.falling <= most)

    def words(self, most: float) -> str:
        if self.proved <= most:
            return f"at most {self.proved:.1e} of a sum is lost (proved)"
        if not np.isfinite(self.falling):
            return "its terms do not fall where they are cut"
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


def losses(kernel: Kernel, found: Mapping[str, tuple[Any, Any]]) -> Cuts:
    """`lost_mass` of one or many points, as numbers: the largest."""
    lost = {}
    for name, bounds in found.items():
        proved, falling = (float(np.max(np.asarray(b), initial=0.0)) for b in bounds)
        kept = len(kernel.program.discretes[name].values)
        lost[name] = Lost(kept, *(np.inf if np.isnan(b) else b for b in (proved, falling)))
    return Cuts(lost, kernel.limits.max_lost)


def lost_mass(kernel: Kernel, params: Mapping[str, Any], data: Any) -> dict[str, tuple[Any, Any]]:
    """{endless discrete: (proved bound, falling bound)}, each the largest over its elements; to be traced."""
    factors = kernel.tabulate(params, data)
    tables = [(jnp.asarray(f.value.array), f.value.shape) for f in factors if f.value.lanes]
    log_z = eliminate(kernel.plan, tables).log_z
    posterior = kernel.posterior(params, data)
    unbounded = _unbounded_components(kernel)
    found = {}
    for i, (name, site) in enumerate(kernel.program.discretes.items()):
        if not site.endless:
            continue
        components = kernel.plan.graph.component[kernel.states.offsets[i] : kernel.states.offsets[i + 1]]
        # A sum of nothing but zeros may have all that it holds beyond the cut.
        empty = ~(log_z[components] > -jnp.inf)
        falling = jnp.max(jnp.where(empty, jnp.inf, _falling(posterior[name]).reshape(-1)), initial=0.0)
        tail = None if np.isin(components, unbounded).any() else _log_tail(kernel, factors, i, name)
        if tail is None:
            found[name] = (jnp.full((), jnp.inf), falling)
            continue
        part = jnp.exp(jnp.broadcast_to(tail, site.shape).reshape(-1) - log_z[components])
        found[name] = (jnp.max(jnp.where(empty | jnp.isnan(part), jnp.inf, part), initial=0.0), falling)
    return found


def _unbounded_components(kernel: Kernel) -> np.ndarray:
    """Components in which some term may exceed probability 1."""
    terms = kernel.program.terms
    read = [
        components_read(kernel.plan.graph, part.scope)
        for part in kernel.factors
        if part.scope.lanes and not terms[part.terms[0]].counts
    ]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *read]))


def _log_tail(kernel: Kernel, factors: list[Factor], site: int, name: str) -> Any:
    """log P(x >= K) of each element, the largest over the states of what x depends on; None where it is not seen."""
    first, stop = kernel.states.offsets[site], kernel.states.offsets[site + 1]
    program = kernel.program
    term = next(t for t, about in enumerate(program.terms) if about.name == name and about.kind == "discrete")
    own = [f for f in factors if term in f.terms]
    if len(own) != 1 or own[0].axes:
        return None
    value: Value = own[0].of(term)
    lanes = [i for i, lane in enumerate(value.lanes) if ((lane.ids >= first) & (lane.ids < stop)).all()]
    if len(lanes) != 1:
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
