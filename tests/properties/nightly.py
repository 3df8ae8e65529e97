"""Thousands of random programs: `python tests/properties/nightly.py --programs 10000`.

Program number n is the same in every run, so `--first n --programs 1` shows one again. The exit status is 1 when an
answer was wrong, a program crashed, or too many were refused.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import os
import random
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.append(str(Path(__file__).parents[1]))

import jax
from grammar import write
from laws import judge


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the engine with brute force on random programs.")
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first program")
    parser.add_argument("--hessian", type=int, default=0, help="compare second derivatives in every n-th program")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    for number in range(options.first, options.first + options.programs):
        written = write(random.Random(number))
        try:
            verdict = judge(written, hessian=bool(options.hessian) and number % options.hessian == 0)
            kind, why = verdict.kind, verdict.why
        except Exception:  # noqa: BLE001 (whatever it is, it is a finding)
            kind, why = "crashed", [traceback.format_exc(limit=-4)]
        counts[kind] += 1
        if kind not in ("exact", "idle"):
            print(f"---- {number}: {kind}, {written.states} states", *why, written.source, sep="\n", flush=True)
        if sum(counts.values()) % 25 == 0:
            jax.clear_caches()  # no program compiles what another did, and memory would only grow
        if sum(counts.values()) % 500 == 0:
            print(dict(counts), flush=True)
    print(dict(counts))
    judged = max(counts["exact"] + counts["refused"], 1)
    return int(counts["wrong"] + counts["crashed"] > 0 or counts["refused"] > 0.02 * judged)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # what JAX and NumPyro say of odd programs
    sys.exit(main())
