"""Check the elimination against brute-force enumeration, on the model itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from marginalia.errors import FitError, compose
from marginalia.marginal.kernel import Kernel
from marginalia.marginal.marginal import Marginal, marginalize
from marginalia.precision import float64


@dataclass(frozen=True)
class Verification:
    """Largest differences found between the sum and enumeration.

    `error` is relative for the log density and its gradient. `states` joint states were enumerated in each of
    `blocks` comparisons; `complete` says whether that was all of them at once.
    """

    error: float
    gradient_error: float
    states: int
    blocks: int
    complete: bool
    tolerance: float = 1e-8

    @property
    def agrees(self) -> bool:
        return self.error <= self.tolerance and self.gradient_error <= self.tolerance

    def __bool__(self) -> bool:
        return self.agrees

    def __str__(self) -> str:
        how = (
            f"all {self.states:,} joint states"
            if self.complete
            else f"{self.blocks} blocks of up to {self.states:,} joint states, the other discretes held at drawn values"
        )
        word = "agrees with" if self.agrees else "DIFFERS from"
        return (
            f"The sum {word} enumeration of {how}: relative error {self.error:.1e} in the log density, "
            f"{self.gradient_error:.1e} in its gradient."
        )


def verify(
    model: Callable[..., Any] | Marginal,
    *args: Any,
    seed: int = 0,
    blocks: int = 4,
    max_states: int = 4096,
    **kwargs: Any,
) -> Verification:
    """Compare the marginal density with brute-force enumeration at prior draws, gradient included.

    Where all joint states are too many, blocks of discretes are enumerated with the others held fixed, which tests
    the same elimination on the user's own data. The enumeration runs the program itself and shares no code with the
    elimination.

    >>> print(mg.verify(model, y))
    """
    with float64():
        marginal = model if isinstance(model, Marginal) else marginalize(model, *args, **kwargs)
        kernel = marginal.kernel.complete
        sizes = kernel.states.sizes
        complete = math.prod(int(k) for k in sizes) <= max_states
        params, held = _finite_point(kernel, seed)
        rng = np.random.default_rng(seed)
        chosen = [np.arange(len(sizes))] if complete else [_block(kernel, rng, max_states) for _ in range(blocks)]
        worst, worst_gradient, most = 0.0, 0.0, 1
        for free in chosen:
            table = _configurations(sizes, held, free)
            most = max(most, len(table))
            value, gradient = _by_elimination(kernel, params, held, free)
            expected, expected_gradient = _by_enumeration(kernel, params, table)
            worst = max(worst, _relative(value, expected))
            for name in gradient:
                worst_gradient = max(worst_gradient, _relative(gradient[name], expected_gradient[name]))
        return Verification(worst, worst_gradient, most, len(chosen), complete)


def _relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.size == 0:
        return 0.0
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    scale = np.maximum(1.0, np.max(np.abs(np.where(np.isfinite(b), b, 0.0))))
    with np.errstate(invalid="ignore"):
        return float(np.max(np.where(same, 0.0, np.abs(a - b) / scale)))


def _finite_point(kernel: Kernel, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """Parameters from the prior where the density is finite, and a draw of the discretes there."""

    def attempt(key: Any) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        params = {n: jnp.asarray(v, float) for n, v in kernel.prior(key).items()}
        return params, kernel.log_density(params, kernel.data), kernel.sample(params, kernel.data, key)

    run = jax.jit(attempt)
    for i in range(50):
        params, density, values = run(jax.random.key(seed + i))
        if np.isfinite(density):
            states = [
                np.searchsorted(d.values, np.asarray(values[name])).reshape(-1)
                for name, d in kernel.program.discretes.items()
            ]
            return params, np.concatenate(states) if states else np.zeros(0, int)
    raise FitError(
        compose(
            "no draw from the prior has a finite density, so there is nothing to compare",
            expected="at least one finite density among 50 prior draws",
            remedy="check the data against the model with `Marginal.nonfinite(params)`.",
        )
    )


def _block(kernel: Kernel, rng: np.random.Generator, max_states: int) -> np.ndarray:
    """A discrete and what lies near it in the factor graph, as many as can be enumerated."""
    graph = kernel.plan.graph
    n = len(kernel.states.sizes)  # sums that became discretes of their own come after the program's
    start = int(rng.integers(n))
    free, states = [start], int(graph.sizes[start])
    linked: dict[int, set[int]] = {}
    for batch in graph.batches:
        touched = np.isin(batch.scope, free).any(axis=0) if len(batch.scope) else np.zeros(0, bool)
        for v in np.unique(batch.scope[:, touched]) if touched.any() else []:
            linked.setdefault(start, set()).add(int(v))
    near = [v for v in sorted(linked.get(start, set())) if v != start and v < n]
    anywhere = [int(v) for v in rng.permutation(n)[:20]]
    for v in near + anywhere:
        if v in free or states * int(graph.sizes[v]) > max_states:
            continue
        free.append(v)
        states *= int(graph.sizes[v])
    return np.asarray(sorted(free))


def _configurations(sizes: np.ndarray, held: np.ndarray, free: np.ndarray) -> np.ndarray:
    """All joint states of the free discretes, the others held: (configurations, discretes)."""
    choices = np.asarray(list(itertools.product(*[range(int(sizes[v])) for v in free])), int).reshape(-1, len(free))
    table = np.tile(held, (len(choices), 1))
    table[:, free] = choices
    return table


def _by_elimination(kernel: Kernel, params: dict[str, Any], held: np.ndarray, free: np.ndarray) -> tuple[Any, Any]:
    widest = int(kernel.states.sizes.max()) if len(held) else 1
    unary = np.full((len(held), widest), -np.inf)
    unary[np.arange(len(held)), held] = 0.0
    unary[free] = 0.0

    def density(p: dict[str, Any]) -> Any:
        return kernel.clamped(p, kernel.data, jnp.asarray(unary))

    return jax.jit(jax.value_and_grad(density))(params)


def _by_enumeration(kernel: Kernel, params: dict[str, Any], table: np.ndarray) -> tuple[Any, Any]:
    program = kernel.program
    function = core.jaxpr_as_fun(program.jaxpr)

    def joint(p: dict[str, Any], states: Any) -> Any:
        values = []
        for i, site in enumerate(program.discretes.values()):
            own = states[kernel.states.offsets[i] : kernel.states.offsets[i + 1]]
            values.append(jnp.asarray(site.values, jnp.result_type(int))[own].reshape(site.shape))
        return sum((jnp.sum(x) for x in function(*[p[n] for n in program.latents], *values)), jnp.zeros(()))

    def density(p: dict[str, Any]) -> Any:
        each = jax.lax.map(lambda s: joint(p, s), jnp.asarray(table), batch_size=min(len(table), 64))
        return jax.scipy.special.logsumexp(each)

    return jax.jit(jax.value_and_grad(density))(params)
