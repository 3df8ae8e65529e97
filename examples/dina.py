"""Which skills has each pupil? The DINA model: an item is solved by those who have all the skills that it asks for.

E. H. Haertel, Journal of Educational Measurement 26 (1989) 301-321; B. W. Junker and K. Sijtsma, Applied Psychological
Measurement 25 (2001) 258-272, equations 3 to 5: skills alpha_ik ~ Bernoulli(pi_k), the ideal response
eta_ij = prod_k alpha_ik^q_jk, and P(y_ij = 1) = (1 - slip_j)^eta guess_j^(1 - eta). The Q-matrix q_jk says whether
item j asks for skill k.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import marginalia as mg


def model(q, solved):
    """`q`: (items, skills), `solved`: (people, items)."""
    n_items, n_skills = q.shape
    with numpyro.plate("item", n_items):
        slip = numpyro.sample("slip", dist.Beta(1, 4))
        guess = numpyro.sample("guess", dist.Beta(1, 4))
    pi = numpyro.sample("pi", dist.Beta(1, 1).expand([n_skills]).to_event(1))
    with numpyro.plate("person", len(solved)):
        alpha = numpyro.sample("alpha", dist.Bernoulli(pi).to_event(1))
        eta = jnp.prod(alpha[:, None, :] ** q[None, :, :], axis=-1)
        p = jnp.where(eta == 1, 1 - slip, guess)
        numpyro.sample("y", dist.Bernoulli(p).to_event(1), obs=solved)


def simulate(seed, n_people=300, n_items=15, n_skills=4):
    """Items that ask for one skill each, then for pairs."""
    rng = np.random.default_rng(seed)
    q = np.zeros((n_items, n_skills), int)
    q[np.arange(n_items), np.arange(n_items) % n_skills] = 1
    pairs = np.arange(n_items) >= 2 * n_skills
    q[pairs, (np.arange(n_items)[pairs] + 1) % n_skills] = 1
    slip, guess = rng.uniform(0.05, 0.25, n_items), rng.uniform(0.05, 0.25, n_items)
    pi = np.linspace(0.4, 0.7, n_skills)
    alpha = (rng.random((n_people, n_skills)) < pi).astype(int)
    eta = (alpha[:, None, :] >= q).all(-1)
    solved = (rng.random(eta.shape) < np.where(eta, 1 - slip, guess)).astype(int)
    return (q, solved), {"slip": slip, "guess": guess, "pi": pi, "alpha": alpha}


def main():
    args, truth = simulate(seed=1)
    fit = mg.fit(model, *args, random_seed=1)
    print(fit)
    for name in ("pi", "slip", "guess"):
        print(f"{name}: {fit.draws[name].mean((0, 1)).round(2)}\n  truth: {truth[name].round(2)}")
    print(f"right about a skill: {np.mean(fit.labels()['alpha'].values == truth['alpha']):.0%}")


if __name__ == "__main__":
    main()
