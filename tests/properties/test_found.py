"""Programs that were once answered wrongly, or not at all: each found by the random programs or by reading."""

from __future__ import annotations

import numpy as np
import pytest
from grammar import LATENTS, Written
from laws import judge

POINT = {
    "a": np.array(0.4),
    "mu": np.array([-0.5, 0.3, 1.1, 2.0]),
    "t": np.linspace(-1.0, 1.3, 16).reshape(4, 4) ** 3,
    "s": np.array(0.7),
    "w": np.array([0.2, 0.5, 0.3]),
}

FOUND = {
    # An element that reads no discrete, beside some that do, was missing from the log-likelihood.
    "rows_without_a_discrete": """
z = numpyro.sample("z", dist.DiscreteUniform(1, 2).expand([3]))
x = jnp.pad(mu[z], (2, 0))
numpyro.sample("y", dist.Normal(x, 0.7), obs=np.array([-1.74, -1.34, -1.36, -0.35, -2.31]))
numpyro.sample("v", dist.Normal(jnp.tanh(x), s).expand([3, 5]).to_event(1), obs=np.ones((3, 5)))
""",
    # The same, inside a sum over an event, with a normalising constant of its own.
    "events_partly_without_a_discrete": """
z = numpyro.sample("z", dist.Bernoulli(0.3).expand([2]))
x = jnp.append(mu[z], a)
numpyro.sample("y", dist.Normal(x, 0.7).to_event(1), obs=np.array([0.3, -1.0, 2.0]))
numpyro.factor("f", jnp.sum(x) + a)
""",
    # A mask made values possible that are beyond an element's own support.
    "masked_counts": """
with handlers.mask(mask=False):
    z = numpyro.sample("z", dist.Binomial(np.array([0, 1, 2]), logits=a))
numpyro.sample("y", dist.Normal(mu[z], s), obs=np.array([0.0, 0.3, -0.27]))
""",
    # Beyond an element's own support the program has no number: its NaN swallowed the density and the gradient.
    "no_number_beyond_the_support": """
n = np.array([0, 1, 2])
z = numpyro.sample("z", dist.Binomial(n, logits=a))
numpyro.sample("y", dist.Normal(a * jnp.log(n + 0.5 - z), s), obs=np.array([0.3, 0.2, -1.0]))
numpyro.sample("q", dist.Binomial(n - z + 1, logits=a), obs=jnp.array([0, 1, 0]))
""",
    # An identity that NumPy gave back as a scalar went through JAX and came out as a tracer.
    "lanes_of_a_scalar": """
z = numpyro.sample("z", dist.Bernoulli(0.3).expand([2, 3]))
v = numpyro.sample("v", dist.Bernoulli(0.4).expand([2, 2]))
numpyro.sample("y", dist.Poisson(jnp.exp(jnp.dot(jnp.var(v * 1.0), z))), obs=np.array([[3, 2, 2], [3, 2, 3]]))
""",
    # A slice of no elements still had lanes.
    "empty_slices": """
z = numpyro.sample("z", dist.Bernoulli(0.3).expand([2]))
numpyro.sample("y", dist.Normal(lax.associative_scan(jnp.add, mu[z]), s), obs=np.array([0.2, 0.4]))
numpyro.factor("f", jnp.sum(mu[z][2:]) + a)
""",
    # NumPy's NaN as a whole number is not XLA's.
    "a_whole_number_from_nan": """
z = numpyro.sample("z", dist.Bernoulli(0.3).expand([3]))
numpyro.sample("y", dist.Normal(jnp.where(z == 1, np.nan, 1.0).astype(int) * a, s), obs=np.zeros(3))
numpyro.sample("v", dist.Normal(((z * 1e20).astype(jnp.int32) > 0) * a, s), obs=np.zeros(3))
""",
    # NumPy chooses among 64 cases at most.
    "a_switch_of_many_branches": """
z = numpyro.sample("z", dist.Bernoulli(0.3).expand([3]))
x = jax.vmap(lambda i: lax.switch(i, [lambda j=j: 1.0 * j for j in range(70)]))(z)
numpyro.sample("y", dist.Normal(x * a, s), obs=np.zeros(3))
""",
}


def program(body: str) -> Written:
    head = [f'{name} = numpyro.sample("{name}", {prior})' for name, (prior, _) in LATENTS.items()]
    lines = [*head, *body.strip("\n").split("\n")]
    return Written("def model():\n" + "\n".join("    " + line for line in lines) + "\n", POINT, 0, 1.0)


@pytest.mark.xdist_group("random_programs")
@pytest.mark.filterwarnings("ignore:Out-of-support values")
@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    verdict = judge(program(FOUND[name]))
    assert verdict.kind == "exact", verdict.why


SECOND_DERIVATIVES = """
z = numpyro.sample("z", dist.Categorical(np.array([0.2, 0.3, 0.5])).expand([2]))
x = jax.nn.softplus(z * a) + jax.scipy.special.xlogy(1.0 + z, s) + jax.nn.silu(z * s)
numpyro.sample("y", dist.Normal(x + jax.nn.logsumexp(jnp.stack([z * a, s + 0 * z]), 0), s), obs=np.zeros(2))
"""


@pytest.mark.xdist_group("random_programs")
@pytest.mark.slow
def test_second_derivatives() -> None:
    """Functions with derivatives of their own, differentiated twice."""
    verdict = judge(program(SECOND_DERIVATIVES), hessian=True)
    assert verdict.kind == "exact", verdict.why
