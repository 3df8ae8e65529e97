"""Posterior prediction: the program run forward, once per draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpyro import handlers

from marginalia.errors import DataError, FitError, compose
from marginalia.ondraws import Params, count, flatten
from marginalia.precision import float64
from marginalia.tidy import array, site_dims

if TYPE_CHECKING:
    import xarray as xr

MAX_NUMBERS = 2e7  # predicted numbers kept in memory


def predict(
    program: Any,
    draws: dict[str, np.ndarray],
    args: tuple,
    kwargs: dict[str, Any],
    *,
    random_seed: int | None = None,
    limit: int | None = None,
) -> xr.Dataset:
    """New values of the observed sites, (chain, draw, *site shape), with the discretes behind them.

    Continuous latents have their values from the draws. Discretes are drawn forward from their own
    distribution (a new row's, not the fitted row's, membership), then the observed sites. `numpyro.factor`
    terms and `mask`/`scale` do not take part; where the program has factors, `attrs["factors"]` names them.

    Raises:
        FitError: A distribution of the program has no sampler.
        DataError: The new arguments ask for latents of another shape than those that were fitted.
    """
    chains, length = next(iter(draws.values())).shape[:2]
    params = flatten(draws, program.latents)
    factors: list[str] = []
    kept: list[str] = []

    def forward(key: jax.Array, one: Params) -> dict[str, jax.Array]:
        # Raw bits become a key here, whatever generator the user has set as JAX's default.
        seeded = handlers.seed(program.model, jax.random.wrap_key_data(key, impl="threefry2x32"))
        seeded = handlers.substitute(seeded, data=one)
        trace = handlers.trace(handlers.uncondition(seeded)).get_trace(*args, **kwargs)
        samples = {n: s for n, s in trace.items() if s["type"] == "sample"}
        _same_shapes(samples, one)
        factors[:] = [n for n, s in samples.items() if type(s["fn"]).__name__ == "Unit"]
        kept[:] = [n for n in samples if n not in one and n not in factors]
        return {n: samples[n]["value"] for n in kept}

    with float64():
        keys = np.random.default_rng(random_seed).integers(2**32, size=(count(params), 2), dtype=np.uint32)
        shapes = _refusing(lambda: jax.eval_shape(forward, keys[0], {n: v[0] for n, v in params.items()}))
        per_draw = max(1, sum(int(np.prod(s.shape)) for s in shapes.values()))
        most = max(1, int(MAX_NUMBERS / per_draw)) if limit is None else limit
        every = max(1, -(-count(params) // most))
        chosen = {n: v.reshape(chains, length, *v.shape[1:])[:, ::every] for n, v in params.items()}
        flat = flatten(chosen, chosen)
        values = jax.jit(jax.vmap(forward))(keys[: count(flat)], flat)
    return _dataset(program, {n: np.asarray(values[n]) for n in kept}, chains, factors, every)


def _refusing[T](run: Callable[[], T]) -> T:
    try:
        return run()
    except NotImplementedError as error:
        raise FitError(
            compose(
                "a distribution of this program has no sampler, so there is no prediction",
                where="predict()",
                got=f"NotImplementedError: {error}" if str(error) else "NotImplementedError",
                remedy="give the distribution a sample() method, or use distributions that have one.",
            )
        ) from error


def _same_shapes(samples: dict[str, Any], one: Params) -> None:
    for name, value in one.items():
        if name not in samples:
            raise DataError(
                compose(
                    "the program does not reach this site with the new data",
                    where=f"predict(), site {name!r}",
                )
            )
        fn = samples[name]["fn"]
        wanted = tuple(fn.batch_shape) + tuple(fn.event_shape)
        if wanted != tuple(np.shape(value)):
            raise DataError(
                compose(
                    "the new data change the shape of a continuous latent",
                    where=f"predict(), site {name!r}",
                    expected=f"the shape that was fitted, {tuple(np.shape(value))}",
                    got=str(wanted),
                    remedy="predict rows that share the fitted parameters, or fit with these data.",
                )
            )


def _dataset(program: Any, values: Params, chains: int, factors: list[str], every: int) -> xr.Dataset:
    import xarray as xr

    known = site_dims(program)
    variables = {}
    for name, value in values.items():
        value = value.reshape(chains, -1, *value.shape[1:])
        dims = known.get(name, [])
        dims = dims if len(dims) == value.ndim - 2 else [f"{name}_dim_{i}" for i in range(value.ndim - 2)]
        variables[name] = array(value, ["chain", "draw", *dims], name=name)
    out = xr.Dataset(variables)
    if "draw" in out.dims:
        out = out.assign_coords(draw=np.arange(out.sizes["draw"]) * every)
    out.attrs = {
        "discretes": "drawn forward from their own distribution, as for new rows",
        "factors": f"not applied: {', '.join(factors)}" if factors else "none",
        "every": every,
    }
    return out
