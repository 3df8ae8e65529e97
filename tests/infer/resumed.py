"""One fit with a checkpoint, in a process that may be killed while it writes: see test_infer_checkpoint.py.

Arguments: method, checkpoint, the write at which to die (0: never), where in it ("before", "inside", "after"), and
the file for the draws.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import NoReturn
from unittest import mock

import known
import numpy as np

import marginalia as mg
from marginalia.errors import MarginaliaWarning
from marginalia.infer import checkpoint, run
from marginalia.infer.result import Result

METHODS = {
    "nuts": mg.NUTS(draws=100, tune=100, chains=2, starts=4),
    "low-rank": mg.NUTS(draws=100, tune=150, chains=2, starts=4, metric="low-rank"),
    "advi": mg.ADVI(draws=50, steps=600, starts=4),
    "ensemble": mg.Ensemble(draws=50, tune=50, chains=8, superchains=4, starts=4),
    "laplace": mg.Laplace(draws=500, starts=4),
    "auto": mg.Auto(draws=200, tune=100, chains=2, starts=8),
    "smc": mg.SMC(draws=40, chains=2),
    "metropolis": mg.Metropolis(draws=100, tune=100, chains=2, starts=4),
    "slice": mg.Slice(draws=400, tune=100, chains=2, starts=4),
}


def infer(method: str, path: Path | None = None, random_seed: int | None = 11) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarginaliaWarning)  # so few draws never converge
        marginal = mg.marginalize(known.two_modes, np.array(known.SEEN))
        return run(marginal, METHODS[method], random_seed=random_seed, progressbar=False, checkpoint=path)


def numbers(result: Result) -> dict[str, np.ndarray]:
    return {**result.draws, **{f"stat {name}": value for name, value in result.stats.items()}}


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still here")


def die_at(write: int, where: str) -> None:
    """Kill this process at a write of the checkpoint: before it, when the new file is not yet in place, or after."""
    original, replace, count = checkpoint.OnDisk.write, Path.replace, 0

    def wrapped(self: checkpoint.OnDisk) -> None:
        nonlocal count
        count += 1
        if count == write and where == "before":
            die()
        original(self)
        if count == write:
            die()

    def replaced(self: Path, target: Path) -> Path:
        if count == write and where == "inside":
            die()
        return replace(self, target)

    mock.patch.object(checkpoint.OnDisk, "write", wrapped).start()
    mock.patch.object(Path, "replace", replaced).start()


if __name__ == "__main__":
    method, path, write, where, out = sys.argv[1:]
    checkpoint.EVERY_SECONDS = 0.0
    checkpoint.WRITING_SHARE = 1e9
    if int(write):
        die_at(int(write), where)
    np.savez(out, **numbers(infer(method, Path(path))))
