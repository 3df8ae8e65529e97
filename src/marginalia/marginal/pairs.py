"""P(two discretes | observed): the gradient of log Z with respect to numbers added to each joint state of a pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.errors import OptionError, Refusal, compose
from marginalia.lanes.bounds import under
from marginalia.lanes.value import Lane
from marginalia.marginal.eliminate import eliminate
from marginalia.marginal.graph import Scope, build_graph
from marginalia.marginal.kernel import Kernel
from marginalia.marginal.plan import make_plan


def pairwise(
    kernel: Kernel, first: str, second: str | None, lag: int | None, axis: int
) -> Callable[[Mapping[str, Any], Any], Any]:
    """A function of parameters and data that gives `(*shape of the pairs, K of the first, K of the second)`.

    Pairs are elements of the first site and those of the second `lag` places further along `axis` (1 unless given for
    one site alone; 0 for two, whose shapes broadcast). The pairs are put into the factor graph, so the elimination is
    exact for any two discretes, near or far.
    """
    if lag is None:
        lag = 1 if second is None else 0
    if lag == 0 and second == first:
        return _with_itself(kernel, first)
    a, b = _identities(kernel, first, second, lag, axis)
    sizes = [len(kernel.program.discretes[name].values) for name in (first, second or first)]
    scope = Scope((a.size,), tuple(Lane(x.reshape(-1), n) for x, n in zip((a, b), sizes, strict=True)))
    states = kernel.states
    scopes = [part.scope for part in kernel.factors if part.scope.lanes]
    counts = kernel.register.counts
    with under(kernel.limits):
        graph = build_graph([*scopes, scope], states.sizes, states.site, states.names, states.offsets, counts)
        try:
            plan = make_plan(graph, counts)
        except Refusal:
            if not counts:
                raise
            # A pair ties parts of a sum to each other, which cannot be convolved then: sums are written out.
            apart = Kernel(kernel.program, kernel.open_data, counting=False)
            return pairwise(apart, first, second, lag, axis)

    def probabilities(params: Mapping[str, Any], data: Any) -> Any:
        tables = kernel.tables(kernel.tabulate(params, data))

        def total(added: Any) -> Any:
            return jnp.sum(eliminate(plan, [*tables, (added, scope.shape)]).log_z)

        found = jax.grad(total)(jnp.zeros((*sizes, a.size)))
        return jnp.moveaxis(found, -1, 0).reshape((*a.shape, *sizes))

    return probabilities


def _with_itself(kernel: Kernel, name: str) -> Callable[[Mapping[str, Any], Any], Any]:
    """Each element and itself: its own probabilities on the diagonal."""
    _of_site(kernel, name)

    def probabilities(params: Mapping[str, Any], data: Any) -> Any:
        own = kernel.posterior(params, data)[name]
        return own[..., None] * jnp.eye(own.shape[-1])

    return probabilities


def _identities(kernel: Kernel, first: str, second: str | None, lag: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    one, other = _of_site(kernel, first), _of_site(kernel, second or first)
    if second is not None and second != first:
        try:
            one, other = np.broadcast_arrays(one, other)
        except ValueError as error:
            raise OptionError(
                compose(
                    "two discretes can be paired element by element only where their shapes broadcast",
                    where=f"pairwise('{first}', '{second}')",
                    got=f"shapes {one.shape} and {other.shape}",
                )
            ) from error
        if lag == 0:
            return one, other
    length = one.shape[axis] if one.ndim and -one.ndim <= axis < one.ndim else 0
    if not 1 <= lag < length:
        raise OptionError(
            compose(
                "there are no such pairs",
                where=f"pairwise('{first}', lag={lag}, axis={axis})",
                expected="an axis of the site and a lag of at least 1, below the axis's length",
                got=f"a site of shape {one.shape}",
                remedy="for two sites that are named apart (`z_0`, `z_1`) give both names.",
            )
        )
    return np.take(one, range(length - lag), axis), np.take(other, range(lag, length), axis)


def _of_site(kernel: Kernel, name: str) -> np.ndarray:
    if name not in kernel.program.discretes:
        raise OptionError(
            compose(
                f"there is no discrete latent '{name}'",
                where="pairwise()",
                expected=", ".join(kernel.program.discretes) or "a program with discrete latents",
            )
        )
    place = list(kernel.program.discretes).index(name)
    offsets = kernel.states.offsets
    shape = kernel.program.discretes[name].shape
    return np.arange(offsets[place], offsets[place + 1], dtype=np.int32).reshape(shape)
