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


def close(y):
    """W1: three Gaussians close together, labels left free."""
    p = numpyro.sample("p", dist.Dirichlet(jnp.full(3, 10.0)))
    with numpyro.plate("component", 3):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(p))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def apart(y):
    """W2: three Gaussians apart, with hard constraints as factors of -inf."""
    p = numpyro.sample("p", dist.Dirichlet(jnp.full(3, 2.0)))
    numpyro.factor("none is small", jnp.where(p.min() < 0.1, -jnp.inf, 0.0))
    with numpyro.plate("component", 3):
        mu = numpyro.sample("mu", dist.Normal(jnp.array([0.0, 10.0, 20.0]), 5))
        sd = numpyro.sample("sd", dist.HalfCauchy(5.0))
    numpyro.factor("increasing", jnp.where((mu[1:] > mu[:-1]).all(), 0.0, -jnp.inf))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(p))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]), obs=y)


def plane(y, precision=1.0):
    """W3 and W4: two Gaussians in the plane with unit covariances."""
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.full(2, 0.1)))
    with numpyro.plate("component", 2):
        mu = numpyro.sample("mu", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2) / precision))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("y", dist.MultivariateNormal(mu[z], jnp.eye(2)), obs=y)


def few(y):
    """W6: two clusters of five points."""
    weights = numpyro.sample("weights", dist.Dirichlet(0.5 * jnp.ones(2)))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with numpyro.plate("components", 2):
        locs = numpyro.sample("locs", dist.Normal(0.0, 10.0))
    with numpyro.plate("data", len(y)):
        assignment = numpyro.sample("assignment", dist.Categorical(weights))
        numpyro.sample("obs", dist.Normal(locs[assignment], scale), obs=y)


def galaxies(y):
    """Three components, in thousand km/s."""
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("component", 3):
        mu = numpyro.sample("mu", dist.Normal(20, 10))
        sd = numpyro.sample("sd", dist.LogNormal(0.5, 0.7))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]), obs=y)
