"""Label switching: which axes are component axes, whether labels are exchangeable, and one labelling.

A mixture's density does not change when its components change places, so a chain may wander between
labellings, and means over draws then mean nothing. Whether that is so for the model at hand is *checked*, by
permuting axes and comparing densities; an ordered site or a prior that tells the components apart fails the
check, and nothing is touched.

Two labels may also be told by latents without a component axis: the probability w of the second one, or its logit.
When the two change places such a latent is reflected, w to 1 - w, a logit to its negative; that is checked likewise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpyro.distributions import constraints
from scipy.optimize import linear_sum_assignment

from marginalia.errors import Refusal
from marginalia.infer import mirror
from marginalia.marginal.batches import PART_ROWS, make_batches
from marginalia.marginal.symmetry import POINTS, TOLERANCE, same_supports, spread_out, unmoved
from marginalia.ondraws import MAX_BLOCK, OnDraws, Params, count, flatten, table_size
from marginalia.precision import float64

RELATIVE_TOLERANCE = 1e-8
MAX_COMBINATIONS = 1024
MAX_MIRRORED = 256  # the same, where latents may be reflected too: few models have such labels, and all are asked
MAX_ROWS = 500  # rows of the memberships that take part in the comparison of labellings
MUCH_WORK = 2e7  # rows x draws beyond which memberships of some rows only are computed
MAX_NUMBERS = 2e7  # kept memberships: draws x rows x components
MORE_WIDE, FEW_WIDE = 8, 2  # points all over the space at which densities are compared: few where the data are many
MUCH_TABLE = 1e5
TINY = 1e-6  # a membership is never taken as exactly 0: one draw cannot forbid a label


@dataclass(frozen=True)
class Exchangeable:
    """One family of labels that may change places: `axes[site]` are the component axes of each site.

    `discretes` are the discrete sites whose values are these labels, `K` how many there are. `mirrors` are sites that
    are reflected when two labels change places (K = 2 only): w to 1 - w, a real value to its negative.
    """

    discretes: tuple[str, ...]
    axes: dict[str, tuple[int, ...]]
    K: int
    mirrors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Relabelled:
    """Draws under one labelling.

    `moved` draws of `total` were not in the most frequent labelling, `inside` chains or only between them.
    `permutations` has a (chain, draw, K) array a family: new label k was label `p[..., k]`.
    """

    draws: dict[str, np.ndarray]
    families: tuple[Exchangeable, ...]
    permutations: tuple[np.ndarray, ...]
    moved: int
    total: int
    inside: bool


def permute(value: np.ndarray, axes: tuple[int, ...], permutation: np.ndarray) -> np.ndarray:
    """One site's value with its component axes permuted: new label k is old label `permutation[k]`."""
    for axis in axes:
        value = np.take(value, permutation, axis=axis)
    return value


def find_exchangeable(engine: OnDraws, params: Params, *, random_seed: int = 0) -> tuple[Exchangeable, ...]:
    """The families of exchangeable labels, found by permuting axes and comparing densities at a few draws.

    Every set of axes whose length is the support size of a discrete is a candidate. A candidate is kept when
    a cyclic shift and a swap (together they generate every permutation) leave the supports, the priors at points all
    over the space and the density of all tested draws and of some such points unchanged, permute the memberships of
    some discrete in the same way, and no smaller set does as much.
    For a discrete of two values of which nothing was found, latents that can be reflected take part as well.
    `params`: `{latent: (S, *site shape)}`. Empty when labels are told apart, or when there are too many
    candidates.
    """
    rng = np.random.default_rng(random_seed)
    rows = rng.permutation(count(params))[:3]
    tested = {name: np.asarray(params[name], float)[rows] for name in engine.program.latents}
    wide = _wide(engine, rng)
    sizes = {name: len(site.values) for name, site in engine.program.discretes.items()}
    families: list[Exchangeable] = []
    if len(rows) == 0:
        return ()
    for K in sorted(set(sizes.values()) - {1}):
        families += _of_size(engine, tested, wide, K, [])
    if {n for n, K in sizes.items() if K == 2} - {n for family in families for n in family.discretes}:
        families += _of_size(engine, tested, wide, 2, families, mirrored=True)
    return tuple(families)


