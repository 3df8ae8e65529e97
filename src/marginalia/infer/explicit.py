"""A distribution of its own for every discrete, beside that of the continuous latents, instead of the exact sum.

Only for comparison: the exact sum costs no more and leaves nothing out. What the two differ in is what the textbook
mean-field approximation of a mixture loses (Bishop 2006, section 10.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.errors import Refusal, compose
from marginalia.infer.optimise import Optimiser
from marginalia.infer.problem import Problem
from marginalia.infer.result import Variables

DRAWS = 256  # of the continuous latents, over which log-probabilities of states are averaged


class ExplicitDiscretes:
    """The evidence bound's part that reads the model, for given probabilities of every discrete's states.

    Between blocks of the ascent these become the best ones for what the ascent has reached:
    `q(z = k)` proportional to `exp(E[log p(z = k, data | parameters)])`.

    Raises:
        Refusal: The discretes are not independent given the parameters.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        kernel = problem.kernel
        graph = kernel.plan.graph
        self._count = int(kernel.states.offsets[-1])
        components = np.asarray(graph.component)[: self._count]
        alone = len(np.unique(components)) == self._count == graph.n_components
        if not self._count or not alone or kernel.component_scale is not None:
            what = "the discretes depend on each other, or their terms have a scale" if self._count else "there is none"
            raise Refusal(
                compose(
                    "only discretes that are independent given the continuous latents can each have a distribution of "
                    f"their own: {what}",
                    where='ADVI(discretes="explicit")',
                    remedy='use discretes="summed", which is exact for every model.',
                )
            )
        self._order = components
        self._sizes = np.asarray(kernel.states.sizes)
        self._widest = int(self._sizes.max())
        self._known = np.arange(self._widest) < self._sizes[:, None]
        self.probabilities = np.where(self._known, 1 / self._sizes[:, None], 0.0)
        self.data = (problem.data, self.probabilities)
        self._average = jax.jit(self._averaged)

    def states(self, flat: Any, data: Any) -> tuple[Any, Any]:
        """log p(z = k, data of z | parameters), `(discretes, states)`, and the rest of the log density."""
        params, _ = self._problem.kernel.constrain(self._problem.split(flat))
        kernel = self._problem.kernel
        nothing = jnp.zeros((self._count, self._widest))
        summed = kernel.component_densities(params, data, nothing)

        def pinned(state: Any) -> Any:
            only = jnp.where(jnp.arange(self._widest) == state, 0.0, -jnp.inf)
            return kernel.component_densities(params, data, nothing + only)[self._order]

        table = jax.vmap(pinned)(jnp.arange(self._widest)).T
        rest = self._problem.log_density(flat, data) - jnp.sum(summed)
        return jnp.where(self._known, table, -jnp.inf), rest

    def _bound(self, flat: Any, given: Any) -> Any:
        data, probabilities = given
        table, rest = self.states(flat, data)
        used = probabilities > 0
        expected = jnp.where(used, probabilities * jnp.where(used, table, 0.0), 0.0)
        spread = jnp.where(used, probabilities * jnp.log(jnp.where(used, probabilities, 1.0)), 0.0)
        return rest + jnp.sum(expected) - jnp.sum(spread)

    def value_and_gradient(self, points: Any, rows: Any, data: Any) -> tuple[Any, Any]:
        return jax.vmap(jax.value_and_grad(self._bound), (0, None))(points, data)

    def rows(self, rng: np.random.Generator, steps: int) -> None:
        return None

    def rows_like(self, steps: int) -> None:
        return None

    def anchor(self, point: np.ndarray, optimiser: Optimiser) -> None:
        self._update(np.broadcast_to(point, (DRAWS, len(point))))

    def follow(self, draw: Callable[[int], np.ndarray]) -> None:
        self._update(draw(DRAWS))

    def _averaged(self, points: Any, data: Any) -> Any:
        return jnp.mean(jax.vmap(lambda flat: self.states(flat, data)[0])(points), axis=0)

    def _update(self, points: np.ndarray) -> None:
        table = np.asarray(self._average(points, self._problem.data))
        weight = np.exp(table - table.max(axis=1, keepdims=True))
        self.restore(weight / weight.sum(axis=1, keepdims=True))

    def kept(self) -> np.ndarray:
        return self.probabilities

    def restore(self, kept: Any) -> None:
        self.probabilities = kept
        self.data = (self._problem.data, self.probabilities)

    def variables(self) -> Variables:
        """`{site: (axes and states, probabilities)}`."""
        kernel, out = self._problem.kernel, {}
        offsets = kernel.states.offsets
        for i, (name, site) in enumerate(kernel.program.discretes.items()):
            own = self.probabilities[offsets[i] : offsets[i + 1], : len(site.values)]
            out[name] = ((*site.dims, f"{name}_state"), own.reshape(*site.shape, len(site.values)))
            out[f"{name}_state"] = ((f"{name}_state",), np.asarray(site.values))
        return out
