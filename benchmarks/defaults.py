"""What one gets without any option: `python -m benchmarks.defaults`; `--docs` writes docs/default-fits.md anew.

Ordinary tables, each fitted by the command (`marginalia fit table.csv -k K`) and by `mg.fit(program, data)` in
processes of their own, one after the other, everything from the interpreter's start to the written results counted.
Beside the seconds: which method was chosen, whether the status is empty (the command's exit status 0), and how far the
answer is from a long run of NUTS with another seed: the largest difference of posterior means, in combined Monte Carlo
standard errors, over quantities that do not depend on labels (the log density, and the components' weights in
increasing order). With some three of them, below 4 is to be expected. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).parents[1] / "docs" / "default-fits.md"
RESULTS = Path(__file__).parents[1] / "build" / "defaults.jsonl"
SHORT = {
    "iris": "iris, 4 columns",
    "wine": "wine, 13 columns",
    "cancer": "breast cancer, 30 columns",
    "geyser": "like Old Faithful, 2 columns",
    "fifty": "fifty rows, 1 column",
    "many": "300 000 rows, 2 columns",
    "items": "five binary items",
    "groups": "weights by 20 groups",
}
CASES = [
    *(("iris", k) for k in range(1, 7)),
    *(("geyser", k) for k in range(1, 7)),
    *(("wine", k) for k in (1, 2, 3)),
    *(("cancer", k) for k in (1, 2)),
    ("fifty", 1),
    ("fifty", 10),
    *(("many", k) for k in (1, 2, 3)),
    ("items", 2),
    ("items", 3),
    ("groups", 2),
]
LONG = {"draws": 3000, "tune": 1000}  # a chain, of the run that answers are held against


def table(name: str) -> np.ndarray:
    """The rows of one of the tables, `(rows, columns)`."""
    rng = np.random.default_rng(20)
    if name in ("iris", "wine", "cancer"):
        from sklearn import datasets

        load = {"iris": datasets.load_iris, "wine": datasets.load_wine, "cancer": datasets.load_breast_cancer}
        return np.asarray(load[name]().data)
    if name == "geyser":
        short = rng.random(272) < 0.36
        first = np.where(short, rng.normal(2.04, 0.27, 272), rng.normal(4.29, 0.41, 272))
        second = np.where(short, rng.normal(54.5, 5.9, 272), rng.normal(80.0, 6.0, 272))
        return np.stack([first, second], axis=1).round(3)
    if name == "fifty":
        return (rng.normal(size=50) + 3 * rng.integers(0, 3, 50))[:, None]
    if name == "many":
        z = rng.integers(0, 3, 300_000)
        return rng.normal(size=(300_000, 2)) + np.array([[0, 0], [3, -2], [6, 0]])[z]
    raise ValueError(name)


def program(name: str, k: int) -> tuple[Any, ...]:
    """The program and its arguments."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    rng = np.random.default_rng(21)
    if name == "items":
        z = rng.choice(3, size=300, p=[0.5, 0.3, 0.2])
        truth = np.array([[0.8, 0.9, 0.7, 0.8, 0.9], [0.2, 0.3, 0.1, 0.2, 0.3], [0.8, 0.2, 0.9, 0.1, 0.5]])

        def classes(y: Any) -> None:
            w = numpyro.sample("weights", dist.Dirichlet(jnp.ones(k)))
            with numpyro.plate("class", k, dim=-2), numpyro.plate("item", y.shape[1], dim=-1):
                p = numpyro.sample("p", dist.Beta(1, 1))
            with numpyro.plate("obs", len(y)):
                z = numpyro.sample("z", dist.Categorical(w))
                numpyro.sample("y", dist.Bernoulli(p[z]).to_event(1), obs=y)

        return classes, (rng.random((300, 5)) < truth[z]).astype(int)
    if name == "groups":
        group = np.repeat(np.arange(20), 40)
        q = 1 / (1 + np.exp(-(0.5 + 0.8 * rng.normal(size=20)[group])))
        z = rng.random(800) < q

        def by_group(y: Any, group: Any) -> None:
            """The means' priors differ, so the two labellings are two modes of unequal mass."""
            m = numpyro.sample("m", dist.Normal(0, 1.5))
            t = numpyro.sample("t", dist.HalfNormal(1))
            with numpyro.plate("group", 20):
                e = numpyro.sample("e", dist.Normal(0, 1))
            with numpyro.plate("component", 2):
                mu = numpyro.sample("mu", dist.Normal(jnp.array([-0.5, 0.5]), 3))
                sd = numpyro.sample("sd", dist.HalfNormal(2))
            with numpyro.plate("obs", len(y)):
                z = numpyro.sample("z", dist.Bernoulli(logits=(m + t * e)[group]))
                numpyro.sample("y", dist.Normal(mu[z], sd[z]), obs=y)

        return by_group, np.where(z, rng.normal(2, 1, 800), rng.normal(-1, 1.2, 800)), group
    from marginalia.models import gaussian_mixture

    y = table(name)
    y = y[:, 0] if y.shape[1] == 1 else y
    return gaussian_mixture(y, k), y


