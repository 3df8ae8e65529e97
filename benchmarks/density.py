"""Time the density and gradient of unmodified NumPyro programs: `python benchmarks/density.py`.

Prints seconds to read, trace and compile, and the fastest of several evaluations; it asserts nothing.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

import marginalia as mg

REPEATS = 10


def mixture(y, components):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(components)))
    with numpyro.plate("component", components):
        mu = numpyro.sample("mu", dist.Normal(0, 1).expand([y.shape[1]]).to_event(1))
        sd = numpyro.sample("sd", dist.HalfNormal(1).expand([y.shape[1]]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]).to_event(1), obs=y)


def hidden_markov(y, states):
    transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones((states, states))).to_event(1))
    mu = numpyro.sample("mu", dist.Normal(0, 1).expand([states]).to_event(1))

    def step(z, y_t):
        z = numpyro.sample("z", dist.Categorical(transition[z]))
        numpyro.sample("y", dist.Normal(mu[z], 1), obs=y_t)
        return z, None

    scan(step, 0, jnp.asarray(y))


def measure(name, model, *args):
    start = time.perf_counter()
    kernel = mg.marginalize(model, *args).kernel
    read = time.perf_counter() - start
    with jax.enable_x64(True):
        params = jax.jit(kernel.prior)(jax.random.key(0))
        start = time.perf_counter()
        run = jax.jit(jax.value_and_grad(kernel.log_density)).lower(params, kernel.data).compile()
        compiled = time.perf_counter() - start
        jax.block_until_ready(run(params, kernel.data))
        best = np.inf
        for _ in range(REPEATS):
            start = time.perf_counter()
            jax.block_until_ready(run(params, kernel.data))
            best = min(best, time.perf_counter() - start)
    print(f"{name:<32} read {read:5.2f} s   trace and compile {compiled:5.2f} s   evaluation {1e3 * best:8.2f} ms")


def main():
    rng = np.random.default_rng(0)
    measure("mixture N=100000 K=2 D=2", mixture, rng.normal(size=(100_000, 2)), 2)
    measure("mixture N=100000 K=20 D=10", mixture, rng.normal(size=(100_000, 10)), 20)
    measure("hidden Markov T=1000 K=5", hidden_markov, rng.normal(size=1000), 5)
    measure("hidden Markov T=10000 K=5", hidden_markov, rng.normal(size=10_000), 5)


if __name__ == "__main__":
    main()
