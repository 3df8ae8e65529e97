"""Programs written for JAX's own setting, in which numbers have 32 bits, run where they have 64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import cond, scan

import marginalia as mg
from oracle import enumerate_all
from study import close

LENGTHS = np.array([3, 2])
TONES = np.array([[[0, 1], [1, 1], [0, 0]], [[1, 0], [0, 1], [1, 1]]])  # sequence, time, tone


def start(kind: Any) -> Any:
    return jnp.zeros((2, 1), dtype=kind)


def factorial_hmm(kind):
    """Two chains that are read together, sequences of unequal lengths, a clock: all of them carried."""
    pw = numpyro.sample("pw", dist.Dirichlet(0.9 * jnp.eye(2) + 0.1).to_event(1))
    px = numpyro.sample("px", dist.Dirichlet(0.9 * jnp.eye(2) + 0.1).to_event(1))
    py = numpyro.sample("py", dist.Beta(1.0, 2.0).expand([2, 2, 2]).to_event(3))

    def transition(carry, y):
        w_before, x_before, t = carry
        with numpyro.plate("sequences", 2, dim=-2), numpyro.handlers.mask(mask=(t < LENGTHS)[..., None]):
            w = numpyro.sample("w", dist.Categorical(pw[w_before]), infer={"enumerate": "parallel"})
            x = numpyro.sample("x", dist.Categorical(px[x_before]), infer={"enumerate": "parallel"})
            with numpyro.plate("tones", 2, dim=-1) as tones:
                numpyro.sample("y", dist.Bernoulli(py[w, x, tones]), obs=y)
        return (w, x, t + 1), None

    scan(transition, (start(kind), start(kind), 0), jnp.swapaxes(TONES, 0, 1))


def autoregressive(kind):
    """The data of the step before are carried as well, and the body gives 32 bits back."""
    px = numpyro.sample("px", dist.Dirichlet(0.9 * jnp.eye(2) + 0.1).to_event(1))
    py = numpyro.sample("py", dist.Beta(1.0, 2.0).expand([2, 2, 2]).to_event(3))

    def transition(carry, y):
        x_before, y_before, level = carry
        with numpyro.plate("sequences", 2, dim=-2):
            x = numpyro.sample("x", dist.Categorical(px[x_before]))
            with numpyro.plate("tones", 2, dim=-1) as tones:
                numpyro.sample("y", dist.Bernoulli(py[x, tones, y_before]), obs=y)
        return (x.astype(kind), y, 0.5 * level + py[0, 0, 0]), level

    begin = (start(int), jnp.zeros((2, 2), dtype=kind), jnp.zeros((), dtype=jnp.zeros((), kind).astype(float).dtype))
    _, levels = scan(transition, begin, jnp.swapaxes(TONES, 0, 1))
    numpyro.factor("levels", levels.sum())


@pytest.mark.slow
@pytest.mark.parametrize("model", [factorial_hmm, autoregressive], ids=lambda m: m.__name__)
def test_a_loop_that_starts_from_32_bits_is_that_of_64(model):
    narrow, wide = (mg.marginalize(model, kind) for kind in (jnp.int32, jnp.int64))
    with jax.enable_x64(True):
        at = {n: np.asarray(x) for n, x in wide.program.prior(jax.random.key(3)).items()}
    close(narrow.log_density(at), wide.log_density(at), "density")
    close(wide.log_density(at), enumerate_all(model, (jnp.int64,), at).density, "density by brute force")


def test_a_loop_carries_floats_of_64_bits_whatever_it_starts_from():
    """0.1 z + a m, the level before: in 32 bits it is wrong in the eighth digit."""

    def model():
        a = numpyro.sample("a", dist.Normal(0, 1))

        def step(carry, y):
            level, before = carry
            z = numpyro.sample("z", dist.Bernoulli(jnp.where(before == 1, 0.7, 0.2)))
            level = a * level + 0.1 * z
            numpyro.sample("y", dist.Normal(level, 0.1), obs=y)
            return (level, z), None

        scan(step, (jnp.ones((), jnp.float32), jnp.zeros((), jnp.int32)), np.array([0.3, 0.2]))

    total = []
    for first in (0, 1):
        for second in (0, 1):
            prior = (0.2 if first else 0.8) * ((0.7 if second else 0.3) if first else (0.2 if second else 0.8))
            one = 0.3 + 0.1 * first
            two = 0.3 * one + 0.1 * second
            total.append(prior * np.exp(-((0.3 - one) ** 2 + (0.2 - two) ** 2) / 0.02) / (2 * np.pi * 0.01))
    expected = np.log(np.sum(total)) - 0.3**2 / 2 - np.log(2 * np.pi) / 2
    close(mg.marginalize(model).log_density({"a": 0.3}), expected, "density")


def test_branches_of_numpyro_s_cond_may_differ_in_width():
    def model():
        a = numpyro.sample("a", dist.Normal(0, 1))
        m = cond(a > 0, lambda x: a * x, lambda x: jnp.ones((), jnp.float32), 2.0)
        numpyro.sample("y", dist.Normal(m, 1), obs=0.3)

    for a, m in ((0.7, 1.4), (-0.7, 1.0)):
        expected = -(a**2) / 2 - (0.3 - m) ** 2 / 2 - np.log(2 * np.pi)
        close(mg.marginalize(model).log_density({"a": a}), expected, "density")
