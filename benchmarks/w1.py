"""Row `w1`: effective draws a second of three Gaussians that lie close together, everything counted."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from benchmarks import samplers
from benchmarks.contest import Contender, Goal, Outcome, Row

RUN = {"draws": 10_000, "tune": 2000, "chains": 4}
ENSEMBLE = {"draws": 10_000, "tune": 300, "chains": 4, "superchains": 2}


def points() -> np.ndarray:
    return np.loadtxt(samplers.DATA / "three_close.csv", skiprows=1)


def ours(method: Any) -> Outcome:
    return samplers.ours("close", points(), method)


def by_numpyro(dtype: str, parallel: int) -> Outcome:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def model(y):
        p = numpyro.sample("p", dist.Dirichlet(jnp.full(3, 10.0)))
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.ordered_vector, (), (3,)))
        numpyro.factor("prior of mu", dist.Normal(0, 10).log_prob(mu).sum())
        with numpyro.plate("obs", len(y)):
            numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(p), dist.Normal(mu, 1.0)), obs=y)

    return samplers.by_numpyro(model, points(), dtype=dtype, parallel=parallel, **RUN)


def by_pymc(nutpie: bool) -> Outcome:
    y = points()

    def build(pm: Any) -> Any:
        with pm.Model() as model:
            p = pm.Dirichlet("p", np.full(3, 10.0))
            ordered = pm.distributions.transforms.ordered
            mu = pm.Normal("mu", 0, 10, shape=3, transform=ordered, initval=np.array([-1.0, 0.0, 1.0]))
            pm.NormalMixture("y", w=p, mu=mu, sigma=1.0, observed=y)
        return model

    return samplers.by_pymc(build, nutpie=nutpie, **RUN)


ROWS = (
    Row(
        "w1",
        "W1, three close Gaussians: effective draws a second, whole process",
        "a second",
        "effective_per_s",
        (
            Contender("marginalia", functools.partial(ours, lambda mg: mg.Ensemble(**ENSEMBLE)), role="ours"),
            Contender("marginalia auto", functools.partial(ours, lambda mg: "auto"), role="ours"),
            Contender("marginalia NUTS", functools.partial(ours, lambda mg: mg.NUTS(**RUN)), role="ours"),
            Contender("NumPyro, chains in step", functools.partial(by_numpyro, "float32", 1)),
            Contender("NumPyro, two devices", functools.partial(by_numpyro, "float32", 2)),
            Contender("nutpie", functools.partial(by_pymc, True), needs=("pymc", "nutpie")),
            Contender("PyMC", functools.partial(by_pymc, False), needs=("pymc",)),
        ),
        (Goal("≥ 5×", "marginalia", "effective_per_s", "peer", 5),),
        more_is_better=True,
        columns=samplers.in_order("mu", ("p",)),
        reference=samplers.published(
            [-2.00, 0.38, 1.85, 0.300, 0.344, 0.355],
            [0.32, 0.53, 0.29, 0.063, 0.076, 0.084],
            [0.01] * 3 + [0.001] * 3,
        ),
        note="4 chains of 10 000 draws after 2000 of tuning; the ensemble after 300.",
    ),
)
