"""The density of a random part of the rows: an unbiased estimate of the whole, at the cost of that part.

Rows that are independent given the continuous latents add up in the log density, each after the sum over its own
discretes. So `whole = rest + sum over rows`, and `rest + N / B * sum over B rows` is right in expectation. What belongs
to `rest` is read from the program on all rows, what belongs to the rows from the program on B of them, whose arrays are
then replaced by those of any other B rows. That the two agree is not assumed: the terms of B rows are compared with
the same rows' terms in the whole program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from marginalia.errors import MarginaliaError, Refusal, compose
from marginalia.jaxpr.reads import dependencies, live_equations
from marginalia.lanes.bounds import under
from marginalia.marginal.kernel import Kernel
from marginalia.marginal.unread import without_unread
from marginalia.precision import float64
from marginalia.program import Program, Term, read
from marginalia.tracing import OnRows

PART_ROWS = 2000
"""Rows that are enough for a first look: for modes, and for telling labels apart."""

POINTS = 2
CHECK_TOLERANCE = 1e-8
REFUSED = "this model cannot be fitted on batches of its rows"


@dataclass(frozen=True, eq=False)
class Batches:
    """Estimates of a log density from `batch` of its `size` rows; pure functions, to be traced in float64.

    `data` is their last argument, as for a kernel. `rows` are indices of rows, `(batch,)`.
    """

    size: int
    batch: int
    kernel: Kernel
    rest: Program
    whole: Kernel
    axes: tuple[int | None, ...]
    data: tuple[tuple[Any, ...], tuple[Any, ...]]

    def of_rows(self, params: Mapping[str, Any], rows: Any, data: Any) -> Any:
        """The sum of all rows' log-likelihoods, estimated from some: theirs times `size / batch`."""
        return self.kernel.log_density(params, self._cut(rows, data))

    def of_rest(self, params: Mapping[str, Any], data: Any) -> Any:
        """What belongs to no row: the log prior, and factors of their own."""
        program = self.rest
        inputs: list[Any] = [jnp.asarray(params[name]) for name in program.latents]
        inputs += [np.full(site.shape, site.values[0]) for site in program.discretes.values()]  # read by none
        values = core.jaxpr_as_fun(core.ClosedJaxpr(program.jaxpr.jaxpr, list(data[1])))(*inputs)
        scales = [np.asarray(term.scale, float) for term in program.terms]
        return sum((_scaled_sum(v, s) for v, s in zip(values, scales, strict=True)), jnp.zeros(()))

    def log_density(self, params: Mapping[str, Any], rows: Any, data: Any) -> Any:
        """log p(observed, params), estimated from some rows; exact in expectation over them."""
        return self.of_rest(params, data) + self.of_rows(params, rows, data)

    def cut(self, rows: np.ndarray) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The arrays of these rows and those of the rest, for `of_cut`."""
        return tuple(np.asarray(part) for part in self._cut(rows, self.data)), self.data[1]

    def of_cut(self, params: Mapping[str, Any], cut: Any) -> Any:
        """`log_density` of rows that were cut out before."""
        return self.of_rest(params, (None, cut[1])) + self.kernel.log_density(params, cut[0])

    def _cut(self, rows: Any, data: Any) -> tuple[Any, ...]:
        return tuple(
            part if axis is None else jnp.take(part, rows, axis=axis)
            for part, axis in zip(data[0], self.axes, strict=True)
        )


def _scaled_sum(value: Any, scale: np.ndarray) -> Any:
    return jnp.sum(jnp.where(scale == 0.0, 0.0, value * scale))


def make_batches(marginal: Any, batch: int) -> Batches:
    """The estimates of a marginal's density from `batch` rows; the same again where they were asked for before.

    Raises:
        Refusal: The rows cannot be told apart, or are not independent given the continuous latents.
    """
    kept = marginal.kernel.compiled
    key = "batches", batch
    if key not in kept:
        kept[key] = _make_batches(marginal, batch)
    return kept[key]


def _make_batches(marginal: Any, batch: int) -> Batches:
    whole: Kernel = marginal.kernel
    with float64(), under(whole.asked):
        size, chosen, part = _read_part(whole.program, batch)
        terms = _row_terms(whole.program, part, size, batch)
        scaled = replace(
            part,
            terms=tuple(
                replace(t, scale=_scale(t, size / batch, part)) if i in terms else t for i, t in enumerate(part.terms)
            ),
        )
        own = _only(scaled, terms)
        full = _only(whole.program, terms)
        axes, open_data = _row_arrays(full, own, chosen, size, batch)
        kernel = _kernel_of(own, open_data, batch)
        others = [i for i in range(len(part.terms)) if i not in terms]
        rest = _only(whole.program, others)
        _refuse_shared(rest)
        data = (tuple(full.jaxpr.consts), tuple(rest.jaxpr.consts))
        found = Batches(size, batch, kernel, rest, whole, axes, data)
        _compare(found)
        return found


def _refuse(what: str, *, where: str = "batch_size", got: str = "", remedy: str = "") -> Refusal:
    remedy = remedy or "leave batch_size out: all rows are used in each step."
    return Refusal(compose(f"{REFUSED}: {what}", where=where, got=got, remedy=remedy))


def _read_part(program: Program, batch: int) -> tuple[int, np.ndarray, Program]:
    """The number of rows, some of them, and the program read on these."""
    model, args, kwargs = program.model, program.args, dict(program.kwargs)
    rng = np.random.default_rng(0)
    if len(program.drawn) > 1:
        raise _refuse(f"several plates draw their rows ({', '.join(program.drawn)})")
    if program.drawn:
        (plate,) = program.drawn
        size = program.plates[plate]
        chosen = _some(rng, size, batch)
        assert isinstance(model, OnRows)
        model = OnRows(model.inner, {plate: chosen})
    else:
        sizes = {(*site.shape, 1)[0] for site in program.observed.values()}
        if len(sizes) != 1:
            what = "it has no observed site" if not sizes else "its observed sites have different numbers of rows"
            raise _refuse(what, got=", ".join(f"{n} {s.shape}" for n, s in program.observed.items()))
        (size,) = sizes
        chosen = _some(rng, size, batch)
        if not any(_has_rows(leaf, size) for leaf in jax.tree.leaves((args, kwargs))):
            raise _refuse(
                f"none of its arguments has {size} rows",
                remedy="give the data as arguments of the model, rows along the first axis.",
            )
        args, kwargs = jax.tree.map(
            lambda leaf: np.asarray(leaf)[chosen] if _has_rows(leaf, size) else leaf, (args, kwargs)
        )
    try:
        return size, chosen, without_unread(read(model, args, kwargs))
    except (MarginaliaError, TypeError, ValueError, IndexError) as error:
        raise _refuse(
            f"it cannot be read on {batch} of its {size} rows",
            got=f"{type(error).__name__}: {error}",
            remedy="every array with a row per observation must be an argument with the rows along its first axis, "
            "and sizes must come from these arrays (`len(y)`).",
        ) from error


def _some(rng: np.random.Generator, size: int, batch: int) -> np.ndarray:
    if batch >= size:
        raise _refuse(f"there are {size} rows, and a batch of {batch} is to be a part of them")
    return rng.choice(size, batch, replace=False)


def _has_rows(leaf: Any, size: int) -> bool:
    shape: tuple[int, ...] = getattr(leaf, "shape", ())
    return len(shape) >= 1 and shape[0] == size


def _row_terms(whole: Program, part: Program, size: int, batch: int) -> list[int]:
    """The terms of the density that have a row axis."""
    for kind in ("latents", "discretes"):
        ours, theirs = getattr(whole, kind), getattr(part, kind)
        for name, site in ours.items():
            other = theirs.get(name)
            if kind == "latents" and (other is None or other.shape != site.shape):
                raise _refuse(
                    f"its continuous latent '{name}' has a value for each row, or a shape that depends on the rows",
                    got=f"shape {site.shape} on all rows" + ("" if other is None else f", {other.shape} on a batch"),
                    remedy="only what all rows share can be learned from batches: leave batch_size out, or give "
                    "numbers of groups and categories as arguments of their own.",
                )
            if kind == "discretes" and (other is None or not _cut_from(site.shape, other.shape, size, batch)):
                raise _refuse(f"its discrete '{name}' is shared by rows, so the rows are not independent")
            if kind == "discretes" and (site.bounds is not None or len(site.values) != len(theirs[name].values)):
                raise _refuse(f"the support of its discrete '{name}' differs from row to row")
    if [t.name for t in whole.terms] != [t.name for t in part.terms]:
        raise _refuse("its sites depend on the data")
    found = []
    for i, (ours, theirs) in enumerate(zip(whole.terms, part.terms, strict=True)):
        if _cut_from(ours.shape, theirs.shape, size, batch):
            found.append(i)
        elif ours.shape != theirs.shape:
            raise _refuse(f"the shape of '{ours.name}' depends on the rows", got=f"{ours.shape} and {theirs.shape}")
    if not any(whole.terms[i].kind in ("observed", "factor") for i in found):
        raise _refuse(
            "none of its terms has a row axis",
            remedy="leave the likelihood unsummed: one log-probability a row.",
        )
    return found


def _cut_from(ours: tuple[int, ...], theirs: tuple[int, ...], size: int, batch: int) -> bool:
    return len(ours) == len(theirs) > 0 and _row_axis(ours, theirs, size, batch) is not None


def _row_axis(ours: tuple[int, ...], theirs: tuple[int, ...], size: int, batch: int) -> int | None:
    differing = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    if len(differing) == 1 and (ours[differing[0]], theirs[differing[0]]) == (size, batch):
        return differing[0]
    return None


def _scale(term: Term, factor: float, part: Program) -> np.ndarray | float:
    scale = np.asarray(term.scale, float)
    if scale.size != 1:
        raise _refuse(f"the rows of '{term.name}' have weights of their own")
    # A plate that draws its rows has multiplied already.
    return float(scale.reshape(())) * (1.0 if _told(part) else factor)


def _told(part: Program) -> bool:
    return isinstance(part.model, OnRows) and bool(part.model.chosen)


def _refuse_shared(rest: Program) -> None:
    """A term without a row axis that reads the discretes of rows ties them together."""
    first = len(rest.latents)
    for term, read_ in zip(rest.terms, dependencies(rest.jaxpr.jaxpr), strict=True):
        if any(place >= first for place in read_):
            raise _refuse(f"'{term.name}' reads the discretes of many rows, so these are not independent")


def _only(program: Program, terms: list[int]) -> Program:
    """The program with these terms alone, and the arrays that they read."""
    jaxpr = program.jaxpr.jaxpr
    cut = jaxpr.replace(outvars=[jaxpr.outvars[i] for i in terms])
    equations = live_equations(cut)
    read_ = {v for e in equations for v in e.invars if isinstance(v, core.Var)}
    read_ |= {v for v in cut.outvars if isinstance(v, core.Var)}
    kept = [i for i, v in enumerate(jaxpr.constvars) if v in read_]
    cut = cut.replace(eqns=equations, constvars=[jaxpr.constvars[i] for i in kept])
    closed = core.ClosedJaxpr(cut, [program.jaxpr.consts[i] for i in kept])
    return replace(program, jaxpr=closed, terms=tuple(program.terms[i] for i in terms))


def _row_arrays(
    whole: Program, part: Program, chosen: np.ndarray, size: int, batch: int
) -> tuple[tuple[int | None, ...], frozenset[int]]:
    """For each array that the rows' terms read: its row axis, None for an array that all rows share."""
    ours, theirs = whole.jaxpr.consts, part.jaxpr.consts
    mixed = "it computes from all rows at once what a row's density reads (a mean of the data, say)"
    remedy = "do such computations before the model is called and pass the result as an argument."
    if len(ours) != len(theirs):
        raise _refuse(mixed, remedy=remedy)
    axes: list[int | None] = []
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        axis = _row_axis(a.shape, b.shape, size, batch) if a.ndim == b.ndim else None
        expected = a if axis is None else np.take(a, chosen, axis=axis)
        if not _same(expected, b):
            raise _refuse(mixed, remedy=remedy)
        axes.append(axis)
    return tuple(axes), frozenset(i for i, axis in enumerate(axes) if axis is not None)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f" and b.dtype.kind == "f"))


