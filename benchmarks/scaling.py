"""Rows `rows`: what a row of data costs from a thousand rows to ten million, one dimension, K = 3; and memory."""

from __future__ import annotations

import functools

import numpy as np

from benchmarks.contest import Contender, Goal, Outcome, Row
from benchmarks.density import Point, by_hand, columns_kernel, mixture_data
from benchmarks.density import ours as by_program

EXPONENTS = (3, 4, 5, 6, 7)


def _line(rows: int) -> tuple[np.ndarray, Point]:
    y, point = mixture_data(rows, 1, 3)
    return y[:, 0], {"w": point["w"], "mu": point["mu"][:, 0], "sd": point["sd"][:, 0]}


def _a_row(found: Outcome, rows: int) -> Outcome:
    """Figures for each row; answers are compared for the same number of rows only."""
    figures = dict(found.figures)
    figures["ns_a_row"] = 1e6 * figures["evaluation_ms"] / rows
    figures["beyond_data_mb"] = figures["peak_mb"] - 8 * rows / 2**20  # JAX's own copy of the data
    return Outcome(figures, {f"{name} of {rows} rows": answer for name, answer in found.answers.items()})


def ours(rows: int) -> Outcome:
    return _a_row(by_program("line", functools.partial(_line, rows), 3), rows)


def hand(rows: int) -> Outcome:
    return _a_row(by_hand(columns_kernel, functools.partial(mixture_data, rows, 1, 3), "float64"), rows)


def _contenders() -> list[Contender]:
    found = []
    for e in EXPONENTS:
        found.append(Contender(f"1e{e} rows", functools.partial(ours, 10**e), role="ours"))
        found.append(Contender(f"by hand 1e{e} rows", functools.partial(hand, 10**e), role="yardstick"))
    return found


ROWS = (
    Row(
        "rows",
        "cost of a row of data in one evaluation, 1-D, K = 3, N = 1e3 to 1e7",
        "ns a row",
        "ns_a_row",
        tuple(_contenders()),
        (
            *(
                Goal(f"1e7 rows at most 1.5× dearer each than 1e{e}", "1e7 rows", "ns_a_row", f"1e{e} rows", 1 / 1.5)
                for e in EXPONENTS[:-1]
            ),
            Goal("memory beyond the data: no more than at 1e4", "1e7 rows", "beyond_data_mb", "1e4 rows", 1 / 1.5),
        ),
    ),
)
