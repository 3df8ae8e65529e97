"""Files that the command writes: each appears whole, under a temporary name first, or not at all."""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from marginalia.data import Table
from marginalia.errors import OptionError, compose

if TYPE_CHECKING:
    import xarray as xr

Writer = Callable[[Path], object]


def prepare_folder(path: Path) -> Path:
    """Make the output folder before the long run, so that a bad name is known at once.

    Raises OptionError if there is a file of that name; OSError if the folder cannot be made or written to.
    """
    if path.exists() and not path.is_dir():
        raise OptionError(
            compose("there is a file of that name", where=f"--out {path}", remedy="name a folder, new or old.")
        )
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        return path


def prepare_file(path: Path, option: str = "--out") -> Path:
    """Check the name of an output file before the work. Raises OptionError if it cannot be one."""
    if path.is_dir():
        raise OptionError(compose("this is a folder", where=f"{option} {path}", remedy="name a file in it."))
    if not path.parent.is_dir():
        raise OptionError(compose("there is no such folder", where=f"{option} {path}", remedy="make the folder first."))
    return path


def write_all(folder: Path, writers: Mapping[str, Writer]) -> list[Path]:
    """Write files into a folder: those of the same names are replaced, all others left alone.

    Each is in its place as soon as it is complete. Old files of the other names are removed before the first, so that
    a folder never holds the results of two runs, even if a writer fails or the process is killed on its way.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".marginalia-") as draft:
        for done, (name, write) in enumerate(writers.items()):
            write(Path(draft) / name)
            if not done:
                for other in writers:
                    (folder / other).unlink(missing_ok=True)
            (Path(draft) / name).replace(folder / name)
    return [folder / name for name in writers]


def write_csv(path: Path | None, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, or to stdout for None."""
    if path is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows([header, *rows])
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def membership_rows(table: Table, memberships: Mapping[str, xr.DataArray]) -> tuple[list[str], Iterator[list[Any]]]:
    """Lay memberships out beside the table they belong to: (header, rows).

    The columns are `row` (from 1), the table's own as they were, and for each discrete with one element a row
    the probability of every value (`z_0`, `z_1`, ...) and the most probable value (`z`).
    """
    header, columns = ["row"], [range(1, table.rows + 1)]
    own = table.frame.to_pydict()
    parts: dict[str, Any] = {}
    for site, probability in memberships.items():
        values = np.asarray(probability.values)
        if values.ndim != 2 or len(values) != table.rows:
            continue
        states = np.asarray(probability.coords[probability.dims[-1]].values)
        for k, state in enumerate(states):
            parts[f"{site}_{state}"] = [f"{p:.6f}" for p in values[:, k]]
        parts[site] = states[values.argmax(axis=1)].tolist()
    taken = set(own)
    header = [_free("row", taken), *own, *(_free(name, taken) for name in parts)]
    return header, map(list, zip(*columns, *own.values(), *parts.values(), strict=True))


def prediction_rows(
    columns: Sequence[str], draws: np.ndarray, probability: float
) -> tuple[list[str], Iterator[list[Any]]]:
    """Summarise predictive draws (S, rows, columns): mean, sd and the equal-tailed interval of every row."""
    tail = (1 - probability) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    spread = draws.std(axis=0, ddof=1) if len(draws) > 1 else np.full(draws.shape[1:], np.nan)
    kinds = {"mean": draws.mean(axis=0), "sd": spread, "low": low, "high": high}
    header = ["row", *(f"{column}_{kind}" for column in columns for kind in kinds)]
    body = np.stack(list(kinds.values()), axis=-1).reshape(draws.shape[1], -1)
    return header, ([row, *(f"{v:.6g}" for v in values)] for row, values in enumerate(body, start=1))


def _free(name: str, taken: set[str]) -> str:
    """A column name that the table does not have itself."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
