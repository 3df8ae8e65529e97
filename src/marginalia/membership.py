"""P(z = k | data) averaged over the draws, for the rows of the fit or for new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from marginalia.errors import FitError, compose
from marginalia.ondraws import OnDraws, Params, count, table_size, thin
from marginalia.tidy import array, component_dim, unique

if TYPE_CHECKING:
    import xarray as xr

THINNED_DRAWS = 1000
WORK = 2e8  # draws x rows x components above which the draws are thinned


def membership(engine: OnDraws, params: Params) -> dict[str, xr.DataArray]:
    """`{discrete: DataArray (*site dims, states)}`: posterior mean over draws of P(z = k | observed, draw).

    `engine` holds the marginal of the rows in question, `params` is `{latent: (S, *shape)}`. Summed block by
    block: memory is rows x states, whatever the number of draws. Where that many draws would be a lot of
    work, about 1000 evenly spaced ones are used; `attrs["draws"]` says how many.
    """
    program = engine.program
    if not program.discretes:
        raise FitError(
            compose("this program has no discrete latent, so there is no membership", remedy="see fit.summary().")
        )
    size = count(params)
    if size * table_size(program) > WORK:
        params = thin(params, THINNED_DRAWS)
    engine = engine.complete(params)
    program = engine.program
    total: dict[str, np.ndarray] = {}
    for block in engine.posterior(params):
        for name, value in block.items():
            total[name] = total.get(name, 0.0) + value.sum(axis=0)
    used = count(params)
    out = {}
    for name, value in total.items():
        site = program.discretes[name]
        states = component_dim(program, name)
        dims = unique((*site.dims, states))
        out[name] = array(value / used, dims, coords={dims[-1]: np.asarray(site.values)}, name=name)
        out[name].attrs = {"draws": used, "draws_in_fit": size, "long_name": f"P({name} = {states} | data)"}
    return out


def most_probable(memberships: dict[str, xr.DataArray]) -> dict[str, xr.DataArray]:
    """Each element's most probable value, one by one: not the jointly most probable values."""
    out = {}
    for name, value in memberships.items():
        states = value.dims[-1]
        label = value.idxmax(dim=states).astype(value[states].dtype)
        out[name] = label.drop_attrs().rename(name)
    return out
