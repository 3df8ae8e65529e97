"""Row `w2`: effective draws a second of three Gaussians apart, with hard constraints as factors of -inf."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from benchmarks import samplers
from benchmarks.contest import Contender, Goal, Outcome, Row

RUN = {"draws": 10_000, "tune": 2000, "chains": 4}
CENTRES = np.array([0.0, 10.0, 20.0])


def points() -> np.ndarray:
    return np.loadtxt(samplers.DATA / "three_apart.csv", skiprows=1)


def ours(method: Any) -> Outcome:
    return samplers.ours("apart", points(), method)


def by_numpyro(parallel: int) -> Outcome:
    """With initial values, which this model needs there: by itself it starts outside the constraints and stays."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def model(y):
        p = numpyro.sample("p", dist.Dirichlet(jnp.full(3, 2.0)))
        numpyro.factor("none is small", jnp.where(p.min() < 0.1, -jnp.inf, 0.0))
        mu = numpyro.sample("mu", dist.Normal(jnp.asarray(CENTRES), 5))
        numpyro.factor("increasing", jnp.where((mu[1:] > mu[:-1]).all(), 0.0, -jnp.inf))
        sd = numpyro.sample("sd", dist.HalfCauchy(5.0).expand([3]))
        with numpyro.plate("obs", len(y)):
            numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(p), dist.Normal(mu, sd)), obs=y)

    start = {"p": np.full(3, 1 / 3, "float32"), "mu": CENTRES.astype("float32"), "sd": np.full(3, 3, "float32")}
    return samplers.by_numpyro(model, points(), start=start, parallel=parallel, **RUN)


def by_pymc(nutpie: bool) -> Outcome:
    y = points()

    def build(pm: Any) -> Any:
        with pm.Model() as model:
            p = pm.Dirichlet("p", np.full(3, 2.0), initval=np.full(3, 1 / 3))
            pm.Potential("none is small", pm.math.switch(pm.math.min(p) < 0.1, -np.inf, 0.0))
            mu = pm.Normal("mu", CENTRES, 5, shape=3, initval=CENTRES)
            apart = pm.math.and_(mu[1] > mu[0], mu[2] > mu[1])
            pm.Potential("increasing", pm.math.switch(apart, 0.0, -np.inf))
            sd = pm.HalfCauchy("sd", 5.0, shape=3)
            pm.NormalMixture("y", w=p, mu=mu, sigma=sd, observed=y)
        return model

    return samplers.by_pymc(build, nutpie=nutpie, **RUN)


ROWS = (
    Row(
        "w2",
        "W2, three Gaussians apart, hard constraints: effective draws a second, whole process",
        "a second",
        "effective_per_s",
        (
            Contender("marginalia", functools.partial(ours, lambda mg: mg.NUTS(**RUN)), role="ours"),
            Contender("marginalia Laplace", functools.partial(ours, lambda mg: mg.Laplace(draws=10_000)), role="ours"),
            Contender(
                "marginalia ensemble", functools.partial(ours, lambda mg: mg.Ensemble(600, chains=64)), role="ours"
            ),
            Contender("marginalia auto", functools.partial(ours, lambda mg: "auto"), role="ours"),
            Contender("NumPyro, chains in step", functools.partial(by_numpyro, 1)),
            Contender("NumPyro, two devices", functools.partial(by_numpyro, 2)),
            Contender("nutpie", functools.partial(by_pymc, True), needs=("pymc", "nutpie")),
            Contender("PyMC", functools.partial(by_pymc, False), needs=("pymc",)),
        ),
        (Goal("≥ 4×", "marginalia", "effective_per_s", "peer", 4),),
        more_is_better=True,
        columns=samplers.in_order("mu", ("p", "sd")),
        reference=samplers.published(
            [-0.12, 9.70, 20.03, 0.184, 0.306, 0.510, 2.89, 2.01, 4.38],
            [0.27, 0.17, 0.31, 0.013, 0.022, 0.022, 0.22, 0.16, 0.23],
            [0.01] * 3 + [0.001] * 3 + [0.01] * 3,
        ),
        note="NUTS: 4 chains of 10 000 draws after 2000 of tuning; peers are given initial values.",
    ),
)
