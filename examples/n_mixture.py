"""How many animals are there, when each count misses some? Abundance from repeated counts (the N-mixture model).

J. A. Royle, "N-mixture models for estimating population size from spatially replicated counts", Biometrics 60 (2004)
108-115, equations 1 to 3: N_i ~ Poisson(lambda_i), y_ij ~ Binomial(N_i, p), with log lambda_i = a_0 + a_1 x_i.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import marginalia as mg


def model(habitat, count):
    """As the paper has it. `habitat`: (sites,), `count`: (sites, visits)."""
    n_sites, n_visits = count.shape
    a = numpyro.sample("a", dist.Normal(0, 2).expand([2]))
    p = numpyro.sample("p", dist.Uniform(0, 1))
    with numpyro.plate("site", n_sites, dim=-2):
        rate = jnp.exp(a[0] + a[1] * habitat[:, None])
        abundance = numpyro.sample("N", dist.Poisson(rate))
        with numpyro.plate("visit", n_visits, dim=-1):
            numpyro.sample("y", dist.Binomial(abundance, p), obs=count)


def simulate(seed, n_sites=200, n_visits=3):
    """Counts at sites of random habitat."""
    rng = np.random.default_rng(seed)
    a, p = np.array([1.2, 0.6]), 0.4
    habitat = rng.normal(size=n_sites)
    abundance = rng.poisson(np.exp(a[0] + a[1] * habitat))
    count = rng.binomial(abundance[:, None], p, size=(n_sites, n_visits))
    return (habitat, count), {"a": a, "p": np.array(p), "N": abundance}


def main():
    args, truth = simulate(seed=1)
    fit = mg.fit(model, *args, random_seed=1)
    print(fit)
    for name in ("a", "p"):
        print(f"{name}: {fit.draws[name].mean((0, 1)).round(2)}   truth: {truth[name]}")
    of_site = fit.membership()["N"].values[:, 0]
    total = (of_site @ np.arange(of_site.shape[-1])).sum()
    print(f"animals: {total:.0f} expected, {truth['N'].sum()} in truth, {args[1].max(1).sum()} seen")


if __name__ == "__main__":
    main()
