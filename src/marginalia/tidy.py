"""Names for axes, and the ArviZ tree of a fit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


def component_dim(program: Any, discrete: str) -> str:
    """The name of a discrete's states: the plate that holds one parameter a state, else "<discrete>_state".

    A plate is taken when it is the only one of the right size that no other discrete or observed site lies
    in.
    """
    site = program.discretes[discrete]
    used = {d for s in (*program.discretes.values(), *program.observed.values()) for d in s.dims}
    plates = {
        dim
        for latent in program.latents.values()
        for dim, size in zip(latent.dims, latent.shape, strict=True)
        if size == len(site.values) and dim not in used and not re.search(r"_dim_\d+$", dim)
    }
    return plates.pop() if len(plates) == 1 else f"{discrete}_state"


def site_dims(program: Any) -> dict[str, list[str]]:
    """Axis names of every site; a repeated name (which xarray refuses) gets a number."""
    groups = (program.latents, program.discretes, program.observed, getattr(program, "deterministics", {}))
    return {name: unique(site.dims) for group in groups for name, site in group.items() if hasattr(site, "dims")}


def unique(dims: tuple[str, ...]) -> list[str]:
    out: list[str] = []
    for dim in dims:
        name, n = dim, 2
        while name in out:
            name, n = f"{dim}_{n}", n + 1
        out.append(name)
    return out


def array(value: np.ndarray, dims: list[str], *, coords: dict[str, Any] | None = None, name: str) -> xr.DataArray:
    """A DataArray with integer coordinates, or those given, on every axis."""
    import xarray as xr

    value = np.asarray(value)
    numbered = {d: np.arange(n) for d, n in zip(dims, value.shape, strict=True)}
    return xr.DataArray(value, dims=dims, coords={**numbered, **(coords or {})}, name=name)


def tree(program: Any, groups: dict[str, dict[str, np.ndarray]], attrs: dict[str, str]) -> xr.DataTree:
    """The groups as an ArviZ DataTree. Draws are (chain, draw, ...); groups named "...data" have neither."""
    import xarray as xr

    dims = site_dims(program)
    built = {}
    for group, values in groups.items():
        lead = [] if "data" in group else ["chain", "draw"]
        built[group] = xr.Dataset(
            {n: array(v, lead + _dims(dims, n, np.ndim(v) - len(lead)), name=n) for n, v in values.items()},
            attrs={"sample_dims": lead} if lead else {},
        )
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **{f"/{g}": ds for g, ds in built.items()}})


def _dims(known: dict[str, list[str]], name: str, ndim: int) -> list[str]:
    dims = known.get(name)
    return dims if dims is not None and len(dims) == ndim else [f"{name}_dim_{i}" for i in range(ndim)]


def group(name: str, values: dict[str, np.ndarray], like: xr.DataTree) -> xr.DataTree:
    """Arrays with the axes and coordinates of the same variables in another group."""
    import xarray as xr

    known = like.data_vars
    variables = {n: known[n].copy(data=v) for n, v in values.items() if n in known}
    return xr.DataTree(xr.Dataset(variables), name=name)


def dataset(arrays: dict[str, xr.DataArray]) -> xr.DataTree:
    import xarray as xr

    return xr.DataTree(xr.Dataset(arrays))


def variables(values: dict[str, tuple[tuple[str, ...], np.ndarray]]) -> xr.DataTree:
    """A group of arrays with the axes that they name; one named like its only axis labels that axis."""
    import xarray as xr

    return xr.DataTree(xr.Dataset(values))


def read_variables(tree: xr.DataTree) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """What `variables` was given."""
    found = {**tree.data_vars, **tree.coords}
    return {str(name): (tuple(map(str, value.dims)), np.asarray(value.values)) for name, value in found.items()}


def arguments(values: list[np.ndarray]) -> xr.DataTree:
    """A model's arguments as variables arg0, arg1, ..."""
    import xarray as xr

    variables = {f"arg{i}": ([f"arg{i}_dim_{j}" for j in range(v.ndim)], v) for i, v in enumerate(values)}
    return xr.DataTree(xr.Dataset(variables))


def read_arguments(tree: xr.DataTree) -> list[np.ndarray]:
    return [np.asarray(tree[f"arg{i}"].values) for i in range(len(tree.data_vars))]
