"""Brute force: every joint value of every discrete, one after the other.

Shares nothing with the engine. The model runs under NumPyro's own handlers with all latents given, once per
joint value of the discretes (vectorised, one compilation), in float64. A site's scale multiplies its
log-probability; a mask switches it off; factors count. A scale under a sum means something else in marginalia
(it multiplies the sum, afterwards), so cases with scales bring a closed form of their own: `zoo.Case.closed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from scipy.special import logsumexp

LIMIT = 2**16


class Latent:
    """A discrete site of the model: its name, the shape and dtype of its value, the values of one element."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any, support: np.ndarray):
        self.name, self.shape, self.dtype, self.support = name, shape, dtype, support
        self.size = math.prod(shape)


@dataclass(frozen=True)
class Oracle:
    """What enumeration says about one model at one point of its continuous latents."""

    sites: dict[str, Latent]
    configurations: np.ndarray  # (C, elements): index into the support, all sites side by side
    table: np.ndarray  # (C,) log p(observed, params, discretes)
    prior: np.ndarray  # (C,) log p(discretes | params), no observed site and no factor
    observed: dict[str, np.ndarray]  # (C, *shape) elementwise log p(observed site | params, discretes)
    density: float  # log p(observed, params)
    gradient: dict[str, np.ndarray]  # of the density

    @property
    def weights(self) -> np.ndarray:
        """p(discretes | observed, params), one number per configuration."""
        return np.exp(self.table - self.density)

    def marginals(self) -> dict[str, np.ndarray]:
        """P(z = k | observed, params) of every discrete site: site shape + (support size,)."""
        answer, column = {}, 0
        for name, site in self.sites.items():
            index = self.configurations[:, column : column + site.size]
            column += site.size
            tables = [np.bincount(index[:, e], self.weights, minlength=len(site.support)) for e in range(site.size)]
            answer[name] = np.array(tables).reshape(*site.shape, len(site.support))
        return answer

    def index(self, values: Mapping[str, Any]) -> np.ndarray:
        """The rows of the table of some joint values, given with any leading draw axes."""
        digits = []
        for name, site in self.sites.items():
            value = np.asarray(values[name])
            assert value.shape[value.ndim - len(site.shape) :] == site.shape, f"{name}: shape {value.shape}"
            place = np.searchsorted(site.support, value)
            assert np.array_equal(site.support[np.minimum(place, len(site.support) - 1)], value), (
                f"{name}: a value outside its support"
            )
            lead = value.shape[: value.ndim - len(site.shape)]
            digits.append(place.reshape(*lead, site.size))
        return np.ravel_multi_index(tuple(np.moveaxis(np.concatenate(digits, axis=-1), -1, 0)), self._radices())

    def independent(self) -> bool:
        """Whether, given the observations, no element of a discrete says anything about another."""
        return bool(np.allclose(self.from_marginals(self.marginals()), self.weights, rtol=0, atol=1e-12))

    def from_marginals(self, marginals: Mapping[str, np.ndarray]) -> np.ndarray:
        """The product of marginals, one number per configuration."""
        product, column = np.ones(len(self.table)), 0
        for name, site in self.sites.items():
            flat = marginals[name].reshape(site.size, len(site.support))
            for e in range(site.size):
                product = product * flat[e, self.configurations[:, column]]
                column += 1
        return product

    def log_likelihood(self, units: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """log p(the observed elements of a unit | params), all else unobserved: one number per unit.

        A unit maps observed sites to an index of their elements, e.g. `{"y": 3}` or `{"y": group == 1}`.
        """
        answer = []
        for unit in units:
            terms = self.prior.copy()
            for name, at in unit.items():
                part = self.observed[name][(slice(None), *(at if isinstance(at, tuple) else (at,)))]
                terms = terms + part.reshape(len(terms), -1).sum(1)
            answer.append(logsumexp(terms))
        return np.array(answer)

    def log_prior_of_latents(self) -> float:
        """log p(params), for models in which no continuous latent depends on a discrete."""
        at = self.table.argmax()
        return float(self.table[at] - self.prior[at] - sum(v[at].sum() for v in self.observed.values()))

    def _radices(self) -> tuple[int, ...]:
        return tuple(len(s.support) for s in self.sites.values() for _ in range(s.size))


def trace(model: Callable[..., Any], values: Mapping[str, Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """The sample sites of one run with the given values put in."""
    run = handlers.substitute(handlers.seed(model, rng_seed=0), data=dict(values))
    return {n: s for n, s in handlers.trace(run).get_trace(*args).items() if s["type"] == "sample"}


def discretes(model: Callable[..., Any], args: tuple[Any, ...], params: Mapping[str, Any]) -> dict[str, Latent]:
    """The unobserved sites with a discrete support, in program order."""
    found: dict[str, Latent] = {}

    def look(params: Mapping[str, Any]) -> None:
        for name, site in trace(model, params, args).items():
            if site["is_observed"] or not site["fn"].support.is_discrete:
                continue
            fn = site["fn"]
            while hasattr(fn, "base_dist"):
                fn = fn.base_dist
            with jax.ensure_compile_time_eval():
                support = _values(fn)
            found[name] = Latent(name, site["value"].shape, site["value"].dtype, np.sort(support))

    jax.eval_shape(look, dict(params))
    return found


def _values(fn: Any) -> np.ndarray:
    """All values that some element of a distribution can take."""
    if hasattr(fn, "total_count"):  # which may differ from element to element
        return np.arange(int(np.max(fn.total_count)) + 1)
    return np.asarray(fn.enumerate_support(expand=False)).ravel()


def _own_support(fn: Any) -> Callable[[Any], Any]:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn.support


def _log_prob(fn: Any, value: Any) -> Any:
    """With -inf outside the support, also where the program tells NumPyro not to look."""
    term, plain = fn.log_prob(value), fn
    while isinstance(plain, dist.ExpandedDistribution):
        plain = plain.base_dist
    if plain._validate_args or isinstance(plain, dist.Unit | dist.Independent | dist.MaskedDistribution):
        return term
    return jnp.where(plain.support(value), term, -jnp.inf)


def enumerate_all(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    params: Mapping[str, Any],
    limit: int = LIMIT,
    compiler_options: Mapping[str, Any] | None = None,
) -> Oracle:
    """Enumerate a model at one point of its continuous latents (constrained values)."""
    with jax.enable_x64(True):
        params = {name: np.asarray(value, dtype=np.float64) for name, value in params.items()}
        sites = discretes(model, args, params)
        radices = [len(s.support) for s in sites.values() for _ in range(s.size)]
        count = math.prod(radices)
        if count > limit:
            raise ValueError(f"{count} configurations are more than {limit}")
        if radices:
            configurations = np.stack([a.ravel() for a in np.indices(radices)], axis=1)
        else:
            configurations = np.zeros((1, 0), dtype=int)

        def log_joint(params, index):
            values, column = dict(params), 0
            for name, site in sites.items():
                at = index[column : column + site.size].reshape(site.shape)
                values[name] = jnp.asarray(site.support)[at].astype(site.dtype)
                column += site.size
            total, prior, observed = jnp.zeros(()), jnp.zeros(()), {}
            inside = jnp.array(True)  # elements of one site may have supports of different size
            for name, site in trace(model, values, args).items():
                term = _log_prob(site["fn"], site["value"])
                term = term if site["scale"] is None else term * site["scale"]
                total = total + jnp.sum(term)
                if name in sites:
                    prior = prior + jnp.sum(term)
                    inside = inside & jnp.all(_own_support(site["fn"])(site["value"]))
                elif name not in params:
                    observed[name] = term
            return jnp.where(inside, total, -jnp.inf), (prior, observed)

        each = jax.jit(
            jax.vmap(jax.value_and_grad(log_joint, has_aux=True), in_axes=(None, 0)),
            compiler_options=None if compiler_options is None else dict(compiler_options),
        )
        (table, (prior, observed)), gradients = jax.device_get(each(params, configurations))

    density = float(logsumexp(table))
    # An impossible configuration weighs nothing; what its own derivative is (often 0/0) does not matter.
    possible = np.exp(table - density) > 0
    weights = np.exp(table - density)[possible]
    gradient = {name: np.tensordot(weights, g[possible], axes=1) for name, g in gradients.items()}
    return Oracle(sites, configurations, table, prior, observed, density, gradient)
