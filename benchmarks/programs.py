"""The NumPyro programs of the rows, as people write them: one and the same for marginalia and for NumPyro."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan


def diagonal(y, components):
    """Gaussians in D dimensions, every component with its own standard deviations."""
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(components)))
    with numpyro.plate("component", components):
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([y.shape[1]]).to_event(1))
        sd = numpyro.sample("sd", dist.HalfNormal(2).expand([y.shape[1]]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]).to_event(1), obs=y)


def full(y, components):
    """Gaussians in D dimensions with full covariances."""
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(components)))
    size = y.shape[1]
    with numpyro.plate("component", components):
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([size]).to_event(1))
        sd = numpyro.sample("sd", dist.HalfNormal(2).expand([size]).to_event(1))
        corr = numpyro.sample("corr", dist.LKJCholesky(size, 1.0))
    root = sd[..., None] * corr
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.MultivariateNormal(mu[z], scale_tril=root[z]), obs=y)


def line(y, components):
    """Gaussians on a line."""
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(components)))
    with numpyro.plate("component", components):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        sd = numpyro.sample("sd", dist.HalfNormal(2))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]), obs=y)


def hidden_markov(y, states):
    """A hidden Markov chain of Gaussian emissions; the state before the first is state 0."""
    transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones((states, states))).to_event(1))
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([states]).to_event(1))

    def step(z, y_t):
        z = numpyro.sample("z", dist.Categorical(transition[z]))
        numpyro.sample("y", dist.Normal(mu[z], 1), obs=y_t)
        return z, None

    scan(step, 0, y)
