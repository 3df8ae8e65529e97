"""Which model and which data a saved fit is of, so that no draws are ever read with others.

Words on a program would tell one that is written otherwise, or read by another version of JAX, from itself. So numbers
are kept: sites and shapes, the data themselves, and at some of the draws the log density and each term of it that reads
no discrete. Another version of a library changes these in their last digits only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from marginalia.errors import DataError, compose
from marginalia.lanes import bounds
from marginalia.marginal.free import free_terms
from marginalia.ondraws import OnDraws, Params, count, flatten
from marginalia.precision import float64

POINTS = 3
"""Draws at which densities are kept."""

TOLERANCE = 1e-9


def of(engine: OnDraws, draws: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What tells the model and data of a fit from others, as JSON.

    `draws` are the fit's own, `{latent: (chain, draw, *shape)}`, as they are saved.
    """
    program = engine.program
    params = flatten(dict(draws), program.latents)
    rows = np.linspace(0, count(params) - 1, POINTS).round().astype(int)
    at = {name: value[rows] for name, value in params.items()}
    return {
        "latents": {name: list(site.shape) for name, site in program.latents.items()},
        "discretes": {n: [list(d.shape), int(d.values[0]), _last(d)] for n, d in program.discretes.items()},
        "limits": dataclasses.asdict(getattr(engine.kernel, "asked", bounds.current())),
        "rows": rows.tolist(),
        "terms": {name: values.tolist() for name, values in _terms(engine, at).items()},
        "log_density": engine.log_density(at).tolist(),
    }


def limits_of(kept: Mapping[str, Any] | None) -> bounds.Limits:
    """The limits under which the fit was made, for its model to be read under them again; else those that hold now."""
    return bounds.Limits(**kept["limits"]) if kept is not None else bounds.current()


def refuse_another(
    path: str | Path,
    kept: Mapping[str, Any] | None,
    observed: Params,
    engine: OnDraws,
    draws: Mapping[str, np.ndarray],
) -> None:
    """Compare a model and its data with those of a file; `kept` is what `of` gave, None in files without it.

    Raises:
        DataError: They are others; the message says in what.
    """
    found = list(_of_sites(kept, observed, engine.program, draws)) or list(_of_data(observed, engine.program))
    if not found and kept is not None:
        found = list(_of_densities(kept, engine, draws))
    if found:
        raise DataError(
            compose(
                "this fit is of another model or of other data",
                where=str(path),
                expected="the model and the data that were fitted",
                got="; ".join(found),
                remedy="load it with those; then fit.membership(rows) classifies new rows and fit.predict(rows) "
                "predicts them. For other data or another model make another fit.",
            )
        )


def _of_sites(
    kept: Mapping[str, Any] | None, observed: Params, program: Any, draws: Mapping[str, np.ndarray]
) -> Iterator[str]:
    was = {name: tuple(np.shape(value)[2:]) for name, value in draws.items()}
    now = {name: tuple(site.shape) for name, site in program.latents.items()}
    yield from _named("the continuous latents", was, now)
    if kept is not None:
        before = {name: (tuple(shape), *ends) for name, (shape, *ends) in kept["discretes"].items()}
        here = {n: (tuple(d.shape), int(d.values[0]), _last(d)) for n, d in program.discretes.items()}
        if len(before) != len(here) or before.keys() != here.keys():
            yield from _named("the discretes", before, here)
        else:  # the number of rows is told along with the data
            for name, (shape, *ends) in here.items():
                if [before[name][1], before[name][2]] != ends or len(shape) != len(before[name][0]):
                    yield f"the discrete {name!r} {_support(before[name])}, and {_support(here[name])} now"
    if observed.keys() != program.observed.keys():
        yield f"the observed sites were {_listed(observed)} and are {_listed(program.observed)}"


def _of_data(observed: Params, program: Any) -> Iterator[str]:
    for name, value in observed.items():
        was, now = np.asarray(value), np.asarray(program.observed[name].value)
        if was.shape != now.shape:
            yield f"the data {name!r} had the shape {was.shape} and have {now.shape}"
            continue
        with np.errstate(invalid="ignore"):
            other = ~((was == now) | ((was != was) & (now != now)))
        if other.any():
            place = tuple(int(i) for i in np.argwhere(other)[0])
            row = f" in row {place[0]} (counting from 0)" if place else ""
            yield (
                f"{int(other.sum())} of the {other.size} values of {name!r} are others, the first{row}: it was "
                f"{was[place]} and is {now[place]}"
            )


def _of_densities(kept: Mapping[str, Any], engine: OnDraws, draws: Mapping[str, np.ndarray]) -> Iterator[str]:
    params = flatten(dict(draws), engine.program.latents)
    at = {name: value[np.asarray(kept["rows"], int)] for name, value in params.items()}
    was, now = kept["terms"], _terms(engine, at)
    if was.keys() != now.keys():
        yield f"the terms that read no discrete were {_listed(was)} and are {_listed(now)}"
        return
    differ = [n for n in was if not _same(was[n], now[n])]
    for name in differ:
        yield f"the log density of {name!r} at {_apart(was[name], now[name])}"
    if not differ:
        now_whole = engine.log_density(at)
        if not _same(kept["log_density"], now_whole):
            yield (
                "what the data are compared with is another (the likelihood, the discretes' probabilities, a "
                f"covariate or a mask): the log density at {_apart(kept['log_density'], now_whole)}"
            )


def _terms(engine: OnDraws, at: Params) -> Params:
    if not hasattr(engine.program, "terms"):  # a density without a program behind it
        return {}
    with float64():
        return free_terms(engine.kernel)(at)


def _same(was: Any, now: Any) -> bool:
    return bool(np.allclose(np.asarray(was, float), np.asarray(now, float), TOLERANCE, TOLERANCE, equal_nan=True))


def _apart(was: Any, now: Any) -> str:
    was, now = np.asarray(was, float), np.asarray(now, float)
    i = int(np.argmax(~np.isclose(was, now, TOLERANCE, TOLERANCE, equal_nan=True)))
    return f"a draw of the fit was {was[i]:.10g} and is {now[i]:.10g}"


def _named(what: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if dict(was) != dict(now):
        yield f"{what} were {_shaped(was)} and are {_shaped(now)}"


def _shaped(sites: Mapping[str, Any]) -> str:
    shapes = {n: about[0] if about and isinstance(about[0], tuple) else about for n, about in sites.items()}
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "none"


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"


def _support(about: tuple[Any, ...]) -> str:
    shape, first, last = about
    return f"had {len(shape)} axes and values from {first} {f'to {last}' if last is not None else 'on'}"


def _last(discrete: Any) -> int | None:
    """The largest value; None where there is none."""
    return None if getattr(discrete, "endless", False) else int(discrete.values[-1])
