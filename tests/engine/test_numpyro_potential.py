"""`Marginal.model` under what NumPyro's own samplers and guides do: unconstrained latents, with their Jacobian."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.util import potential_energy
from scipy import stats
from scipy.special import logsumexp

import marginalia as mg

Y = np.array([0.3, -1.2, 2.0])


def mixture(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    sd = numpyro.sample("sd", dist.HalfNormal(2.0).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(0.0, sd[z]), obs=y)
        numpyro.sample("later", dist.Bernoulli(0.2 + 0.3 * z))


def by_hand(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    sd = numpyro.sample("sd", dist.HalfNormal(2.0).expand([2]).to_event(1))
    each = jnp.log(w) + dist.Normal(0.0, sd).log_prob(y[:, None])
    numpyro.factor("sum", jax.scipy.special.logsumexp(each, axis=1).sum())


def test_what_a_sampler_of_numpyro_sees_has_the_jacobian_of_every_latent():
    marginal = mg.marginalize(mixture, Y)
    point = {"w": jnp.array([0.4]), "sd": jnp.array([-0.3, 0.8])}
    with jax.enable_x64(True):
        point = {name: value.astype(float) for name, value in point.items()}
        found = potential_energy(handlers.seed(marginal.model, 0), (), {}, point)
        expected = potential_energy(handlers.seed(by_hand, 0), (Y,), {}, point)
        constrained = {n: np.asarray(dist.biject_to(s.support)(point[n])) for n, s in marginal.program.latents.items()}
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    each = np.log(constrained["w"]) + stats.norm.logpdf(Y[:, None], 0.0, constrained["sd"])
    prior = stats.halfnorm.logpdf(constrained["sd"], scale=2.0).sum()
    np.testing.assert_allclose(marginal.log_density(constrained), logsumexp(each, axis=1).sum() + prior, rtol=1e-12)
