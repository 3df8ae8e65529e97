"""The summary table of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from marginalia.infer.check import convergence

if TYPE_CHECKING:
    import pandas as pd

PROBABILITY = 0.89  # ArviZ's equal-tailed interval


def summary(draws: dict[str, np.ndarray], raw: dict[str, np.ndarray] | None, method: str) -> pd.DataFrame:
    """One row a parameter: mean, sd, 89 % equal-tailed interval, effective sample sizes, R-hat.

    With `raw` (the draws before relabelling) a column `r_hat_raw` stands beside `r_hat`; its components have
    the sampler's numbers, which may be others. For a mode (method "map") the only number is the mode itself;
    the other columns are NaN and `attrs["note"]` says so.
    """
    import pandas as pd

    checked, before = convergence(draws), convergence(raw or {})
    names: list[str] = []
    rows: list[dict[str, float]] = []
    for name, value in draws.items():
        flat = np.asarray(value, float).reshape(*np.shape(value)[:2], -1)
        names += labels(name, np.shape(value)[2:])
        r_hat, bulk, tail = (np.ravel(c) for c in checked[name])
        for i in range(flat.shape[2]):
            row = {**_moments(flat[..., i]), "ess_bulk": bulk[i], "ess_tail": tail[i], "r_hat": r_hat[i]}
            if raw is not None:
                row["r_hat_raw"] = np.ravel(before[name][0])[i] if name in before else np.nan
            rows.append(row)
    table = pd.DataFrame(rows, index=names)
    if method == "map":
        table.attrs["note"] = "mean is the mode (MAP): one point, so it has no sd, interval or R-hat."
    return table


def labels(name: str, shape: tuple[int, ...]) -> list[str]:
    """ArviZ's names of a site's elements: "mu[0]", "cov[0, 1]"."""
    return [f"{name}[{', '.join(map(str, i))}]" if i else name for i in np.ndindex(*shape)]


def _moments(value: np.ndarray) -> dict[str, float]:
    if value.size == 1:
        return {"mean": float(value.item()), "sd": np.nan, "eti89_lb": np.nan, "eti89_ub": np.nan}
    tail = (1 - PROBABILITY) / 2
    low, high = np.quantile(value, [tail, 1 - tail])
    return {"mean": float(value.mean()), "sd": float(value.std(ddof=1)), "eti89_lb": low, "eti89_ub": high}
