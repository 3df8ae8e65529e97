"""Labels are exchangeable only where supports and priors are the same all over the space, not near the mode alone."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import marginalia as mg
from marginalia.labels import find_exchangeable
from marginalia.ondraws import OnDraws

Y = np.concatenate([np.linspace(-5, -2, 8), np.linspace(2, 5, 8)])


def flat(low, high):
    return lambda: dist.Uniform(jnp.array(low, float), jnp.array(high, float))


def vague():
    return dist.Normal(jnp.zeros(2), 10.0)


def families(prior=vague, factor=None, concentration=(1.0, 1.0)):
    def model(y):
        w = numpyro.sample("w", dist.Dirichlet(jnp.array(concentration)))
        mu = numpyro.sample("mu", prior().to_event(1))
        if factor is not None:
            numpyro.factor("more", factor(mu))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Categorical(w))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    # All of these draws lie where the two components cannot be told.
    rng = np.random.default_rng(0)
    draws = {"w": rng.dirichlet([9.0, 9.0], 20), "mu": np.array([-3.0, 3.0]) + 0.1 * rng.normal(size=(20, 2))}
    return find_exchangeable(OnDraws(mg.marginalize(model, Y)), draws)


TOLD = {
    "another bound": {"prior": flat([-10, -10], [10, 11])},
    "a slightly other bound": {"prior": flat([-10, -10.000001], [10, 10])},
    "another tail": {"prior": lambda: dist.StudentT(jnp.array([3.0, 3.001]), 0.0, 10.0)},
    "a half line": {"prior": lambda: dist.TruncatedNormal(0.0, 9.0, low=jnp.array([-50.0, -51.0]))},
    "slightly other weights": {"concentration": (1.0, 1.001)},
    "what is forbidden far away": {"factor": lambda mu: jnp.where(mu[0] > 50, -jnp.inf, 0.0)},
    "what is forbidden far below": {"factor": lambda mu: jnp.where(mu[1] < -30_000, -jnp.inf, 0.0)},
    "a narrow place": {"factor": lambda mu: jnp.where((mu[1] > 200) & (mu[1] < 201), -1e-3, 0.0)},
    "an order": {"factor": lambda mu: jnp.where(mu[0] < mu[1], 0.0, -jnp.inf)},
}


FAST = {"another bound", "what is forbidden far away", "slightly other weights", "bounds in an array"}


def cases(names):
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", cases(TOLD))
def test_components_that_differ_far_from_the_mode_are_told_apart(name):
    assert families(**TOLD[name]) == ()


ALIKE = {
    "bounds in an array": {"prior": flat([-10, -10], [10, 10])},
    "the same forbidden to both": {"factor": lambda mu: jnp.where(mu > 50, -jnp.inf, 0.0).sum()},
}


@pytest.mark.parametrize("name", cases(ALIKE))
def test_components_that_are_alike_everywhere_are_exchangeable(name):
    (family,) = families(**ALIKE[name])
    assert family.axes == {"w": (0,), "mu": (0,)}
