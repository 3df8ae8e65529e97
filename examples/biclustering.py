"""Rows and columns sorted into groups at once: the latent block model.

G. Govaert and M. Nadif, "Clustering with block mixture models", Pattern Recognition 36 (2003) 463-473, equation 1:
row i belongs to group r_i ~ Categorical(v), column j to c_j ~ Categorical(w), and y_ij ~ Bernoulli(p[r_i, c_j]).
Every row meets every column, so the exact sum costs (groups of columns)^(columns): it is for tables with a short side.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import marginalia as mg


def model(y, n_row_groups=2, n_column_groups=2):
    """`y`: (rows, columns) of 0 and 1."""
    n_rows, n_columns = y.shape
    v = numpyro.sample("v", dist.Dirichlet(2.0 * jnp.ones(n_row_groups)))
    w = numpyro.sample("w", dist.Dirichlet(2.0 * jnp.ones(n_column_groups)))
    p = numpyro.sample("p", dist.Beta(1, 1).expand([n_row_groups, n_column_groups]).to_event(2))
    with numpyro.plate("row", n_rows, dim=-2):
        r = numpyro.sample("r", dist.Categorical(v))
    with numpyro.plate("column", n_columns, dim=-1):
        c = numpyro.sample("c", dist.Categorical(w))
    with numpyro.plate("row", n_rows, dim=-2), numpyro.plate("column", n_columns, dim=-1):
        numpyro.sample("y", dist.Bernoulli(p[r, c]), obs=y)


def simulate(seed, n_rows=40, n_columns=8):
    """Two by two groups, with different chances of a one in all four blocks."""
    rng = np.random.default_rng(seed)
    p = np.array([[0.9, 0.3], [0.5, 0.1]])
    r = (rng.random(n_rows) < 0.5).astype(int)
    c = (np.arange(n_columns) % 2).astype(int)
    y = (rng.random((n_rows, n_columns)) < p[r[:, None], c]).astype(int)
    return (y,), {"p": p, "r": r, "c": c}


def main():
    args, truth = simulate(seed=1)
    fit = mg.fit(model, *args, random_seed=1)
    print(fit)
    p = fit.draws["p"].mean((0, 1))
    rows, columns = np.argsort(-p.sum(1)), np.argsort(-p.sum(0))  # groups have no names: the fullest first
    print(f"p: {p[rows][:, columns].round(2).tolist()}\n  truth: {truth['p'].tolist()}")
    for name, order in (("r", rows), ("c", columns)):
        found = np.argsort(order)[fit.labels()[name].values.ravel()]
        print(f"{name}: {np.mean(found == truth[name]):.0%} in the right group")


if __name__ == "__main__":
    main()
