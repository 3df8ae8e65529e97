"""A fit as one netCDF file, and back."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from marginalia import __version__
from marginalia.errors import DataError, compose

if TYPE_CHECKING:
    import xarray as xr

FORMAT = 1
KEY = "marginalia"


def versions() -> dict[str, str]:
    """Versions of everything that the numbers depend on."""
    found = {"marginalia": __version__, "python": platform.python_version()}
    for name in ("jax", "numpyro", "numpy", "scipy", "arviz", "xarray"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write(path: str | Path, tree: xr.DataTree, about: dict[str, Any]) -> Path:
    """Write the tree with `about` (JSON types) among its attributes; whole or not at all.

    Raises:
        DataError: The folder does not exist or cannot be written.
    """
    path = Path(path)
    tree = tree.copy()
    tree.attrs[KEY] = json.dumps({"format": FORMAT, **about}, default=_plain)
    with whole(path) as temporary:
        tree.to_netcdf(temporary, engine="h5netcdf")
    return path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new file beside `path` that takes its place when the block ends well, and is gone when it does not.

    Raises:
        DataError: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            compose("the file cannot be written", where=str(path), got=str(error), remedy="choose another folder.")
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[xr.DataTree, dict[str, Any]]:
    """The tree in memory and what `write` was told about it.

    Raises:
        DataError: There is no such file, it is damaged, or marginalia did not write it.
    """
    import xarray as xr

    path = Path(path)
    if not path.is_file():
        raise DataError(compose("there is no such file", where=str(path), remedy="give the path of a saved fit."))
    try:
        with xr.open_datatree(path, engine="h5netcdf") as opened:
            tree = opened.load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(
            compose(
                "this is not a netCDF file, or it is damaged",
                where=str(path),
                got=f"{type(error).__name__}: {error}",
                remedy="save the fit again; marginalia.load() reads what fit.save() wrote.",
            )
        ) from error
    try:
        about = json.loads(tree.attrs[KEY])
        number = int(about["format"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            compose(
                "marginalia did not write this file",
                where=str(path),
                remedy="open it with arviz.from_netcdf(); marginalia.load() reads what fit.save() wrote.",
            )
        ) from error
    if number > FORMAT or "posterior" not in tree.children:
        raise DataError(
            compose(
                "this file cannot be read by this version",
                where=str(path),
                expected=f"format up to {FORMAT} with a posterior",
                got=f"format {number} of marginalia {about.get('versions', {}).get('marginalia', '?')}",
                remedy="install the marginalia that wrote it.",
            )
        )
    return tree, about


def arrays(tree: xr.DataTree, group: str) -> dict[str, np.ndarray]:
    """The variables of a group as NumPy arrays; none if there is no such group."""
    if group not in tree.children:
        return {}
    return {str(name): np.asarray(value.values) for name, value in tree[group].data_vars.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)
