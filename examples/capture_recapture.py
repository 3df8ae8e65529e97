"""Survival of marked animals that are not always seen (the Cormack-Jolly-Seber model).

R. M. Cormack, Biometrika 51 (1964) 429-438; G. M. Jolly, Biometrika 52 (1965) 225-247; G. A. F. Seber, ibid. 249-259.
State-space form of M. Kéry and M. Schaub, "Bayesian Population Analysis using WinBUGS" (2012), equations 7.1 and 7.2:
given that animal i was first caught at occasion f_i, it is alive there, z_{i,f} = 1, and afterwards
z_{i,t} ~ Bernoulli(phi_{t-1} z_{i,t-1}), y_{i,t} ~ Bernoulli(p_{t-1} z_{i,t}).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import marginalia as mg


def model(caught):
    """`caught`: (animals, occasions) of 0 and 1, every animal caught at least once."""
    n_animals, n_occasions = caught.shape
    first = caught.argmax(1)
    with numpyro.plate("interval", n_occasions - 1):
        phi = numpyro.sample("phi", dist.Uniform(0, 1))
        p = numpyro.sample("p", dist.Uniform(0, 1))
    z = jnp.ones(n_animals, int)
    for t in range(1, n_occasions):
        with numpyro.plate("animal", n_animals):
            # Up to its first capture an animal is known to be alive, and its captures are given.
            z = numpyro.sample(f"z_{t}", dist.Bernoulli(jnp.where(t > first, phi[t - 1] * z, 1.0)))
            with numpyro.handlers.mask(mask=t > first):
                numpyro.sample(f"y_{t}", dist.Bernoulli(p[t - 1] * z), obs=caught[:, t])


def simulate(seed, n_animals=150, n_occasions=7):
    """Capture histories with constant survival and capture: equal numbers of animals are marked at each occasion."""
    rng = np.random.default_rng(seed)
    phi, p = np.full(n_occasions - 1, 0.7), np.full(n_occasions - 1, 0.5)
    first = np.arange(n_animals) % (n_occasions - 1)
    caught = np.zeros((n_animals, n_occasions), int)
    caught[np.arange(n_animals), first] = 1
    alive = np.ones(n_animals, bool)
    for t in range(1, n_occasions):
        alive &= (rng.random(n_animals) < phi[t - 1]) | (t <= first)
        seen = alive & (rng.random(n_animals) < p[t - 1]) & (t > first)
        caught[seen, t] = 1
    return (caught,), {"phi": phi, "p": p, "alive at the end": alive}


def main():
    args, truth = simulate(seed=1)
    fit = mg.fit(model, *args, random_seed=1)
    print(fit)
    # In the last interval only the product of survival and capture is identified (Kéry and Schaub, section 7.3).
    for name in ("phi", "p"):
        print(f"{name}: {fit.draws[name].mean((0, 1)).round(2)}\n  truth: {truth[name]}")
    alive = fit.membership()[f"z_{args[0].shape[1] - 1}"].values[:, 1]
    print(f"alive at the end: {alive.sum():.1f} expected, {truth['alive at the end'].sum()} in truth")


if __name__ == "__main__":
    main()
