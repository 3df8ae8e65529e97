"""Rows `w6-*`: five points in two clusters, the most probable parameters and the posterior."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import samplers
from benchmarks.contest import Answer, Contender, Goal, Outcome, Row

Y = np.array([0.0, 1.0, 10.0, 11.0, 12.0])
MODE = np.array([0.375, 0.625, 0.4989, 10.9845, 0.6514])  # weights, locs from left to right, scale
RUN = {"draws": 2000, "tune": 500, "chains": 2}
PYRO = 4.3  # seconds of Pyro's 300 steps of NUTS, as published; it needs torch and is not run here


def _mode(values: dict[str, Any], error: float) -> dict[str, Answer]:
    order = np.argsort(values["locs"])
    found = np.concatenate([np.asarray(values[n])[order] for n in ("weights", "locs")] + [np.ravel(values["scale"])])
    return {"most probable parameters": Answer(found, np.full(5, error))}


def _twice(run: Callable[[], Outcome]) -> Outcome:
    """The second time in the same process costs what is left when nothing has to be imported or compiled."""
    first = run()
    begun = time.perf_counter()
    run()
    return Outcome({**first.figures, "again_s": time.perf_counter() - begun}, first.answers, first.draws, first.note)


def ours_map() -> Outcome:
    import marginalia as mg
    from benchmarks import programs

    fit = mg.fit(programs.few, Y, method=mg.MAP(starts=100), random_seed=1, progressbar=False)
    return Outcome({}, _mode({name: v[0, 0] for name, v in fit.draws.items()}, 1e-4), note=" ".join(fit.status))


def numpyro_map() -> Outcome:
    """As the workflow does it: the best of 100 beginnings at data points, then 200 steps of Adam, with enumeration."""
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro.contrib.funsor import config_enumerate
    from numpyro.infer import SVI, TraceEnum_ELBO, autoguide

    from benchmarks import programs

    model = config_enumerate(programs.few)
    guide = autoguide.AutoDelta(numpyro.handlers.block(programs.few, hide=["assignment"]))
    elbo = TraceEnum_ELBO()
    svi = SVI(model, guide, numpyro.optim.Adam(0.1, b1=0.8, b2=0.99), elbo)
    svi.init(jax.random.key(0), Y)
    rng = np.random.default_rng(1)
    begin = {
        "weights_auto_loc": jnp.full((100, 2), 0.5),
        "scale_auto_loc": jnp.full(100, np.sqrt(Y.var() / 2)),
        "locs_auto_loc": jnp.array([rng.choice(Y, 2, replace=False) for _ in range(100)]),
    }
    losses = jax.jit(jax.vmap(lambda params: elbo.loss(jax.random.key(0), params, model, guide, Y)))(begin)
    best = {name: value[losses.argmin()] for name, value in begin.items()}
    params = svi.run(jax.random.key(1), 200, Y, progress_bar=False, init_params=best).params
    return Outcome({}, _mode(guide.median(params), 1e-3))


def ours_posterior() -> Outcome:
    return _twice(lambda: samplers.ours("few", Y, lambda mg: mg.NUTS(**RUN)))


def numpyro_posterior() -> Outcome:
    from benchmarks import programs

    return _twice(lambda: samplers.by_numpyro(programs.few, Y, parallel=2, **RUN))


def columns(draws: Any) -> np.ndarray:
    """Locations from left to right; the scale through its logarithm, whose tails are short."""
    scale = np.log(np.asarray(draws["scale"]))[..., None]
    return np.concatenate([samplers.in_order("locs", ("weights",))(draws), scale], axis=-1)


POSTERIOR = (
    Contender("marginalia", ours_posterior, role="ours"),
    Contender("NumPyro", numpyro_posterior, needs=("funsor",)),
    Contender("marginalia, cache", ours_posterior, role="ours", cache="marginalia"),
    Contender("NumPyro, cache", numpyro_posterior, needs=("funsor",), cache="NumPyro"),
)

ROWS = (
    Row(
        "w6-map",
        "W6, five points: the best of 100 starts and the most probable parameters, whole process",
        "s",
        "wall_s",
        (
            Contender("marginalia", ours_map, role="ours"),
            Contender("NumPyro", numpyro_map, needs=("funsor",)),
        ),
        (
            Goal("≥ 1×", "marginalia", "wall_s", "NumPyro", 1),
            Goal("≤ 2.3 s (Pyro, published)", "marginalia", "wall_s", most=2.3),
        ),
        reference=_mode({"weights": MODE[:2], "locs": MODE[2:4], "scale": MODE[4]}, 1e-4),
        note="Pyro needs torch and is not run; NumPyro's equivalent is.",
    ),
    Row(
        "w6-nuts",
        "W6, five points: the posterior by NUTS, whole process, and again in the same process",
        "s",
        "wall_s",
        POSTERIOR,
        (
            Goal("cold ≥ 1×", "marginalia", "wall_s", "NumPyro", 1),
            Goal("compilation cache ≥ 1×", "marginalia, cache", "wall_s", "NumPyro, cache", 1),
            Goal("again ≥ 10×", "marginalia", "again_s", "NumPyro", 10),
            Goal(f"cold ≤ {PYRO} s (Pyro, published)", "marginalia", "wall_s", most=PYRO),
            Goal(f"again ≤ {PYRO / 10} s (a tenth of Pyro)", "marginalia", "again_s", most=PYRO / 10),
        ),
        columns=columns,
        note="2 chains of 2000 draws after 500 of tuning. Pyro needs torch and is not run; NumPyro's equivalent is.",
    ),
)  # fmt: skip
