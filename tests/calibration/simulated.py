"""Two small models with proper priors: programs, simulators and likelihoods by hand, and what is ranked.

Simulators and likelihoods are NumPy alone, so a program that marginalia reads wrongly is seen too. Labels are
exchangeable in both models, so only quantities are ranked that do not change when components change places. Some of
them pair a component's sites (the spread beside the smaller mean): pairs that come apart are seen. The
log-likelihood of the data is among them, since ranks of parameters alone can be uniform for draws that do not listen
to the data at all (Modrák et al. 2023); so is the log Jacobian of the transforms to the unconstrained space (up to a
constant), which tells draws of a density without it from right ones better than any other number does, as it is the
log of the ratio of the two densities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from scipy import stats
from scipy.special import logsumexp

type Params = dict[str, np.ndarray]

ROWS = 40
STEPS = 30
WEIGHTS = np.array([2.0, 2.0])
TRANSITIONS = np.array([[3.0, 1.0], [1.0, 3.0]])
SPREAD = 3.0  # standard deviation of the means
SCALE = (-0.5, 0.5)  # log of a component's standard deviation: mean and standard deviation


@dataclass(frozen=True)
class Simulated:
    """A model whose truth is known: `draw(rng)` gives parameters and data, `quantities` what is ranked.

    `quantities` takes parameters `{site: (n, *shape)}` and data, and gives `{name: (n,)}`.
    """

    program: Callable[..., None]
    draw: Callable[[np.random.Generator], tuple[Params, np.ndarray]]
    quantities: Callable[[Params, np.ndarray], dict[str, np.ndarray]]


def mixture(y: Any) -> None:
    w = numpyro.sample("w", dist.Dirichlet(WEIGHTS))
    with numpyro.plate("component", 2):
        mu = numpyro.sample("mu", dist.Normal(0.0, SPREAD))
        sd = numpyro.sample("sd", dist.LogNormal(*SCALE))
    with numpyro.plate("row", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]), obs=y)


def draw_mixture(rng: np.random.Generator) -> tuple[Params, np.ndarray]:
    w, mu, sd = rng.dirichlet(WEIGHTS), rng.normal(0, SPREAD, 2), rng.lognormal(*SCALE, 2)
    z = rng.choice(2, ROWS, p=w)
    return {"w": w, "mu": mu, "sd": sd}, rng.normal(mu[z], sd[z])


def quantities_of_mixture(params: Params, y: np.ndarray) -> dict[str, np.ndarray]:
    w, mu, sd = params["w"], params["mu"], params["sd"]
    terms = np.log(w)[:, None] + stats.norm.logpdf(y[:, None], mu[:, None], sd[:, None])
    lower = np.argmin(mu, axis=1)[:, None]
    return {
        "log-likelihood": logsumexp(terms, axis=2).sum(axis=1),
        "log Jacobian": np.log(w).sum(axis=1) + np.log(sd).sum(axis=1),
        "smallest mean": mu.min(axis=1),
        "largest mean": mu.max(axis=1),
        "largest weight": w.max(axis=1),
        "mean of all": (w * mu).sum(axis=1),
        "spread at smallest mean": np.take_along_axis(sd, lower, axis=1)[:, 0],
    }


def hidden_markov(y: Any) -> None:
    transition = numpyro.sample("transition", dist.Dirichlet(jnp.asarray(TRANSITIONS)).to_event(1))
    mu = numpyro.sample("mu", dist.Normal(0.0, SPREAD).expand([2]).to_event(1))
    sd = numpyro.sample("sd", dist.LogNormal(*SCALE))
    first = numpyro.sample("z_0", dist.Categorical(jnp.full(2, 0.5)))

    def step(before: Any, now: Any) -> tuple[Any, None]:
        z = numpyro.sample("z", dist.Categorical(transition[before]))
        numpyro.sample("y", dist.Normal(mu[z], sd), obs=now)
        return z, None

    scan(step, first, y)


def draw_hidden_markov(rng: np.random.Generator) -> tuple[Params, np.ndarray]:
    transition = np.stack([rng.dirichlet(row) for row in TRANSITIONS])
    mu, sd = rng.normal(0, SPREAD, 2), rng.lognormal(*SCALE)
    z, states = rng.choice(2), []
    for _ in range(STEPS):
        z = rng.choice(2, p=transition[z])
        states.append(z)
    return {"transition": transition, "mu": mu, "sd": np.asarray(sd)}, rng.normal(mu[states], sd)


def quantities_of_hidden_markov(params: Params, y: np.ndarray) -> dict[str, np.ndarray]:
    transition, mu, sd = params["transition"], params["mu"], params["sd"]
    emission = stats.norm.logpdf(y[:, None, None], mu, sd[:, None])  # (step, n, state)
    forward = np.full_like(mu, np.log(0.5))
    for now in emission:
        forward = logsumexp(forward[:, :, None] + np.log(transition), axis=1) + now
    lower = np.argmin(mu, axis=1)
    return {
        "log-likelihood": logsumexp(forward, axis=1),
        "log Jacobian": np.log(transition).sum(axis=(1, 2)) + np.log(sd),
        "smallest mean": mu.min(axis=1),
        "largest mean": mu.max(axis=1),
        "spread": sd,
        "staying in any": np.trace(transition, axis1=1, axis2=2),
        "staying at smallest mean": transition[np.arange(len(mu)), lower, lower],
    }


MODELS = {
    "mixture": Simulated(mixture, draw_mixture, quantities_of_mixture),
    "hidden Markov": Simulated(hidden_markov, draw_hidden_markov, quantities_of_hidden_markov),
}
