"""A marginal's functions on many draws at once: one block size, so one compilation each.

Draws go through in blocks of a fixed size (the last one is padded), so memory grows neither with the number
of draws nor with rows times components times draws, and a second call with other draws compiles nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import jax
import numpy as np

from marginalia.precision import float64

BLOCK_NUMBERS = 2_000_000  # numbers in the largest table of one block: 16 MB
MAX_BLOCK = 128

Params = dict[str, np.ndarray]


class OnDraws:
    """The pure functions of `marginal.kernel`, vectorised over a leading axis of draws.

    `params` is `{latent: (S, *site shape)}`. Every method yields or returns NumPy arrays with that leading
    axis.
    """

    def __init__(self, marginal: Any):
        self.marginal = marginal
        self.kernel = marginal.kernel
        self.program = marginal.program
        self._programs: dict[Any, Any] = getattr(self.kernel, "compiled", {})
        self.block = max(1, min(MAX_BLOCK, BLOCK_NUMBERS // max(1, table_size(self.program))))

    @cached_property
    def _data(self) -> Any:
        with float64():
            return jax.device_put(self.kernel.data)

    def _program(self, name: str, one: Callable) -> Callable:
        """A function of one draw on a block of draws, compiled once for all equal programs."""
        return self._programs.setdefault(("of draws", name), jax.jit(jax.vmap(one, in_axes=(0, None))))

    @cached_property
    def _log_density(self) -> Callable:
        # A support that moves with other latents cannot be asked here; the density alone decides then.
        fixed = getattr(self.program, "fixed_supports", True)
        supports = {name: site.support for name, site in self.program.latents.items() if fixed}

        def one(params: dict, data: Any) -> jax.Array:
            inside: Any = True
            for name, support in supports.items():
                inside = inside & jax.numpy.all(support(params[name]))
            return jax.numpy.where(inside, self.kernel.log_density(params, data), -jax.numpy.inf)

        return self._program("log density", one)

    @cached_property
    def _log_likelihood(self) -> Callable:
        return self._program("log_likelihood", self.kernel.log_likelihood)

    @cached_property
    def _posterior(self) -> Callable:
        return self._program("posterior", self.kernel.posterior)

    def log_density(self, params: Params) -> np.ndarray:
        """log p(observed, params) of each draw, shape (S,); -inf outside the support of a latent."""
        problem = self._programs.get(("problem", True)) or self._programs.get(("problem", False))
        if problem is not None:  # what sampling has compiled already
            with float64():
                return problem.density_of({name: np.asarray(v, float) for name, v in params.items()})
        return np.concatenate(list(self._blocks(self._log_density, params)))

    def prior(self, number: int, *, random_seed: int = 0) -> Params:
        """Draws of the continuous latents from the prior: `{latent: (number, *shape)}`."""
        bits = np.random.default_rng(random_seed).integers(2**32, size=(number, 2), dtype=np.uint32)
        with float64():
            return self.kernel.draw_prior(bits)

    def complete(self, params: Params) -> OnDraws:
        """The same with the discretes that no data reach too, as much of endless ones as the draws need."""
        if not getattr(self.kernel, "unread", ()):
            return self
        complete = self.marginal.complete
        return OnDraws(complete.covering(params) if complete.endless else complete)

    def posterior(self, params: Params) -> Iterator[dict[str, np.ndarray]]:
        """P(z = k | observed, params) block by block: `{discrete: (block, *site shape, K)}`."""
        complete = self.complete(params)
        if complete is not self:
            return complete.posterior(params)
        return self._blocks(self._posterior, params)

    @cached_property
    def numbers_of_likelihood(self) -> int:
        """How many numbers the log likelihood of one draw has."""
        with float64():
            shapes = {n: jax.ShapeDtypeStruct(s.shape, float) for n, s in self.program.latents.items()}
            found = jax.eval_shape(self.kernel.log_likelihood, shapes, self.kernel.data)
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(found))

    def log_likelihood(self, params: Params) -> Iterator[dict[str, np.ndarray]]:
        """Log likelihood of every independent unit, block by block: `{unit: (block, *unit shape)}`."""
        return self._blocks(self._log_likelihood, params)

    def _blocks(self, function: Callable, params: Params) -> Iterator[Any]:
        size = count(params)
        for start in range(0, size, self.block):
            rows = np.minimum(np.arange(start, start + self.block), size - 1)
            with float64():
                out = function({name: np.asarray(v, float)[rows] for name, v in params.items()}, self._data)
                out = jax.tree.map(np.asarray, out)
            keep = min(self.block, size - start)
            yield jax.tree.map(lambda a, keep=keep: a[:keep], out)


def table_size(program: Any) -> int:
    """Numbers in the largest per-draw table: elements times support size, or observed elements."""
    tables = [math.prod(d.shape) * len(d.values) for d in program.discretes.values()]
    return max([1, *tables, *(math.prod(o.shape) for o in program.observed.values())])


def count(params: Params) -> int:
    """The number of draws."""
    return len(next(iter(params.values())))


def flatten(draws: Params, names: Any) -> Params:
    """(chain, draw, ...) to (chain * draw, ...) for the named sites."""
    return {name: np.asarray(draws[name]).reshape(-1, *np.shape(draws[name])[2:]) for name in names}


def thin(params: Params, limit: int) -> Params:
    """At most `limit` draws, evenly spaced over all chains."""
    size = count(params)
    if size <= limit:
        return params
    rows = np.linspace(0, size - 1, max(1, limit)).round().astype(int)
    return {name: value[rows] for name, value in params.items()}
