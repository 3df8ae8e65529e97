"""A table in memory, and how a row of it is called in a message."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import narwhals as nw
import pyarrow as pa

from marginalia.data.lines import line_of
from marginalia.errors import DataError, compose


@dataclass(frozen=True)
class Table:
    """A table that was read: its Arrow columns, and where it came from.

    `text` is true for a CSV file: its cells are kept as they were written until a column is asked for as
    numbers.
    """

    frame: pa.Table
    source: str
    path: Path | None = None
    text: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.frame.column_names)

    @property
    def rows(self) -> int:
        return int(self.frame.num_rows)

    def place(self, row: int) -> str:
        """Say where a row is; `row` counts from 0."""
        if self.path is not None and self.text:
            return f"row {row + 1} (line {line_of(self.path, row)} of {self.source})"
        return f"row {row + 1} of {self.source}"


def as_table(frame: Any, source: str = "the table") -> Table:
    """Take a pandas, Polars or Arrow frame, or anything else that narwhals reads, as a Table.

    Raises DataError for an object that is not a frame, for mixed kinds within a column, and for no rows.
    """
    if isinstance(frame, Table):
        return frame
    try:
        arrow = nw.from_native(frame, eager_only=True).to_arrow()
    except TypeError as error:
        raise DataError(
            compose(
                "this object is not a table",
                where=source,
                expected="a pandas, Polars or Arrow data frame",
                got=type(frame).__name__,
            )
        ) from error
    except pa.ArrowException as error:
        raise DataError(
            compose(
                "a column mixes kinds of values",
                where=source,
                got=str(error),
                remedy="give a column one type.",
            )
        ) from error
    return checked(Table(arrow, source))


def checked(table: Table) -> Table:
    """Pass a table on if it has columns and rows."""
    if not table.columns:
        raise DataError(compose("the table has no columns", where=table.source))
    if table.rows == 0:
        got = "only a header: " + ", ".join(table.columns) if table.text else "0 rows"
        raise DataError(compose("there are no rows", where=table.source, expected="at least one row", got=got))
    return table


def shown(text: str) -> str:
    """Quote a cell for a message, shortened."""
    return repr(text if len(text) <= 40 else text[:37] + "...")
