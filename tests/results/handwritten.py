"""Hand-written marginals with the engine's kernel interface, to test what follows inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from marginalia.fitting import Fit, finish
from marginalia.infer.result import Result
from marginalia.marginal.drawing import drawer

MU3, W3, SD3 = [-4.0, 0.0, 5.0], [0.2, 0.5, 0.3], 0.8


@dataclass(frozen=True)
class Site:
    name: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    support: Any = None
    values: Any = None
    value: Any = None


@dataclass(frozen=True)
class Program:
    model: Callable
    args: tuple
    kwargs: dict
    latents: dict[str, Site]
    discretes: dict[str, Site]
    observed: dict[str, Site]
    deterministics: dict[str, Site] = field(default_factory=dict)


@dataclass(frozen=True)
class Kernel:
    data: Any
    prior_density: Callable
    joint: Callable  # (params, data) -> (N, K): log p(y_n, z_n = k)
    prior: Callable | None = None

    @cached_property
    def draw_prior(self):
        return drawer(self.prior, 10)

    def log_likelihood(self, params, data):
        return {"y": jax.nn.logsumexp(self.joint(params, data), axis=-1)}

    def log_density(self, params, data):
        return self.prior_density(params) + self.log_likelihood(params, data)["y"].sum()

    def posterior(self, params, data):
        return {"z": jax.nn.softmax(self.joint(params, data), axis=-1)}


@dataclass(frozen=True)
class Marginal:
    program: Program
    kernel: Kernel
    make: Callable
    endless: bool = False

    def rebind(self, *args, **kwargs):
        return self.make(*args, **kwargs)

    def explain(self):
        return "z: 3 values, summed element by element <as a table>."


def mixture(y, K: int, *, ordered: str = "", informative: bool = False) -> Marginal:
    """A Gaussian mixture: y (N,) or (N, D). `ordered`: "", "density" (-inf) or "support"."""
    y = np.asarray(y, float)
    D = y.shape[1:]
    rows = y.reshape(len(y), -1)
    mean = jnp.arange(K) * 3.0 if informative else jnp.zeros(K)

    def model(y):
        w = numpyro.sample("w", dist.Dirichlet(jnp.ones(K)))
        with numpyro.plate("component", K):
            mu = numpyro.sample("mu", dist.Normal(0.0, 10.0).expand(D).to_event(len(D)))
        sd = numpyro.sample("sd", dist.HalfNormal(5.0))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Categorical(w))
            numpyro.sample("y", dist.Normal(mu[z], sd).to_event(len(D)), obs=y)

    def prior_density(params):
        mu = params["mu"].reshape(K, -1)
        total = dist.Dirichlet(jnp.full(K, 2.0)).log_prob(params["w"])
        total += dist.Normal(mean[:, None], 10.0).log_prob(mu).sum() + dist.HalfNormal(5.0).log_prob(params["sd"])
        if ordered == "density":
            total += jnp.where(jnp.all(jnp.diff(mu[:, 0]) > 0), 0.0, -jnp.inf)
        return total

    def joint(params, data):
        mu = params["mu"].reshape(K, -1)
        terms = dist.Normal(mu, params["sd"]).log_prob(data[:, None, :]).sum(-1)
        return jnp.log(params["w"]) + terms

    support = constraints.ordered_vector if ordered == "support" else constraints.real
    latents = {
        "w": Site("w", (K,), ("w_dim_0",), constraints.simplex),
        "mu": Site("mu", (K, *D), ("component", *(f"mu_dim_{i + 1}" for i in range(len(D)))), support),
        "sd": Site("sd", (), (), constraints.positive),
    }
    program = Program(
        model,
        (y,),
        {},
        latents,
        {"z": Site("z", (len(y),), ("obs",), values=np.arange(K))},
        {"y": Site("y", y.shape, ("obs", *(f"y_dim_{i + 1}" for i in range(len(D)))), value=y)},
    )

    def prior(key):
        a, b, c = jax.random.split(key, 3)
        mu = dist.Normal(0.0, 10.0).sample(a, (K, *D))
        w = dist.Dirichlet(jnp.full(K, 2.0)).sample(b)
        return {"w": w, "mu": mu, "sd": dist.HalfNormal(5.0).sample(c)}

    options = {"ordered": ordered, "informative": informative}
    return Marginal(program, Kernel(rows, prior_density, joint, prior), lambda new: mixture(new, K, **options))


def gaussian_draws(mu, w, sd, *, chains=4, length=50, spread=0.1, seed=0):
    """Draws around given component parameters, as a sampler without label switching would give them."""
    rng = np.random.default_rng(seed)
    mu, w = np.asarray(mu, float), np.asarray(w, float)
    noisy = mu + spread * rng.standard_normal((chains, length, *mu.shape))
    log_w = np.log(w) + spread * rng.standard_normal((chains, length, *w.shape))
    weights = np.exp(log_w) / np.exp(log_w).sum(-1, keepdims=True)
    return {"w": weights, "mu": noisy, "sd": sd * np.exp(0.05 * rng.standard_normal((chains, length)))}


def data(mu, w, sd, N=60, seed=1):
    rng = np.random.default_rng(seed)
    mu = np.asarray(mu, float)
    z = rng.choice(len(mu), size=N, p=w)
    return mu[z] + sd * rng.standard_normal((N, *mu.shape[1:]))


def stats(chains: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(9)
    return {
        "lp": rng.standard_normal((chains, length)),
        "energy": rng.standard_normal((chains, length)),
        "diverging": np.zeros((chains, length), bool),
        "reached_max_tree_depth": np.zeros((chains, length), bool),
    }


def fit_of(marginal, draws, **extra) -> Fit:
    chains, length = draws["mu"].shape[:2]
    info = {"random_seed": 7, "options": {"draws": length, "max_tree_depth": 10}, "seconds": 1.5}
    return finish(marginal, Result("nuts", draws, stats(chains, length), info=info, **extra))
