"""What follows from the draws: deterministics, and joint draws of the discretes that were summed out."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.jaxpr.reads import dependencies
from marginalia.ondraws import OnDraws, count, flatten
from marginalia.precision import float64
from marginalia.tidy import array, site_dims

if TYPE_CHECKING:
    import xarray as xr

MAX_NUMBERS = 2e7  # recovered numbers kept in memory


class Recovery:
    """The deterministics of one program, and its discretes, as functions of draws of its continuous latents.

    Attributes:
        plain: Deterministics that read no discrete.
        reading: Deterministics that do: they have a value only where the discretes have been drawn.
    """

    def __init__(self, engine: OnDraws):
        self._engine = engine
        self._program = engine.program
        names = list(self._program.deterministics)
        read = self._reads(names)
        first = len(self._program.latents)
        self.plain = [n for n, of in zip(names, read, strict=True) if all(i < first for i in of)]
        self.reading = [n for n in names if n not in self.plain]

    def _values(self, names: list[str], values: dict[str, Any]) -> list[Any]:
        sites = self._program.trace(values)
        return [jnp.asarray(sites[name]["value"]) for name in names]

    def _reads(self, names: list[str]) -> list[set[int]]:
        """Which latents and discretes, in this order, each deterministic depends on."""
        if not names:
            return []
        program = self._program
        order = [*program.latents, *program.discretes]

        def run(*values: Any) -> list[Any]:
            return self._values(names, dict(zip(order, values, strict=True)))

        with float64():
            real = [jax.ShapeDtypeStruct(s.shape, jnp.result_type(float)) for s in program.latents.values()]
            whole = [jax.ShapeDtypeStruct(s.shape, jnp.result_type(int)) for s in program.discretes.values()]
            return dependencies(jax.make_jaxpr(run)(*real, *whole).jaxpr)

    @cached_property
    def _plain(self) -> Callable[..., Any]:
        def one(params: dict[str, Any]) -> dict[str, Any]:
            # Any state will do for the discretes: what is wanted reads none.
            states = {n: jnp.full(d.shape, d.values[0]) for n, d in self._program.discretes.items()}
            return dict(zip(self.plain, self._values(self.plain, {**params, **states}), strict=True))

        return jax.jit(jax.vmap(one))

    @cached_property
    def _joint(self) -> Callable[..., Any]:
        kernel, names = self._engine.kernel, [*self.plain, *self.reading]

        def one(params: dict[str, Any], bits: Any, data: Any) -> dict[str, Any]:
            states = kernel.sample(params, data, jax.random.wrap_key_data(bits, impl="threefry2x32"))
            values = self._values(names, {**params, **states}) if names else []
            return {**states, **dict(zip(names, values, strict=True))}

        return jax.jit(jax.vmap(one, in_axes=(0, 0, None)))

    def deterministics(self, draws: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
        """Those that read no discrete, `{name: (chain, draw, *shape)}`, and those left out because of their size."""
        chains, length = np.shape(next(iter(draws.values())))[:2]
        sizes = {n: math.prod(self._program.deterministics[n].shape) * chains * length for n in self.plain}
        kept = [n for n in self.plain if sizes[n] <= MAX_NUMBERS]
        if not kept:
            return {}, list(self.plain)
        found: dict[str, list[np.ndarray]] = {}
        params = flatten(draws, self._program.latents)
        block = max(1, int(MAX_NUMBERS / 10 / max(1, *(sizes[n] // (chains * length) for n in self.plain))))
        with float64():
            for start in range(0, count(params), block):
                values = self._plain({n: v[start : start + block] for n, v in params.items()})
                for n in kept:
                    found.setdefault(n, []).append(np.asarray(values[n]))
        return {n: np.concatenate(parts).reshape(chains, length, *parts[0].shape[1:]) for n, parts in found.items()}, [
            n for n in self.plain if n not in kept
        ]

    def joint(self, draws: dict[str, np.ndarray], number: int | None, random_seed: int | None) -> xr.Dataset:
        """Joint posterior draws of all discretes, with every deterministic: (chain, draw, *site shape).

        `number` draws in all, evenly spaced; None for all that fit in memory.
        """
        import xarray as xr

        program = self._program
        chains, length = np.shape(next(iter(draws.values())))[:2]
        shapes = [s.shape for s in (*program.discretes.values(), *program.deterministics.values())]
        each = sum(math.prod(shape) for shape in shapes)
        most = max(1, int(MAX_NUMBERS / max(each, 1))) if number is None else number
        per_chain = max(1, min(length, most // chains))
        rows = np.linspace(0, length - 1, per_chain).round().astype(int)
        params = flatten({n: np.asarray(draws[n])[:, rows] for n in program.latents}, program.latents)
        bits = np.random.default_rng(random_seed).integers(2**32, size=(count(params), 2), dtype=np.uint32)
        parts: dict[str, list[np.ndarray]] = {}
        with float64():
            data = jax.device_put(self._engine.kernel.data)
            for start in range(0, count(params), self._engine.block):
                # One block size, so one compilation: the last block is filled up with its last row.
                take = np.minimum(np.arange(start, start + self._engine.block), count(params) - 1)
                values = self._joint({n: v[take] for n, v in params.items()}, bits[take], data)
                keep = min(self._engine.block, count(params) - start)
                for n, value in values.items():
                    parts.setdefault(n, []).append(np.asarray(value)[:keep])
        dims = site_dims(program)
        arrays = {}
        for n in (*program.discretes, *program.deterministics):
            value = np.concatenate(parts[n])
            value = value.reshape(chains, per_chain, *value.shape[1:])
            arrays[n] = array(value, ["chain", "draw", *dims[n]], coords={"draw": rows}, name=n)
        return xr.Dataset(arrays, attrs={"draws": per_chain * chains, "draws_in_fit": chains * length})
