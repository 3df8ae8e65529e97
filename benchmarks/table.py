"""The table in words, in CSV and as a picture."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.contest import Row
from benchmarks.judging import Measured, Verdict, short, verdicts

# the measurement at the end of "NumPyro 4.2 ms"
VALUE = re.compile(r" [\d.]+ (?:a second|\w+)$")
HEADS = ("row", "marginalia", "beside", "ratio (least to most)", "goal", "met", "same answer")


def lines(rows: Sequence[Row], measured: Mapping[str, Measured]) -> list[tuple[str, ...]]:
    """One line a goal, of the rows that were run."""
    found = []
    for row in rows:
        if row.key not in measured:
            continue
        same = "no" if measured[row.key].disagreements else "yes"
        found += [(*_line(v), same) for v in verdicts(row, measured[row.key])]
    return found


def _line(v: Verdict) -> tuple[str, ...]:
    middle, least, most = (short(x) for x in v.ratio)
    ratio = f"{middle}× ({least} to {most})" if v.kind == "times" else f"({least} to {most})"
    return v.row, v.ours, v.against, ratio if np.isfinite(v.ratio[0]) else "–", v.goal, v.met or "?"


def plain(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in [heads, *body]) for i in range(len(heads))]
    rule = ["-" * w for w in widths]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(t, widths, strict=True)).rstrip() for t in [heads, rule, *body]
    )


def markdown(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *body]) + "\n"


def of_rows(rows: Sequence[Row]) -> str:
    """What each row is, as a list for the docs."""
    return "".join(f"- `{row.key}`: {row.what}. {row.note}".rstrip() + "\n" for row in rows)


CONTENDERS = (
    "row",
    "contender",
    "median",
    "least to most",
    "unit",
    "whole process s",
    "processor s",
    "compile s",
    "MB",
    "effective",
)


def of_contenders(rows: Sequence[Row], measured: Mapping[str, Measured]) -> list[tuple[str, ...]]:
    """One line a contender, with what it is compared by and what else was measured."""
    found = []
    for row in rows:
        if row.key not in measured:
            continue
        figures, skipped = measured[row.key].figures, measured[row.key].skipped
        for contender in row.contenders:
            values = figures.get(row.figure, {}).get(contender.name)
            if not values:
                found.append(
                    (row.key, contender.name, skipped.get(contender.name, "not run"), *[""] * (len(CONTENDERS) - 3))
                )
                continue

            def other(name: str, who: str = contender.name, figures: dict = figures) -> str:
                there = figures.get(name, {}).get(who)
                return short(float(np.median(there))) if there else ""

            spread = f"{short(min(values))} to {short(max(values))}"
            more = [other(name) for name in ("wall_s", "cpu_s", "compile_s", "peak_mb", "effective")]
            found.append((row.key, contender.name, short(float(np.median(values))), spread, row.unit, *more))
    return found


def write_csv(path: Path, heads: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(heads)
        out.writerows(body)


def picture(path: Path, rows: Sequence[Row], measured: Mapping[str, Measured]) -> None:
    """Each goal that is a ratio: how many times better ours is, over the repeats, with the goal as a tick."""
    from matplotlib.figure import Figure

    found = []
    for row in rows:
        if row.key in measured:
            least = {goal.text: goal.least for goal in row.goals}
            shown = [v for v in verdicts(row, measured[row.key]) if v.kind == "times" and np.isfinite(v.ratio[0])]
            found += [(v, least[v.goal]) for v in shown]
    if not found:
        return
    figure = Figure(figsize=(9, 1.2 + 0.36 * len(found)), layout="constrained")
    axes = figure.subplots()
    for place, (v, goal) in enumerate(found):
        middle, low, high = v.ratio
        colour = "C0" if middle >= goal else "C1"
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot([middle], [place], "o", color=colour)
        axes.plot([goal, goal], [place - 0.35, place + 0.35], color="black", linewidth=1.5)
    axes.axvline(1, color="0.7", linewidth=1, zorder=0)
    axes.set_yticks(range(len(found)), [f"{v.row}, beside {VALUE.sub('', v.against)}" for v, _ in found], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("times better than what it is beside (dot: median; bar: all repeats; tick: goal)")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
