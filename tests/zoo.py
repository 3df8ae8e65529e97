"""Tiny models, as users write them: one dictionary, `CASES`, for every test that needs "some model".

A model is an ordinary function with a decorator that gives its arguments and one point of its continuous
latents. All that a law needs to know about a case stands in `Case`; a law never asks for a model's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions.transforms import OrderedTransform


@dataclass(frozen=True)
class Case:
    """A model, its arguments, a point, and what is special about it."""

    name: str
    model: Callable[..., Any]
    args: tuple[Any, ...]
    params: dict[str, np.ndarray]
    rows: tuple[int, ...] = ()  # arguments whose leading axis is the row: permuting them changes no density
    per_row: str | None = None  # the observed site with one independent unit per row; its discretes permute along
    units: Callable[..., Sequence[Mapping[str, Any]]] | None = None  # independent units that are not rows
    sums: bool = True  # log p(observed | params) is the density less the continuous priors
    grows: bool = True  # the model takes any number of rows
    quick: bool = False  # one of very many alike: density, gradient and marginals only
    may_refuse: bool = False  # served or refused, never wrong
    # Where enumeration does not apply (too many configurations, a scale under the sum):
    closed: Callable[..., Any] | None = None  # (params, *args) -> log p(observed, params), in jnp
    unscaled: Callable[..., Any] | None = None  # the same model without its scale: marginals, modes and draws
    marginals: Callable[..., dict[str, np.ndarray]] | None = None  # (params, *args), where nothing is enumerated
    best: Callable[..., dict[str, np.ndarray]] | None = None  # the most probable values, ditto


CASES: dict[str, Case] = {}


def case(*, args: tuple[Any, ...] = (), params: Mapping[str, Any], name: str = "", **special: Any):
    """Put a model into the dictionary, under its own name unless told."""

    def put(model: Callable[..., Any]) -> Callable[..., Any]:
        label = name or model.__name__
        assert label not in CASES, f"two cases are called {label}"
        point = {site: np.asarray(value, dtype=np.float64) for site, value in params.items()}
        CASES[label] = Case(label, model, args, point, **special)
        return model

    return put


Y4 = np.array([-1.2, 0.4, 2.9, 0.1])
Y5 = np.array([-1.2, 0.4, 2.9, 0.1, 3.3])
Y8 = np.array([-2.1, -1.4, -1.7, 0.2, 0.3, 2.6, 3.1, 2.2])
W3 = np.array([0.5, 0.3, 0.2])
MU3 = np.array([-1.1, 0.3, 2.7])
X52 = np.array([[0.3, -1.0], [1.2, 0.5], [-0.4, 0.8], [2.0, -0.1], [-1.3, -0.6]])
BITS = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, 0], [1, 0, 0]])
P22 = np.array([[0.8, 0.2], [0.35, 0.65]])
P33 = np.array([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.05, 0.15, 0.8]])

row_model = partial(case, rows=(0,), per_row="y")


# ---- Mixtures ---------------------------------------------------------------------------------


@row_model(args=(Y8,), params={"w": W3, "mu": MU3, "sd": [0.6, 0.9, 1.3]})
def gaussian_mixture(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("component", 3):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        sd = numpyro.sample("sd", dist.HalfNormal(5))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]), obs=y)


@row_model(args=(Y5,), params={"w": [0.3, 0.7], "mu": [-0.5, 2.0]})
def enumerate_marks(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.Normal(0, 10).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@row_model(args=(Y5,), params={"w": [0.3, 0.7], "mu": [-0.5, 2.0]})
def ordered_means(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    base = dist.Normal(0, 10).expand([2]).to_event(1)
    mu = numpyro.sample("mu", dist.TransformedDistribution(base, OrderedTransform()))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@row_model(args=(Y5,), params={"mu": [-0.5, 2.0]}, grows=False)
def no_plate_expand(y):
    mu = numpyro.sample("mu", dist.Normal(0, 10).expand([2]))
    z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])).expand([len(y)]))
    assert z.shape == (5,)
    numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@row_model(
    args=(Y4, np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1], [0.3, 0.7]])),
    params={"mu": [-0.5, 2.0]},
    rows=(0, 1),
)
def no_plate_probs(y, probs):
    mu = numpyro.sample("mu", dist.Normal(0, 10).expand([2]))
    z = numpyro.sample("z", dist.Categorical(probs))
    numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@case(args=(Y4[:3],), params={"w": P33, "mu": MU3})
def as_many_rows_as_components(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)).expand([3]))
    mu = numpyro.sample("mu", dist.Normal(0, 10).expand([3]))
    with numpyro.plate("obs", 3):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@case(args=(Y4[:3],), params={"mu": MU3})
def as_many_rows_as_components_shared(y):
    mu = numpyro.sample("mu", dist.Normal(0, 10).expand([3]))
    with numpyro.plate("obs", 3):
        z = numpyro.sample("z", dist.Categorical(jnp.array(W3)))
        numpyro.sample("y", dist.Normal(mu[z], 1.0 + jnp.arange(3)), obs=y)


@row_model(args=(X52,), params={"w": [0.3, 0.7], "mu": [[-0.5, 2.0], [1.0, 0.1]], "sd": [0.7, 1.4]})
def full_covariance(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2, 2]).to_event(2))
    sd = numpyro.sample("sd", dist.HalfNormal(2).expand([2]).to_event(1))
    cov = sd[:, None, None] ** 2 * jnp.array([[[1.0, 0.3], [0.3, 1.0]], [[1.0, -0.5], [-0.5, 2.0]]])
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.MultivariateNormal(mu[z], cov[z]), obs=y)


@row_model(args=(X52,), params={"mu": [[-0.5, 2.0], [1.0, 0.1]], "sd": [[0.7, 1.4], [1.0, 0.4]]})
def diagonal_covariance(y):
    with numpyro.plate("component", 2):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
        sd = numpyro.sample("sd", dist.HalfNormal(2).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.3, 0.7])))
        numpyro.sample("y", dist.Normal(mu[z], sd[z]).to_event(1), obs=y)


@row_model(args=(np.array([0, 3, 1, 7, 0]),), params={"pi": 0.3, "rate": 2.3})
def zero_inflated(y):
    pi = numpyro.sample("pi", dist.Beta(1, 1))
    rate = numpyro.sample("rate", dist.Gamma(2, 1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(pi))
        numpyro.sample("y", dist.Poisson(jnp.where(z == 1, 0.0, rate)), obs=y)


@row_model(args=(np.array([4, 3, 1, 7]),), params={"pi": 0.3, "rate": 2.3})
def impossible_without_derivative(y):
    """z = 1 is impossible in every row, and its log-density has the derivative 0 times infinity."""
    pi = numpyro.sample("pi", dist.Beta(1, 1))
    rate = numpyro.sample("rate", dist.Gamma(2, 1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(pi))
        numpyro.sample("y", dist.Poisson(rate * (1 - z)), obs=y)


@row_model(args=(Y5, np.arange(5.0)), params={"w": [0.3, 0.7], "b": [[0.0, 1.0], [2.0, -0.5]]}, rows=(0, 1))
def regressions(y, x):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    b = numpyro.sample("b", dist.Normal(0, 3).expand([2, 2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(b[z, 0] + b[z, 1] * x, 0.8), obs=y)


@row_model(args=(Y5, X52), params={"g": [[0.4, -0.3, 0.0], [0.1, 0.9, -0.7]], "mu": MU3}, rows=(0, 1))
def experts(y, x):
    """Weights by multinomial logistic regression."""
    g = numpyro.sample("g", dist.Normal(0, 1).expand([2, 3]).to_event(2))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(logits=x @ g))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@row_model(args=(Y5, X52[:, 0]), params={"slope": 0.8, "mu": MU3}, rows=(0, 1))
def ordered_logistic(y, x):
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.OrderedLogistic(slope * x, jnp.array([-0.5, 0.7])))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@row_model(args=(BITS,), params={"w": [0.4, 0.6], "p": [[0.2, 0.7, 0.5], [0.9, 0.3, 0.6]]})
def latent_class(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    p = numpyro.sample("p", dist.Beta(1, 1).expand([2, 3]).to_event(2))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Bernoulli(p[z]).to_event(1), obs=y)


@row_model(args=(np.array([[3, 1, 1], [0, 5, 0], [2, 2, 1], [0, 1, 4]]),), params={"theta": P33[:2]})
def multinomial_rows(y):
    theta = numpyro.sample("theta", dist.Dirichlet(jnp.ones(3)).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
        numpyro.sample("y", dist.Multinomial(total_count=5, probs=theta[z]), obs=y)


@row_model(args=(np.array([0.2, 1.4, 3.0, 0.9]),), params={"mu": [-0.4, 2.1]})
def truncated_components(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.TruncatedNormal(mu[z], 1.0, low=0.0), obs=y)


@case(
    args=(np.array([0.2, 2.0, 1.4, 2.0]), np.array([False, True, False, True])),
    params={"mu": [0.4, 2.1]},
    rows=(0, 1),
)
def censored(y, beyond):
    """Right-censored rows through a factor."""
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        normal = dist.Normal(mu[z], 1.0)
        numpyro.factor("y", jnp.where(beyond, jnp.log1p(-normal.cdf(y)), normal.log_prob(y)))


@row_model(args=(Y4,), params={"mu": [-0.4, 2.1, 5.0]})
def weight_of_zero(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6, 0.0])))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@row_model(args=(Y4,), params={"mu": [0.4, 2.1]})
def weight_of_one(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([1.0, 0.0])))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@case(args=(np.array([0.5, 1.5, 2.5]),), params={"w": [0.4, 0.6], "high": 2.2}, rows=(0,))
def impossible_component(y):
    """Two uniforms by hand: 0.5 and 2.5 lie in one of them only."""
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    high = numpyro.sample("high", dist.Uniform(2, 3))
    low, top = jnp.array([0.0, 1.0]), jnp.stack([high, jnp.array(3.0)])
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        inside = (y >= low[z]) & (y <= top[z])
        numpyro.factor("y", jnp.where(inside, -jnp.log(top[z] - low[z]), -jnp.inf))


# ---- Ways to write the dependence -------------------------------------------------------------


@row_model(args=(Y5,), params={"a": 0.4, "b": 1.7})
def float_arithmetic(y):
    a = numpyro.sample("a", dist.Normal(0, 3))
    b = numpyro.sample("b", dist.Normal(0, 3))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(a + b * z, 1.0), obs=y)


@row_model(args=(Y5,), params={"a": 0.4, "b": 1.7})
def boolean_arithmetic(y):
    a = numpyro.sample("a", dist.Normal(0, 3))
    b = numpyro.sample("b", dist.Normal(0, 3))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array(W3)))
        odd = (z == 1) | ~(z < 2)
        numpyro.sample("y", dist.Normal(a * odd + b * (z != 2), 1.0), obs=y)


@row_model(args=(Y5,), params={"a": 0.4, "b": 1.7})
def where_equal(y):
    a = numpyro.sample("a", dist.Normal(0, 3))
    b = numpyro.sample("b", dist.HalfNormal(3))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(jnp.where(z == 1, a, -1.0), jnp.where(z == 1, 1.0, b)), obs=y)


@row_model(args=(Y5,), params={"mu": MU3})
def one_hot(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array(W3)))
        numpyro.sample("y", dist.Normal(jax.nn.one_hot(z, 3) @ mu, 1.0), obs=y)


@row_model(args=(Y5,), params={"mu": [0.1, 1.2, 3.0]})
def discrete_uniform(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.DiscreteUniform(2, 4))
        numpyro.sample("y", dist.Normal(mu[z - 2] * z, 1.0), obs=y)


@row_model(args=(np.array([2, 0, 5]),), params={"p": 0.35, "rate": 1.1})
def latent_binomial(y):
    p = numpyro.sample("p", dist.Beta(1, 1))
    rate = numpyro.sample("rate", dist.HalfNormal(2))
    with numpyro.plate("obs", len(y)):
        n = numpyro.sample("n", dist.Binomial(4, p))
        numpyro.sample("y", dist.Poisson(0.5 + rate * n), obs=y)


@row_model(args=(Y4,), params={"w": [0.3, 0.3, 0.4], "mu": MU3}, grows=False)
def deterministic_and_prints(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        assert z.shape == (4,)
        assert z.ndim == 1
        centre = numpyro.deterministic("centre", mu[z])
        numpyro.sample("y", dist.Normal(centre, 1.0), obs=y)
    numpyro.deterministic("of_first", jnp.sum(z == 0))


@case(args=(0.9, Y4), params={"mu": [0.4, 2.1]})
def scalar_cond(y0, y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    z = numpyro.sample("z", dist.Bernoulli(0.4))
    centre = lax.cond(z == 1, lambda m: m[0] * 2, lambda m: m[1] + 1, mu)
    numpyro.sample("y0", dist.Normal(centre, 1.0), obs=y0)
    numpyro.sample("y", dist.Normal(centre, 2.0), obs=y)


@case(args=(Y4,), params={"mu": MU3}, units=lambda y: [{"y": slice(None)}])
def scalar_switch(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3]))
    z = numpyro.sample("z", dist.Categorical(jnp.array(W3)))
    branches = [lambda m: m[0], lambda m: m[1] ** 2, lambda m: m.sum()]
    numpyro.sample("y", dist.Normal(lax.switch(z, branches, mu), 1.0), obs=y)


@row_model(args=(Y4,), params={"mu": MU3})
def vmapped_switch(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array(W3)))
        branches = [lambda m: m[0], lambda m: m[1] ** 2, lambda m: m.sum()]
        centre = jax.vmap(lambda k: lax.switch(k, branches, mu))(z)
        numpyro.sample("y", dist.Normal(centre, 1.0), obs=y)


@case(args=(Y5,), params={"a": 0.4, "b": 1.7}, units=lambda y: [{"y": slice(None)}])
def change_point(y):
    a = numpyro.sample("a", dist.Normal(0, 3))
    b = numpyro.sample("b", dist.Normal(0, 3))
    when = numpyro.sample("when", dist.DiscreteUniform(0, len(y)))
    numpyro.sample("y", dist.Normal(jnp.where(jnp.arange(len(y)) < when, a, b), 1.0), obs=y)


@case(
    args=(X52 @ np.array([1.0, -1.0]), np.hstack([X52, X52**2, X52[:, :1] * X52[:, 1:]])),
    params={"b": [1.2, -0.7, 0.3, 2.0, -0.1], "sd": 0.7},
)
def spike_and_slab(y, x):
    b = numpyro.sample("b", dist.Normal(0, 1).expand([5]))
    sd = numpyro.sample("sd", dist.HalfNormal(1))
    with numpyro.plate("column", 5):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
    numpyro.sample("y", dist.Normal(x @ (z * b), sd), obs=y)


@case(args=(np.linspace(-1.0, 3.0, 12).reshape(3, 4),), params={"mu": [0.2, 1.7], "nu": [-1.0, 0.8]})
def rows_and_columns(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    nu = numpyro.sample("nu", dist.Normal(0, 3).expand([2]))
    r = numpyro.sample("r", dist.Categorical(jnp.array([0.3, 0.7])).expand([3]))
    c = numpyro.sample("c", dist.Categorical(jnp.array([0.6, 0.4])).expand([4]))
    numpyro.sample("y", dist.Normal(mu[r][:, None] + nu[c][None, :], 1.0), obs=y)


@row_model(args=(Y4,), params={"mu": [0.2, 1.7]})
def stack(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("obs", len(y)):
        a = numpyro.sample("a", dist.Bernoulli(0.3))
        b = numpyro.sample("b", dist.Bernoulli(0.6))
        both = jnp.stack([a, b])
        assert both.shape == (2, len(y))
        numpyro.sample("y", dist.Normal(mu[both].sum(0), 1.0), obs=y)


@case(args=(Y4[:3], Y4), params={"mu": [0.2, 1.7, -0.6]}, sums=True)
def vstack_dot_cumsum(y, v):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3]))
    a = numpyro.sample("a", dist.Bernoulli(0.3).expand([3]))
    b = numpyro.sample("b", dist.Bernoulli(0.6).expand([3]))
    numpyro.sample("y", dist.Normal(jnp.dot(jnp.vstack([a, b]).T, mu[:2]) + jnp.cumsum(a), 1.0), obs=y)
    numpyro.sample("v", dist.Normal(mu[2] * jnp.dot(a, b), 1.0), obs=v)


@case(args=(BITS[:, :2], X52[:, 0]), params={"p": [[0.2, 0.7], [0.9, 0.3]], "mu": [0.2, 1.7]})
def event_of_bernoullis(y, x):
    """A vector-valued discrete: `Bernoulli(...).to_event(1)`."""
    p = numpyro.sample("p", dist.Beta(2, 2).expand([2, 2]).to_event(2))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
    z = numpyro.sample("z", dist.Bernoulli(jnp.array([0.3, 0.6])).to_event(1))
    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", dist.Bernoulli(p[z[0]] * 0.5 + p[z[1]] * 0.25).to_event(1), obs=y)
        numpyro.sample("x", dist.Normal(mu[z].sum(), 1.0), obs=x)


@case(args=(Y4,), params={"mu": [0.2, 1.7]}, sums=False)
def factor_reads_z(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
    numpyro.factor("smooth", 0.7 * (z[1:] == z[:-1]).sum())


# ---- Several discretes ------------------------------------------------------------------------


@row_model(args=(Y4,), params={"mu": [[-1.0, 0.3], [0.9, 2.2], [3.1, 0.0]]})
def two_discretes_per_row(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3, 2]))
    with numpyro.plate("obs", len(y)):
        z1 = numpyro.sample("z1", dist.Categorical(jnp.array(W3)))
        z2 = numpyro.sample("z2", dist.Bernoulli(0.6))
        numpyro.sample("y", dist.Normal(mu[z1, z2], 1.0), obs=y)


@row_model(args=(Y4,), params={"p": P22, "mu": [0.2, 1.7]})
def discrete_given_discrete(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(2)).expand([2]))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("obs", len(y)):
        z1 = numpyro.sample("z1", dist.Categorical(jnp.array([0.3, 0.7])))
        z2 = numpyro.sample("z2", dist.Categorical(p[z1]))
        numpyro.sample("y", dist.Normal(mu[z2], 1.0), obs=y)


@case(
    args=(Y5, np.array([0, 1, 0, 2, 2])),
    params={"w": [0.35, 0.65], "mu": [0.2, 1.7]},
    rows=(0, 1),
    units=lambda y, group: [{"y": group == g} for g in range(3)],
)
def class_per_group(y, group):
    """A latent class per person, several rows a person, in any order."""
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("person", 3):
        z = numpyro.sample("z", dist.Categorical(w))
    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", dist.Normal(mu[z[group]], 1.0), obs=y)


@case(
    args=(Y5, np.array([0, 1, 0, 1, 1])),
    params={"p": P22, "mu": [0.2, 1.7]},
    rows=(0, 1),
    units=lambda y, group: [{"y": group == g} for g in range(2)],
)
def class_per_group_and_row(y, group):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(2)).expand([2]))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("group", 2):
        c = numpyro.sample("c", dist.Categorical(jnp.array([0.3, 0.7])))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(p[c[group]]))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@case(args=(Y4,), params={"w": P33[:, :2] / P33[:, :2].sum(1, keepdims=True), "mu": [0.2, 1.7]}, rows=(0,))
def one_for_all_and_one_per_row(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)).expand([3]))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    g = numpyro.sample("g", dist.Categorical(jnp.array(W3)))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w[g]))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@case(args=(np.linspace(-1.0, 3.0, 6).reshape(2, 3),), params={"w": P22, "mu": [0.2, 1.7]})
def nested_plates(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)).expand([2]))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    subjects = numpyro.plate("subject", 3, dim=-1)
    with subjects:
        s = numpyro.sample("s", dist.Categorical(jnp.array([0.3, 0.7])))
    with numpyro.plate("item", 2, dim=-2), subjects:
        z = numpyro.sample("z", dist.Categorical(w[s]))
        assert z.shape == (2, 3)
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@case(args=(Y4, X52), params={"mu": [0.2, 1.7], "nu": MU3})
def two_plates(y, x):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    nu = numpyro.sample("nu", dist.Normal(0, 3).expand([3]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
    with numpyro.plate("other", len(x)):
        u = numpyro.sample("u", dist.Categorical(jnp.array(W3)))
        numpyro.sample("x", dist.Normal(nu[u], 1.0), obs=x[:, 0])


@case(
    args=(np.array([[0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 1]]),),
    params={"w": [0.4, 0.6], "confusion": [P22, P22[::-1], [[0.6, 0.4], [0.1, 0.9]]]},
    rows=(0,),
    units=lambda y: [{"y": n} for n in range(4)],
)
def annotators(y):
    """Dawid and Skene: a true class per item, a confusion matrix per annotator."""
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    confusion = numpyro.sample("confusion", dist.Dirichlet(jnp.ones(2)).expand([3, 2]))
    with numpyro.plate("item", 4, dim=-2):
        z = numpyro.sample("z", dist.Categorical(w))
        assert z.shape == (4, 1)
        with numpyro.plate("annotator", 3, dim=-1):
            numpyro.sample("y", dist.Categorical(confusion[jnp.arange(3), z]), obs=y)


@case(args=(BITS,), params={"psi": 0.4, "p": 0.7}, rows=(0,), units=lambda y: [{"y": n} for n in range(5)])
def occupancy(y):
    psi = numpyro.sample("psi", dist.Beta(1, 1))
    p = numpyro.sample("p", dist.Beta(1, 1))
    with numpyro.plate("site", 5):
        z = numpyro.sample("z", dist.Bernoulli(psi))
    numpyro.sample("y", dist.Bernoulli(z[:, None] * p), obs=y)


@case(
    args=(Y4, np.array([2, 0, 5, 1])),
    params={"w": [0.35, 0.65], "mu": [0.2, 1.7], "rate": [0.8, 4.0]},
    rows=(0, 1),
    units=lambda y, n: [{"y": i, "count": i} for i in range(4)],
)
def two_outcomes(y, n):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    rate = numpyro.sample("rate", dist.HalfNormal(5).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        numpyro.sample("count", dist.Poisson(rate[z]), obs=n)


@case(args=(Y4,), params={"mu": 0.7}, rows=(0,))
def no_children(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    with numpyro.plate("idle", 2):
        numpyro.sample("z", dist.Categorical(jnp.array(W3)))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@case(args=(Y4,), params={"p": 0.3, "q": [0.2, 0.7], "mu": [-0.5, 2.0]})
def counts_that_no_data_reach(y):
    """A replicate of a class that data reach, a state to come, and a count that hangs on that."""
    p = numpyro.sample("p", dist.Beta(1, 1))
    q = numpyro.sample("q", dist.Beta(1, 1).expand([2]))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(p))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
    with numpyro.plate("replicates", 2):
        numpyro.sample("count", dist.Binomial(2, q[z[:2]]))
    later = numpyro.sample("later", dist.Bernoulli(q[z[3]]))
    numpyro.sample("last", dist.BetaBinomial(1.0 + later, 2.0, 2))


@case(args=(Y4,), params={"q": [0.2, 0.7], "mu": [-0.5, 2.0]}, may_refuse=True)
def replicates_in_a_scan(y):
    q = numpyro.sample("q", dist.Beta(1, 1).expand([2]))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))

    def step(before, now):
        z = numpyro.sample("z", dist.Bernoulli(q[before]))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=now)
        numpyro.sample("count", dist.Bernoulli(1 - q[z]))
        return z, None

    scan(step, 0, y)


@case(args=(Y4,), params={"mu": 0.7}, rows=(0,))
def no_discretes(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@case(args=(Y4,), params={"mu": [0.2, 1.7], "x": [-0.3, 0.8, 2.0, 0.9]}, sums=False)
def latent_given_discrete(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        x = numpyro.sample("x", dist.Normal(mu[z], 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)


# ---- Missing data and scales ------------------------------------------------------------------

MISSING = np.array([-1.2, np.nan, 2.9, 0.1])


@row_model(args=(MISSING,), params={"mu": [0.2, 1.7]})
def missing_by_handler(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        with handlers.mask(mask=~np.isnan(y)):
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@row_model(args=(MISSING,), params={"mu": [0.2, 1.7]})
def missing_by_distribution(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(mu[z], 1.0).mask(~np.isnan(y)), obs=np.nan_to_num(y))


def _bernoulli_mixture_terms(params, y):
    """The prior of two means and log p(y | means) row by row: what the scaled cases are made of."""
    mu = params["mu"]
    prior = dist.Normal(0, 3).log_prob(mu).sum()
    rows = jnp.logaddexp(
        jnp.log(0.6) + dist.Normal(mu[0], 1.0).log_prob(y), jnp.log(0.4) + dist.Normal(mu[1], 1.0).log_prob(y)
    )
    return prior, rows


def _two_normals(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def _scale_everything(params, y):
    prior, rows = _bernoulli_mixture_terms(params, y)
    return 2.5 * (prior + rows.sum())


@case(
    args=(Y4,),
    params={"mu": [0.2, 1.7]},
    rows=(0,),
    sums=False,
    closed=_scale_everything,
    unscaled=_two_normals,
)
def scale_everything(y):
    with handlers.scale(scale=2.5):
        _two_normals(y)


def _scaled_plate(params, y):
    prior, rows = _bernoulli_mixture_terms(params, y)
    return prior + 3.0 * rows.sum()


@case(args=(Y4,), params={"mu": [0.2, 1.7]}, rows=(0,), sums=False, closed=_scaled_plate, unscaled=_two_normals)
def scaled_plate(y):
    """A mini-batch: the plate stands for three times as many rows."""
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("obs", len(y)), handlers.scale(scale=3.0):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def _weighted_rows(params, y, weight):
    prior, rows = _bernoulli_mixture_terms(params, y)
    return prior + (weight * rows).sum()


@case(
    args=(Y4, np.array([1.0, 2.0, 0.5, 3.0])),
    params={"mu": [0.2, 1.7]},
    rows=(0, 1),
    sums=False,
    closed=_weighted_rows,
    unscaled=lambda y, weight: _two_normals(y),
    may_refuse=True,
)
def weighted_rows(y, weight):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("obs", len(y)), handlers.scale(scale=weight):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


# ---- Chains -----------------------------------------------------------------------------------


def _markov_loop(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)).expand([3]))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3]))
    z = numpyro.sample("z_0", dist.Categorical(jnp.array(W3)))
    for t in range(len(y)):
        if t:
            z = numpyro.sample(f"z_{t}", dist.Categorical(p[z]))
        numpyro.sample(f"y_{t}", dist.Normal(mu[z], 1.0), obs=y[t])


case(
    args=(np.concatenate([Y5, Y4[:1]]),),
    params={"p": P33, "mu": MU3},
    name="loop_of_6_steps",
    units=lambda y: [{f"y_{t}": () for t in range(6)}],
)(_markov_loop)

Y30 = np.round(np.sin(np.arange(30) * 0.7) * 2.0 + np.cos(np.arange(30) * 1.9), 3)


def _forward(params, y):
    """The textbook forward recursion, written out."""
    p, mu = params["p"], params["mu"]
    prior = dist.Dirichlet(jnp.ones(3)).log_prob(p).sum() + dist.Normal(0, 3).log_prob(mu).sum()
    likelihood = jnp.exp(-0.5 * (y[:, None] - mu) ** 2) / jnp.sqrt(2 * jnp.pi)
    alpha, total = jnp.array(W3) * likelihood[0], 0.0
    for row in likelihood[1:]:
        total = total + jnp.log(alpha.sum())
        alpha = (alpha / alpha.sum()) @ p * row
    return prior + total + jnp.log(alpha.sum())


def _smoother(params, y):
    """Forward-backward in NumPy."""
    p, mu = params["p"], params["mu"]
    likelihood = np.exp(-0.5 * (y[:, None] - mu) ** 2)
    alphas, betas = [W3 * likelihood[0]], [np.ones(3)]
    for row in likelihood[1:]:
        alphas.append(alphas[-1] / alphas[-1].sum() @ p * row)
    for row in likelihood[:0:-1]:
        beta = p @ (row * betas[-1])
        betas.append(beta / beta.sum())
    both = np.array(alphas) * np.array(betas[::-1])
    return {f"z_{t}": row / row.sum() for t, row in enumerate(both)}


def _viterbi(params, y):
    log_p, mu = np.log(params["p"]), params["mu"]
    emission = -0.5 * (y[:, None] - mu) ** 2
    score, back = np.log(W3) + emission[0], []
    for row in emission[1:]:
        every = score[:, None] + log_p
        back.append(every.argmax(0))
        score = every.max(0) + row
    path = [int(score.argmax())]
    for pointer in back[::-1]:
        path.append(int(pointer[path[-1]]))
    return {f"z_{t}": np.array(k) for t, k in enumerate(path[::-1])}


case(
    args=(Y30,),
    params={"p": P33, "mu": MU3},
    name="loop_of_30_steps",
    closed=_forward,
    marginals=_smoother,
    best=_viterbi,
)(_markov_loop)


def _thirty_closed(params, y):
    mu = params["mu"]
    prior = dist.Normal(0, 3).log_prob(mu).sum()
    terms = jnp.log(jnp.array(W3)) + dist.Normal(mu, 1.0).log_prob(y[:, None])
    return prior + jax.nn.logsumexp(terms, axis=1).sum()


def _thirty_marginals(params, y):
    p = W3 * np.exp(-0.5 * (y[:, None] - params["mu"]) ** 2)
    p = p / p.sum(1, keepdims=True)
    return {f"z{i}": row for i, row in enumerate(p)}


def _thirty_best(params, y):
    return {name: p.argmax() for name, p in _thirty_marginals(params, y).items()}


@row_model(args=(np.array([0, 3, 0, 1, 2]),), params={"r": [0.7, 2.5], "g": 0.3})
def hurdle_components(y):
    r = numpyro.sample("r", dist.Exponential(1.0).expand([2]))
    g = numpyro.sample("g", dist.Beta(2, 2))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.HurdlePoisson(g, r[z]), obs=y)


@row_model(args=(np.array([0, 3, 0, 1, 2]),), params={"b": 0.6})
def beta_binomial_latent(y):
    b = numpyro.sample("b", dist.Exponential(1.0))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.BetaBinomial(1.0 + b, 2.0, 3))
        numpyro.sample("y", dist.Poisson(0.5 + z), obs=y)


def _half(y):
    mu = numpyro.sample("mu", dist.Normal(0, 2).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)


@case(args=(Y5,), params={"a/mu": [0.2, 1.7], "b/mu": [-1.0, 0.4]})
def scoped_twice(y):
    handlers.scope(_half, "a")(y[:2])
    handlers.scope(_half, "b")(y[2:])


@case(args=(Y5,), params={"mu": [0.2, 1.7]}, sums=False)
def group_sums_in_a_factor(y):
    mu = numpyro.sample("mu", dist.Normal(0, 2).expand([2]))
    z = numpyro.sample("z", dist.Bernoulli(0.3).expand([5]))
    numpyro.factor("f", jax.ops.segment_sum(mu[z] * y, jnp.array([1, 0, 1, 1, 2]), 3))


@case(args=(Y5,), params={"mu": [0.2, 1.7]})
def group_sums_in_a_mean(y):
    mu = numpyro.sample("mu", dist.Normal(0, 2).expand([2]))
    z = numpyro.sample("z", dist.Bernoulli(0.3).expand([5]))
    total = jnp.ones((3, 2)).at[jnp.array([1, 0, 1, 1, 2])].add(jnp.stack([mu[z], y], 1))
    numpyro.sample("y", dist.Normal(total, 1.0), obs=jnp.outer(y[:3], jnp.ones(2)))


@case(args=(Y30,), params={"mu": MU3}, closed=_thirty_closed, marginals=_thirty_marginals, best=_thirty_best)
def thirty_named(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3]))
    for i in range(30):
        z = numpyro.sample(f"z{i}", dist.Categorical(jnp.array(W3)))
        numpyro.sample(f"y{i}", dist.Normal(mu[z], 1.0), obs=y[i])


@case(args=(Y5,), params={"p": P33, "mu": MU3}, sums=False)
def chain_by_factor(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)).expand([3]))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3]))
    with numpyro.plate("time", len(y)):
        z = numpyro.sample("z", dist.Categorical(logits=jnp.zeros(3)))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
    numpyro.factor("moves", jnp.log(p)[z[:-1], z[1:]])


@case(args=(Y5,), params={"p": P33, "mu": MU3}, sums=False)
def chain_by_one_number(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)).expand([3]))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3]))
    z = numpyro.sample("z", dist.Categorical(logits=jnp.zeros(3)).expand([len(y)]))
    numpyro.factor("moves", jnp.log(p)[z[:-1], z[1:]].sum())
    numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@case(args=(Y5,), params={"p": P22, "mu": [0.2, 1.7]}, may_refuse=True)
def chain_by_scan(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(2)).expand([2]))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))

    def step(before, now):
        z = numpyro.sample("z", dist.Categorical(p[before]))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=now)
        return z, None

    scan(step, 0, y)


@case(args=(Y8,), params={"p": P22, "w": [[0.2, 0.8], [0.6, 0.4]], "mu": [[0.2, 1.7], [-1.0, 3.0]]}, sums=False)
def chain_with_a_mixture_at_each_step(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(2)).expand([2]))
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)).expand([2]))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2, 2]))

    def step(before, now):
        z = numpyro.sample("z", dist.Categorical(p[before]))
        c = numpyro.sample("c", dist.Categorical(w[z]))
        numpyro.sample("y", dist.Normal(mu[z, c], 1.0), obs=now)
        return z, None

    scan(step, 0, y)


# ---- What the peers answer: f(z) with z ~ Bernoulli(0.3) in plate(3), y ~ Normal(a + f(z), 1) -

SUMMARIES: dict[str, Callable[[Any], Any]] = {
    "sum": lambda z: z.sum(),
    "mean": lambda z: z.mean(),
    "max": lambda z: jnp.max(z),
    "any": lambda z: jnp.any(z),
    "first": lambda z: z[0],
    "last": lambda z: z[-1],
    "pair": lambda z: z[0] + z[1],
    "weighted": lambda z: (z * jnp.array([1, 2, 3])).sum(),
    "dot": lambda z: jnp.dot(z, jnp.array([1, 2, 3])),
}


def _summary(f, y):
    a = numpyro.sample("a", dist.Normal(0, 1))
    with numpyro.plate("three", 3):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
    numpyro.sample("y", dist.Normal(a + f(z), 1), obs=y)


for _name, _f in SUMMARIES.items():
    case(args=(1.0,), params={"a": 0.0}, name=f"peers_{_name}", units=lambda y: [{"y": ()}])(partial(_summary, _f))


# ---- One array function of z each: where a dependence can be misread --------------------------

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "reverse": lambda z: z[::-1],
    "roll": lambda z: jnp.roll(z, 1),
    "diff": lambda z: jnp.diff(z),
    "pad": lambda z: jnp.pad(z, 1, constant_values=2),
    "repeat": lambda z: jnp.repeat(z, 2),
    "tile": lambda z: jnp.tile(z, 2),
    "take": lambda z: z[jnp.array([3, 0, 0, 2])],
    "stride": lambda z: z[::2] * 2 + z[1::2],
    "concatenate": lambda z: jnp.concatenate([z[2:], z[:1]]),
    "at_set": lambda z: z.at[1].set(2),
    "at_add": lambda z: jnp.zeros(3).at[z].add(1.0),
    "at_set_by_z": lambda z: jnp.arange(4).at[z[0]].set(z[3] + 5),
    "reshape_transpose": lambda z: z.reshape(2, 2).T - z.reshape(2, 2),
    "outer": lambda z: (z[:, None] + 1) * z[None, :],
    "upper": lambda z: jnp.triu(z[:, None] - z[None, :]),
    "cumulative_max": lambda z: lax.cummax(z),
    "cumulative_reverse": lambda z: lax.cumsum(z, reverse=True),
    "sort": lambda z: jnp.sort(z),
    "argmax": lambda z: jnp.argmax(z),
    "where": lambda z: jnp.where(jnp.array([True, False, True, False]), z, z[::-1]),
    "where_by_z": lambda z: jnp.where(z[0] == 1, z, z[::-1]),
    "self_index": lambda z: z[z],
    "dynamic_slice": lambda z: lax.dynamic_slice(jnp.array([0.0, 1.0, 4.0, 9.0]), (z[0],), (2,)),
    "dynamic_slice_of_z": lambda z: lax.dynamic_slice(z, (z[0],), (2,)),
    "dynamic_update": lambda z: lax.dynamic_update_slice(jnp.zeros(4), z[:2] * 1.0, (z[3],)),
    "convolve": lambda z: jnp.convolve(z * 1.0, jnp.array([1.0, -2.0, 0.5])),
    "segment_sum": lambda z: jax.ops.segment_sum(z, jnp.array([1, 0, 1, 2]), 3),
    "matmul": lambda z: jnp.array([[1.0, 0.0, 0.0, 2.0], [0.0, 3.0, 1.0, 0.0]]) @ z,
    "einsum": lambda z: jnp.einsum("i,ij,j->i", z, jnp.array([[0, 1, 0, 0]] * 4), z),
    "blocks": lambda z: z.reshape(2, 2).sum(1),
    "product": lambda z: jnp.prod(z.reshape(2, 2) + 1, axis=0),
    "mean_removed": lambda z: z - z.mean(),
    "division": lambda z: (z[0] % 2) * 3 + (z[1] // 2) + z[2] / 2,
    "power": lambda z: jnp.power(2.0, z) + z**2,
    "window": lambda z: lax.reduce_window(z, 0, lax.add, (2,), (1,), "VALID"),
    "associative_scan": lambda z: lax.associative_scan(jnp.multiply, z + 1),
    "scan_carry": lambda z: lax.scan(lambda c, k: (0.5 * c + k, c * k), 0.0, z)[1],
    "scan_rows": lambda z: lax.scan(lambda c, k: (c, k * 2 + 1), 0.0, z)[1],
    "map": lambda z: lax.map(lambda k: k**2, z),
    "fori": lambda z: lax.fori_loop(0, 3, lambda i, c: c + z[i], 0),
    "while": lambda z: lax.while_loop(lambda c: c < 2, lambda c: c + 1 + z[1], z[0]),
    "vmap": lambda z: jax.vmap(lambda k, v: k * v, in_axes=(0, None))(z, z[0]),
    "jit": lambda z: jax.jit(lambda v: v[::-1] + v)(z),
    "checkpoint": lambda z: jax.checkpoint(lambda v: v[1:] * v[:-1])(z),
    "searchsorted": lambda z: jnp.searchsorted(jnp.array([0.5, 1.5]), z * 1.0),
    "table_of_vectors": lambda z: jnp.array([[0.0, 1.0], [2.0, 3.0], [5.0, 4.0]])[z],
    "table_by_pairs": lambda z: jnp.array(P33)[z[:-1], z[1:]],
    "clip_and_cast": lambda z: jnp.clip(z.astype(jnp.float32), 0.5, 1.5),
    "cholesky": lambda z: jnp.linalg.cholesky(jnp.eye(2) * (1.0 + z[0]) + 0.3 * z[1])[1],
    "solve": lambda z: jnp.linalg.solve(jnp.eye(4) * 2.0 + jnp.ones((4, 4)), z * 1.0),
    "batched_solve": lambda z: jnp.linalg.solve(jnp.eye(2) * (1.0 + z[:, None, None]), jnp.ones((4, 2, 1)))[:, :, 0],
    "expand_sum": lambda z: jnp.broadcast_to(z, (2, 4)).sum(0),
    "bits": lambda z: (z & 1) ^ (z[0] >> 1),
    "wrapped_index": lambda z: jnp.array([0.0, 1.0, 4.0])[z - 1],
    "filled_index": lambda z: jnp.array([1.0, 3.0]).at[z].get(mode="fill", fill_value=7.0),
    "scatter_to_places": lambda z: jnp.zeros(5).at[jnp.array([3, 1, 1, 0])].add(z * 1.0),
    "top_k": lambda z: lax.top_k(z, 2)[0],
    "top_k_of_pairs": lambda z: lax.top_k(jnp.stack([z, 2 - z], 1), 1)[1][:, 0],
    "running_sum_beside_itself": lambda z: jnp.cumsum(z) + z,
    "digitize": lambda z: jnp.digitize(z * 1.0, jnp.array([0.5, 1.5])),
    "bincount": lambda z: jnp.bincount(z, length=3),
    "histogram_weights": lambda z: jnp.zeros(3).at[z].add(jnp.array([1.0, 2.0, -1.0, 0.5])),
    "switch": lambda z: lax.switch(z[3], [lambda v: v[0], lambda v: v[1] * 3, lambda v: v.sum()], z),
    "loop_of_updates": lambda z: lax.fori_loop(1, 4, lambda i, c: c.at[i].set(c[i - 1] + z[i]), jnp.zeros(4)),
    "where_guards_nan": lambda z: jnp.where(z > 0, jnp.log(z * 1.0), -1.0),
    "overflow": lambda z: (z.astype(jnp.int8) * jnp.int8(100)) / 64,  # binary: brute force divides in 32 bits
    "fft": lambda z: jnp.fft.rfft(z * 1.0).real,
}


def _function(f, y):
    a = numpyro.sample("a", dist.Normal(0, 1))
    z = numpyro.sample("z", dist.Categorical(jnp.array(W3)).expand([4]))
    centre = f(z)
    shape = jnp.shape(centre)
    numpyro.sample("y", dist.Normal(a * centre, 1.0), obs=y[: int(np.prod(shape))].reshape(shape))


Y16 = np.concatenate([Y8, Y8[::-1] * 0.7 + 0.1])

for _name, _f in FUNCTIONS.items():
    case(args=(Y16,), params={"a": 0.8}, name=f"reads_{_name}", quick=True)(partial(_function, _f))
