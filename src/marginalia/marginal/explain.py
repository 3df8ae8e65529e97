"""The plan in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from marginalia.lanes.run import Run
from marginalia.marginal.chain import Chains
from marginalia.marginal.count import Counted
from marginalia.rows.streaming import Streamed

if TYPE_CHECKING:
    from marginalia.marginal.cut import Cuts
    from marginalia.marginal.kernel import Kernel
    from marginalia.program import Site


def explain(kernel: Kernel, cuts: Cuts) -> str:
    """What is summed out, how, and what one evaluation costs; `cuts` says what is lost of endless supports."""
    program, plan = kernel.program, kernel.plan
    numbers = sum(math.prod(s.shape) for s in program.latents.values())
    lines = [
        f"Model {getattr(program.model, '__name__', 'model')}: "
        f"{_count(len(program.latents), 'continuous latent')} ({_count(numbers, 'number')}), "
        f"{_count(len(kernel.whole_program.discretes), 'discrete')}, {_count(len(program.observed), 'observed site')}."
    ]
    lines += [
        f"Plate {name} draws {taken} of its {program.plates[name]} rows in each run; here all of them are used, and "
        f"mg.ADVI() takes {taken} a step."
        for name, taken in program.drawn.items()
    ]
    if not kernel.whole_program.discretes:
        lines.append("Nothing is summed out: the model has no discrete latents.")
        return "\n".join(lines)
    lines.append("Summed out exactly:")
    alike: dict[str, list[str]] = {}
    for i, (name, site) in enumerate(program.discretes.items()):
        low, high = site.values[0], site.values[-1]
        states = f"{len(site.values)} states ({low} to {high})"
        if name in cuts.lost:
            states = f"{low}, {low + 1}, ... cut after {high}: {cuts.lost[name].words(cuts.most)}"
        line = f"{_size(site)}, {states}; {strategy(kernel, i)}"
        alike.setdefault(line, []).append(name)
    for name in kernel.unread:
        line = f"{_size(kernel.whole_program.discretes[name])}; reaches no data, so its probabilities add up to 1"
        alike.setdefault(line, []).append(name)
    for line, names in alike.items():
        who = ", ".join(names) if len(names) <= 4 else f"{names[0]}, ..., {names[-1]} ({len(names)} sites)"
        lines.append(f"  {who}: {line}")
    rounds = _count(len(plan.rounds), "round")
    cells = sum(math.prod(h) for h, f in zip(kernel.held, kernel.factors, strict=True) if f.scope.lanes) + plan.numbers
    lines.append(
        f"One evaluation: {rounds} of elimination, at most {plan.largest_clique} joint states at a time, "
        f"{cells:,} table entries ({_bytes(8 * cells)}), about {kernel.register.computed:,} operations to compute the "
        f"tables and {kernel.additions:,} to sum."
    )
    lines += _rows(kernel)
    for unit in kernel.units:
        count = math.prod(unit.shape)
        lines.append(f"Log-likelihood per unit: {unit.name}, {_count(count, 'independent unit')}.")
    return "\n".join(lines)


def _size(site: Site) -> str:
    return " x ".join(f"{n} {d}" for n, d in zip(site.shape, site.dims, strict=True)) or "one value"


def _rows(kernel: Kernel) -> list[str]:
    """Whether many rows go through in blocks."""
    found = kernel.by_rows
    if isinstance(found, Streamed):
        alike = "" if found.counted == found.rows else f" ({found.counted:,} different ones, each counted)"
        return [
            f"The density takes the {found.rows:,} rows{alike} in blocks of {found.block:,}: its memory does not grow "
            "with the rows."
        ]
    if kernel.by_classes is not None:
        share = kernel.by_classes.otherwise / max(kernel.by_classes.computed, 1)
        return [f"Elements whose data are equal are computed once and counted: {share:,.0f} times fewer numbers."]
    return [] if found.few else [f"The density takes all rows at once, because {found.reason}."]


def strategy(kernel: Kernel, site: int) -> str:
    """How a site is summed out, read off the factor graph."""
    graph = kernel.plan.graph
    if isinstance(graph.component, Run):
        return "independent elements, each summed on its own"
    own = graph.component[graph.site == site]
    members = np.bincount(graph.component, minlength=graph.n_components)
    if (members[own] == 1).all():
        return "independent elements, each summed on its own"
    chain = next(
        (g for r in kernel.plan.rounds for g in r if isinstance(g, Chains) and (graph.site[g.variables] == site).any()),
        None,
    )
    if chain is not None:
        lag = "" if chain.lag == 1 else f", each reading {chain.lag} before it"
        count = f"{len(chain.order)} chains" if len(chain.order) > 1 else "a chain"
        return f"{count} of up to {chain.length} discretes{lag}, summed by one forward pass"
    chained = [g for r in kernel.plan.rounds for g in r if isinstance(g, Chains)]
    if any(np.isin(graph.component[g.order[:, 0]], own).any() for g in chained):
        return "each summed inside its step, before the chain that it belongs to"
    for group in (g for r in kernel.plan.rounds for g in r):
        if isinstance(group, Counted) and (graph.site[group.variables] == site).any():
            return f"read only through a sum of {group.count.parents.shape[1]}: counted by convolution"
    pairs: set[tuple[int, int]] = set()
    widest = 0
    for batch in graph.batches:
        widest = max(widest, len(batch.scope))
        if len(batch.scope) == 2:
            pairs.update(zip(*np.sort(batch.scope, axis=0).tolist(), strict=True))
    largest = int(members[own].max())
    if widest <= 2 and len(pairs) == int((members - 1).sum()):
        return f"a tree of up to {largest} discretes, summed from its leaves"
    return f"a graph of up to {largest} discretes, summed in order of least cost"


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}" + ("" if n == 1 else "s")


def _bytes(n: int) -> str:
    size = float(n)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
