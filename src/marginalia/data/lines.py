"""A CSV file read slowly, line by line: to say on which line a row stands and what is wrong there."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": ","}


def lines(path: Path, *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Give each row as (the line where it starts, counted from 1; its cells).

    Empty lines are passed over, except in a table of one column, where they are empty cells.
    """
    delimiter = DELIMITERS[path.suffix.lower()]
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=strict)
        start, width = 1, 0
        for cells in reader:
            width = width or len(cells)
            if cells:
                yield start, cells
            elif width == 1:
                yield start, [""]
            start = reader.line_num + 1


def line_of(path: Path, row: int) -> int:
    """Give the line, from 1, on which a data row, from 0, starts."""
    for index, (number, _) in enumerate(lines(path)):
        if index == row + 1:
            return number
    return row + 2
