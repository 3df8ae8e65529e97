"""Collect what the page says, and fill the template. Nothing in the page is loaded from elsewhere."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from marginalia.errors import FitError
from marginalia.store import whole

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from matplotlib.figure import Figure

    from marginalia.fitting import Fit

UNSURE = 0.8  # a row whose largest membership is below this belongs to no component for sure


class Picture(NamedTuple):
    """A picture as a data URL, or the reason why there is none."""

    title: str
    caption: str
    source: str
    alt: str
    missing: str


def write_report(fit: Fit, path: str | Path) -> Path:
    """Write the page; whole or not at all.

    Raises:
        DataError: The folder does not exist or cannot be written.
    """
    path = Path(path)
    text = render(fit)
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def render(fit: Fit) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("marginalia.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(**_content(fit))


def _content(fit: Fit) -> dict[str, Any]:
    table = fit.summary()
    info = fit.result.info
    return {
        "title": fit.about.get("model_name", "Report of a fit").replace("-", " ").capitalize(),
        "verdict": _verdict(fit),
        "trusted": not fit.status,
        "status": fit.status,
        "notes": fit.notes,
        "starts": fit.result.starts.sentence if fit.result.starts is not None else "",
        "facts": _facts(fit),
        "plan": _plan(fit),
        "columns": [_HEADS.get(c, (c, "")) for c in table.columns],
        "rows": _rows(table),
        "table_note": table.attrs.get("note", ""),
        "pictures": _pictures(fit),
        "memberships": _memberships(fit),
        "loo": _loo(fit),
        "options": {k: v for k, v in info.get("options", {}).items() if v is not None},
        "versions": fit.about.get("versions", {}),
        "created": fit.about.get("created", "unknown"),
        "seed": info.get("random_seed", "unknown"),
    }


_HEADS = {
    "mean": ("mean", "posterior mean"),
    "sd": ("sd", "posterior standard deviation"),
    "eti89_lb": ("5.5 %", "lower end of the 89 % interval"),
    "eti89_ub": ("94.5 %", "upper end of the 89 % interval"),
    "ess_bulk": ("ESS bulk", "effective number of draws for the centre"),
    "ess_tail": ("ESS tail", "effective number of draws for the tails"),
    "r_hat": ("R-hat", "agreement of the chains; 1 is best, above 1.01 is not good"),
    "r_hat_raw": ("R-hat raw", "the same before the labels were put right"),
}


def _rows(table: pd.DataFrame) -> list[tuple[str, list[str]]]:
    return [
        (str(name), _cells(dict(zip(table.columns, map(float, row), strict=True))))
        for name, row in zip(table.index, table.to_numpy(), strict=True)
    ]


def _cells(row: dict[str, float]) -> list[str]:
    """Numbers as text; those of one parameter share their decimals, two digits of its standard deviation."""
    sd = row["sd"]
    decimals = int(np.clip(1 - math.floor(math.log10(sd)), 0, 8)) if sd > 0 else 4
    out = []
    for column, value in row.items():
        if math.isnan(value):
            out.append("–")
        elif column.startswith("ess"):
            out.append(f"{value:.0f}")
        elif column.startswith("r_hat"):
            out.append(f"{value:.3f}")
        else:
            out.append(f"{value:.{decimals}f}" if abs(value) < 1e6 else f"{value:.5g}")
    return out


def _verdict(fit: Fit) -> str:
    if fit.status:
        number = "One thing is" if len(fit.status) == 1 else f"{len(fit.status)} things are"
        return f"Not to be trusted yet. {number} wrong; each with what to do about it:"
    if fit.method == "map":
        return "The optimisation ended well. A mode has no uncertainty: fit with nuts for that."
    return "Converged: the chains agree with each other, and nothing wrong was found. The numbers can be used."


def _facts(fit: Fit) -> list[tuple[str, str]]:
    chains, length = np.shape(next(iter(fit.draws.values())))[:2]
    observed = fit.data["observed_data"].data_vars if "observed_data" in fit.data.children else {}
    data = "; ".join(f"{n}: {' x '.join(map(str, v.shape))} values" for n, v in observed.items())
    facts = [("Data", data or "none")]
    columns = fit.about.get("model_options", {}).get("columns")
    if columns:
        facts.append(("Columns", ", ".join(map(str, columns))))
    sites = ", ".join(f"{n} {tuple(np.shape(v)[2:])}" if np.ndim(v) > 2 else n for n, v in fit.draws.items())
    facts.append(("Parameters", sites))
    how = "the mode" if fit.method == "map" else f"{chains} chains of {length} draws"
    facts.append(("Method", f"{fit.method}, {how}"))
    if "seconds" in fit.result.info:
        facts.append(("Time", f"{fit.result.info['seconds']:.1f} s"))
    return facts


def _plan(fit: Fit) -> str:
    return str(fit.marginal.explain()) if fit.marginal is not None else str(fit.about.get("plan", ""))


def _pictures(fit: Fit) -> list[Picture]:
    wanted: list[tuple[str, str, str, Callable[[], Figure]]] = [
        (
            "The data and the density",
            "The posterior mean of the density, with the band that holds it with 89 % probability at each "
            "place, and what each component adds. Data far outside are not described by the model.",
            "Data with the posterior density of the model over them",
            fit.plot.density,
        ),
        (
            "Memberships",
            "For every row the probability of each component, averaged over the draws.",
            "Stacked bars of membership probabilities, one bar a row",
            fit.plot.membership,
        ),
    ]
    if fit.method != "map":
        wanted.append(
            (
                "Traces",
                "The draws in the order in which they came, and their density, one colour a chain. "
                "Chains that have converged look alike and have no trend.",
                "Traces and densities of each parameter by chain",
                fit.plot.trace,
            )
        )
    out = []
    for title, caption, alt, draw in wanted:
        try:
            figure = draw()
        except FitError as error:  # a verb that this fit cannot serve says so in place of the picture
            out.append(Picture(title, "", "", alt, str(error)))
            continue
        out.append(Picture(title, caption, _png(figure), alt, ""))
    return out


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _memberships(fit: Fit) -> list[dict[str, Any]]:
    try:
        found = fit.membership()
    except FitError:
        return []  # the picture's place says why
    out = []
    for name, shares in found.items():
        p = shares.values.reshape(-1, shares.shape[-1])
        best = np.bincount(p.argmax(axis=1), minlength=p.shape[1])
        out.append(
            {
                "site": name,
                "states": [
                    (str(state), f"{total:.1f}", f"{total / len(p):.1%}", int(count))
                    for state, total, count in zip(shares[shares.dims[-1]].values, p.sum(axis=0), best, strict=True)
                ],
                "elements": len(p),
                "unsure": int((p.max(axis=1) < UNSURE).sum()),
                "threshold": f"{UNSURE:.0%}",
            }
        )
    return out


def _loo(fit: Fit) -> dict[str, str]:
    try:
        found = fit.loo()
    except FitError as error:
        return {"missing": str(error)}
    k = np.asarray(found.pareto_k)
    bad = int((k > found.good_k).sum())
    words = (
        "All Pareto k values are good: the estimate can be trusted."
        if bad == 0
        else f"{bad} of {k.size} units have a Pareto k above {found.good_k:.2f}: they pull strongly on the "
        "fit, and the estimate is unsure by what they add. Look at these rows."
    )
    return {
        "missing": "",
        "elpd": f"{found.elpd:.1f}",
        "se": f"{found.se:.1f}",
        "p": f"{found.p:.1f}",
        "units": str(found.n_data_points),
        "words": words,
    }
