"""Small hand-written marginals with the kernel interface of the engine, to test inference without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from arviz_stats.base.array import array_stats
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to

from marginalia.marginal.drawing import drawer


@dataclass(frozen=True)
class FakeSite:
    name: str
    shape: tuple[int, ...]
    support: Any = None
    values: Any = None
    value: Any = None


@dataclass(frozen=True)
class FakeProgram:
    latents: dict[str, FakeSite]
    discretes: dict[str, FakeSite] = field(default_factory=dict)
    observed: dict[str, FakeSite] = field(default_factory=dict)


@dataclass(frozen=True)
class FakeKernel:
    data: Any
    supports: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    density: Callable[..., Any]
    rows: Callable[..., Any]
    prior: Callable[..., Any]

    @cached_property
    def draw_prior(self):
        return drawer(self.prior, 10)

    @property
    def numbers_read(self):
        return sum(np.size(leaf) for leaf in jax.tree.leaves(self.data))

    @property
    def operations(self):
        return self.numbers_read

    @property
    def unconstrained_shapes(self):
        return {name: biject_to(self.supports[name]).inverse_shape(self.shapes[name]) for name in self.shapes}

    def log_density(self, params, data):
        return self.density(params, data)

    def log_likelihood(self, params, data):
        return self.rows(params, data)

    def constrain(self, u):
        params, total = {}, 0.0
        for name, value in u.items():
            transform = biject_to(self.supports[name])
            params[name] = transform(value)
            total += jnp.sum(transform.log_abs_det_jacobian(value, params[name]))
        return params, total

    def unconstrain(self, params):
        return {name: biject_to(self.supports[name]).inv(value) for name, value in params.items()}


@dataclass(frozen=True)
class FakeMarginal:
    kernel: FakeKernel
    program: FakeProgram


def _marginal(supports, shapes, density, rows, prior, data, discretes=None, observed=None):
    latents = {name: FakeSite(name, shapes[name], support=supports[name]) for name in supports}
    kernel = FakeKernel(data, supports, shapes, density, rows, prior)
    return FakeMarginal(kernel, FakeProgram(latents, discretes or {}, observed or {}))


def gaussian_mixture(y, k: int, *, ordered_factor: bool = False, scale_prior: float = 5.0) -> FakeMarginal:
    """A mixture of k Gaussians in one dimension; `ordered_factor` adds -inf unless the locations increase."""
    y = np.asarray(y, float)
    centre, spread = float(np.nanmean(y)), float(np.nanstd(y))
    shapes = {"w": (k,), "mu": (k,), "sd": (k,)}
    supports = {"w": constraints.simplex, "mu": constraints.real, "sd": constraints.positive}

    def rows(params, data):
        terms = jnp.log(params["w"]) + dist.Normal(params["mu"], params["sd"]).log_prob(data[:, None])
        return {"y": jax.nn.logsumexp(terms, axis=1)}

    def density(params, data):
        total = dist.Dirichlet(jnp.full(k, 2.0)).log_prob(params["w"])
        total += dist.Normal(centre, 2 * spread).log_prob(params["mu"]).sum()
        total += dist.HalfNormal(scale_prior).log_prob(params["sd"]).sum()
        total += rows(params, data)["y"].sum()
        if ordered_factor:
            total += jnp.where(jnp.all(jnp.diff(params["mu"]) > 0), 0.0, -jnp.inf)
        return total

    def prior(key):
        a, b, c = jax.random.split(key, 3)
        return {
            "w": dist.Dirichlet(jnp.full(k, 2.0)).sample(a),
            "mu": dist.Normal(centre, 2 * spread).sample(b, (k,)),
            "sd": dist.HalfNormal(scale_prior).sample(c, (k,)),
        }

    discretes = {"z": FakeSite("z", y.shape, values=np.arange(k))}
    observed = {"y": FakeSite("y", y.shape, value=y)}
    return _marginal(supports, shapes, density, rows, prior, y, discretes, observed)


def five_points() -> FakeMarginal:
    """W6: the points 0, 1, 10, 11, 12 and two components with one scale."""
    y = np.array([0.0, 1.0, 10.0, 11.0, 12.0])
    shapes = {"weights": (2,), "scale": (), "locs": (2,)}
    supports = {"weights": constraints.simplex, "scale": constraints.positive, "locs": constraints.real}
    priors = {
        "weights": lambda: dist.Dirichlet(jnp.full(2, 0.5)),
        "scale": lambda: dist.LogNormal(0.0, 2.0),
        "locs": lambda: dist.Normal(0.0, 10.0).expand([2]).to_event(1),
    }

    def rows(params, data):
        parts = dist.Normal(params["locs"], params["scale"]).log_prob(data[:, None])
        return {"obs": jax.nn.logsumexp(jnp.log(params["weights"]) + parts, axis=1)}

    def density(params, data):
        return sum(p().log_prob(params[name]) for name, p in priors.items()) + rows(params, data)["obs"].sum()

    def prior(key):
        keys = jax.random.split(key, 3)
        return {name: p().sample(k) for (name, p), k in zip(priors.items(), keys, strict=True)}

    discretes = {"assignment": FakeSite("assignment", y.shape, values=np.arange(2))}
    observed = {"obs": FakeSite("obs", y.shape, value=y)}
    return _marginal(supports, shapes, density, rows, prior, y, discretes, observed)


CORRELATED_MEAN = np.array([1.0, -2.0])
CORRELATED_COV = np.array([[1.0, 0.8 * 2.0], [0.8 * 2.0, 4.0]])


def correlated_gaussian() -> FakeMarginal:
    """Two real parameters whose posterior is the Gaussian with the moments above."""

    def target():
        return dist.MultivariateNormal(CORRELATED_MEAN, CORRELATED_COV)

    def density(params, data):
        return target().log_prob(params["x"]) + data.sum()

    return _marginal(
        {"x": constraints.real_vector},
        {"x": (2,)},
        density,
        lambda params, data: {"x": data},
        lambda key: {"x": jax.random.normal(key, (2,))},
        np.zeros(3),
    )


def standard_errors(draws: np.ndarray, truth: float) -> float:
    """By how many Monte Carlo standard errors the mean of draws `(chain, draw)` is off."""
    mcse = array_stats.mcse(draws, chain_axis=0, draw_axis=1, method="mean")
    return float(abs(draws.mean() - truth) / mcse)


def assert_moments(x: np.ndarray) -> None:
    """Draws `(chain, draw, 2)` have the mean and the covariance of `correlated_gaussian`."""
    centred = x - CORRELATED_MEAN
    for i in range(2):
        assert standard_errors(x[:, :, i], CORRELATED_MEAN[i]) < 4
        for j in range(i + 1):
            assert standard_errors(centred[:, :, i] * centred[:, :, j], CORRELATED_COV[i, j]) < 4


def assert_log_density(lp: np.ndarray, x: np.ndarray) -> None:
    """`lp` is the log density of `correlated_gaussian` at the draws, to rounding."""
    centred = x - CORRELATED_MEAN
    quadratic = np.einsum("cdi,ij,cdj->cd", centred, np.linalg.inv(CORRELATED_COV), centred)
    constant = -np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(CORRELATED_COV)[1]
    np.testing.assert_allclose(lp, constant - 0.5 * quadratic, rtol=1e-10)


def bimodal(share: float, *, flat: bool = False) -> FakeMarginal:
    """One real parameter with two far modes, the lower with a `share` of the mass; or, flat, none at all."""

    def density(params, data):
        if flat:
            return 0.0 * params["x"] + data.sum()
        low = jnp.log(share) + dist.Normal(-6.0, 0.5).log_prob(params["x"])
        return jnp.logaddexp(low, jnp.log1p(-share) + dist.Normal(5.0, 1.0).log_prob(params["x"])) + data.sum()

    return _marginal(
        {"x": constraints.real},
        {"x": ()},
        density,
        lambda params, data: {"x": data},
        lambda key: {"x": 5.0 * jax.random.normal(key)},
        np.zeros(3),
    )
