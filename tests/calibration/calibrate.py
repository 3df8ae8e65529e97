"""Simulation-based calibration: `python tests/calibration/calibrate.py --replications 200`.

For each replication parameters come from the prior and data from these, every method fits the data through `mg.fit`,
and the true values are ranked among 99 posterior draws. Prints, for each model, method and quantity, the p-value of
uniform ranks by simultaneous bands, and draws the picture. Fits whose `status` is not empty refused themselves: they
are counted apart, and their ranks judged apart. Since the status is a matter of the data, ranks of the accepted fits
are uniform if the method is right.

Results are lines of a file: the same call goes on from there, unless the code has changed. The exit status is 1 when
a p-value of accepted fits is below 0.01 divided by the number of tests.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from once import fitting_of
from ranks import DRAWS, band, counting, p_value, rank, thinned
from simulated import MODELS, Simulated

import marginalia as mg
from marginalia.errors import FitError, MarginaliaWarning

# Draws are fewer than the defaults, and so are starts: these are small models, and there are many fits.
METHODS: dict[str, Any] = {
    "auto": mg.Auto(draws=500, tune=500, max_draws=4000, starts=16),
    "ensemble": mg.Ensemble(draws=500, tune=300, chains=4, superchains=2, starts=16, max_draws=4000),
    "nuts": mg.NUTS(draws=500, tune=500, starts=16),
    "laplace": mg.Laplace(draws=1000, starts=16),
    "smc": mg.SMC(draws=500, chains=2),
}
SEED = 20_260
FALSE_ALARM = 0.01  # of the whole table
FEWEST = 10  # ranks that a test makes sense of

type Line = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description="Ranks of true values among posterior draws.")
    parser.add_argument("--replications", type=int, default=200)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--results", type=Path, help="file of results to go on from; default: a new one")
    parser.add_argument("--minutes", type=float, default=np.inf, help="begin no fit after so long, all models together")
    parser.add_argument("--out", type=Path, help="picture")
    options = parser.parse_args()
    path = options.results or Path(tempfile.mkdtemp()) / "calibration.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"results: {path}", flush=True)
    for model in options.models:
        end = time.monotonic() + 60 * options.minutes / len(options.models)
        run(model, options.methods, options.replications, path, end)
    lines = [one for one in read(path) if one["model"] in options.models and one["method"] in options.methods]
    alarms = report(lines)
    if options.out:
        picture(lines).savefig(options.out, dpi=110)
        print(f"picture: {options.out}")
    return int(alarms > 0)


@functools.cache
def code() -> str:
    """A digest of what the results depend on: the library, the models, the methods' options."""
    here = Path(__file__).parent
    files = [*sorted(Path(mg.__file__).parent.rglob("*.py")), here / "simulated.py", here / "once.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files) + repr(METHODS).encode()).hexdigest()[:16]


def read(path: Path) -> list[Line]:
    """The results of this code so far; a line that was cut short by the end of a run is left out."""
    lines = path.read_text().split("\n") if path.exists() else []
    found = [_parsed(line) for line in lines]
    return [one for one in found if one is not None and one["code"] == code()]


def _parsed(line: str) -> Line | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def run(name: str, methods: list[str], replications: int, path: Path, end: float) -> None:
    """Fit what is not in the file yet."""
    model, number = MODELS[name], list(MODELS).index(name)
    done = {(one["model"], one["method"], one["replication"]) for one in read(path)}
    todo = [(i, m) for i in range(replications) for m in methods if (name, m, i) not in done]
    if not todo:
        return
    first = model.draw(np.random.default_rng(SEED))[1]
    with fitting_of(model.program, first) as fit, path.open("a") as file:
        for count, (replication, method) in enumerate(todo):
            if time.monotonic() > end:
                return
            truth, y = model.draw(np.random.default_rng([SEED, number, replication]))
            seed = 1000 * replication + list(METHODS).index(method)
            line = {"code": code(), "model": name, "method": method, "replication": replication}
            line |= judged(model, truth, y, lambda y=y, method=method, seed=seed: fit(y, METHODS[method], seed))
            file.write("\n" + json.dumps(line))
            file.flush()
            if count % 40 == 0:
                print(f"{name}: replication {replication}", flush=True)


def judged(model: Simulated, truth: dict[str, np.ndarray], y: np.ndarray, fit: Any) -> Line:
    """Ranks, verdict and seconds of one fit."""
    begun = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MarginaliaWarning)  # the status has the same words
            found = fit()
    except FitError as refusal:
        return {"ranks": {}, "status": [str(refusal)], "chosen": None, "seconds": time.perf_counter() - begun}
    drawn = model.quantities(thinned(found.draws), y)
    true = model.quantities({site: value[None] for site, value in truth.items()}, y)
    return {
        "ranks": {what: rank(float(true[what][0]), values) for what, values in drawn.items()},
        "status": list(found.status),
        "chosen": found.method,
        "seconds": time.perf_counter() - begun,
    }