@dataclass(frozen=True)
class _Move:
    """What changes with the labels: component axes are permuted, mirrored sites reflected."""

    axes: dict[str, tuple[int, ...]]
    mirrors: tuple[str, ...] = ()

    @property
    def parts(self) -> set[tuple[str, int]]:
        """Each axis, and -1 for a reflection."""
        return {(name, axis) for name, some in self.axes.items() for axis in some} | {(n, -1) for n in self.mirrors}


def _of_size(
    engine: OnDraws, tested: Params, wide: Params, K: int, known: list[Exchangeable], *, mirrored: bool = False
) -> list[Exchangeable]:
    taken: set[tuple[str, int]] = set()
    for family in known:
        taken |= _Move(family.axes, family.mirrors).parts
    shift, swap = np.roll(np.arange(K), 1), np.arange(K)
    swap[:2] = 1, 0
    permutations = [shift] if K == 2 else [shift, swap]
    program = engine.program
    moves = [m for m in _moves(engine, K, mirrored) if all(same_supports(program, m.axes, p) for p in permutations)]
    if wide:
        with float64():
            moves = unmoved(engine.kernel, wide, moves, lambda at, m: [_moved(engine, at, m, p) for p in permutations])
    one = {n: v[:1] for n, v in tested.items()}
    moves = _invariant(engine, one, moves, [shift])
    some = FEW_WIDE if table_size(program) > MUCH_TABLE else MORE_WIDE
    all_over = {n: np.concatenate([v, wide[n][:some]]) for n, v in tested.items()} if wide else tested
    moves = _invariant(engine, all_over, moves, permutations, exact=count(tested))
    families = []
    for move in moves:
        if taken & move.parts:
            continue  # not a smallest set
        discretes = _labelled_by(engine, tested, move, K, shift)
        if discretes:
            taken |= move.parts
            families.append(Exchangeable(discretes, move.axes, K, move.mirrors))
    return families


def _wide(engine: OnDraws, rng: np.random.Generator) -> Params:
    """Points all over the space; none where there is no program behind the density."""
    if not hasattr(engine.program, "terms"):
        return {}
    near = engine.prior(POINTS, random_seed=int(rng.integers(2**31)))
    with float64():
        return spread_out(engine.program, {n: np.asarray(near[n], float) for n in engine.program.latents}, rng)


def _moves(engine: OnDraws, K: int, mirrored: bool) -> list[_Move]:
    """All candidates, the small ones first; none where they are too many."""
    latents = engine.program.latents
    if not mirrored:
        return _combined(latents, K, (), MAX_COMBINATIONS)
    able = [n for n, site in latents.items() if mirror.centre(site.support) is not None]
    # Where they are too many, the probabilities alone: a logit of several parts is left.
    bounded = [n for n in able if not _is_real(latents[n].support)]
    found = _combined(latents, K, able, MAX_MIRRORED) or _combined(latents, K, bounded, MAX_MIRRORED)
    return [move for move in found if move.mirrors]


def _combined(latents: dict[str, Any], K: int, able: Collection[str], most: int) -> list[_Move]:
    options = []
    for name, site in latents.items():
        axes = [i for i, n in enumerate(site.shape) if n == K]
        subsets = [c for r in range(len(axes) + 1) for c in itertools.combinations(axes, r)]
        options.append([(name, subset, flips) for flips in (False, True)[: 1 + (name in able)] for subset in subsets])
    if math.prod(map(len, options)) > most:
        return []
    moves = [
        _Move({n: s for n, s, _ in chosen if s}, tuple(n for n, _, flips in chosen if flips))
        for chosen in itertools.product(*options)
    ]
    return sorted((move for move in moves if move.parts), key=lambda move: len(move.parts))


def _moved(engine: OnDraws, params: Params, move: _Move, permutation: np.ndarray) -> Params:
    out = {n: permute(v, tuple(a + 1 for a in move.axes.get(n, ())), permutation) for n, v in params.items()}
    return {n: _reflected(engine, n, v) if n in move.mirrors else v for n, v in out.items()}


def _reflected(engine: OnDraws, name: str, value: np.ndarray) -> np.ndarray:
    middle = mirror.centre(engine.program.latents[name].support)
    assert middle is not None
    return 2 * middle - value


