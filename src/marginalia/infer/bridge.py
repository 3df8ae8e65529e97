"""The path from the prior to the posterior: the two ends of tempering, apart from each other.

The path is geometric, p(params) p(data | params)^beta with the discretes summed out of p(data | params) first. The
other choice, the power inside the sum, gives a path as valid, but then every temperature needs its own evaluation
of every point, where here one number per point serves all of them: the next step's length costs no density.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.extend import core

from marginalia.errors import FitError, compose
from marginalia.infer.problem import Problem, as_key, key_data
from marginalia.lanes.bounds import under
from marginalia.marginal.kernel import Kernel
from marginalia.program import Program

ROUNDS = 10
LARGEST_LOGIT = 36.0  # beyond this a weight of 1 - exp(-u) is 1 to all digits, and its density no number


class Bridge:
    """Prior and likelihood of one problem, as functions of the flat unconstrained vector.

    Raises:
        FitError: A prior is improper: it has neither draws nor an evidence.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        program, kernel = problem.marginal.program, problem.kernel
        refuse_improper(program, "smc")
        self._latent = [i for i, term in enumerate(program.terms) if term.kind == "latent"]
        # Where a latent's prior reads a discrete (a state's own level, say), the prior is a sum as well.
        self._tangled = any(
            part.scope.lanes and program.terms[part.terms[0]].kind == "latent" for part in kernel.factors
        )
        if self._tangled:
            with under(kernel.asked):
                self._prior = Kernel(_restricted(program, ("latent", "discrete"))).log_density
            self._likelihood: Callable[..., Any] = lambda params, data: (
                kernel.log_density(params, data) - self._prior(params, data)
            )
        else:
            self._prior = self._plain_prior
            with under(kernel.asked):
                self._likelihood = Kernel(_restricted(program, ("discrete", "observed", "factor"))).log_density

    def ends(self, flat: jax.Array, data: Any) -> tuple[jax.Array, jax.Array]:
        """Log prior density with the Jacobian, and log p(data | params); their sum is the posterior's.

        A scale on a latent's own prior counts with the likelihood: the path begins where the draws come from.
        """
        params, log_det = self._problem.kernel.constrain(self._problem.split(flat))
        likelihood = self._likelihood(params, data)
        if not self._tangled:
            likelihood = likelihood + self._scaled_rest(params, data)
        return self._prior(params, data) + log_det, likelihood

    def _terms(self, params: Mapping[str, Any], data: Any) -> list[Any]:
        """The log-probabilities of the latents' elements; they read no discrete."""
        program = self._problem.marginal.program
        jaxpr = program.jaxpr.jaxpr.replace(outvars=[program.jaxpr.jaxpr.outvars[i] for i in self._latent])
        values = [jnp.asarray(params[name], float) for name in program.latents]
        values += [jnp.full(site.shape, site.values[0]) for site in program.discretes.values()]
        return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, list(data)))(*values)

    def _plain_prior(self, params: Mapping[str, Any], data: Any) -> Any:
        return sum((jnp.sum(term) for term in self._terms(params, data)), jnp.zeros(()))

    def _scaled_rest(self, params: Mapping[str, Any], data: Any) -> Any:
        scales = [np.asarray(self._problem.marginal.program.terms[i].scale) for i in self._latent]
        if all((scale == 1.0).all() for scale in scales):
            return 0.0
        terms = self._terms(params, data)
        return sum(jnp.sum((scale - 1.0) * term) for scale, term in zip(scales, terms, strict=True))

    @functools.cached_property
    def _drawn(self) -> Callable[..., Any]:
        def one(bits: jax.Array, data: Any) -> tuple[jax.Array, jax.Array]:
            kernel = self._problem.kernel
            flat = self._problem.join(kernel.unconstrain(kernel.prior(as_key(bits))))
            return flat, self.ends(flat, data)[0]

        # Random draws compile slowly and run once: quick compilation is what counts.
        return jax.jit(jax.vmap(one, (0, None)), compiler_options={"xla_backend_optimization_level": 0})

    @functools.cached_property
    def _density(self) -> Callable[..., Any]:
        return jax.jit(jax.vmap(lambda flat, data: self.ends(flat, data)[0], (0, None)))

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` points from the prior, `(count, dimension)`.

        Raises:
            FitError: Draws of some prior are never finite.
        """
        kept = np.empty((0, self._problem.dimension))
        for _ in range(ROUNDS):
            points, prior = (np.array(part) for part in self._drawn(key_data(rng, count), self._problem.data))
            if not np.isfinite(prior).all():
                # A weight of 0 or 1 to all digits: the nearest point at which its density is a number.
                points = np.clip(points, -LARGEST_LOGIT, LARGEST_LOGIT, where=~np.isfinite(prior)[:, None], out=points)
                prior = np.asarray(self._density(points, self._problem.data))
            kept = np.concatenate([kept, points[np.isfinite(prior) & np.isfinite(points).all(axis=1)]])
            if len(kept) >= count:
                return kept[:count]
        raise FitError(
            compose(
                f"only {len(kept)} of {ROUNDS * count} draws from the prior have a finite density",
                where="smc",
                remedy="look at the scales of the priors: mg.check(model, ...) says which.",
            )
        )


def refuse_improper(program: Program, who: str) -> None:
    """Refuse a latent whose prior is improper: flat over an unbounded support, or masked out.

    Raises:
        FitError: It names the sites.
    """
    improper: list[str] = []

    def look(values: dict[str, Any]) -> int:
        sites = program.trace(values)
        for name in program.latents:
            fn, flat = sites[name]["fn"], False
            while True:
                flat = flat or isinstance(fn, dist.ImproperUniform | dist.MaskedDistribution)
                if not hasattr(fn, "base_dist"):
                    break
                fn = fn.base_dist
            if flat:
                improper.append(name)
        return 0

    shapes = {name: jax.ShapeDtypeStruct(site.shape, np.float64) for name, site in program.latents.items()}
    shapes |= {name: jax.ShapeDtypeStruct(site.shape, np.int64) for name, site in program.discretes.items()}
    jax.eval_shape(look, shapes)
    if improper:
        raise FitError(
            compose(
                f"the prior of {', '.join(map(repr, improper))} is improper, so nothing can be drawn from it",
                where=who,
                expected="proper priors",
                got="ImproperUniform, or a latent under a mask",
                remedy="give it a proper prior, wide if need be: dist.Normal(0, 100), dist.HalfNormal(100).",
            )
        )


def _restricted(program: Program, kinds: tuple[str, ...]) -> Program:
    """The program with only its terms of these kinds."""
    kept = [i for i, term in enumerate(program.terms) if term.kind in kinds]
    jaxpr = program.jaxpr.jaxpr
    fewer = jaxpr.replace(outvars=[jaxpr.outvars[i] for i in kept])
    closed = core.ClosedJaxpr(fewer, program.jaxpr.consts)
    return dataclasses.replace(program, terms=tuple(program.terms[i] for i in kept), jaxpr=closed)
