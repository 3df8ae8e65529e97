"""One contender in a process of its own: `python -m benchmarks.child ROW CONTENDER FILE CORES GIGABYTES`."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def main(row: str, contender: str, path: str, cores: str, gigabytes: str) -> None:
    # Before anything starts its threads: libraries count the cores that they may use.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = cores
    # What needs more fails; it does not take the machine down.
    limit = int(float(gigabytes) * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    from benchmarks import contest, rows

    outcome = contest.by_name(rows.find(row).contenders, contender).run()
    contest.to_file(outcome, Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
