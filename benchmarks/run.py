"""Run the table: `python -m benchmarks.run [--only density,w1] [--repeats 3] [--ours]`.

Every contender of a row runs in a fresh process, one after the other, and that again for each repeat, so that a
ratio is of runs that followed each other. Answers are compared in the same run; where they differ the exit status
is 1. A time is never asserted. Rows that were not asked for keep the numbers of the last run in `--out`.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import judging, table
from benchmarks.contest import PREPARED, Answer, Contender, Row, from_file
from benchmarks.judging import Measured
from benchmarks.rows import ROWS

ROOT = Path(__file__).parent.parent
# the last line of a traceback, whatever a library prints after it
ERROR = re.compile(r"^(?:[A-Za-z_]+\.)*([A-Z]\w*: .*)$", re.MULTILINE)


def main() -> int:
    options = _options()
    rows = chosen(options.only)
    measured = judging.read_measured(options.out / "measured.csv")
    for row in rows if not options.table else []:
        measured[row.key] = contest(row, options)
        judging.write_measured(options.out / "measured.csv", measured)
    in_table = [row for row in (ROWS if options.docs or options.table else rows) if row.key in measured]
    body = table.lines(in_table, measured)
    contenders = table.of_contenders(in_table, measured)
    print("\n" + table.plain(table.CONTENDERS, contenders) + "\n\n" + table.plain(table.HEADS, body))
    table.write_csv(options.out / "table.csv", table.HEADS, body)
    table.write_csv(options.out / "contenders.csv", table.CONTENDERS, contenders)
    table.picture(options.out / "table.png", in_table, measured)
    if options.docs:
        _write_docs(in_table, measured)
    wrong = [f"{row.key}: {words}" for row in in_table for words in measured[row.key].disagreements]
    print("\n".join(["", "DIFFERENT ANSWERS", *wrong] if wrong else ["", "All contenders gave the same answers."]))
    return 1 if wrong else 0


def _write_docs(rows: list[Row], measured: dict[str, Measured]) -> None:
    docs = ROOT / "docs"
    body, contenders = table.lines(rows, measured), table.of_contenders(rows, measured)
    table.write_csv(docs / "benchmarks.csv", table.CONTENDERS, contenders)
    table.picture(docs / "images" / "benchmarks.png", rows, measured)
    page = docs / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    for name, lines in (("goals", table.markdown(table.HEADS, body)), ("rows", table.of_rows(rows))):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}{lines}{end}{rest.split(end)[1]}"
    page.write_text(text, encoding="utf-8")


def chosen(only: str) -> list[Row]:
    """Rows whose key begins with one of the words."""
    words = [word.strip() for word in only.split(",") if word.strip()]
    unknown = [word for word in words if not any(row.key.startswith(word) for row in ROWS)]
    if unknown:
        sys.exit(f"No row begins with {', '.join(unknown)}. There are: {', '.join(row.key for row in ROWS)}.")
    return [row for row in ROWS if not words or any(row.key.startswith(word) for word in words)]


def contest(row: Row, options: argparse.Namespace) -> Measured:
    measured = Measured()
    playing = []
    for contender in row.contenders:
        missing = contender.missing()
        if options.ours and contender.role == "peer":
            measured.skipped[contender.name] = "left out"
        elif missing:
            measured.skipped[contender.name] = f"{', '.join(missing)} not installed"
        else:
            playing.append(contender)
    with tempfile.TemporaryDirectory() as folder:
        for name, array in (row.prepare() if row.prepare else {}).items():
            np.save(Path(folder) / f"{name}.npy", array)
        for repeat in range(options.repeats):
            answers: dict[str, dict[str, Answer]] = {}
            for contender in playing:
                if contender.name in measured.skipped:
                    continue
                if contender.cache and not repeat:
                    run(row, contender, Path(folder), options)
                answer = _measure(row, contender, Path(folder), options, measured)
                if answer is not None:
                    answers[contender.name] = answer
            for words in judging.compare(row, answers):
                measured.disagreements.append(f"{words} (repeat {repeat + 1})")
    return measured


def _measure(
    row: Row, contender: Contender, folder: Path, options: argparse.Namespace, measured: Measured
) -> dict[str, Answer] | None:
    used = _processor_seconds()
    wall, problem = run(row, contender, folder, options)
    if problem:
        measured.skipped[contender.name] = problem
        print(f"{row.key:<18} {contender.name:<24} {problem}", flush=True)
        return None
    figures, answers = judging.settle(row, from_file(folder / "outcome"), wall)
    figures["cpu_s"] = _processor_seconds() - used
    measured.add(contender.name, figures)
    about = f"{row.key:<18} {contender.name:<24} {judging.short(figures[row.figure]):>9} {row.unit:<10}"
    print(f"{about} whole process {wall:6.1f} s, processor {figures['cpu_s']:6.1f} s", flush=True)
    return answers


def _processor_seconds() -> float:
    """Of all children that ended: what a machine busy with other work does not change."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(row: Row, contender: Contender, folder: Path, options: argparse.Namespace) -> tuple[float, str]:
    """Seconds of the whole process, and what went wrong."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment[PREPARED] = str(folder)
    # Peers are installed with their bytecode; marginalia, which is run in place, writes its own at the first run.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if contender.cache:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / f"cache of {contender.cache}")
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    where = [row.key, contender.name, str(folder / "outcome"), str(options.cores), str(options.memory)]
    begun = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.child", *where],
            env=environment, cwd=folder, capture_output=True, text=True, timeout=options.timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 0.0, f"stopped after {options.timeout:g} s"
    wall = time.perf_counter() - begun
    if done.returncode == 0:
        return wall, ""
    if options.verbose:
        print(done.stderr, file=sys.stderr)
    said = ERROR.findall(done.stderr) or ["no message"]
    why = f"more than {options.memory:g} GB, or killed" if done.returncode < 0 else said[-1]
    return wall, f"failed: {why[:100]}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="marginalia beside its peers")
    parser.add_argument("--only", default="", help="rows whose names begin with these words, by comma")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ours", action="store_true", help="leave the peers out")
    parser.add_argument("--cores", type=int, default=2, help="that every contender may use")
    parser.add_argument("--memory", type=float, default=12.0, help="gigabytes that every contender may use")
    parser.add_argument("--timeout", type=float, default=1200.0, help="seconds of one process")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks", help="folder of results")
    parser.add_argument("--docs", action="store_true", help="write the table and the picture of docs/ too, all rows")
    parser.add_argument("--table", action="store_true", help="run nothing: the table of the last runs")
    parser.add_argument("--verbose", action="store_true", help="show the messages of what failed")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
