"""CSV, TSV and Parquet files, and what is wrong with one that cannot be read."""

from __future__ import annotations

import csv
import difflib
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from marginalia.data.lines import DELIMITERS, lines
from marginalia.data.table import Table, checked, shown
from marginalia.errors import DataError, compose

PARQUET_SUFFIXES = (".parquet", ".pq")


def read_table(path: str | Path) -> Table:
    """Read a CSV, TSV or Parquet file.

    Raises DataError for a file that is missing, empty, without rows, ragged, not UTF-8, or of another kind.

    >>> from marginalia.data import galaxies
    >>> table = read_table(galaxies())
    >>> table.columns, table.rows
    (('velocity',), 82)
    """
    path = Path(path)
    _check_file(path)
    suffix = path.suffix.lower()
    if suffix in PARQUET_SUFFIXES:
        table = Table(_read_parquet(path), path.name, path)
    elif suffix in DELIMITERS:
        table = Table(_read_csv(path), path.name, path, text=True)
    else:
        raise DataError(
            compose(
                f"{path.name} is of a kind that cannot be read",
                where=str(path),
                expected="a name that ends in .csv, .tsv, .txt (comma-separated), .parquet or .pq",
                got=suffix or "no ending",
                remedy="rename the file after what it holds, or save the table as CSV or Parquet.",
            )
        )
    return checked(table)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(compose("this is a folder", where=str(path), expected="a CSV or Parquet file"))
    if not path.exists():
        folder = path.parent
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1)
        remedy = f"did you mean {folder / near[0]}?" if near else "check the name and the folder."
        raise DataError(compose("there is no such file", where=str(path), remedy=remedy))
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except OSError as error:
        raise DataError(compose("the file cannot be opened", where=str(path), got=str(error.strerror))) from error
    if not first:
        raise DataError(
            compose("the file is empty", where=str(path), expected="a header line with column names, then rows")
        )


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pa_parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            compose(
                "this is not a Parquet file that can be read",
                where=str(path),
                got=str(error).strip().splitlines()[0],
                remedy="write it again, or save it as CSV.",
            )
        ) from error


def _read_csv(path: Path) -> pa.Table:
    delimiter = DELIMITERS[path.suffix.lower()]
    header = _header(path)
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(
            compose(
                f"two columns have the same name, {repeated[0]!r}",
                where=str(path),
                remedy="rename one of them.",
            )
        )
    _check_quotes(path)
    try:
        return pa_csv.read_csv(
            path,
            # In a table of one column an empty line is a missing cell, not nothing.
            parse_options=pa_csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=len(header) > 1
            ),
            # As text, so that a bad cell can be shown as it was written and an echoed column is unchanged.
            convert_options=pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in header}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise _why_unreadable(path, len(header), str(error)) from error


def _header(path: Path) -> list[str]:
    try:
        _, cells = next(lines(path), (0, []))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _why_unreadable(path, 0, str(error)) from error
    if not cells:
        raise DataError(
            compose("the file holds only empty lines", where=str(path), expected="a header line, then rows")
        )
    return cells


def _check_quotes(path: Path) -> None:
    """Refuse a quotation mark that is never closed: everything after it would silently become one cell."""
    with path.open("rb") as file:
        marks = sum(block.count(b'"') for block in iter(lambda: file.read(1 << 20), b""))
    if marks % 2 == 0:
        return
    last = 1
    try:
        for line, _ in lines(path, strict=True):
            last = line
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            compose(
                "a quotation mark is opened and not closed as it should be",
                where=f"{path}, after line {last}",
                got=str(error),
                remedy='close it, or write a mark inside a quoted cell twice ("").',
            )
        ) from error


def _why_unreadable(path: Path, width: int, fallback: str) -> DataError:
    """Look for the first line that a fast reader tripped over, and say what is wrong with it."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return DataError(
                    compose(
                        "the text is not in UTF-8",
                        where=f"{path}, line {number}",
                        got=f"the byte 0x{line[error.start]:02x}",
                        remedy="save the file as CSV in UTF-8.",
                    )
                )
    try:
        for row, (number, cells) in enumerate(lines(path)):
            if width and len(cells) != width:
                return DataError(
                    compose(
                        "a row has another number of cells than the header",
                        where=f"{path}, row {row} (line {number})",
                        expected=f"{width} {'cell' if width == 1 else 'cells'}",
                        got=f"{len(cells)}: {shown(','.join(cells))}",
                        remedy="mend the line; a cell with the separator in it needs quotation marks.",
                    )
                )
    except csv.Error as error:
        fallback = str(error)
    return DataError(compose("the file cannot be read as CSV", where=str(path), got=fallback))
