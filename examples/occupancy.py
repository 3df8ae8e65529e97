"""Is the species absent, or was it missed? Site occupancy with covariates on occupancy and on detection.

D. I. MacKenzie et al., "Estimating site occupancy rates when detection probabilities are less than one", Ecology 83
(2002) 2248-2255; hierarchical form of J. A. Royle and R. M. Dorazio, "Hierarchical Modeling and Inference in Ecology"
(2008), section 3.3: z_i ~ Bernoulli(psi_i), y_ij ~ Bernoulli(z_i p_ij), logit psi_i = a_0 + a_1 x_i and
logit p_ij = b_0 + b_1 w_ij.
"""

from __future__ import annotations

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

import marginalia as mg


def model(habitat, wind, seen):
    """`habitat`: (sites,), `wind` and `seen`: (sites, visits)."""
    n_sites, n_visits = seen.shape
    a = numpyro.sample("a", dist.Normal(0, 1.5).expand([2]))
    b = numpyro.sample("b", dist.Normal(0, 1.5).expand([2]))
    with numpyro.plate("site", n_sites, dim=-2):
        psi = jax.nn.sigmoid(a[0] + a[1] * habitat[:, None])
        z = numpyro.sample("z", dist.Bernoulli(psi))
        with numpyro.plate("visit", n_visits, dim=-1):
            p = jax.nn.sigmoid(b[0] + b[1] * wind)
            numpyro.sample("y", dist.Bernoulli(z * p), obs=seen)


def simulate(seed, n_sites=200, n_visits=4):
    """Detections at sites of random habitat in random wind."""
    rng = np.random.default_rng(seed)
    a, b = np.array([0.3, 1.0]), np.array([-0.4, -0.8])
    habitat, wind = rng.normal(size=n_sites), rng.normal(size=(n_sites, n_visits))
    z = rng.random(n_sites) < 1 / (1 + np.exp(-a[0] - a[1] * habitat))
    p = 1 / (1 + np.exp(-b[0] - b[1] * wind))
    seen = (rng.random((n_sites, n_visits)) < p * z[:, None]).astype(int)
    return (habitat, wind, seen), {"a": a, "b": b, "z": z.astype(int)}


def main():
    args, truth = simulate(seed=1)
    fit = mg.fit(model, *args, random_seed=1)
    print(fit)
    for name in ("a", "b"):
        print(f"{name}: {fit.draws[name].mean((0, 1)).round(2)}   truth: {truth[name]}")
    occupied = fit.membership()["z"].values[..., 1].sum()
    print(f"sites seen occupied: {(args[2].sum(1) > 0).sum()}")
    print(f"sites occupied: {occupied:.1f} expected, {truth['z'].sum()} in truth")


if __name__ == "__main__":
    main()
