"""The posterior of the data's density on a grid: mean, 89 % band, and the part of each component."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from marginalia.errors import DataError, FitError, ModelError, compose
from marginalia.ondraws import OnDraws, Params, count, thin
from marginalia.summary import PROBABILITY

if TYPE_CHECKING:
    import xarray as xr

POINTS_1D = 256
POINTS_2D = 56  # a side
CHECKED_ROWS = 12
DRAWS_1D = 500
DRAWS_2D = 200


def density(engine: OnDraws, params: Params) -> xr.Dataset:
    """p(y | data) on a grid over the observed values, averaged over the draws.

    For one observed site of shape (N,) or (N, 1): variables `mean`, `lower`, `upper` over `grid`, and `part`
    over (`component`, `grid`), what each value of the discrete adds, where there is one discrete a row. For
    (N, 2): `mean` over (`y0`, `y1`).

    The program is called again with the grid in place of the data, and with some of the data's own rows,
    whose density has to be what it was: so a density that depends on the other rows is never drawn.

    Raises:
        FitError: The density of a row is not a function of one or two numbers, or depends on other rows.
    """
    name, value = _observed(engine)
    rows = np.linspace(0, len(value) - 1, min(CHECKED_ROWS, len(value))).round().astype(int)
    axes = _axes(value)
    points = axes[0] if len(axes) == 1 else np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    points = points.reshape(-1, *value.shape[1:])
    on_grid = OnDraws(_rebind(engine, name, np.concatenate([points, value[rows]])))
    params = thin(params, DRAWS_1D if len(axes) == 1 else DRAWS_2D)
    unit, likelihood = _likelihood(on_grid, params, len(points) + len(rows))
    _check_rows(engine, params, unit, likelihood[:, len(points) :], rows)
    p = np.exp(likelihood[:, : len(points)])
    return _dataset_1d(on_grid, params, axes[0], p) if len(axes) == 1 else _dataset_2d(axes, p)


def _dataset_1d(on_grid: OnDraws, params: Params, grid: np.ndarray, p: np.ndarray) -> xr.Dataset:
    import xarray as xr

    tail = (1 - PROBABILITY) / 2
    lower, upper = np.quantile(p, [tail, 1 - tail], axis=0)
    out: dict[str, Any] = {
        "mean": ("grid", p.mean(axis=0)),
        "lower": ("grid", lower),
        "upper": ("grid", upper),
    }
    coords: dict[str, Any] = {"grid": grid}
    discretes = on_grid.program.discretes
    if len(discretes) == 1:
        ((name, site),) = discretes.items()
        if len(site.shape) == 1 and site.shape[0] >= len(grid):
            part, start = 0.0, 0
            for block in on_grid.posterior(params):
                q = block[name][:, : len(grid)]
                part = part + (p[start : start + len(q), :, None] * q).sum(axis=0)
                start += len(q)
            out["part"] = (("component", "grid"), np.transpose(part) / count(params))
            coords["component"] = np.asarray(site.values)
    return xr.Dataset(out, coords=coords, attrs={"draws": count(params), "probability": PROBABILITY})


def _dataset_2d(axes: list[np.ndarray], p: np.ndarray) -> xr.Dataset:
    import xarray as xr

    mean = p.mean(axis=0).reshape(len(axes[0]), len(axes[1]))
    return xr.Dataset({"mean": (("y0", "y1"), mean)}, coords={"y0": axes[0], "y1": axes[1]}, attrs={"draws": len(p)})


def _refuse(what: str, **parts: str) -> FitError:
    return FitError(compose(what, where="plot.density()", **parts))


def _observed(engine: OnDraws) -> tuple[str, np.ndarray]:
    observed = engine.program.observed
    if len(observed) != 1:
        raise _refuse("the density is drawn for one observed site", got=f"{len(observed)}: {', '.join(observed)}")
    ((name, site),) = observed.items()
    value = np.asarray(site.value)
    if value.ndim not in (1, 2) or (value.ndim == 2 and value.shape[1] > 2) or len(value) < 2:
        raise _refuse(
            "the density is drawn in one or two dimensions",
            expected="at least two rows, (N,) or (N, 2)",
            got=str(value.shape),
        )
    return name, value


def _axes(value: np.ndarray) -> list[np.ndarray]:
    columns = value.reshape(len(value), -1).T
    axes = []
    for column in columns:
        if column.dtype.kind in "iub" and len(columns) == 1:
            axes.append(np.unique(np.linspace(column.min(), column.max(), POINTS_1D).round().astype(int)))
            continue
        low, high = float(column.min()), float(column.max())
        margin = (0.12 if len(columns) == 1 else 0.2) * (high - low) or 1.0
        axes.append(np.linspace(low - margin, high + margin, POINTS_1D if len(columns) == 1 else POINTS_2D))
    return axes


def _rebind(engine: OnDraws, name: str, new: np.ndarray) -> Any:
    """The marginal of the same program with `new` in place of the observed rows."""
    program = engine.program
    old = np.asarray(program.observed[name].value)
    replaced = False

    def swap(arg: Any) -> Any:
        nonlocal replaced
        if isinstance(arg, int) and not isinstance(arg, bool) and arg == len(old):
            return len(new)
        shape = np.shape(arg)
        if shape == old.shape and np.array_equal(np.asarray(arg), old):
            replaced = True
            return new
        if shape and shape[0] == len(old):
            raise _refuse("the density of a row depends on its other data too, so it is not one curve")
        return arg

    args = [swap(a) for a in program.args]
    kwargs = {k: swap(v) for k, v in program.kwargs.items()}
    if not replaced:
        raise _refuse(
            f"no argument of the program is the observed data of site {name!r}",
            remedy="give the data as an argument of the model, as they are observed.",
        )
    try:
        return engine.marginal.rebind(*args, **kwargs)
    except (DataError, ModelError) as error:
        raise _refuse(f"the program cannot be called with other rows ({error})") from error


def _likelihood(on_grid: OnDraws, params: Params, rows: int) -> tuple[str, np.ndarray]:
    parts: list[np.ndarray] = []
    for block in on_grid.log_likelihood(params):
        ((unit, value), *more) = block.items()
        # A single column stays an axis of the unit.
        if more or value.shape[1:] not in ((rows,), (rows, 1)):
            raise _refuse("the rows are not independent of each other, given the parameters")
        parts.append(value.reshape(len(value), rows))
    return unit, np.concatenate(parts)


def _check_rows(engine: OnDraws, params: Params, unit: str, found: np.ndarray, rows: np.ndarray) -> None:
    few = thin(params, 3)
    index = np.linspace(0, count(params) - 1, count(few)).round().astype(int)
    # With many rows one block does not hold these draws.
    parts = [block[unit][:, rows].reshape(-1, len(rows)) for block in engine.log_likelihood(few) if unit in block]
    if not parts or not np.allclose(np.concatenate(parts), found[index], rtol=1e-6, atol=1e-8):
        raise _refuse("the density of a row depends on the other rows, so it is not one curve")
