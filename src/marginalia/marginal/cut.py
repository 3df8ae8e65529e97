"""Discretes without a largest value: how much of a sum is lost where their support is cut, and where to cut it.

The sum of what is kept is a lower bound of the whole. An upper bound of the rest (`beyond.py`) holds for all parameters
in a box: draws are put in boxes, halved where the bound of a box is too large, down to single draws. Where even these
lose too much, more values are kept, as many as the bound asks for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.errors import Refusal, compose
from marginalia.lanes.value import full_ids
from marginalia.marginal.beyond import Beyond, Bound, box_of
from marginalia.marginal.eliminate import eliminate
from marginalia.marginal.semiring import log_sum

if TYPE_CHECKING:
    from marginalia.marginal.kernel import Kernel

LONGEST = 2**14
"""Values kept of one discrete, at most."""
SIDE_BY_SIDE = 64
"""Points that are evaluated in one call where there are several, so that one shape is compiled."""
MOST_NUMBERS = 2**24
"""Numbers held of many points at a time."""
MOST_BOXES = 256


@dataclass(frozen=True)
class Lost:
    """What the cut of one discrete may lose of a sum at most, the worst over its elements and all parameters seen.

    `most` is infinite where no bound is small enough, and `why` says what stood in its way. A cut that the user
    vouches for (`mg.limits(up_to=...)`) is not looked at.
    """

    kept: int
    most: float = np.inf
    vouched: bool = False
    why: str = ""

    def accepted(self, most: float) -> bool:
        return self.vouched or self.most <= most

    def words(self, most: float) -> str:
        if self.vouched:
            return "as mg.limits(up_to=...) says; what lies beyond is not looked at"
        if self.accepted(most):
            return f"a sum is at least what is kept, and at most 1 + {self.most:.1e} times that (proved)"
        return "what is lost cannot be bounded" + (f", for {self.why}" if self.why else "")


@dataclass(frozen=True)
class Cuts:
    """How many values are kept of each endless discrete, and what may be lost; empty where there is none."""

    lost: Mapping[str, Lost]
    most: float

    @property
    def accepted(self) -> bool:
        return all(lost.accepted(self.most) for lost in self.lost.values())

    def refusal(self, why: str) -> Refusal:
        """In words: no cut is wide enough."""
        widest = max(self.lost.items(), key=lambda item: item[1].kept)
        name, lost = next(((n, x) for n, x in self.lost.items() if not x.accepted(self.most)), widest)
        # Enough values would do, but cannot be held.
        proved = lost.accepted(self.most)
        got = "a sum that cannot be held" if proved else lost.words(self.most)
        return Refusal(
            compose(
                "the sum over this discrete without a largest value cannot be cut where enough is kept",
                where=f"site '{name}'",
                expected=f"a proof that at most {self.most:.0e} of the sum is lost (max_lost)",
                got=f"{got}, with its first {lost.kept} values kept; {why}",
                remedy="where you know that no larger value matters, say so: `with mg.limits(up_to=500): ...` sums the "
                "values up to 500 and no others (`up_to={'"
                + name
                + "': 500}` for one site). If the parameters are out "
                "of all reason, give the rate a narrower prior; where terms grow with the value, the sum may be "
                "infinite.",
            )
        )


@dataclass(frozen=True, eq=False)
class Points:
    """What the bounds need at some parameters: per point the values at the frontier, log Z per sum, and caps."""

    frontier: list[np.ndarray]
    log_z: np.ndarray
    log_density: np.ndarray
    caps: dict[str, np.ndarray]

    def of(self, rows: np.ndarray) -> Points:
        caps = {name: cap[rows] for name, cap in self.caps.items()}
        return Points([x[rows] for x in self.frontier], self.log_z[rows], self.log_density[rows], caps)

    def __len__(self) -> int:
        return len(self.log_z)


@dataclass(frozen=True, eq=False)
class Proof:
    """How many values have to be kept, and what is lost then, as far as that can be proved."""

    kept: dict[str, int]
    cuts: Cuts
    failing: frozenset[str] = frozenset()
    endless: bool = False
    """Whether the bound stays infinite however many values are kept."""
    log_z: np.ndarray | None = None
    """What the sums had at the points that failed."""
    began: dict[str, int] | None = None
    """What was kept where the search began, None if it began with less."""

    def gains_on(self, before: Proof | None) -> bool:
        """Whether more values made the sums larger: else still more will not."""
        if before is None or before.log_z is None or self.log_z is None:
            return True
        return not np.allclose(self.log_z, before.log_z, rtol=0.0, atol=1e-9)

    @property
    def holds(self) -> bool:
        return not self.failing


class Check:
    """Looks at what the cuts of one kernel lose."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        cut = [n for n, d in kernel.program.discretes.items() if d.endless and not kernel.limits.vouches(n)]
        self.kept = {name: len(kernel.program.discretes[name].values) for name in cut}
        """Values kept of each discrete whose cut has to be proved."""

    @functools.cached_property
    def beyond(self) -> Beyond:
        return Beyond(self.kernel, list(self.kept))

    @functools.cached_property
    def _at(self) -> Callable[..., Any]:
        owned = [_own_table(self.kernel, name) for name in self.beyond.hanging]
        hanging = bool(owned) and all(own is not None for own in owned)

        def one(params: Mapping[str, Any], data: Any, held: Any) -> Any:
            component_z = self.kernel.component_densities(params, data, None)
            log_z = jnp.zeros(self.beyond.sums).at[self.beyond.sum_of].add(component_z)
            caps = _caps(self.kernel, self.beyond, params, data) if hanging else {}
            return self.beyond.computed(params, held), log_z, self.kernel.log_density(params, data), caps

        return jax.jit(lambda points, data, held: jax.lax.map(lambda p: one(p, data, held), points))

    def evaluate(self, points: Mapping[str, Any]) -> Points:
        """`points` are `{site: (points, *site shape)}`, or of one name that is no site where there are no latents."""
        count = len(next(iter(points.values())))
        width = 1 if count == 1 else SIDE_BY_SIDE
        found = []
        for start in range(0, count, width):
            rows = np.minimum(np.arange(start, start + width), count - 1)
            block = {name: np.asarray(value)[rows] for name, value in points.items()}
            found.append(jax.tree.map(np.asarray, self._at(block, self.kernel.data, self.beyond.held)))
        return Points(*jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *found))

    def began(self, before: Proof | None) -> dict[str, int]:
        """Where to begin: with what is kept, or with less if that was a long leap from sums too small to judge by."""
        if before is None or before.began is None:
            return self.kept
        return {n: 2 * before.began[n] if k >= 4 * before.began[n] else k for n, k in self.kept.items()}

    def at_all(self, points: Mapping[str, Any], before: Proof | None = None) -> Proof:
        """How many values many points need, and what is lost then at the worst of them."""
        if not self.kept:
            return Proof({}, self._cuts({}, {}))
        count = len(next(iter(points.values())))
        size = self.beyond.sums + sum(int(np.prod(v.shape[1:])) for v in points.values())
        step = max(MOST_NUMBERS // size // SIDE_BY_SIDE, 1) * SIDE_BY_SIDE
        first = self.began(before)
        proof = Proof(first, self._cuts(first, {}))
        for start in range(0, count, step):
            block = {n: v[start : start + step] for n, v in points.items()}
            proof = self.widened(self.evaluate(block), proof.kept, proof)
            if not proof.holds:
                break
        return proof

    def widened(self, points: Points, kept: Mapping[str, int], before: Proof | None = None) -> Proof:
        """The smallest numbers of values, doubled from `kept`, with which the bound is small enough at the points."""
        first = kept = dict(kept)
        began = self.kept if first == self.kept else None
        while True:
            bound = self._bound(points, kept)
            if not bound.failing:
                return Proof(kept, self._cuts(kept, bound.of_site, before), began=began)
            wider = {n: k * 2 if n in bound.failing else k for n, k in kept.items()}
            if max(wider.values()) > LONGEST:
                cuts = self._cuts(self.kept, dict.fromkeys(bound.failing, np.inf), why=bound.why)
                return Proof(self.kept, cuts, bound.failing, bound.endless, points.log_z, began)
            kept = wider

    def _cuts(
        self, kept: Mapping[str, int], of_site: Mapping[str, float], before: Proof | None = None, why: str = ""
    ) -> Cuts:
        found = {}
        for name, site in self.kernel.program.discretes.items():
            if site.endless and name not in kept:
                found[name] = Lost(len(site.values), vouched=True)
            elif site.endless:
                earlier = before.cuts.lost[name].most if before is not None else 0.0
                most = max(float(np.exp(of_site.get(name, -np.inf))), earlier if np.isfinite(earlier) else 0.0)
                found[name] = Lost(kept[name], most, why=why)
        return Cuts(found, self.kernel.limits.max_lost)

    def _bound(self, points: Points, kept: Mapping[str, int]) -> Bound:
        """For all of the points: in one box if that will do, else in halves."""
        # A sum that is not a number, or infinite, is not made so by its cut.
        points = replace(points, log_z=np.where(points.log_z < np.inf, points.log_z, np.inf))
        of_site = dict.fromkeys(self.beyond.cut, -np.inf)
        boxes, left = [points], MOST_BOXES
        caps_hold = all(kept[name] >= own for name, own in self.kept.items())
        while boxes:
            box, left = boxes.pop(), left - 1
            bound = self._of_box(box, kept, caps_hold)
            if bound.failing and (len(box) == 1 or not left):
                return bound
            if not bound.failing:
                of_site = {name: max(of_site[name], bound.of_site[name]) for name in of_site}
                continue
            worst = box.of(np.argsort(box.log_z.sum(1), kind="stable")[:1])
            single = self._of_box(worst, kept, caps_hold)
            if single.failing:
                return single
            boxes += _halves(box)
        return Bound(of_site)

    def _of_box(self, box: Points, kept: Mapping[str, int], caps_hold: bool) -> Bound:
        caps = {name: cap.max(0) for name, cap in box.caps.items()} if caps_hold else {}
        return self.beyond.bound(box_of(box.frontier), box.log_z.min(0), kept, caps)


def _halves(box: Points) -> list[Points]:
    """A box's points in two parts, along what differs most among them."""
    flat = np.concatenate([x.reshape(len(box), -1) for x in (*box.frontier, box.log_z)], axis=1)
    with np.errstate(all="ignore"):
        low, high = flat.min(0), flat.max(0)
        spread = np.nan_to_num((high - low) / (np.abs(high) + np.abs(low) + 1e-9), nan=0.0, posinf=0.0)
    order = np.argsort(flat[:, int(np.argmax(spread))], kind="stable")
    return [box.of(order[len(order) // 2 :]), box.of(order[: len(order) // 2])]


# ---- Endless discretes whose distribution reads endless ones ----------------------------------------


def _own_table(kernel: Kernel, name: str) -> tuple[int, int] | None:
    """The factor that holds a discrete's own probabilities, and its lane that is the discrete; None if not one."""
    program, states = kernel.program, kernel.states
    term = next(t for t, about in enumerate(program.terms) if about.name == name and about.kind == "discrete")
    own = [f for f, part in enumerate(kernel.factors) if term in part.terms]
    if len(own) != 1 or kernel.factors[own[0]].axes or kernel.factors[own[0]].summed:
        return None
    part = kernel.factors[own[0]]
    names = [program.terms[t].name for t in part.terms]
    first = [int(states.offsets[states.names.index(n)]) for n in names]
    shape = program.discretes[name].shape
    mine = np.stack([f + np.arange(math.prod(shape)).reshape(shape) for f in first])
    mine = mine if part.stacked else mine[0]
    if part.scope.shape != mine.shape:
        return None
    lanes = [i for i, lane in enumerate(part.scope.lanes) if (full_ids(lane, mine.shape) == mine).all()]
    return (own[0], lanes[0]) if len(lanes) == 1 else None


def _caps(kernel: Kernel, beyond: Beyond, params: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """log P(x is beyond its cut, nothing before it is) of each element, from above; to be traced.

    The last value kept stands for itself and all that is larger: the discretes' own terms, with the probabilities of
    their tails put there, are those of a program that goes the same way up to the first value beyond its cut.
    """
    factors = kernel.tabulate(params, data)
    laned = [i for i, f in enumerate(factors) if f.value.lanes]
    own = {table[0]: table[1] for name in beyond.cut if (table := _own_table(kernel, name)) is not None}
    tables = []
    for i, (table, shape) in zip(laned, kernel.tables(factors), strict=True):
        if kernel.program.terms[factors[i].terms[0]].kind != "discrete":
            tables.append((jnp.zeros_like(table), shape))
        elif i in own:
            tables.append((_with_tail(table, own[i]), shape))
        else:
            tables.append((table, shape))

    def total(unary: Any) -> tuple[Any, Any]:
        log_z = eliminate(kernel.plan, tables, log_sum, unary).log_z
        return jnp.sum(log_z), log_z

    widest = int(kernel.states.sizes.max())
    marginals, log_z = jax.grad(total, has_aux=True)(jnp.zeros((len(kernel.states.sizes), widest)))
    found = {}
    component = np.asarray(kernel.plan.graph.component)
    for i, name in enumerate(kernel.states.names):
        if name in beyond.cut:
            mine = slice(kernel.states.offsets[i], kernel.states.offsets[i + 1])
            last = marginals[mine, len(kernel.program.discretes[name].values) - 1]
            found[name] = jnp.log(jnp.maximum(last, 1e-300)) + log_z[component[mine]]
    return found


def _with_tail(table: Any, lane: int) -> Any:
    """A table of log-probabilities whose last state has those of all larger ones too, from above.

    The ratio of neighbours grows by no more than (K - 1) / (K - 2) beyond the last two of K values in any family that
    is known here (`families.py`); NumPyro's numbers of some are right to 1e-4 only.
    """
    table = jnp.moveaxis(table, lane, 0)
    kept = table.shape[0]
    last, before = table[-1], table[-2]
    ratio = last - before + np.log((kept - 1) / (kept - 2)) + 1e-3
    tail = jnp.where(ratio < 0, last - jnp.log(-jnp.expm1(jnp.minimum(ratio, -1e-300))), 0.0)
    tail = jnp.where(last == -jnp.inf, -jnp.inf, jnp.minimum(tail, 0.0))
    return jnp.moveaxis(table.at[-1].set(tail), 0, lane)
