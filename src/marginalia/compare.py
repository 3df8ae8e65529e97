"""Leave-one-out cross-validation from the per-unit log likelihood, within a memory limit."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from marginalia.errors import FitError, OptionError, compose
from marginalia.infer.check import convergence
from marginalia.ondraws import OnDraws, Params, count, flatten, thin

STORED_NUMBERS = 2e7  # draws x units that a fit keeps; above, they are computed when they are asked for
MOST_DRAWS = 1000
MOST_UNITS = 5_000  # PSIS costs about a millisecond a unit


def log_likelihood(engine: OnDraws, draws: Params, *, limit: float = STORED_NUMBERS) -> dict[str, np.ndarray] | None:
    """`{unit: (chain, draw, *unit shape)}`, or None where that would be more than `limit` numbers."""
    params = flatten(draws, engine.program.latents)
    chains = np.shape(next(iter(draws.values())))[0]
    if engine.numbers_of_likelihood * count(params) > limit:
        return None
    parts: dict[str, list[np.ndarray]] = {}
    for block in engine.log_likelihood(params):
        for name, value in block.items():
            parts.setdefault(name, []).append(value)
    joined = {name: np.concatenate(value) for name, value in parts.items()}
    return {name: value.reshape(chains, -1, *value.shape[1:]) for name, value in joined.items()}


def loo(engine: OnDraws | None, draws: Params, kept: dict[str, np.ndarray] | None, *, unit: str | None = None) -> Any:
    """PSIS-LOO of all independent units (or those of one name), as ArviZ's `ELPDData` with pointwise values.

    A unit is what is independent of the rest given the parameters: a row, or the rows that share a discrete.
    `kept` is the stored log likelihood. Without it, at most 1000 evenly spaced draws are used and, where
    these are still too many numbers, an evenly spread sample of the units, scaled up by the difference
    estimator of Magnusson et al. (2020, "Leave-one-out cross-validation for Bayesian model comparison in
    large data"): the result's attribute `units_used` says how many units were computed exactly, and its `se`
    includes the error of the sampling.

    Raises:
        FitError: There is one draw only, or one unit only.
        OptionError: No unit has that name.
    """
    chains, length = np.shape(next(iter(draws.values())))[:2]
    if chains * length < 50:
        raise FitError(
            compose(
                "leave-one-out needs draws from the posterior",
                where="loo()",
                expected="at least 50 draws",
                got=str(chains * length),
                remedy='fit with method="nuts" and more draws.',
            )
        )
    if kept is None:
        if engine is None:
            raise FitError(compose("the log likelihood was not stored and the model is not here", where="loo()"))
        return _on_demand(engine, flatten(draws, engine.program.latents), unit, reff=_reff(draws))
    values = _named(kept, unit)
    ary = np.concatenate([v.reshape(chains, length, -1) for v in values], axis=2)
    _enough_units(ary.shape[2])
    return _psis(ary.reshape(chains * length, -1), _reff(draws))


def _named(values: dict[str, np.ndarray], unit: str | None) -> list[np.ndarray]:
    if unit is not None and unit not in values:
        raise OptionError(compose(f"no unit is called {unit!r}", where="loo()", expected=f"one of {sorted(values)}"))
    return [values[unit]] if unit is not None else list(values.values())


def _enough_units(number: int) -> None:
    if number < 2:
        raise FitError(
            compose(
                "leave-one-out needs at least two independent units",
                where="loo()",
                got=f"{number}: every row depends on every other row, given the parameters",
                remedy="compare such models by prediction of held-out data.",
            )
        )


def _on_demand(engine: OnDraws, params: Params, unit: str | None, *, reff: float) -> Any:
    params = thin(params, MOST_DRAWS)
    centre = {n: v.mean(axis=0, keepdims=True) for n, v in params.items()}
    # A draw near the middle of the posterior, not the mean: a mean may leave a constraint (a simplex).
    nearest = int(np.argmin(sum(_distance(params[n], centre[n]) for n in params)))
    middle = next(engine.log_likelihood({n: v[nearest : nearest + 1] for n, v in params.items()}))
    rough = np.concatenate([v.reshape(-1) for v in _named(middle, unit)])
    N = rough.size
    _enough_units(N)
    units = np.linspace(0, N - 1, min(N, MOST_UNITS)).round().astype(int)
    parts = []
    for block in engine.log_likelihood(params):
        chosen = _named(block, unit)
        parts.append(np.concatenate([v.reshape(len(v), -1) for v in chosen], axis=1)[:, units])
    out = _psis(np.concatenate(parts), reff)
    m = units.size
    if m == N:
        return out
    elpd_i = out.elpd_i.values
    difference = elpd_i - rough[units]
    out.n_data_points = N
    out.elpd = float(rough.sum() + N * difference.mean())
    sampling = N**2 * (1 - m / N) * difference.var(ddof=1) / m
    out.se = float(np.sqrt(N * elpd_i.var() + sampling))
    out.p *= N / m
    return out


def _distance(value: np.ndarray, centre: np.ndarray) -> np.ndarray:
    scale = value.std(axis=0, keepdims=True)
    return (((value - centre) / np.where(scale > 0, scale, 1.0)) ** 2).reshape(len(value), -1).sum(axis=1)


def _reff(draws: Params) -> float:
    """Relative efficiency of the draws: mean bulk effective sample size of the parameters by number."""
    shape = np.shape(next(iter(draws.values())))[:2]
    if shape[0] < 2:
        return 1.0
    flat = np.concatenate([np.ravel(bulk) for _, bulk, _ in convergence(draws).values()])
    flat = flat[np.isfinite(flat)]
    return float(np.clip(flat.mean() / (shape[0] * shape[1]), 1e-3, 1.0)) if flat.size else 1.0


def _psis(ary: np.ndarray, reff: float) -> Any:
    """ArviZ's LOO of (S, units), pointwise values included."""
    import xarray as xr
    from arviz_stats import loo as arviz_loo  # type: ignore[attr-defined]

    likelihood = xr.Dataset({"log_likelihood": (("chain", "draw", "unit"), ary[None])})
    data = xr.DataTree.from_dict({"/log_likelihood": likelihood})
    with warnings.catch_warnings(record=True):  # the same is in the result: `warning` and `pareto_k`
        warnings.simplefilter("always")
        out = arviz_loo(data, pointwise=True, reff=reff)
    out.units_used = ary.shape[1]
    return out
