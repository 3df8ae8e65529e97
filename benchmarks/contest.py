"""What a row of the table is made of: contenders, what one hands back, and whether they all gave the same answer.

A row's module imports nothing slow at its top: every contender runs in a fresh process and pays for its own imports.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# Combined standard errors (or stated precisions) by which two contenders may differ. A row compares some ten numbers
# between some five contenders, over a few repeats.
SIGMAS = 5.0


@dataclass(frozen=True)
class Answer:
    """Numbers that other contenders must give too, and the error each of them is known to have."""

    values: np.ndarray
    error: np.ndarray  # of each value: a standard error, or a rounding error stated for the float type


@dataclass(frozen=True)
class Outcome:
    """What one contender hands back: measurements by name, answers to compare, and draws to be judged afterwards.

    Draws are raw, `(chain, draw, *shape)` by site; effective sample sizes are computed from them after the clock has
    stopped, by the same function for all.
    """

    figures: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, Answer] = field(default_factory=dict)
    draws: Mapping[str, np.ndarray] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Contender:
    """A name, what runs, and the modules without which it is skipped.

    `ours` competes with the peers; `yardstick` (a hand-written kernel) is what the row is also compared with.
    """

    name: str
    run: Callable[[], Outcome]
    needs: tuple[str, ...] = ()
    role: str = "peer"  # "ours", "peer", "yardstick"
    cache: str = ""  # "warm": run once unseen first, with JAX's persistent compilation cache on

    def missing(self) -> list[str]:
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


@dataclass(frozen=True)
class Goal:
    """`least` times better than `against` ("peer": the best of them), or `figure` of ours at most `most`."""

    text: str
    ours: str
    figure: str
    against: str = ""
    least: float = 0.0
    most: float = 0.0


@dataclass(frozen=True)
class Row:
    """One line (or family of lines) of the table."""

    key: str
    what: str
    unit: str
    figure: str  # which of the figures is compared
    contenders: tuple[Contender, ...]
    goals: tuple[Goal, ...] = ()
    more_is_better: bool = False
    columns: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None  # draws to (chain, draw, number)
    reference: Mapping[str, Answer] = field(default_factory=dict)  # the published answer
    note: str = ""
    prepare: Callable[[], Mapping[str, np.ndarray]] | None = None  # data that take long to make, by name


PREPARED = "BENCHMARK_DATA"


def prepared(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Data that were made before the clock started, or are made now."""
    path = Path(os.environ.get(PREPARED, "")) / f"{name}.npy"
    return np.load(path) if path.exists() else make()


def disagreements(answers: Mapping[str, Mapping[str, Answer]], sigmas: float = SIGMAS) -> list[str]:
    """In words, who differs from whom; empty where all agree. `{contender: {quantity: Answer}}`."""
    found = []
    for first, second in itertools.combinations(answers, 2):
        for quantity in answers[first].keys() & answers[second].keys():
            a, b = answers[first][quantity], answers[second][quantity]
            if a.values.shape != b.values.shape:
                found.append(f"{quantity}: {first} gives {a.values.shape} numbers, {second} {b.values.shape}")
                continue
            worst = _errors_apart(a, b)
            if worst > sigmas:
                found.append(f"{quantity}: {first} and {second} are {worst:.1f} errors apart")
    return found


def _errors_apart(a: Answer, b: Answer) -> float:
    """The largest distance in combined errors; infinite where either has no number."""
    if not all(np.isfinite(part).all() for part in (a.values, b.values, a.error, b.error)):
        return float("inf")
    distance = np.abs(a.values - b.values)
    with np.errstate(divide="ignore"):  # different values without an error are infinitely far apart, equal ones not
        return float(np.max(np.divide(distance, np.hypot(a.error, b.error), where=distance > 0, out=0 * distance)))


def to_file(outcome: Outcome, path: Path) -> None:
    """Write an outcome beside `path`: `.json` and `.npz`."""
    arrays: dict[str, Any] = {f"draws/{name}": np.asarray(v) for name, v in outcome.draws.items()}
    for name, answer in outcome.answers.items():
        arrays[f"values/{name}"] = np.asarray(answer.values, float)
        arrays[f"error/{name}"] = np.broadcast_to(np.asarray(answer.error, float), np.shape(answer.values))
    np.savez(path.with_suffix(".npz"), **arrays)
    path.with_suffix(".json").write_text(json.dumps({"figures": dict(outcome.figures), "note": outcome.note}))


def from_file(path: Path) -> Outcome:
    about = json.loads(path.with_suffix(".json").read_text())
    with np.load(path.with_suffix(".npz")) as stored:
        arrays = {name: stored[name] for name in stored.files}

    def part(kind: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(kind): v for n, v in arrays.items() if n.startswith(kind)}

    errors = part("error/")
    answers = {name: Answer(values, errors[name]) for name, values in part("values/").items()}
    return Outcome(about["figures"], answers, part("draws/"), about["note"])


def by_name(contenders: Sequence[Contender], name: str) -> Contender:
    return next(c for c in contenders if c.name == name)
