"""Hidden Markov models: one sequence or many of unequal length, Gaussian or exponential emissions, covariates.

L. R. Rabiner, "A tutorial on hidden Markov models", Proceedings of the IEEE 77 (1989) 257-286, equations 6 to 20;
W. Zucchini, I. L. MacDonald and R. Langrock, "Hidden Markov Models for Time Series" (2nd ed., 2016), chapters 2 and 10:
z_0 ~ Categorical(initial), z_t ~ Categorical(transition[z_{t-1}]), and y_t depends on z_t only. With covariates, the
logits of the transitions are linear in x_t (J. P. Hughes and P. Guttorp, Water Resources Research 30 (1994) 1535-1546).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

import marginalia as mg


def chain(n_states):
    """Priors of the chain that all models below share: the states like to stay."""
    initial = numpyro.sample("initial", dist.Dirichlet(jnp.ones(n_states)))
    stay = jnp.ones((n_states, n_states)) + 4.0 * jnp.eye(n_states)
    transition = numpyro.sample("transition", dist.Dirichlet(stay).to_event(1))
    return initial, transition


def gaussian_states(n_states):
    with numpyro.plate("state", n_states):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        sd = numpyro.sample("sd", dist.HalfNormal(2))
    return mu, sd


def model(y, n_states=2):
    """One sequence with Gaussian emissions."""
    initial, transition = chain(n_states)
    mu, sd = gaussian_states(n_states)

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(transition[z]))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]), obs=y)
        return z, None

    z = numpyro.sample("z_0", dist.Categorical(initial))
    numpyro.sample("y_0", dist.Normal(mu[z], sd[z]), obs=y[0])
    scan(step, z, y[1:])


def loop_model(y, n_states=2):
    """The same, written as a Python loop."""
    initial, transition = chain(n_states)
    mu, sd = gaussian_states(n_states)
    into = initial
    for t in range(len(y)):
        z = numpyro.sample(f"z_{t}", dist.Categorical(into))
        numpyro.sample(f"y_{t}", dist.Normal(mu[z], sd[z]), obs=y[t])
        into = transition[z]


def exponential_model(y, n_states=2):
    """One sequence of waiting times: y_t ~ Exponential(rate[z_t])."""
    initial, transition = chain(n_states)
    rate = numpyro.sample("rate", dist.Gamma(1, 1).expand([n_states]).to_event(1))

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(transition[z]))
        numpyro.sample("y", dist.Exponential(rate[z]), obs=y)
        return z, None

    z = numpyro.sample("z_0", dist.Categorical(initial))
    numpyro.sample("y_0", dist.Exponential(rate[z]), obs=y[0])
    scan(step, z, y[1:])


def covariate_chain(n_states):
    """Priors of a chain whose transitions have the probabilities softmax(base[z] + slope[z] x_t)."""
    initial = numpyro.sample("initial", dist.Dirichlet(jnp.ones(n_states)))
    base = numpyro.sample("base", dist.Normal(2.0 * jnp.eye(n_states), 1).to_event(2))
    slope = numpyro.sample("slope", dist.Normal(0, 1).expand([n_states, n_states]).to_event(2))
    return initial, base, slope


def covariate_model(y, x, n_states=2):
    """Transitions that depend on a covariate: into step t with the logits base[z] + slope[z] x_t."""
    initial, base, slope = covariate_chain(n_states)
    mu, sd = gaussian_states(n_states)

    def step(z, here):
        y, x = here
        z = numpyro.sample("z", dist.Categorical(logits=base[z] + slope[z] * x))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]), obs=y)
        return z, None

    z = numpyro.sample("z_0", dist.Categorical(initial))
    numpyro.sample("y_0", dist.Normal(mu[z], sd[z]), obs=y[0])
    scan(step, z, (y[1:], x[1:]))


def covariate_loop_model(y, x, n_states=2):
    """The same, written as a Python loop."""
    initial, base, slope = covariate_chain(n_states)
    mu, sd = gaussian_states(n_states)
    z = numpyro.sample("z_0", dist.Categorical(initial))
    numpyro.sample("y_0", dist.Normal(mu[z], sd[z]), obs=y[0])
    for t in range(1, len(y)):
        z = numpyro.sample(f"z_{t}", dist.Categorical(logits=base[z] + slope[z] * x[t]))
        numpyro.sample(f"y_{t}", dist.Normal(mu[z], sd[z]), obs=y[t])


def batch_model(y, length, n_states=2):
    """Many sequences: `y` is (sequences, steps), and only the first `length[s]` of a row are data."""
    initial, transition = chain(n_states)
    mu, sd = gaussian_states(n_states)
    n_sequences, n_steps = y.shape

    def step(z, here):
        y, t = here
        with numpyro.plate("sequence", n_sequences):
            z = numpyro.sample("z", dist.Categorical(transition[z]))
            with numpyro.handlers.mask(mask=t < length):
                numpyro.sample("y", dist.Normal(mu[z], sd[z]), obs=y)
        return z, None

    with numpyro.plate("sequence", n_sequences):
        z = numpyro.sample("z_0", dist.Categorical(initial))
        numpyro.sample("y_0", dist.Normal(mu[z], sd[z]), obs=y[:, 0])
    scan(step, z, (y[:, 1:].T, jnp.arange(1, n_steps)))


def batch_loop_model(y, length, n_states=2):
    """The same, written as a Python loop."""
    initial, transition = chain(n_states)
    mu, sd = gaussian_states(n_states)
    n_sequences, n_steps = y.shape
    into = initial
    with numpyro.plate("sequence", n_sequences):
        for t in range(n_steps):
            z = numpyro.sample(f"z_{t}", dist.Categorical(into))
            with numpyro.handlers.mask(mask=t < length):
                numpyro.sample(f"y_{t}", dist.Normal(mu[z], sd[z]), obs=y[:, t])
            into = transition[z]


INITIAL = np.array([0.5, 0.5])
TRANSITION = np.array([[0.95, 0.05], [0.15, 0.85]])
MU, SD, RATE = np.array([-1.0, 2.0]), np.array([1.0, 0.7]), np.array([3.0, 0.5])
BASE, SLOPE = np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 1.5], [0.0, -1.0]])


def simulate(seed, n_steps=200, emission="gaussian", covariates=False):
    """One sequence of two states: the arguments (y,) or (y, x), and the truth."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n_steps)
    logits = BASE + SLOPE * x[:, None, None] if covariates else np.log(np.tile(TRANSITION, (n_steps, 1, 1)))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    z = np.zeros(n_steps, int)
    for t in range(n_steps):
        z[t] = rng.choice(2, p=INITIAL if t == 0 else p[t, z[t - 1]])
    y = rng.exponential(1 / RATE[z]) if emission == "exponential" else rng.normal(MU[z], SD[z])
    names = ("base", "slope") if covariates else ("transition",)
    truth = {"transition": TRANSITION, "base": BASE, "slope": SLOPE, "mu": MU, "sd": SD, "rate": RATE, "z": z}
    own = ("rate",) if emission == "exponential" else ("mu", "sd")
    return ((y, x) if covariates else (y,)), {n: truth[n] for n in (*names, *own, "z")}


def simulate_batch(seed, lengths):
    """Sequences of these lengths side by side, zeros beyond their ends: the arguments (y, length), and the truth."""
    rows = [simulate([seed, i], n)[0][0] for i, n in enumerate(lengths)]
    y = np.zeros((len(lengths), max(lengths)))
    for s, row in enumerate(rows):
        y[s, : len(row)] = row
    return (y, np.asarray(lengths)), {"transition": TRANSITION, "mu": MU, "sd": SD}


def main():
    args, truth = simulate(seed=1, n_steps=200)
    fit = mg.fit(model, *args, random_seed=1)
    print(fit)
    order = np.argsort(fit.draws["mu"].mean((0, 1)))  # states have no names of their own: the lower one first
    for name in ("mu", "sd", "transition"):
        mean = fit.draws[name].mean((0, 1))[order]
        mean = mean[:, order] if name == "transition" else mean
        print(f"{name}: {mean.round(2).tolist()}\n  truth: {truth[name].tolist()}")
    labels = fit.labels()
    path = np.concatenate([labels["z_0"].values[None], labels["z"].values])
    print(f"right state: {np.mean(np.argsort(order)[path] == truth['z']):.0%} of the steps")


if __name__ == "__main__":
    main()