def _kernel_of(part: Program, open_data: frozenset[int], batch: int) -> Kernel:
    try:
        return Kernel(part, open_data)
    except Refusal as error:
        raise _refuse(
            "how its discretes are tied together depends on the data, so rows of a batch are not independent of others",
            got=str(error),
        ) from error


def _compare(batches: Batches) -> None:
    """The terms of some rows must be the same whether the program is read on all rows or on these."""
    rng = np.random.default_rng(1)
    whole, kernel = batches.whole, batches.kernel
    rows = rng.choice(batches.size, batches.batch, replace=False)
    shapes = whole.unconstrained_shapes
    points = {name: 0.5 * rng.normal(size=(POINTS, *shape)) for name, shape in shapes.items()}

    def both(point: Any, data: Any, parts: Any) -> tuple[Any, Any]:
        params, _ = whole.constrain(point)
        return whole.log_likelihood(params, data), kernel.log_likelihood(params, batches._cut(rows, parts))

    # Compiled quickly: it runs once.
    run = jax.jit(jax.vmap(both, (0, None, None)), compiler_options={"xla_backend_optimization_level": 0})
    ours, theirs = run(points, whole.data, batches.data)
    for name, part in theirs.items():
        a = _by_row(np.asarray(ours.get(name, np.zeros((POINTS, 0)))), batches.size)
        b = _by_row(np.asarray(part), batches.batch)
        if a is None or b is None:
            raise _refuse(f"rows share the discretes that '{name}' reads, so the rows are not independent")
        if not np.allclose(a[:, rows], b, CHECK_TOLERANCE, CHECK_TOLERANCE, equal_nan=True):
            raise _refuse(
                f"the terms of '{name}' are not the same when the model sees a part of the rows",
                remedy="do computations across rows (a mean of the data, say) before the model is called and pass the "
                "result as an argument; where rows depend on each other, leave batch_size out.",
            )


def _by_row(values: np.ndarray, rows: int) -> np.ndarray | None:
    """`(points, rows, ...)`, or None where the numbers cannot belong to so many rows."""
    if values.ndim > 1 and values.shape[1] == rows:
        return values.reshape(len(values), rows, -1)
    size = int(np.prod(values.shape[1:]))
    return values.reshape(len(values), rows, -1) if size and size % rows == 0 else None
