"""`marginalize` and what it gives: a program whose discretes are summed out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers

from marginalia.errors import ModelError, Refusal, compose
from marginalia.lanes import bounds
from marginalia.marginal.cut import LONGEST, Check, Cuts, Proof
from marginalia.marginal.explain import explain
from marginalia.marginal.kernel import Kernel
from marginalia.marginal.pairs import pairwise
from marginalia.marginal.recall import recall
from marginalia.parameters import checked_parameters
from marginalia.precision import float64
from marginalia.program import Program, read
from marginalia.widths import WideLoops

if TYPE_CHECKING:
    import xarray as xr


def marginalize(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Marginal:
    """Sum the discretes of a NumPyro program out, exactly.

    `args` and `kwargs` are the model's own (data included). Raises `Refusal` where the sum is not possible within
    the limits (`mg.limits`), `DataError` and `ModelError` where data or program cannot be used.

    >>> marginal = mg.marginalize(model, y)
    >>> marginal.log_density({"w": [0.3, 0.7], "mu": [0.0, 5.0]})
    >>> marginal.posterior({"w": [0.3, 0.7], "mu": [0.0, 5.0]})["z"]     # (rows, 2)
    """
    return _marginalized(model, args, kwargs, Kernel)


def recalled(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Marginal:
    """The same, with all that was compiled for an equal program before: for what compiles much, as a fit does."""
    return _marginalized(model, args, kwargs, recall)


def _marginalized(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], make: Callable[[Program], Kernel]
) -> Marginal:
    with float64():
        program = read(model, args, kwargs)
        marginal = Marginal(program, make(program))
        return _cut_by_prior(marginal) if marginal.endless else marginal


PRIOR_POINTS = 64
"""Draws from the prior that decide the first cut of an endless discrete: the likeliest quarter must lose nothing."""


class Marginal:
    """A program with its discretes summed out: density, memberships, draws and labels given parameters.

    `params` always maps the continuous latents' site names to constrained values. Results are NumPy arrays in
    float64, unless called inside a JAX transformation. Also a kernel of pure functions for inference (`kernel`).

    A discrete without a largest value (Poisson, say) is cut. Each call checks what the cut loses at its parameters and
    keeps more values where that is needed, so `program` and `kernel` may be replaced by wider ones. Inside a JAX
    transformation nothing can be checked: see `covering`.
    """

    def __init__(self, program: Program, kernel: Kernel | None = None):
        self.program = program
        self.kernel = Kernel(program) if kernel is None else kernel
        self.cuts = Cuts({}, self.kernel.limits.max_lost)

    @property
    def endless(self) -> bool:
        """Whether some discrete that data reach has no largest value, so that its support is cut."""
        return any(d.endless for d in self.kernel.program.discretes.values())

    @functools.cached_property
    def complete(self) -> Marginal:
        """The marginal of all discretes, for the probabilities of those that no data reach; itself without such."""
        return Marginal(self.program, self.kernel.complete) if self.kernel.unread else self

    def __repr__(self) -> str:
        discretes = ", ".join(self.program.discretes) or "none"
        return f"Marginal({getattr(self.program.model, '__name__', 'model')}: discretes summed out: {discretes})"

    def __str__(self) -> str:
        return self.explain()

    def rebind(self, *args: Any, **kwargs: Any) -> Marginal:
        """The same model on other data, under the limits that held when this one was made."""
        with bounds.under(self.kernel.asked):
            if not self.endless:
                # What no data reach is cut when it is asked for.
                return marginalize(self.program.model, *args, **kwargs)
            kept = {name: len(d.values) for name, d in self.program.discretes.items() if d.endless}
            with float64():
                return Marginal(read(self.program.model, args, kwargs, kept))

    @functools.cached_property
    def _compiled(self) -> dict[str, Callable[..., Any]]:
        verbs = ("log_density", "log_likelihood", "posterior", "sample", "mode", "site_densities")
        return self.kernel.compiled.setdefault("verbs", {verb: jax.jit(getattr(self.kernel, verb)) for verb in verbs})

    @functools.cached_property
    def _check(self) -> Check:
        return Check(self.kernel)

    def _wider(self, cuts: dict[str, int]) -> Marginal:
        program = self.program
        with bounds.under(self.kernel.asked):
            wider = read(program.model, program.args, program.kwargs, cuts)
            # A complete marginal stays one.
            return Marginal(wider, Kernel(wider, complete=len(self.kernel.program.discretes) == len(program.discretes)))

    def covering(self, params: Mapping[str, Any], _before: Proof | None = None) -> Marginal:
        """This marginal, or one that keeps more values of its endless discretes, as far as `params` need them.

        `params` are many points, `{site: (points, *site shape)}`. What the cut loses at any of them is at most
        `mg.limits(max_lost=...)` afterwards, and is in `cuts`. Raises `Refusal` where no cut is wide enough.
        """
        if not self.endless:
            return self
        if not self._check.kept:
            self.cuts = self._check.at_all({}).cuts
            return self
        with float64():
            points = {name: np.asarray(params[name], float) for name in self.program.latents}
            proof = self._check.at_all(points or {"": np.zeros(1)}, _before)
            return self._following(proof, _before, lambda wider: wider.covering(params, proof))

    def _following(self, proof: Proof, before: Proof | None, then: Callable[[Marginal], Marginal]) -> Marginal:
        """This marginal where nothing is lost, else `then` of a wider one, as far as a proof asks for it."""
        self.cuts = proof.cuts
        if proof.holds and proof.kept == self._check.kept:
            return self
        if proof.endless:
            raise proof.cuts.refusal(f"nor with the first {LONGEST}")
        kept = proof.kept
        if not proof.holds:
            # The sum itself may be too small with what is kept now.
            kept = {name: min(8 * k, max(k, LONGEST)) if name in proof.failing else k for name, k in kept.items()}
            if kept == proof.kept or not proof.gains_on(before):
                raise proof.cuts.refusal(f"more than {LONGEST} are not tried")
        try:
            wider = self._wider(kept)
        except Refusal as refusal:
            raise proof.cuts.refusal(f"with {max(kept.values())}: {refusal}") from refusal
        return then(wider)

    def _adopt(self, other: Marginal) -> None:
        """Become the wider marginal that `covering` gave."""
        if other is not self:
            self.program, self.kernel, self.cuts = other.program, other.kernel, other.cuts
            for cached in ("_compiled", "_check", "_pairs", "complete"):
                self.__dict__.pop(cached, None)

    def _call(self, verb: str, params: Mapping[str, Any], *extra: Any) -> Any:
        if verb in ("posterior", "mode") and self.kernel.unread:
            return self.complete._call(verb, params, *extra)
        with float64():
            values = self._checked(params)
            if any(isinstance(v, jax.core.Tracer) for v in values.values()):
                return getattr(self.kernel, verb)(values, self.kernel.data, *extra)
            if self.endless:
                self._adopt(self.covering({name: value[None] for name, value in values.items()}))
            result = self._compiled[verb](values, self.kernel.data, *extra)
            if isinstance(result, dict):  # jit sorts the names; give them back in the program's order
                order = [*self.program.discretes, *(u.name for u in self.kernel.units)]
                result = {n: result[n] for n in sorted(result, key=lambda n: order.index(n) if n in order else -1)}
                return {name: np.asarray(value) for name, value in result.items()}
            return np.asarray(result)

    def _checked(self, params: Mapping[str, Any]) -> dict[str, Any]:
        latents = self.program.latents
        missing = [n for n in latents if n not in params]
        unknown = [n for n in params if n not in latents]
        if missing or unknown:
            raise ModelError(
                compose(
                    "the parameters are not the model's continuous latents",
                    expected=", ".join(latents) or "none (the model has no continuous latents)",
                    got=", ".join(params) or "none",
                    remedy=" and ".join(
                        [f"add {', '.join(missing)}"] * bool(missing) + [f"drop {', '.join(unknown)}"] * bool(unknown)
                    )
                    + ".",
                )
            )
        values = {}
        for name, latent in latents.items():
            try:
                value = jnp.asarray(params[name], float)
            except (TypeError, ValueError) as error:
                raise ModelError(
                    compose(
                        "a parameter is not an array of numbers",
                        where=f"site '{name}'",
                        expected=f"numbers of shape {latent.shape}",
                        got=repr(params[name])[:80],
                    )
                ) from error
            if value.shape != latent.shape:
                raise ModelError(
                    compose(
                        "a parameter has the wrong shape",
                        where=f"site '{name}'",
                        expected=f"shape {latent.shape}",
                        got=f"shape {value.shape}",
                    )
                )
            values[name] = value
        return values

    def log_density(self, params: Mapping[str, Any]) -> Any:
        """log p(observed, params) with the discretes summed out: a scalar, no Jacobian; differentiable."""
        return self._call("log_density", params)

    def log_likelihood(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """log p(unit | params) per independent unit, after the sum.

        A unit is a row where rows are independent, and a group or sequence where they are not; several outcomes that
        share a discrete are one unit, named after all of them (`"y1+y2"`).
        """
        return self._call("log_likelihood", params)

    def posterior(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """P(z = k | observed, params): {site: site shape + (size of its support,)}."""
        return self._call("posterior", params)

    def pairwise(
        self,
        params: Mapping[str, Any],
        first: str,
        second: str | None = None,
        *,
        lag: int | None = None,
        axis: int = -1,
    ) -> Any:
        """P(two discretes | observed, params), exactly: (*shape of the pairs, K of the first, K of the second).

        A pair is an element of the first site and the element of the second that lies `lag` places further along
        `axis`. With one name the lag is 1 unless given, so that of a hidden Markov chain the sum over the pairs is the
        expected number of transitions from state to state; with two names it is 0, elements in the same place. A site
        named twice is paired with itself: the probabilities of its states, on the diagonal.

        >>> marginal.pairwise(params, "z").sum(0)            # expected transition counts, (K, K)
        >>> marginal.pairwise(params, "row", "column")
        """
        if self.kernel.unread:
            return self.complete.pairwise(params, first, second, lag=lag, axis=axis)
        with float64():
            values = self._checked(params)
            if any(isinstance(v, jax.core.Tracer) for v in values.values()):
                return pairwise(self.kernel, first, second, lag, axis)(values, self.kernel.data)
            if self.endless:
                self._adopt(self.covering({name: value[None] for name, value in values.items()}))
            asked = (first, second, lag, axis)
            if asked not in self._pairs:
                self._pairs[asked] = jax.jit(pairwise(self.kernel, *asked))
            return np.asarray(self._pairs[asked](values, self.kernel.data))

    @functools.cached_property
    def _pairs(self) -> dict[tuple[Any, ...], Callable[..., Any]]:
        return {}

    def sample(self, params: Mapping[str, Any], key: Any) -> dict[str, Any]:
        """A joint draw of all discretes: {site: site shape}; `key` is a JAX key or an integer seed."""
        if isinstance(key, int):
            key = jax.random.key(key)
        return self._call("sample", params, key)

    def mode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The jointly most probable values of all discretes: {site: site shape}."""
        return self._call("mode", params)

    def prior_predictive(self, draws: int = 1000, *, random_seed: int | None = None) -> xr.Dataset:
        """Draws from the prior and the data that they predict: `{site: (1, draws, *site shape)}`.

        Refuses an improper prior (`FitError`); `attrs["factors"]` says what was done with factors.
        """
        from marginalia.predict import prior_predict  # the marginal itself knows nothing of results

        return prior_predict(self.program, draws, random_seed=random_seed)

    def nonfinite(self, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Sites whose log-probability is not finite at `params` in every state, with the positions where."""
        found = {}
        for name, values in self._call("site_densities", params).items():
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                found[name] = bad
        return found

    def explain(self) -> str:
        """The plan in words: each discrete, how it is summed, table sizes and cost of one evaluation."""
        return explain(self.kernel, self.cuts)

    @property
    def model(self) -> Callable[[], None]:
        """The marginal as a NumPyro program without discretes, for NumPyro's own MCMC, SVI and autoguides.

        Takes no arguments: the data are those of `marginalize`.
        """
        program, kernel = self.program, self.kernel
        names = set(program.latents)
        # Not those that handlers around add: NumPyro's log |det J| of a latent in unconstrained space, a factor.
        summed = {term.name for term in program.terms} - names

        def choose(site: dict[str, Any]) -> Any:
            discrete = program.discretes.get(site["name"])
            if site["type"] != "sample" or discrete is None:
                return None
            key = numpyro.prng_key()
            if key is not None:
                return site["fn"].sample(key, site["kwargs"]["sample_shape"])
            return jnp.full(discrete.shape, discrete.values[0])

        def marginal() -> None:
            hidden = handlers.block(hide_fn=lambda s: s["type"] == "sample" and s["name"] in summed)
            with (
                checked_parameters(),
                WideLoops(),
                hidden,
                handlers.trace() as sites,
                handlers.substitute(substitute_fn=choose),
            ):
                program.model(*program.args, **program.kwargs)
            params = {name: sites[name]["value"] for name in names}
            own = sum(jnp.sum(_own_log_prob(sites[name])) for name in names)
            with float64():
                wide = {name: jnp.asarray(value, float) for name, value in params.items()}
                density = kernel.log_density(wide, kernel.data)
            numpyro.factor("marginalised", density.astype(jnp.result_type(float)) - own)

        return marginal


def _cut_by_prior(marginal: Marginal) -> Marginal:
    """A first cut, that loses nothing at the likeliest of some draws from the prior; later calls check themselves.

    Raises `Refusal` where no cut is wide enough at any of these draws.
    """
    if not marginal._check.kept:
        return marginal.covering({})
    keys = jax.random.split(jax.random.key(0), PRIOR_POINTS)
    points = jax.jit(jax.vmap(marginal.kernel.prior))(keys) if marginal.program.latents else {"": np.zeros(1)}

    def cut(marginal: Marginal, before: Proof | None = None) -> Marginal:
        check = marginal._check
        found = check.evaluate(points)
        order = np.argsort(-np.nan_to_num(found.log_density, nan=-np.inf), kind="stable")
        best = found.of(order[: max(len(order) // 4, 1)])
        proof = check.widened(best, check.began(before))
        if proof.endless and any(check.widened(best.of(np.array([i])), check.kept).holds for i in range(len(best))):
            marginal.cuts = proof.cuts  # it depends on the parameters
            return marginal
        try:
            return marginal._following(proof, before, lambda wider: cut(wider, proof))
        except Refusal:
            if proof.endless:
                raise
            return marginal  # a draw out of all reason: the parameters asked for later decide

    return cut(marginal)


def _own_log_prob(site: dict[str, Any]) -> Any:
    log_prob = site["fn"].log_prob(site["value"])
    return log_prob if site["scale"] is None else log_prob * site["scale"]