def _invariant(
    engine: OnDraws, params: Params, moves: list[_Move], permutations: list, exact: int | None = None
) -> list[_Move]:
    """Those moves that leave the density of every draw unchanged under every permutation.

    The first `exact` are draws; the others lie far out, where what is rounded in the priors weighs more.
    """
    if not moves:
        return []
    S = count(params)
    trials = [params] + [_moved(engine, params, move, p) for move in moves for p in permutations]
    stacked = {n: np.concatenate([t[n] for t in trials]) for n in params}
    density = engine.log_density(stacked).reshape(len(trials), S)
    base, rest = density[0], density[1:].reshape(len(moves), len(permutations), S)
    with np.errstate(invalid="ignore"):  # inf - inf
        tolerance = np.where(np.arange(S) < (S if exact is None else exact), RELATIVE_TOLERANCE, TOLERANCE)
        same = np.abs(rest - base) <= tolerance * np.maximum(1.0, np.abs(base))
    # A point that is impossible before and after says nothing, if there are others.
    same |= np.isneginf(rest) & np.isneginf(base) & np.isfinite(base).any()
    return [move for move, good in zip(moves, same.all(axis=(1, 2)), strict=True) if good]


def _labelled_by(engine: OnDraws, params: Params, move: _Move, K: int, permutation: np.ndarray) -> tuple[str, ...]:
    """The discretes whose memberships follow the permutation; none if some neither follow nor stay."""
    S = count(params)
    moved = _moved(engine, params, move, permutation)
    blocks = list(engine.posterior({n: np.concatenate([params[n], moved[n]]) for n in params}))
    found = []
    for name, site in engine.program.discretes.items():
        both = np.concatenate([b[name] for b in blocks])
        before, after = both[:S], both[S:]
        if np.allclose(before, after, rtol=0, atol=1e-7):
            continue
        if len(site.values) != K or not np.allclose(before[..., permutation], after, rtol=0, atol=1e-7):
            return ()
        found.append(name)
    return tuple(found)


def relabel(engine: OnDraws, draws: Params, lp: np.ndarray, families: tuple[Exchangeable, ...]) -> Relabelled:
    """The same draws under one labelling: one permutation a draw, applied to all sites of a family.

    Stephens (2000), "Dealing with label switching in mixture models", algorithm 2: permutations that bring
    each draw's memberships closest (Kullback-Leibler) to their mean, by linear assignment, until nothing
    changes. Components are then numbered by the posterior mean of the family's first real-valued site.
    `draws`: `{site: (chain, draw, *shape)}`; `lp`: (chain, draw), where the reference draw is chosen.
    """
    chains, length = lp.shape
    params = flatten(draws, engine.program.latents)
    memberships = _of_some_rows(engine, families, params) or _of_all_rows(engine, families, params)
    permutations = []
    moved = np.zeros(chains * length, bool)
    inside = False
    for family in families:
        P = np.concatenate([memberships[name] for name in family.discretes], axis=1)
        p = stephens(P, int(np.argmax(lp)))
        p = p[:, _numbering(engine, params, family, p)]
        for name, axes in family.axes.items():
            params[name] = _apply(params[name], axes, p)
        for name in family.mirrors:
            swapped = (p[:, 0] == 1).reshape(-1, *(1 for _ in params[name].shape[1:]))
            params[name] = np.where(swapped, _reflected(engine, name, params[name]), params[name])
        _, code = np.unique(p, axis=0, return_inverse=True)
        code = code.reshape(-1)
        moved |= code != np.bincount(code).argmax()
        by_chain = code.reshape(chains, length)
        inside = inside or bool((by_chain != by_chain[:, :1]).any())
        permutations.append(p.reshape(chains, length, -1))
    new = {n: params[n].reshape(np.shape(v)) if n in params else v for n, v in draws.items()}
    return Relabelled(new, families, tuple(permutations), int(moved.sum()), chains * length, inside)


def stephens(P: np.ndarray, reference: int, *, iterations: int = 50) -> np.ndarray:
    """Permutations (S, K) that bring memberships P (S, rows, K) closest to their common mean.

    `P[s][:, result[s]]` are the relabelled memberships of draw s; the start is the labelling of draw
    `reference`.
    """
    S, _, K = P.shape
    result = np.tile(np.arange(K), (S, 1))
    Q = P[reference]
    for _ in range(iterations):
        cost = -np.einsum("nk,snl->skl", np.log(np.maximum(Q, TINY)), P, optimize=True)
        new = np.array([linear_sum_assignment(c)[1] for c in cost])
        if np.array_equal(new, result):
            break
        result = new
        Q = np.take_along_axis(P, result[:, None, :], axis=2).mean(axis=0)
    return result


