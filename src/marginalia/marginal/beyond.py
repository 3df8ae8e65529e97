"""An upper bound of what a sum has beyond the values that are kept of its endless discretes.

Put the discretes in an order in which each comes after those that its distribution reads. A state that is not kept
has a first discrete x beyond its cut. So the part of a sum that is lost is at most, summed over the discretes x and
over pieces [L, M) of what lies beyond the cut of x,

    P(L <= x | what it reads, all of which is kept) * max of all other terms, where L <= x < M and others are anything.

The probability is bounded by the family (`families.py`), the maximum by interval arithmetic on the program itself
(`jaxpr/intervals.py`); pieces are halved, on the scale of logarithms, until the bound is small enough. Parameters may
have ranges too, so that one bound holds for many draws. What of the program reads no discrete is computed as usual
beforehand, and what reads one is followed in NumPy: nothing is compiled for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from marginalia.families import Endless, Family, endless_of, family_of, gives_probabilities, unexpanded
from marginalia.jaxpr import constants, interval_functions, interval_moves  # noqa: F401  (their rules)
from marginalia.jaxpr.intervals import Interval, apply, between, exactly
from marginalia.marginal.units import elements_read
from marginalia.program import log_probability, seen_of
from marginalia.rows.steps import Step, flatten, needed
from marginalia.tracing import peel

if TYPE_CHECKING:
    from marginalia.marginal.kernel import Kernel

LARGEST = 2.0**63
"""Values of a discrete that a program can be asked about."""
MOST_PIECES = 64
NARROWEST = 1.05
"""Ratio of the ends of a piece that is not halved again."""
MOST_APART = 8
"""Endless discretes under one sum that are looked at one by one; of more, each may be anything."""


@dataclass(frozen=True, eq=False)
class Known:
    """An endless site: its family, and where among the outputs its parameters, its mask and its data are.

    Elements under the mask that were observed have one state.
    """

    family: Endless | None
    parameters: tuple[int, ...]
    mask: int | None
    seen: int | None

    @property
    def outputs(self) -> list[int]:
        return [*self.parameters, *(i for i in (self.mask, self.seen) if i is not None)]


@dataclass(frozen=True, eq=False)
class Peak:
    """A site whose log-probabilities its family bounds: its data, and where its parameters and its mask are."""

    family: Family
    value: np.ndarray
    parameters: tuple[int, ...]
    mask: int | None

    @property
    def outputs(self) -> list[int]:
        return [*self.parameters, *(i for i in (self.mask,) if i is not None)]


class Piece(NamedTuple):
    """What lies from `first` to `last` times the number of values kept."""

    first: float
    last: float


@dataclass(frozen=True, eq=False)
class Part:
    """Bounds of what one piece has: per sum, and `(sums, logs)` per site; beside them the most that terms can be."""

    total: np.ndarray
    of_site: Mapping[str, tuple[np.ndarray, np.ndarray]]
    most: np.ndarray
    of_term: Mapping[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class Bound:
    """log of the part of a sum that is lost, the worst for each site; if too much, which sites lose it and why."""

    of_site: Mapping[str, float]
    failing: frozenset[str] = frozenset()
    why: str = ""
    endless: bool = False
    """Whether the bound is infinite."""


class Beyond:
    """What lies beyond the cuts of one kernel's program."""

    def __init__(self, kernel: Kernel, cut: Sequence[str]):
        self.program = kernel.program
        self.limits = kernel.limits
        self.cut = cut
        self._find_sums(kernel)
        self._read_program(kernel)

    # ---- the graph -----------------------------------------------------------------------------------

    def _find_sums(self, kernel: Kernel) -> None:
        """Which discretes and which elements of terms stand under one sum.

        Components of the factor graph that one element of a term reads are taken together: the element's bound is
        one for all of them.
        """
        graph, states, program = kernel.plan.graph, kernel.states, self.program
        component = np.asarray(graph.component)
        read: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for t, term in enumerate(program.terms):
            parts = [part for part in kernel.factors if t in part.terms and part.scope.lanes]
            if parts and term.kind != "discrete":
                read[t] = elements_read(graph, parts, t, term.shape)
        starts = np.cumsum([graph.n_components, *(np.prod(program.terms[t].shape, dtype=int) for t in read)])
        rows = [s + elements for s, (elements, _) in zip(starts, read.values(), strict=False)]
        links = (
            np.concatenate([np.zeros(0, int), *rows]),
            np.concatenate([np.zeros(0, int), *(c for _, c in read.values())]),
        )
        size = int(starts[-1])
        joined = coo_matrix((np.ones(len(links[0]), bool), links), shape=(size, size))
        _, label = connected_components(joined, directed=False)
        own, inverse = np.unique(label[: graph.n_components], return_inverse=True)
        self.sums, self.sum_of = len(own), inverse
        """How many sums there are, and the one of each component."""
        self.read: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for t, (elements, components) in read.items():
            first = np.unique(elements, return_index=True)[1]
            self.read[t] = elements[first], inverse[components[first]]
        self.place: dict[str, np.ndarray] = {}
        """The sum of each element of each discrete."""
        for i, name in enumerate(program.discretes):
            self.place[name] = inverse[component[states.offsets[i] : states.offsets[i + 1]]]
        places = [self.place[n] for n in self.cut]
        flat = np.concatenate([np.zeros(0, int), *places])
        order = np.argsort(flat, kind="stable")
        rank = np.empty(len(flat), int)
        starts_at = np.searchsorted(flat[order], flat[order])
        rank[order] = np.arange(len(flat)) - starts_at
        self.rank = dict(zip(self.cut, np.split(rank, np.cumsum([len(p) for p in places])[:-1]), strict=True))
        """The number of each endless element among those of its sum."""
        self.ranks = int(rank.max(initial=-1)) + 1
        self.ends = np.zeros(self.sums, bool)
        self.ends[flat] = True

    # ---- the program ---------------------------------------------------------------------------------

    def _read_program(self, kernel: Kernel) -> None:
        program = self.program
        self.known: dict[str, Known] = {}
        self.peaks: dict[int, Peak] = {}
        self.states: dict[str, float] = {}
        """log of what the probabilities of a discrete's states may add up to, where that is not 1."""

        def outputs_of(*values: Any) -> list[Any]:
            given = dict(zip([*program.latents, *program.discretes], values, strict=True))
            for name in kernel.unread:
                left = kernel.whole_program.discretes[name]
                given[name] = jnp.full(left.shape, left.values[0])
            sites = program.looked_at(given)
            found = [log_probability(term.name, sites[term.name], program.discretes, sites) for term in program.terms]
            self._look_at_sites(sites, found)
            return found

        floats = [jax.ShapeDtypeStruct(s.shape, jnp.result_type(float)) for s in program.latents.values()]
        whole = [jax.ShapeDtypeStruct(s.shape, jnp.result_type(int)) for s in program.discretes.values()]
        steps = flatten(jax.make_jaxpr(outputs_of)(*floats, *whole))
        self.outputs = steps.outputs
        self.ends_at = [self.outputs[i] for known in self.known.values() for i in known.outputs]
        of_peaks = [i for peak in self.peaks.values() for i in peak.outputs]
        self.terms_at = [self.outputs[i] for i in (*self.read, *of_peaks)]
        self._split(steps.inputs, needed(steps.steps, [*self.ends_at, *self.terms_at]), steps.closed)
        self._find_parents()

    def _look_at_sites(self, sites: Mapping[str, dict[str, Any]], outputs: list[Any]) -> None:
        """Put what the families are bounded by among the outputs."""
        program = self.program
        of_term = {term.name: t for t, term in enumerate(program.terms)}

        def put(*arrays: Any) -> tuple[int, ...]:
            outputs.extend(jnp.asarray(x, float) for x in arrays)
            return tuple(range(len(outputs) - len(arrays), len(outputs)))

        for name, site in sites.items():
            if site["type"] != "sample":
                continue
            fn, mask = peel(site["fn"])
            if name in program.discretes:
                seen = None if mask is None else seen_of(name, sites)
                of = program.discretes[name]
                if not gives_probabilities(fn) or (mask is not None and seen is None):
                    finite = gives_probabilities(fn) and name not in self.cut and not of.inherited
                    self.states[name] = float(np.log(len(of.values))) if finite else np.inf
                if name in self.cut:
                    own = endless_of(fn)
                    places = put(*own.parameters()) if own else ()
                    shown = (None, None) if mask is None or seen is None else put(mask, seen)
                    self.known[name] = Known(own, places, *shown)
            elif name in program.observed and of_term.get(name) in self.read:
                family = family_of(fn)
                value = program.observed[name].value
                if family is not None and family.peak is not None and value is not None:
                    places = put(*family.parameters(unexpanded(fn)))
                    hidden = None if mask is None else put(mask)[0]
                    self.peaks[of_term[name]] = Peak(family, np.asarray(value, float), places, hidden)

    def _find_parents(self) -> None:
        """Which endless sites have a distribution that reads endless ones."""
        endless = [n for n, d in self.program.discretes.items() if n in self.cut or d.inherited]
        reads = {self.discretes[n]: True for n in endless}
        for step in self.far:
            reads.update(dict.fromkeys(step.outputs, any(reads.get(i, False) for i in step.reads)))
        places = {n: [self.outputs[i] for i in known.parameters] for n, known in self.known.items()}
        self.hanging = [n for n, at in places.items() if any(isinstance(i, int) and reads.get(i, False) for i in at)]

    def _split(self, inputs: Sequence[int], steps: Sequence[Step], closed: Mapping[int, Any]) -> None:
        """What reads no latent, what reads latents alone, and what reads discretes, which ranges are followed for."""
        params = len(self.program.latents)
        level = {**dict.fromkeys(closed, 0), **dict.fromkeys(inputs[:params], 1), **dict.fromkeys(inputs[params:], 2)}
        parted: list[list[Step]] = [[], [], []]
        for step in steps:
            deepest = max((level[i] for i in step.reads), default=0)
            parted[deepest].append(step)
            level.update(dict.fromkeys(step.outputs, deepest))
        wanted = [i for i in (*self.ends_at, *self.terms_at) if isinstance(i, int)]
        used = {i for step in parted[2] for i in step.reads} | set(wanted)
        self.far = parted[2]
        self.frontier = sorted(i for i in used if level[i] == 1)
        """Numbers of the values that are computed from latents and that ranges begin with."""
        fixed: dict[int, np.ndarray] = {}
        for i in (i for step in (*parted[0], *parted[1], *parted[2]) for i in step.reads if i in closed):
            fixed.setdefault(i, constants.concrete(closed[i]))
        fixed.update({i: constants.concrete(closed[i]) for i in wanted if i in closed})
        for step in parted[0]:
            operands = [fixed[i] if isinstance(i, int) else i for i in step.inputs]
            results = constants.evaluate(step.equation.primitive, step.equation.params, operands)
            fixed.update(zip(step.outputs, results, strict=True))
        self.fixed = {i: exactly(fixed[i]) for i in used if level[i] == 0}
        self.discretes = dict(zip(self.program.discretes, inputs[params:], strict=True))
        near = needed(parted[1], self.frontier)
        latents = dict(zip(self.program.latents, inputs[:params], strict=True))
        numbers = sorted({i for step in near for i in step.reads if level[i] == 0})
        self.held = [fixed[i] for i in numbers]
        """Data that `computed` reads."""

        def computed(params: Mapping[str, Any], held: Sequence[Any]) -> list[Any]:
            values: dict[int, Any] = dict(zip(numbers, held, strict=True))
            values.update({number: params[name] for name, number in latents.items()})
            for step in near:
                operands = [values[i] if isinstance(i, int) else i for i in step.inputs]
                results = constants.bind(step.equation.primitive, step.equation.params, *operands)
                values.update(zip(step.outputs, results, strict=True))
            return [jnp.asarray(values[i], float) for i in self.frontier]

        self.computed = computed
        """The values at the frontier, to be traced: (params, held) -> arrays."""

    # ---- ranges --------------------------------------------------------------------------------------

    def _ranges(
        self, box: Sequence[Interval], states: Mapping[str, Interval], wanted: Sequence[Any]
    ) -> dict[Any, Interval]:
        values = {**self.fixed, **dict(zip(self.frontier, box, strict=True))}
        values.update({self.discretes[name]: own for name, own in states.items()})
        for step in needed(self.far, wanted):
            operands = [values[i] if isinstance(i, int) else exactly(i) for i in step.inputs]
            values.update(zip(step.outputs, apply(step.equation, operands), strict=True))
        return {i: values[i] for i in wanted if isinstance(i, int)}

    def _range_of(self, ranges: Mapping[Any, Interval], output: int) -> Interval:
        at = self.outputs[output]
        return ranges[at] if isinstance(at, int) else exactly(at)

    def _anything(self, kept: Mapping[str, int] | None) -> dict[str, Interval]:
        """Every discrete between its first value and its last: of endless ones the last kept, or none."""
        found = {}
        for name, site in self.program.discretes.items():
            low, high = float(site.values[0]), float(site.values[-1])
            if name in self.cut:
                high = LARGEST if kept is None else low + kept[name] - 1
            elif site.inherited and self.cut:
                high = LARGEST
            found[name] = between(low, high, site.shape)
        return found

    def _log_tails(self, box: Sequence[Interval], kept: Mapping[str, int]) -> Callable[[str, float], np.ndarray]:
        """log P(x >= start) of each element of a site, from above, whatever it reads of what is kept."""
        ranges = self._ranges(box, self._anything(kept), self.ends_at)

        def tail(name: str, start: float) -> np.ndarray:
            known, shape = self.known[name], self.program.discretes[name].shape
            if known.family is None:
                return np.zeros(int(np.prod(shape)))
            own = [self._range_of(ranges, i) for i in known.parameters]
            found = np.broadcast_to(known.family.log_tail(start, tuple((r.low, r.high) for r in own)), shape)
            if known.mask is not None and known.seen is not None:
                given = self._range_of(ranges, known.mask).high == 0
                seen = self._range_of(ranges, known.seen).high
                found = np.where(np.broadcast_to(given, shape), np.where(seen >= start, 0.0, -np.inf), found)
            return found.reshape(-1)

        return tail

    def _log_most(
        self, box: Sequence[Interval], states: Mapping[str, Interval]
    ) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Per sum: the log of the most that all terms but the discretes' own can be; and the same per term."""
        ranges = self._ranges(box, states, self.terms_at)
        total, never, each = np.zeros(self.sums), np.zeros(self.sums, bool), {}
        for t, (elements, sums) in self.read.items():
            term = self.program.terms[t]
            high = self._range_of(ranges, t).high
            if t in self.peaks:
                high = np.fmin(high, self._peak(self.peaks[t], ranges))
            high = np.broadcast_to(high, term.shape).reshape(-1)[elements]
            if term.counts:
                high = np.minimum(high, 0.0)
            none = high == -np.inf
            never[sums[none]] = True
            total += np.bincount(sums, np.where(none, 0.0, high), self.sums)
            each[t] = high
        for name, more in self.states.items():
            total[self.place[name]] += more
        return np.where(never, -np.inf, total), each

    def _peak(self, peak: Peak, ranges: Mapping[Any, Interval]) -> np.ndarray:
        assert peak.family.peak is not None
        own = [self._range_of(ranges, i) for i in peak.parameters]
        found = peak.family.peak(peak.value, *((r.low, r.high) for r in own))
        if peak.mask is None:
            return found
        mask = self._range_of(ranges, peak.mask)
        found = np.where(np.isnan(found), 0.0, found)
        return np.where(mask.high == 0, 0.0, np.where(mask.low == 1, found, np.maximum(found, 0.0)))

    # ---- the bound -----------------------------------------------------------------------------------

    def bound(
        self, box: Sequence[Interval], log_z: np.ndarray, kept: Mapping[str, int], caps: Mapping[str, np.ndarray]
    ) -> Bound:
        """Of what is lost where `kept` values are kept, for all parameters of a box.

        `log_z` (sums,) is what each sum has at least; `caps` bounds log P(x is the first beyond its cut) of elements.
        """
        tail = self._log_tails(box, kept)
        apart = self.ranks <= MOST_APART
        ranks = range(self.ranks) if apart else [None]
        share = self.limits.max_lost / (MOST_PIECES * len(ranks))
        allowed = np.where(self.ends, log_z + np.log(share), np.inf)
        of_site = dict.fromkeys(self.cut, -np.inf)
        if len(ranks) > 1:  # all at once may do
            part = self._part(box, kept, None, Piece(1.0, np.inf), tail, caps)
            if (part.total <= allowed).all():
                return Bound(_worst(part, log_z, of_site))
        for rank in ranks:
            pieces, left = [Piece(1.0, np.inf)], MOST_PIECES
            while pieces:
                piece, left = pieces.pop(), left - 1
                part = self._part(box, kept, rank, piece, tail, caps)
                fine = part.total <= allowed
                if fine.all():
                    of_site = _worst(part, log_z, of_site)
                elif left and apart and (halves := _halves(piece, kept)):
                    pieces += halves
                else:
                    return self._failed(part, ~fine, of_site)
        return Bound(of_site)

    def _part(
        self,
        box: Sequence[Interval],
        kept: Mapping[str, int],
        rank: int | None,
        piece: Piece,
        tail: Callable[[str, float], np.ndarray],
        caps: Mapping[str, np.ndarray],
    ) -> Part:
        """What the elements of one rank (without one: all) have in a piece, the others being anything."""
        states = self._anything(None)
        starts = {name: self._start(name, kept, piece.first) for name in self.cut}
        for name in self.cut if rank is not None else ():
            last = max(self._start(name, kept, piece.last) - 1.0, starts[name])
            mine = (self.rank[name] == rank).reshape(states[name].shape)
            whole = states[name]
            states[name] = Interval(np.where(mine, starts[name], whole.low), np.where(mine, last, whole.high))
        most, each = self._log_most(box, states)
        total, of_site = np.full(self.sums, -np.inf), {}
        for name in self.cut:
            mine = self.rank[name] == rank if rank is not None else np.ones(len(self.rank[name]), bool)
            place = self.place[name][mine]
            own = np.minimum(tail(name, starts[name]), caps.get(name, 0.0))[mine]
            # What is impossible counts for nothing, whatever the rest.
            none = (own == -np.inf) | (most[place] == -np.inf)
            own = np.where(none, -np.inf, own + most[place])
            np.logaddexp.at(total, place, own)
            of_site[name] = place, own
        return Part(total, of_site, most, each)

    def _start(self, name: str, kept: Mapping[str, int], times: float) -> float:
        return min(float(self.program.discretes[name].values[0]) + np.ceil(kept[name] * times), LARGEST)

    def _failed(self, part: Part, bad: np.ndarray, of_site: dict[str, float]) -> Bound:
        """Which sites lose most where it is too much, and which terms have no bound."""
        failing = set()
        for name, (place, own) in part.of_site.items():
            if (bad[place] & ~(own < part.total[place] - np.log(2.0 * len(self.cut) * self.ranks))).any():
                failing.add(name)
                of_site[name] = np.inf
        worst = int(np.argmax(np.where(bad, np.where(np.isnan(part.most), np.inf, part.most), -np.inf)))
        if part.most[worst] < np.inf:
            return Bound(of_site, frozenset(failing))
        terms = [t for t, (_, sums) in self.read.items() if (part.of_term[t][sums == worst] == np.inf).any()]
        names = ", ".join(f"'{self.program.terms[t].name}'" for t in terms)
        why = f"no bound of {names} is known for larger values" if names else "its states have no probabilities"
        return Bound(of_site, frozenset(failing), why, True)


def _worst(part: Part, log_z: np.ndarray, before: Mapping[str, float]) -> dict[str, float]:
    """log of what each site has lost, with that before, of the sum where it loses most."""
    found = {}
    for name, (place, own) in part.of_site.items():
        relative = own - np.where(own == -np.inf, 0.0, log_z[place])
        found[name] = float(np.logaddexp(before[name], relative.max(initial=-np.inf)))
    return found


def _halves(piece: Piece, kept: Mapping[str, int]) -> list[Piece]:
    """The piece in two, on the scale of logarithms, the nearer one last; nothing where it is narrow."""
    end = min(piece.last, LARGEST / min(kept.values()))
    whole = max(np.ceil(k * end) - np.ceil(k * piece.first) for k in kept.values())
    if whole <= 1 or end / piece.first < NARROWEST:
        return []
    middle = float(np.sqrt(piece.first * end))
    return [Piece(middle, piece.last), Piece(piece.first, middle)]


def box_of(points: Sequence[np.ndarray]) -> list[Interval]:
    """The ranges of arrays over their first axis."""
    return [Interval(x.min(0), x.max(0)) if len(x) > 1 else Interval(x[0]) for x in points]
