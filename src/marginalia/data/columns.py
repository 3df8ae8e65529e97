"""Columns of a table as numbers; a cell that is not a finite number is an error that says where it stands."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from marginalia.data.table import Table, as_table, shown
from marginalia.errors import DataError, compose

MISSING_REMEDY = "remove the rows with missing values, or fill them in; marginalia never guesses them."


def numeric_columns(table: Any, names: Sequence[str]) -> np.ndarray:
    """Take columns as finite float64 numbers, an array of shape (rows, number of names).

    `table` is a Table or a frame. Raises DataError for an unknown column and for the first cell that is text,
    empty, NaN or infinite; columns are looked at in the order of the names.

    >>> from marginalia.data import galaxies, read_table
    >>> numeric_columns(read_table(galaxies()), ["velocity"])[:2, 0]
    array([9.172, 9.35 ])
    """
    table = as_table(table)
    if not names:
        raise DataError(compose("no column was named", where=table.source, expected=_listed(table.columns)))
    return np.stack([_numbers(table, name) for name in names], axis=1)


def numeric_names(table: Table) -> tuple[str, ...]:
    """Name the columns that may be taken as numbers, by their type or, in a CSV file, their first cell."""
    return tuple(name for name in table.columns if _looks_numeric(table, name))


def _numbers(table: Table, name: str) -> np.ndarray:
    column = _column(table, name)
    if table.text:
        column = pc.utf8_trim_whitespace(column)
    else:
        _check_type(table, name, column)
        missing = np.flatnonzero(pc.is_null(column).to_numpy())
        if missing.size:
            raise _cell_error(table, name, int(missing[0]), "a missing value", missing.size, MISSING_REMEDY)
    try:
        values = pc.cast(column, pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise _bad_cell(table, name, column, error) from error
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        row = int(bad[0])
        nan = bool(np.isnan(values[row]))
        remedy = MISSING_REMEDY if nan else "remove the row, or write the number that was meant."
        raise _cell_error(table, name, row, "NaN" if nan else f"{values[row]}", bad.size, remedy)
    return np.ascontiguousarray(values, dtype=np.float64)


def _column(table: Table, name: str) -> pa.ChunkedArray:
    if name in table.columns:
        return table.frame.column(name)
    raise DataError(
        compose(
            f"there is no column {name!r}",
            where=table.source,
            expected=_listed(table.columns),
            remedy=_column_hint(table, name),
        )
    )


def _column_hint(table: Table, name: str) -> str:
    near = difflib.get_close_matches(name.lower(), [column.lower() for column in table.columns], n=1)
    if near:
        return f"did you mean {next(c for c in table.columns if c.lower() == near[0])!r}?"
    if table.text and len(table.columns) == 1 and any(mark in table.columns[0] for mark in ";\t|"):
        return "the header has no comma in it; save the table with commas between the cells."
    if table.text and all(_is_number(column) for column in table.columns):
        return "the first line holds numbers; put a line with the column names above it."
    return ""


def _check_type(table: Table, name: str, column: pa.ChunkedArray) -> None:
    """Check the type that a frame or Parquet file gives; text is not a number even where it looks so."""
    kind = column.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if numeric or pa.types.is_boolean(kind):
        return
    raise DataError(
        compose(
            "this column does not hold numbers",
            where=f"column {name!r}, {table.place(0)}",
            expected="integers or decimal numbers",
            got=f"the type {kind}, {shown(str(column[0].as_py()))} first",
            remedy="convert the column, or name another one.",
        )
    )


def _bad_cell(table: Table, name: str, column: pa.ChunkedArray, error: pa.ArrowInvalid) -> DataError:
    cells = column.to_pylist()
    bad = [row for row, cell in enumerate(cells) if not _is_number(cell)]
    if not bad:  # every cell is a number, so it is the conversion that would lose digits
        return DataError(
            compose(
                "the numbers of this column do not fit into double precision",
                where=f"column {name!r} of {table.source}",
                got=str(error),
            )
        )
    cell = str(cells[bad[0]])
    if not cell:
        return _cell_error(table, name, bad[0], "an empty cell", len(bad), MISSING_REMEDY)
    remedy = "write a decimal point." if _is_number(cell.replace(",", ".")) else "correct or remove the cell."
    return _cell_error(table, name, bad[0], f"the text {shown(cell)}", len(bad), remedy)


def _cell_error(table: Table, name: str, row: int, got: str, count: int, remedy: str) -> DataError:
    more = f", and {count - 1} more bad {'cell' if count == 2 else 'cells'} in this column" if count > 1 else ""
    return DataError(
        compose(
            "this cell is not a finite number",
            where=f"column {name!r}, {table.place(row)}",
            expected="a finite number",
            got=got + more,
            remedy=remedy,
        )
    )


def _looks_numeric(table: Table, name: str) -> bool:
    column = table.frame.column(name)
    if table.text:
        return _is_number(column[0].as_py())
    kind = column.type
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    # Python reads 1_000 as a number; a table does not mean it.
    return not (isinstance(cell, str) and "_" in cell)


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(columns[:20]) + (f" and {len(columns) - 20} more" if len(columns) > 20 else "")
    return f"one of the columns {shown}"
