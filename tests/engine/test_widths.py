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


# ---- jax.lax and float32 by name: each with a at 0.3, z ~ Bernoulli(0.3), y = 0.7 ~ Normal(m, 1) -------------


def counted(a, z):
    return a * jax.lax.scan(lambda n, x: (n + x, n), jnp.zeros((), jnp.int32), jnp.stack([z, z]))[0]


def grown(a, z):
    return jax.lax.fori_loop(0, 3, lambda i, m: m * a + 0.1, jnp.ones((), jnp.float32)) + z


def halved(a, z):
    start = (jnp.int32(0), jnp.ones((), jnp.float32))
    return a + z * jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + jnp.int64(1), c[1] / 3.0), start)[1]


def chosen(a, z):
    return jax.lax.cond(z == 1, lambda x: x / 3, lambda x: jnp.zeros((), jnp.float32), a)


def switched(a, z):
    return jax.lax.switch(z, [lambda x: jnp.float32(0.25), lambda x: x / 3], a)


def operated(a, z):
    both = jax.lax.concatenate([jnp.zeros(1, jnp.float32), (a / 3)[None]], 0)
    updated = jax.lax.dynamic_update_slice(jnp.zeros(2, jnp.float32), both, (0,))
    return updated[1] * jax.lax.add(z, jnp.ones((), jnp.int32))


def rounded(a, z):
    """float32 by name, also in a function with a derivative of its own, is no rounding; half precision is."""
    m = (a / 3).astype(jnp.float32) + jax.nn.softplus((a * z).astype(jnp.float32))
    return m + jnp.where(z == 1, jnp.float32(1) / 3, jnp.float16(0.1))


def wrapped(a, z):
    """Whole numbers of 8 bits go round, as they are meant to."""
    return a * (z.astype(jnp.int8) * jnp.int8(100) + jnp.int8(100)).astype(jnp.float32)


A = 0.3
MEANS = {
    counted: (0.0, 2 * A),
    grown: (((A + 0.1) * A + 0.1) * A + 0.1, ((A + 0.1) * A + 0.1) * A + 1.1),
    halved: (A, A + 1 / 9),
    chosen: (0.0, A / 3),
    switched: (0.25, A / 3),
    operated: (A / 3, 2 * A / 3),
    rounded: (A / 3 + np.log(2) + float(np.float16(0.1)), A / 3 + np.log1p(np.exp(A)) + 1 / 3),
    wrapped: (100 * A, -56 * A),
}
SLOPES = {counted: (0, 2), rounded: (1 / 3, 1 / 3 + 1 / (1 + np.exp(-A))), wrapped: (100, -56)}


@pytest.mark.parametrize("mean", MEANS, ids=lambda f: f.__name__)
def test_what_runs_in_32_bits_runs_and_is_exact_to_64(mean):
    def model():
        a = numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(mean(a, z), 1), obs=0.7)

    scan_before = jax.lax.scan
    kernel = mg.marginalize(model).kernel
    assert jax.lax.scan is scan_before
    expected = np.asarray(MEANS[mean])
    weights = np.array([0.7, 0.3]) * np.exp(-((0.7 - expected) ** 2) / 2)
    with jax.enable_x64(True):
        if mean not in SLOPES:  # `while` has no reverse mode
            close(
                kernel.log_density({"a": jnp.asarray(A)}, kernel.data), np.log(weights.sum() / np.sqrt(2 * np.pi)), ""
            )
            return
        value, slope = jax.jit(jax.value_and_grad(lambda a: kernel.log_density({"a": a}, kernel.data)))(A)
    close(value, np.log(weights.sum() / np.sqrt(2 * np.pi)), "density")
    close(slope, (weights * (0.7 - expected) * np.asarray(SLOPES[mean])).sum() / weights.sum(), "slope")


def test_check_looks_at_such_a_program_too():
    def model():
        a = numpyro.sample("a", dist.Normal(0, 1))
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(counted(a, z), 1), obs=0.7)

    assert str(mg.check(model)).startswith("Nothing found.")
