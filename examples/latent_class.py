"""Courses of illness: a latent class per person, binary symptoms at repeated visits in long format.

P. F. Lazarsfeld and N. W. Henry, "Latent Structure Analysis" (1968); L. A. Goodman, Biometrika 61 (1974) 215-231,
equation 1, with the class-specific course over time of D. S. Nagin, Psychological Methods 4 (1999) 139-157, section
"The binary logit model": z_i ~ Categorical(w), and symptom j at a visit at time t is present with
logit p = a[z_i, j] + b[z_i] t. Items are independent given the class; people have different numbers of visits.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import marginalia as mg


def model(person, time, symptoms, n_people, n_classes):
    """`person`, `time`: (visits,), `symptoms`: (visits, items)."""
    n_visits, n_items = symptoms.shape
    w = numpyro.sample("w", dist.Dirichlet(2.0 * jnp.ones(n_classes)))
    with numpyro.plate("class", n_classes):
        a = numpyro.sample("a", dist.Normal(0, 2).expand([n_items]).to_event(1))
        b = numpyro.sample("b", dist.Normal(0, 1))
    with numpyro.plate("person", n_people):
        z = numpyro.sample("z", dist.Categorical(w))
    own = z[person]
    with numpyro.plate("visit", n_visits):
        logits = a[own] + (b[own] * time)[:, None]
        numpyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=symptoms)


def simulate(seed, n_people=150, n_items=5):
    """Two classes, who start alike in half of the symptoms: one recovers, the other does not. Two to six visits."""
    rng = np.random.default_rng(seed)
    w, b = np.array([0.6, 0.4]), np.array([-0.9, 0.1])
    a = np.stack([np.where(np.arange(n_items) % 2, 0.8, -0.4), np.where(np.arange(n_items) % 2, 0.8, 1.0)])
    z = rng.choice(2, n_people, p=w)
    visits = rng.integers(2, 7, n_people)
    person = np.repeat(np.arange(n_people), visits)
    time = np.concatenate([np.arange(v, dtype=float) for v in visits])
    logits = a[z[person]] + (b[z[person]] * time)[:, None]
    symptoms = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(int)
    return (person, time, symptoms, n_people, 2), {"w": w, "a": a, "b": b, "z": z}


def main():
    args, truth = simulate(seed=1)
    fit = mg.fit(model, *args, random_seed=1)
    print(fit)
    slope = fit.draws["b"].mean((0, 1))
    order = np.argsort(slope)  # classes have no names of their own: call the recovering one the first
    for name in ("w", "b", "a"):
        print(f"{name}: {fit.draws[name].mean((0, 1))[order].round(2).tolist()}\n  truth: {truth[name].tolist()}")
    labels = np.argsort(order)[fit.labels()["z"].values]
    print(f"right class: {np.mean(labels == truth['z']):.0%} of the people")


if __name__ == "__main__":
    main()