def _of_all_rows(engine: OnDraws, families: tuple[Exchangeable, ...], params: Params) -> dict[str, np.ndarray]:
    """`{discrete: (S, rows, K)}`: memberships of all rows are computed, and those of some kept."""
    rows = _kept_rows(engine, families, count(params))
    kept: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    for block in engine.posterior(params):
        for name, chosen in rows.items():
            kept[name].append(block[name].reshape(len(block[name]), -1, block[name].shape[-1])[:, chosen])
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def _of_some_rows(engine: OnDraws, families: tuple[Exchangeable, ...], params: Params) -> dict[str, np.ndarray] | None:
    """The same from the program on some of its rows, where there are many and they are independent; else None."""
    S = count(params)
    names = {name for family in families for name in family.discretes}
    work = max(int(np.prod(engine.program.discretes[n].shape)) for n in names) * S
    if work < MUCH_WORK:
        return None
    try:
        batches = make_batches(engine.marginal, PART_ROWS)
    except Refusal:
        return None  # rows that are not independent: all of them are needed
    kernel = batches.kernel
    if not names <= set(kernel.program.discretes):
        return None

    def one(point: Params, data: Any) -> dict[str, Any]:
        found = kernel.posterior(point, data)
        flat = {name: found[name].reshape(-1, found[name].shape[-1]) for name in names}
        return {name: table[:: -(-len(table) // MAX_ROWS)] for name, table in flat.items()}

    with float64():
        chosen, _ = batches.cut(np.linspace(0, batches.size - 1, PART_ROWS).round().astype(int))
        run = jax.jit(jax.vmap(one, in_axes=(0, None)))
        parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for start in range(0, S, MAX_BLOCK):
            take = np.minimum(np.arange(start, start + MAX_BLOCK), S - 1)
            block = run({n: v[take] for n, v in params.items()}, chosen)
            for name in names:
                parts[name].append(np.asarray(block[name])[: min(MAX_BLOCK, S - start)])
    return {name: np.concatenate(found) for name, found in parts.items()}


def _kept_rows(engine: OnDraws, families: tuple[Exchangeable, ...], S: int) -> dict[str, np.ndarray]:
    rows = {}
    for name in {name for family in families for name in family.discretes}:
        site = engine.program.discretes[name]
        size = int(np.prod(site.shape))
        limit = min(size, MAX_ROWS, max(20, int(MAX_NUMBERS / (S * len(site.values)))))
        rows[name] = np.linspace(0, size - 1, limit).round().astype(int)
    return rows


def _apply(value: np.ndarray, axes: tuple[int, ...], p: np.ndarray) -> np.ndarray:
    """Permute the component axes of (S, *shape) by one permutation a draw, p (S, K)."""
    for axis in axes:
        index = p.reshape(len(p), *(p.shape[1] if i == axis else 1 for i in range(value.ndim - 1)))
        value = np.take_along_axis(value, index, axis=axis + 1)
    return value


def _numbering(engine: OnDraws, params: Params, family: Exchangeable, p: np.ndarray) -> np.ndarray:
    """The order of the components by the mean of the first real-valued site, so that seeds agree on names.

    Where only reflections tell them apart, the first reflected site gets a mean above its middle.
    """
    if not family.axes:
        value = params[family.mirrors[0]].reshape(len(p), -1)[:, 0]
        middle = mirror.centre(engine.program.latents[family.mirrors[0]].support)
        above = np.mean((value - middle) * np.where(p[:, 0] == 1, -1, 1)) >= 0
        return np.array([0, 1] if above else [1, 0])
    names = [n for n in engine.program.latents if n in family.axes]
    real = [n for n in names if _is_real(engine.program.latents[n].support)]
    name = (real or names)[0]
    mean = _apply(params[name], family.axes[name], p).mean(axis=0)
    axes = family.axes[name]
    first = [mean[tuple(k if i in axes else 0 for i in range(mean.ndim))] for k in range(family.K)]
    return np.argsort(first, kind="stable")


def _is_real(support: Any) -> bool:
    return getattr(support, "base_constraint", support) is constraints.real