def _fit(name: str, k: int, long: bool) -> dict[str, Any]:
    """One fit by `mg.fit`, in this process; the long run is NUTS."""
    import marginalia as mg
    from marginalia.errors import MarginaliaWarning

    model, *args = program(name, k)
    method = mg.NUTS(**LONG) if long else "auto"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarginaliaWarning)
        fit = mg.fit(model, *args, method=method, random_seed=7 if long else 1, progressbar=False)
    return {"method": fit.method, "status": list(fit.status), "told": _invariants(fit)}


def _invariants(fit: Any) -> dict[str, tuple[float, float]]:
    """Posterior mean and its Monte Carlo standard error of quantities that no relabelling changes."""
    from arviz_stats.base.array import array_stats

    values = {"log density": np.asarray(fit.result.stats["lp"])}
    if "weights" in fit.draws:
        weights = np.sort(np.asarray(fit.draws["weights"]), axis=-1)
        values |= {f"weight {i}": weights[..., i] for i in range(weights.shape[-1] - 1)}
    if "m" in fit.draws:
        values |= {"m": np.asarray(fit.draws["m"]), "t": np.asarray(fit.draws["t"])}
    out = {}
    for what, x in values.items():
        error = array_stats.mcse(x, chain_axis=0, draw_axis=1, method="mean")
        out[what] = (float(x.mean()), float(error))
    return out


def _timed(command: list[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    return time.perf_counter() - begun, done


def _last(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _one(name: str, k: int) -> dict[str, Any]:
    here = [sys.executable, "-m", "benchmarks.defaults", "--one", name, str(k)]
    seconds, done = _timed(here)
    found = _last(done)
    row: dict[str, Any] = {"name": name, "k": k, "seconds": seconds, **found}
    long = _last(_timed([*here, "--long"])[1])
    row["long_status"] = long["status"]
    row["away"] = {
        what: abs(mean - long["told"][what][0]) / float(np.hypot(error, long["told"][what][1]))
        for what, (mean, error) in found["told"].items()
    }
    if name not in ("items", "groups"):
        with tempfile.TemporaryDirectory() as folder:
            rows, path = table(name), Path(folder) / "table.csv"
            header = ",".join(f"c{i}" for i in range(rows.shape[1]))
            np.savetxt(path, rows, delimiter=",", header=header, comments="", fmt="%.17g")
            command = [sys.executable, "-m", "marginalia", "fit", str(path), "-k", str(k), "--seed", "1", "--no-cache"]
            row["command_seconds"], done = _timed([*command, "--out", str(Path(folder) / "out"), "--no-progress"])
            row["command_exit"] = done.returncode
    return row


def _line(row: dict[str, Any]) -> str:
    command = f"{row['command_seconds']:.1f} s, exit {row['command_exit']}" if "command_seconds" in row else "-"
    said = "; ".join(s.split(":")[0] for s in row["status"]) or "nothing"
    long = "" if not row["long_status"] else " (long run in doubt)"
    away = max(row["away"].values())
    return (
        f"| {SHORT[row['name']]} | {row['k']} | {row['seconds']:.1f} s | {command} | {row['method']} | {said} | "
        f"{away:.1f}{long} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="tables, separated by commas; the others' last rows are kept")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/default-fits.md")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--long", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(_fit(chosen.one[0], int(chosen.one[1]), chosen.long)))
        return
    RESULTS.parent.mkdir(exist_ok=True)
    before = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    rows = {(row["name"], row["k"]): row for row in map(json.loads, before)}
    for name, k in CASES:
        if not chosen.only or name in chosen.only.split(","):
            rows[name, k] = _one(name, k)
            RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
            print(_line(rows[name, k]), flush=True)
    lines = [_line(rows[case]) for case in CASES if case in rows]
    if chosen.docs:
        before, _, rest = DOCS.read_text().partition("<!-- table -->")
        _, _, after = rest.partition("<!-- end of table -->")
        head = "| table | K | `mg.fit` | command | method | findings | from a long run |\n|---|---|---|---|---|---|---|"
        DOCS.write_text(f"{before}<!-- table -->\n{head}\n" + "\n".join(lines) + f"\n<!-- end of table -->{after}")


if __name__ == "__main__":
    main()
