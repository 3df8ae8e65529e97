"""Annotators who err: the true class of every item, and how each annotator confuses classes.

A. P. Dawid and A. M. Skene, "Maximum likelihood estimation of observer error-rates using the EM algorithm", Applied
Statistics 28 (1979) 20-28, equations 2.1 to 2.3; with priors as in S. Paun et al., "Comparing Bayesian models of
annotation", TACL 6 (2018) 571-585. Item i has the class z_i ~ Categorical(prevalence); annotator j, shown an item of
class k, answers l with probability confusion[k, j, l]. The data are in long format: one row per answer, any number of
answers per item.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import marginalia as mg


def model(item, annotator, label, n_items, n_annotators, n_classes):
    prevalence = numpyro.sample("prevalence", dist.Dirichlet(jnp.ones(n_classes)))
    # An annotator is believed to be right more often than wrong: this also gives the classes their names.
    prior = jnp.ones((n_classes, n_classes)) + 2.0 * jnp.eye(n_classes)
    with numpyro.plate("class", n_classes, dim=-2), numpyro.plate("annotator", n_annotators, dim=-1):
        confusion = numpyro.sample("confusion", dist.Dirichlet(prior[:, None, :]))
    with numpyro.plate("item", n_items):
        z = numpyro.sample("z", dist.Categorical(prevalence))
    with numpyro.plate("answer", len(label)):
        numpyro.sample("label", dist.Categorical(confusion[z[item], annotator]), obs=label)


def simulate(seed, n_items=200, n_annotators=5, n_classes=3, answers=4):
    """The model's arguments, and the truth: every item is shown to `answers` annotators at random."""
    rng = np.random.default_rng(seed)
    prevalence = rng.dirichlet(np.full(n_classes, 5.0))
    right = np.linspace(0.45, 0.95, n_annotators)  # from hardly better than chance to expert
    eye = np.eye(n_classes)
    confusion = np.stack([q * eye + (1 - q) / (n_classes - 1) * (1 - eye) for q in right], axis=1)
    z = rng.choice(n_classes, n_items, p=prevalence)
    item = np.repeat(np.arange(n_items), answers)
    annotator = np.concatenate([rng.choice(n_annotators, answers, replace=False) for _ in range(n_items)])
    label = np.array([rng.choice(n_classes, p=confusion[z[i], j]) for i, j in zip(item, annotator, strict=True)])
    truth = {"prevalence": prevalence, "confusion": confusion, "z": z}
    return (item, annotator, label, n_items, n_annotators, n_classes), truth


def main():
    args, truth = simulate(seed=1)
    fit = mg.fit(model, *args, random_seed=1)
    print(fit)
    for name in ("prevalence", "confusion"):
        mean = fit.draws[name].mean((0, 1))
        print(f"{name}: {mean.round(2).tolist()}\n  truth: {truth[name].round(2).tolist()}")
    item, _, label, n_items, _, n_classes = args
    votes = np.stack([np.bincount(item, label == k, n_items) for k in range(n_classes)])
    print(f"right class: {np.mean(fit.labels()['z'].values == truth['z']):.0%} of the items")
    print(f"  by a vote of the annotators: {np.mean(votes.argmax(0) == truth['z']):.0%}")


if __name__ == "__main__":
    main()
