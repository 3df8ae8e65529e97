"""What the command says: plan, table and verdict on stdout, complaints on stderr."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from marginalia.fitting import Fit

PIPE_WIDTH = 120


def console(stream: TextIO | None = None) -> Console:
    """A console on a stream; where that is no terminal, wide enough that a table is not folded."""
    stream = stream or sys.stdout
    wide = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=stream, width=wide, highlight=False, markup=False, emoji=False)


def say(text: str, style: str = "") -> None:
    """Print a paragraph. Brackets in it are brackets, not styles."""
    console().print(Text(text, style=style), soft_wrap=not sys.stdout.isatty())


def complain(text: str) -> None:
    """Print an error on stderr, one paragraph."""
    console(sys.stderr).print(Text.assemble(("Error: ", "bold red"), text), soft_wrap=not sys.stderr.isatty())


def plan(source: Path, columns: Sequence[str], text: str) -> None:
    """Say what is modelled, and how its discretes are summed out."""
    say("Plan", "bold")
    say(f"Data {source}, {'column' if len(columns) == 1 else 'columns'} {', '.join(columns)}.")
    say(text.rstrip() + "\n")


def table(frame: pd.DataFrame) -> None:
    """Print a summary table."""
    shown = Table("", box=None, pad_edge=False, header_style="bold")
    for name in frame.columns:
        shown.add_column(str(name), justify="right", no_wrap=True)
    for index, row in frame.iterrows():
        shown.add_row(str(index), *(_cell(str(name), row[name]) for name in frame.columns))
    console().print(shown)
    if frame.attrs.get("note"):
        say(str(frame.attrs["note"]))


def verdict(fit: Fit) -> None:
    """Say in plain words whether the result may be used."""
    say("")
    if fit.status:
        say("Not to be trusted yet:", "bold yellow")
        for finding in fit.status:
            say(f"  - {finding}")
    elif fit.method == "map":
        say("The optimisation ended well: nothing wrong was found.", "bold green")
    else:
        say("Converged: the chains agree with each other, and nothing wrong was found.", "bold green")
    if fit.result.starts is not None:
        say(f"  - {fit.result.starts.sentence}")
    for note in fit.notes:
        say(f"  - {note}")


def written(paths: list[Path]) -> None:
    say("")
    for path in paths:
        say(f"Wrote {path}")


def _cell(name: str, value: object) -> str:
    if not isinstance(value, float | int):
        return str(value)
    if math.isnan(value):
        return "-"
    if name.startswith("ess"):
        return f"{value:.0f}"
    return f"{value:.3f}" if name.startswith("r_hat") else f"{value:.4g}"
