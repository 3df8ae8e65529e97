"""Tables in: what is read, and what each kind of bad input is told, word for word where it matters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marginalia.data import Table, as_table, numeric_columns, numeric_names, read_table
from marginalia.errors import DataError


@pytest.fixture
def write(tmp_path: Path):
    def write(content: str | bytes, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_galaxies_are_the_82_velocities(galaxies):
    table = read_table(galaxies)
    velocity = numeric_columns(table, ["velocity"])
    assert table.columns == ("velocity",)
    assert velocity.shape == (82, 1)
    assert velocity.dtype == np.float64
    np.testing.assert_allclose([velocity.sum(), velocity.min(), velocity.max()], [1708.18, 9.172, 34.279])


def test_columns_come_in_the_order_asked_for(write):
    path = write("a,name,b\n1, x,2.5\n3,y, 4e1 \n")
    np.testing.assert_array_equal(numeric_columns(read_table(path), ["b", "a"]), [[2.5, 1], [40, 3]])
    assert numeric_names(read_table(path)) == ("a", "b")


def test_a_csv_file_keeps_its_cells_as_they_were_written(write):
    table = read_table(write("a,b\n1.50,x\n007,y\n"))
    assert table.frame.to_pydict() == {"a": ["1.50", "007"], "b": ["x", "y"]}


def test_other_spellings_of_a_csv_file(write):
    for content, name in [
        (b"\xef\xbb\xbfa,b\r\n1,2\r\n3,4\r\n", "bom.csv"),
        (b"a\tb\n1\t2\n3\t4", "tabs.tsv"),
        (b'\n"a","b"\n\n"1",2\n3,"4"\n\n', "empty_lines.csv"),
    ]:
        np.testing.assert_array_equal(numeric_columns(read_table(write(content, name)), ["a", "b"]), [[1, 2], [3, 4]])


@pytest.mark.parametrize("kind", ["parquet", "pandas", "arrow", "table"])
def test_frames_and_parquet_hold_the_same_numbers(kind, tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, -1.0], "c": [True, False]})
    if kind == "parquet":
        frame.to_parquet(tmp_path / "t.parquet")
        source = read_table(tmp_path / "t.parquet")
    else:
        source = {"pandas": frame, "arrow": pa.Table.from_pandas(frame), "table": as_table(frame)}[kind]
    np.testing.assert_array_equal(numeric_columns(source, ["a", "b", "c"]), [[1, 0.5, 1], [2, -1, 0]])


BAD_FILES = {
    "empty": ("", "the file is empty"),
    "only_newlines": ("\n\n", "the file holds only empty lines"),
    "only_header": ("x,y\n", "there are no rows. Expected at least one row. Got only a header: x, y."),
    "ragged_long": ("x,y\n1,2\n\n1,2,3\n", "row 2 (line 4): a row has another number of cells"),
    "ragged_short": ("x,y\n1,2\n1\n", "Expected 2 cells. Got 1: '1'."),
    "latin1_cell": (b"x,name\n1,a\n2,caf\xe9\n", "line 3: the text is not in UTF-8. Got the byte 0xe9."),
    "latin1_header": (b"x,caf\xe9\n1,a\n", "line 1: the text is not in UTF-8"),
    "utf16": ("x\n1\n".encode("utf-16"), "save the file as CSV in UTF-8"),
    "twice": ("x,x\n1,2\n", "two columns have the same name, 'x'"),
    "open_quote": ('x,name\n1,"a\n2,b\n3,c\n', "after line 1: a quotation mark is opened and not closed"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_its_place(case, write):
    content, words = BAD_FILES[case]
    with pytest.raises(DataError) as caught:
        read_table(write(content))
    assert words in str(caught.value)
    assert "t.csv" in str(caught.value)


def test_files_that_are_not_there_or_of_another_kind(write, tmp_path):
    path = write("x\n1\n", "galaxies.csv")
    for bad, words in [
        (tmp_path / "galaxy.csv", f"there is no such file. Remedy: did you mean {path}?"),
        (tmp_path / "no" / "such.csv", "there is no such file"),
        (tmp_path, "this is a folder"),
        (write("x\n1\n", "t.xlsx"), "Got .xlsx"),
        (write("x\n1\n", "t.parquet"), "not a Parquet file"),
    ]:
        with pytest.raises(DataError) as caught:
            read_table(bad)
        assert words in str(caught.value)


BAD_CELLS = {
    "text": (
        "x,y\n1,2\n3,oops\n4,dear\n",
        "column 'y', row 2 (line 3 of t.csv)",
        "the text 'oops', and 1 more bad cell in",
    ),
    "empty": ("x,y\n1,2\n3,\n", "column 'y', row 2 (line 3 of t.csv)", "an empty cell"),
    "empty_after_text": ("x,y\n1,no\n3,\n", "row 1 (line 2 of t.csv)", "the text 'no', and 1 more bad cell"),
    "nan": ("x,y\n1,NaN\n", "column 'y', row 1 (line 2 of t.csv)", "Got NaN"),
    "inf": ("x,y\n1,2\n1,-inf\n", "row 2 (line 3 of t.csv)", "Got -inf"),
    "overflow": ("x,y\n1,1e999\n", "row 1 (line 2 of t.csv)", "Got inf"),
    "na": ("x,y\n1,NA\n", "row 1 (line 2 of t.csv)", "the text 'NA'"),
    "decimal_comma": ('x,y\n1,"2,5"\n', "row 1 (line 2 of t.csv)", "write a decimal point"),
    "underscore": ("x,y\n1,1_0\n", "row 1", "the text '1_0'"),
    "after_empty_lines": ("x,y\n\n1,2\n\n\n3,z\n", "row 2 (line 6 of t.csv)", "the text 'z'"),
    "after_a_cell_of_two_lines": ('x,y\n"1\n",2\n3,z\n', "row 2 (line 4 of t.csv)", "the text 'z'"),
}


@pytest.mark.parametrize("case", BAD_CELLS)
def test_a_bad_cell_is_named_by_column_row_and_line(case, write):
    content, place, got = BAD_CELLS[case]
    with pytest.raises(DataError) as caught:
        numeric_columns(read_table(write(content)), ["x", "y"])
    assert place in str(caught.value)
    assert got in str(caught.value)
    assert "Remedy" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            [1.0, None],
            "row 2 of the table: this cell is not a finite number. Expected a finite number. Got a missing",
        ),
        (
            [1.0, float("inf")],
            "row 2 of the table: this cell is not a finite number. Expected a finite number. Got inf",
        ),
        (["a", "b"], "the type string, 'a' first"),
        ([2**60 + 1], "do not fit into double precision"),
    ],
)
def test_a_bad_column_of_a_frame(values, words):
    with pytest.raises(DataError) as caught:
        numeric_columns(pa.table({"y": values}), ["y"])
    assert "column 'y'" in str(caught.value)
    assert words in str(caught.value)


def test_frames_that_are_none(write):
    with pytest.raises(DataError, match=r"this object is not a table.*Got list"):
        as_table([1, 2])
    with pytest.raises(DataError, match="a column mixes kinds of values"):
        as_table(pd.DataFrame({"a": [1, "x"]}, dtype=object))
    with pytest.raises(DataError, match="there are no rows"):
        as_table(pa.table({"a": pa.array([], pa.float64())}))
    with pytest.raises(DataError, match="the table has no columns"):
        as_table(pa.table({}))


def test_unknown_columns_are_answered_with_the_known_ones(write):
    for content, name, words in [
        (
            "velocity,id\n1,2\n",
            "Velocty",
            "Expected one of the columns velocity, id. Remedy: did you mean 'velocity'?",
        ),
        ("a;b\n1;2\n", "b", "save the table with commas"),
        ("9.172\n9.35\n", "velocity", "put a line with the column names above it"),
    ]:
        with pytest.raises(DataError) as caught:
            numeric_columns(read_table(write(content)), [name])
        assert words in str(caught.value)
    with pytest.raises(DataError, match="no column was named"):
        numeric_columns(pa.table({"a": [1]}), [])


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_numbers_survive_the_way_through_a_csv_file(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("round") / "t.csv"
    path.write_text("y\n" + "\n".join(map(repr, values)) + "\n")
    np.testing.assert_array_equal(numeric_columns(read_table(path), ["y"])[:, 0], values)


def test_a_table_places_rows_of_its_source(write):
    assert as_table(pa.table({"a": [1]}), "here").place(0) == "row 1 of here"
    assert isinstance(read_table(write("a\n1\n")), Table)


def test_an_empty_line_in_a_table_of_one_column_is_a_missing_cell(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("x\n1\n\n3\n")
    with pytest.raises(DataError, match=r"column 'x', row 2 \(line 3"):
        numeric_columns(read_table(path), ["x"])