def cells(lines: list[Line]) -> dict[tuple[str, str], tuple[list[Line], list[Line]]]:
    """Accepted fits and refused ones of each model and method."""
    keys = dict.fromkeys((one["model"], one["method"]) for one in lines)
    own = {key: [one for one in lines if (one["model"], one["method"]) == key] for key in keys}
    return {k: ([one for one in v if not one["status"]], [one for one in v if one["status"]]) for k, v in own.items()}


def ranks_of(lines: list[Line]) -> dict[str, np.ndarray]:
    """Ranks by quantity; none where there are no fits."""
    ranked = [one["ranks"] for one in lines if one["ranks"]]
    return {what: np.array([ranks[what] for ranks in ranked]) for what in (ranked[0] if ranked else {})}


def report(lines: list[Line]) -> int:
    """Print the table; the number of quantities whose ranks are not uniform."""
    table = [
        (*cell, len(good), what, p_value(ranks))
        for cell, (good, _) in cells(lines).items()
        for what, ranks in ranks_of(good).items()
        if len(good) >= FEWEST
    ]
    limit = FALSE_ALARM / max(len(table), 1)
    print(f"\n{'model':<14} {'method':<8} {'quantity':<24} {'fits':>5} {'p':>8}   (alarm below {limit:.2g})")
    for model, method, count, what, p in table:
        print(f"{model:<14} {method:<8} {what:<24} {count:5d} {p:8.4f}{'   NOT UNIFORM' if p < limit else ''}")
    print(
        f"\n{'model':<14} {'method':<8} {'fits':>5} {'refused':>8} {'seconds':>8} {'least p of accepted, of all':>28}"
    )
    for cell, (good, refused) in cells(lines).items():
        every = good + refused
        least = [
            min((p_value(r) for r in ranks_of(some).values()), default=np.nan) if len(some) >= FEWEST else np.nan
            for some in (good, every)
        ]
        seconds = np.median([one["seconds"] for one in every])
        chosen = [one["chosen"] for one in every]
        words = (
            ", ".join(f"{chosen.count(c)} {c}" for c in sorted({str(c) for c in chosen if c}))
            if cell[1] == "auto"
            else ""
        )
        print(
            f"{cell[0]:<14} {cell[1]:<8} {len(every):5d} {len(refused):8d} {seconds:8.2f}"
            f" {least[0]:14.4f} {least[1]:13.4f}   {words}"
        )
    return sum(p < limit for *_, p in table)


def picture(lines: list[Line]) -> Any:
    """Rank ECDFs less the diagonal in their 95 % simultaneous bands, a panel a cell."""
    from matplotlib.figure import Figure

    found = cells(lines)
    models = list(dict.fromkeys(model for model, _ in found))
    methods = list(dict.fromkeys(method for _, method in found))
    figure = Figure(figsize=(3.1 * len(methods) + 1.9, 2.9 * len(models)), layout="constrained")
    axes = figure.subplots(len(models), len(methods), squeeze=False, sharex=True, sharey=True)
    for row, model in enumerate(models):
        for column, method in enumerate(methods):
            panel, (good, refused) = axes[row, column], found.get((model, method), ([], []))
            panel.set_title(f"{model}, {method}\n{len(good)} fits, {len(refused)} refused themselves", fontsize=9)
            if len(good) < FEWEST:
                continue
            parts, low, high = band(len(good))
            panel.fill_between(parts, low - parts, high - parts, color="0.88", step="mid", linewidth=0)
            for what, ranks in ranks_of(good).items():
                panel.plot(parts, counting(ranks) / len(ranks) - parts, linewidth=1.1, label=what)
            panel.axhline(0, color="0.5", linewidth=0.6)
            if row == len(models) - 1:
                panel.set_xlabel(f"rank of the truth / {DRAWS + 1}", fontsize=9)
        axes[row, 0].set_ylabel("ECDF less uniform", fontsize=9)
        handles, names = axes[row, 0].get_legend_handles_labels()
        axes[row, -1].legend(handles, names, fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return figure


if __name__ == "__main__":
    sys.exit(main())
