"""From what contenders handed back to figures that can be compared: effective draws, ratios, goals."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.contest import Answer, Goal, Outcome, Row, disagreements

PER_SECOND = "effective_per_s"
# figure -> contender -> one number a repeat
Figures = dict[str, dict[str, list[float]]]


@dataclass
class Measured:
    """All repeats of one row."""

    figures: Figures = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # contender -> why
    disagreements: list[str] = field(default_factory=list)

    def add(self, contender: str, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.figures.setdefault(name, {}).setdefault(contender, []).append(float(value))


@dataclass(frozen=True)
class Verdict:
    """A goal, and how near it is: `ratio` (median, least, most over the repeats), or our figure itself."""

    row: str
    what: str
    goal: str
    ours: str
    against: str
    ratio: tuple[float, float, float]
    met: str  # "yes", "no", or "" where it cannot be said
    kind: str  # "times" or "figure"


def settle(row: Row, outcome: Outcome, wall: float) -> tuple[dict[str, float], dict[str, Answer]]:
    """Figures of one run, the time of its whole process among them, and its answers."""
    # what ran a second time, to see what that costs, is not part of the process that is timed
    wall -= outcome.figures.get("again_s", 0.0)
    figures, answers = {**outcome.figures, "wall_s": wall}, dict(outcome.answers)
    if outcome.draws and row.columns:
        values = row.columns(outcome.draws)
        effective, mean, error = effective_draws(values)
        figures |= {"effective": effective, PER_SECOND: effective / wall}
        answers["posterior means"] = Answer(mean, error)
    return figures, answers


def effective_draws(values: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Of draws `(chain, draw, n)`: the smallest bulk effective sample size, the means and their standard errors."""
    from arviz_stats.base.array import array_stats

    chains = np.moveaxis(np.asarray(values, float), -1, 0)
    sizes = [float(array_stats.ess(v, chain_axis=0, draw_axis=1, method="bulk")) for v in chains]
    errors = [float(array_stats.mcse(v, chain_axis=0, draw_axis=1, method="mean")) for v in chains]
    return min(sizes), chains.mean((1, 2)), np.array(errors)


def compare(row: Row, answers: Mapping[str, Mapping[str, Answer]]) -> list[str]:
    """Who disagrees with whom, the published answer included."""
    return disagreements({**answers, **({"the published answer": row.reference} if row.reference else {})})


def verdicts(row: Row, measured: Measured) -> list[Verdict]:
    return [_verdict(row, goal, measured) for goal in row.goals]


def _verdict(row: Row, goal: Goal, measured: Measured) -> Verdict:
    found = measured.figures.get(goal.figure, {})
    ours = found.get(goal.ours, [])
    if goal.most:
        return _absolute(row, goal, ours)
    against = best_peer(row, goal.figure, found) if goal.against == "peer" else goal.against
    theirs = found.get(against, [])
    if not ours or not theirs:
        absent = goal.ours if not ours else against
        why = f"{absent or 'peers'}: {measured.skipped.get(absent, 'not run')}"
        nothing = (np.nan, np.nan, np.nan)
        return Verdict(row.key, row.what, goal.text, _words(ours, row), why, nothing, "", "times")
    pairs = list(zip(ours, theirs, strict=False))
    ratios = [o / t if goal.figure == PER_SECOND else t / o for o, t in pairs]
    middle = float(np.median(ratios))
    beside = f"{against} {_words(theirs, row, goal.figure)}"
    met = "yes" if middle >= goal.least else "no"
    spread = (middle, min(ratios), max(ratios))
    return Verdict(row.key, row.what, goal.text, _words(ours, row, goal.figure), beside, spread, met, "times")


def _absolute(row: Row, goal: Goal, ours: list[float]) -> Verdict:
    if not ours:
        return Verdict(row.key, row.what, goal.text, "", "", (np.nan, np.nan, np.nan), "", "figure")
    middle = float(np.median(ours))
    met = "yes" if middle <= goal.most else "no"
    words = _words(ours, row, goal.figure)
    return Verdict(row.key, row.what, goal.text, words, "", (middle, min(ours), max(ours)), met, "figure")


def best_peer(row: Row, figure: str, found: Mapping[str, list[float]]) -> str:
    """The peer with the best median, or "" where none ran."""
    peers = {c.name: np.median(found[c.name]) for c in row.contenders if c.role == "peer" and found.get(c.name)}
    if not peers:
        return ""
    return (max if figure == PER_SECOND else min)(peers, key=lambda name: peers[name])


UNITS = {"evaluation_ms": "ms", "ns_a_row": "ns", PER_SECOND: "a second", "wall_s": "s", "run_s": "s"}


def _words(values: list[float], row: Row, figure: str = "") -> str:
    if not values:
        return ""
    figure = figure or row.figure
    unit = UNITS.get(figure, "MB" if figure.endswith("_mb") else "s")
    return f"{short(float(np.median(values)))} {unit}"


def short(value: float) -> str:
    """Three digits, never an exponent."""
    if not np.isfinite(value):
        return "–"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))) if value else 0)
    return f"{value:.{min(digits, 4)}f}"


MEASURED = ("row", "contender", "repeat", "figure", "value")


def write_measured(path: Path, all_measured: Mapping[str, Measured]) -> None:
    """Every number of every repeat: from these the table is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(MEASURED)
        for row, measured in all_measured.items():
            for figure, contenders in measured.figures.items():
                for contender, values in contenders.items():
                    out.writerows((row, contender, i, figure, f"{v:.6g}") for i, v in enumerate(values))
            out.writerows((row, name, "", "skipped", why) for name, why in measured.skipped.items())
            out.writerows((row, "", "", "disagreement", words) for words in measured.disagreements)


def read_measured(path: Path) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    if not path.exists():
        return found
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            measured = found.setdefault(line["row"], Measured())
            if line["figure"] == "skipped":
                measured.skipped[line["contender"]] = line["value"]
            elif line["figure"] == "disagreement":
                measured.disagreements.append(line["value"])
            else:
                measured.add(line["contender"], {line["figure"]: float(line["value"])})
    return found
