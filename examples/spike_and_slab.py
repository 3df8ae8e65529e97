"""Which columns matter? Linear regression in which each coefficient is exactly zero or drawn from a slab.

T. J. Mitchell and J. J. Beauchamp, "Bayesian variable selection in linear regression", JASA 83 (1988) 1023-1032, in the
indicator form of L. Kuo and B. Mallick, Sankhya B 60 (1998) 65-81, equation 1: y = X (z * b) + noise, with
z_j ~ Bernoulli(w). Every one of the 2^12 subsets of 12 columns is in the sum.
"""

from __future__ import annotations

import numpy as np
import numpyro
import numpyro.distributions as dist

import marginalia as mg


def model(x, y):
    """`x`: (rows, columns), `y`: (rows,)."""
    w = numpyro.sample("w", dist.Beta(1, 1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    with numpyro.plate("column", x.shape[1]):
        b = numpyro.sample("b", dist.Normal(0, 2))
        z = numpyro.sample("z", dist.Bernoulli(w))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(x @ (z * b), sigma), obs=y)


def simulate(seed, n_rows=100, n_columns=12):
    """Every fourth column matters."""
    rng = np.random.default_rng(seed)
    z = (np.arange(n_columns) % 4 == 0).astype(int)
    b = np.where(z == 1, rng.choice([-1.0, 1.0], n_columns) * rng.uniform(0.5, 1.5, n_columns), 0.0)
    x = rng.normal(size=(n_rows, n_columns))
    y = x @ b + rng.normal(size=n_rows)
    return (x, y), {"b": b, "z": z, "sigma": np.array(1.0)}


def main():
    args, truth = simulate(seed=1, n_rows=40)
    # 4096 subsets times 40 rows at every step: minutes, so fewer draws than the default.
    fit = mg.fit(model, *args, method=mg.NUTS(chains=2, tune=300, draws=300, starts=4), random_seed=1)
    print(fit)
    matters = fit.membership()["z"].values[:, 1]
    print("column  matters  P(matters)  b if it matters  truth")
    for j, b in enumerate(fit.draws["b"].mean((0, 1))):
        print(f"{j:6d}  {truth['z'][j]:7d}  {matters[j]:10.3f}  {b:15.2f}  {truth['b'][j]:5.2f}")


if __name__ == "__main__":
    main()
