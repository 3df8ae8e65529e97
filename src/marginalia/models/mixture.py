"""Finite mixtures as plain NumPyro programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpyro
import numpyro.distributions as dist

from marginalia.errors import DataError, OptionError, compose
from marginalia.models.ready import Ready

NAME = "gaussian-mixture"
LARGEST = 1e150  # squares of larger values are infinite, those of smaller differences than its inverse are 0
FINEST = 1e-12  # spread in parts of the size: below it, four digits are left


def gaussian_mixture(y: Any, components: int = 2, *, columns: Sequence[str] = ()) -> Ready:
    """A mixture of normal components for the data `y`, with priors on the scale of these data.

    y[i] ~ sum over k of weights[k] Normal(mu[k], sd[k]), independent over columns within a component.

    `y` is (N,) or (N, D). The sites are `weights` (K,), `mu` and `sd` (K,) or (K, D), `z` (N,) and `y`.
    The priors are weights ~ Dirichlet(1, ..., 1), mu ~ Normal(mean, 2 s) and sd ~ LogNormal(log(s / K), 0.75)
    where mean and s are the mean and standard deviation of each column of `y`. They are taken once, here:
    calling the program with other rows changes no prior. `columns` names the columns of `y` and is only kept.

    Raises DataError for data that cannot be used, OptionError for a number of components below 1.

    >>> model = gaussian_mixture(np.array([1.0, 2.0, 9.0, 10.0]), components=2)
    >>> model.model_options["center"], model.model_name
    (5.5, 'gaussian-mixture')
    """
    values = _checked(y)
    _refuse_scales(values, columns)
    center, scale = values.mean(axis=0), values.std(axis=0)
    return from_options(components=components, center=center.tolist(), scale=scale.tolist(), columns=list(columns))


def _refuse_scales(values: np.ndarray, columns: Sequence[str]) -> None:
    """Refuse a column that has no scale, or one at which arithmetic ends."""
    for i, column in enumerate(values.reshape(len(values), -1).T):
        where = f"column {columns[i]!r}" if columns else f"column {i + 1} of y"
        with np.errstate(over="ignore"):
            largest, range_ = np.abs(column).max(), column.max() - column.min()
        if range_ == 0:
            what = "all values are the same, so they have no scale and no components"
            got = f"{len(values)} {'row' if len(values) == 1 else 'rows'}"
            raise DataError(compose(what, where=where, expected="at least two different values", got=got))
        if largest > LARGEST or range_ < 1 / LARGEST:
            what = "the square of a value, or of a difference, is no number any more"
            remedy = "give the column in other units, divided by a power of ten; or correct the value."
            expected = f"sizes up to {LARGEST:.0e} and differences from {1 / LARGEST:.0e}"
            got = f"a value of size {largest:.3g}, and a range of {range_:.3g}"
            raise DataError(compose(what, where=where, expected=expected, got=got, remedy=remedy))
        if column.std() <= FINEST * np.abs(column.mean()):
            what = "the values differ by so little beside their size that their digits do not suffice"
            got = f"a mean of {column.mean():.6g} and a range of {range_:.3g}"
            raise DataError(compose(what, where=where, got=got, remedy="subtract a constant, the least value, say."))


def from_options(
    *,
    components: int,
    center: float | Sequence[float],
    scale: float | Sequence[float],
    columns: Sequence[str] = (),
) -> Ready:
    """Make the mixture of `gaussian_mixture` from its options instead of from data.

    `center` and `scale` are numbers for data (N,), or have one number per column for data (N, D).
    """
    if isinstance(components, bool) or not isinstance(components, int) or components < 1:
        raise OptionError(
            compose(
                "a mixture needs a number of components",
                where="components",
                expected="a whole number from 1",
                got=repr(components),
            )
        )
    K = components
    location, spread = np.asarray(center, dtype=np.float64), np.asarray(scale, dtype=np.float64)
    # s / K: components lie side by side rather than on one another; 95 % of the prior within a factor of 4.3.
    # A log-normal keeps sd away from 0, where a component would collapse on one row with an endless density.
    log_sd = np.log(spread / K)

    def mixture_1d(y: Any = None, n: int = 1) -> None:
        n = n if y is None else len(y)
        weights = numpyro.sample("weights", dist.Dirichlet(np.ones(K)))
        with numpyro.plate("component", K):
            mu = numpyro.sample("mu", dist.Normal(location, 2.0 * spread))
            sd = numpyro.sample("sd", dist.LogNormal(log_sd, 0.75))
        with numpyro.plate("obs", n):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("y", dist.Normal(mu[z], sd[z]), obs=y)

    def mixture(y: Any = None, n: int = 1) -> None:
        n = n if y is None else len(y)
        weights = numpyro.sample("weights", dist.Dirichlet(np.ones(K)))
        with numpyro.plate("component", K, dim=-2), numpyro.plate("dim", len(location), dim=-1):
            mu = numpyro.sample("mu", dist.Normal(location, 2.0 * spread))
            sd = numpyro.sample("sd", dist.LogNormal(log_sd, 0.75))
        with numpyro.plate("obs", n):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("y", dist.Normal(mu[z], sd[z]).to_event(1), obs=y)

    options = {"components": K, "center": center, "scale": scale, "columns": list(columns)}
    return Ready(NAME, options, mixture if location.ndim else mixture_1d)


def _checked(y: Any) -> np.ndarray:
    try:
        values = np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(compose("the data are not numbers", where="y", got=str(error))) from error
    if values.ndim not in (1, 2) or values.size == 0:
        raise DataError(
            compose(
                "the data have a wrong shape",
                where="y",
                expected="(rows,) or (rows, columns), with at least one row",
                got=str(values.shape),
            )
        )
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise DataError(
            compose(
                "the data hold a value that is not a finite number",
                where=f"y{bad[0].tolist()}",
                got=str(values[tuple(bad[0])]),
                remedy="remove the rows with such values, or correct them.",
            )
        )
    return values
