"""Row `galaxies`: from process start to a posterior of the 82 galaxies, three components."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import samplers
from benchmarks.contest import Contender, Goal, Outcome, Row

RUN = {"draws": 1000, "tune": 1000, "chains": 4}


def points() -> np.ndarray:
    """The package's own file, read without importing the package."""
    root = Path(__file__).parent.parent
    return np.loadtxt(root / "src" / "marginalia" / "datasets" / "galaxies.csv", skiprows=1)


def ours() -> Outcome:
    return samplers.ours("galaxies", points(), lambda mg: "auto")


def by_numpyro() -> Outcome:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def model(y):
        w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.ordered_vector, (), (3,)))
        numpyro.factor("prior of mu", dist.Normal(20, 10).log_prob(mu).sum())
        sd = numpyro.sample("sd", dist.LogNormal(0.5, 0.7).expand([3]))
        with numpyro.plate("obs", len(y)):
            numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(mu, sd)), obs=y)

    start = {"w": np.full(3, 1 / 3, "float32"), "mu": np.array([10, 20, 30], "float32"), "sd": np.ones(3, "float32")}
    return samplers.by_numpyro(model, points(), parallel=2, start=start, **RUN)


def by_pymc(nutpie: bool) -> Outcome:
    y = points()

    def build(pm: Any) -> Any:
        with pm.Model() as model:
            w = pm.Dirichlet("w", np.ones(3))
            ordered = pm.distributions.transforms.ordered
            mu = pm.Normal("mu", 20, 10, shape=3, transform=ordered, initval=np.array([10.0, 20.0, 30.0]))
            sd = pm.LogNormal("sd", 0.5, 0.7, shape=3)
            pm.NormalMixture("y", w=w, mu=mu, sigma=sd, observed=y)
        return model

    return samplers.by_pymc(build, nutpie=nutpie, **RUN)


ROWS = (
    Row(
        "galaxies",
        "82 galaxies, K = 3: process start to a posterior",
        "s",
        "wall_s",
        (
            Contender("marginalia", ours, role="ours"),
            Contender("marginalia, cache", ours, role="ours", cache="marginalia"),
            Contender("NumPyro", by_numpyro),
            Contender("nutpie", functools.partial(by_pymc, True), needs=("pymc", "nutpie")),
            Contender("PyMC", functools.partial(by_pymc, False), needs=("pymc",)),
        ),
        (
            Goal("cold ≤ 5 s", "marginalia", "wall_s", most=5),
            Goal("compilation cache ≤ 3 s", "marginalia, cache", "wall_s", most=3),
            Goal("≥ 1×", "marginalia", "wall_s", "peer", 1),
        ),
        columns=samplers.in_order("mu", ("w", "sd")),
        note="4 chains of 1000 draws; peers are given initial values.",
    ),
)
