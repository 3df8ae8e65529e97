"""Tables in: CSV and Parquet files, and pandas, Polars or Arrow frames, as checked columns of numbers.

Nothing is guessed or dropped: a cell that is not a finite number is an error that names its column and row.
Rows are counted from 1 without the header; for a CSV file the line of the file is said as well.
"""

from __future__ import annotations

from pathlib import Path

from marginalia.data.columns import numeric_columns, numeric_names
from marginalia.data.files import read_table
from marginalia.data.table import Table, as_table

__all__ = ["Table", "as_table", "galaxies", "numeric_columns", "numeric_names", "read_table"]


def galaxies() -> Path:
    """Find the file of 82 galaxy velocities in thousand km/s that comes with marginalia."""
    return Path(__file__).parents[1] / "datasets" / "galaxies.csv"
