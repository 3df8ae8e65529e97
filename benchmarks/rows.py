"""All rows of the table, in its order."""

from __future__ import annotations

from benchmarks import density, few, galaxies, markov, million, plane, scaling, w1, w2
from benchmarks.contest import Row

ROWS: tuple[Row, ...] = (
    *density.ROWS,
    *markov.ROWS,
    *scaling.ROWS,
    *million.ROWS,
    *w1.ROWS,
    *w2.ROWS,
    *plane.ROWS,
    *few.ROWS,
    *galaxies.ROWS,
)


def find(key: str) -> Row:
    return next(row for row in ROWS if row.key == key)
