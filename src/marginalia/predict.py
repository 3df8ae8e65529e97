"""Posterior prediction: the program run forward, once per draw."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from marginalia.distributions import GIVEN, INVERTED, LISTED, WALKED, find_density, watching_integrals
from marginalia.errors import DataError, FitError, MarginaliaWarning, compose
from marginalia.held import Anew, Choice, choose, combined
from marginalia.infer.bridge import refuse_improper
from marginalia.ondraws import Params, count, flatten
from marginalia.precision import float64
from marginalia.running import running
from marginalia.tidy import array, site_dims

if TYPE_CHECKING:
    import xarray as xr

MAX_NUMBERS = 2e7  # predicted numbers kept in memory
WALKED_DRAWS = 200  # draws, where each takes a run of NUTS
PRIOR_TRIES = 100  # times as many draws as asked for, where a factor forbids some
TABLE_NUMBERS = 4e6  # numbers in the tables of densities that are inverted at the same time
TABLE_NODES = 1000
TABLES = 30_000  # each takes some 0.3 ms
NORMALISED = 0.01
WAYS = {
    GIVEN: "drawn by its own sampler",
    LISTED: "drawn from the list of its values",
    INVERTED: "drawn by inverting its distribution function, found by quadrature",
    WALKED: "drawn by a short run of NUTS for each draw: modes that lie far apart may get a wrong share, unless "
    "sample= is given",
}


def predict(
    program: Any,
    draws: dict[str, np.ndarray],
    args: tuple,
    kwargs: dict[str, Any],
    *,
    random_seed: int | None = None,
    limit: int | None = None,
    hold: Sequence[str] = (),
    draw: Sequence[str] = (),
) -> xr.Dataset:
    """New values of the observed sites, (chain, draw, *site shape), with the discretes behind them.

    Continuous latents have their values from the draws. Discretes are drawn forward from their own
    distribution (a new row's, not the fitted row's, membership), then the observed sites, but for those that are held
    (`held.choose` says which; `hold` and `draw` name others), which `attrs["held"]` names with the reason.
    `numpyro.factor` terms and `mask`/`scale` do not take part; where the program has factors, `attrs["factors"]` names
    them, and where it has hand-written densities, `attrs["densities"]` says how they were drawn from.
    `attrs["predicted"]` names the sites that were drawn; a program whose data are in factors alone has none, which is a
    warning.

    Raises:
        FitError: A distribution of the program has no sampler.
        OptionError: `hold` or `draw` name no observed site.
        DataError: The new arguments ask for latents of another shape than those that were fitted.
    """
    chains, length = next(iter(draws.values())).shape[:2]
    params = flatten(draws, program.latents)
    forward = _Forward(program, args, kwargs, hold, draw)
    with float64():
        keys = np.random.default_rng(random_seed).integers(2**32, size=(count(params), 2), dtype=np.uint32)
        per_draw = forward.look(keys[0], {n: v[0] for n, v in params.items()})
        most = max(1, int(MAX_NUMBERS / per_draw)) if limit is None else limit
        if limit is None:
            most = min(most, forward.most())
        every = max(1, -(-count(params) // most))
        chosen = {n: v.reshape(chains, length, *v.shape[1:])[:, ::every] for n, v in params.items()}
        flat = flatten(chosen, chosen)
        drawn = forward.run(keys[: count(flat)], flat)
    factors = "none"
    if forward.factors:
        factors = (
            f"not applied: {', '.join(forward.factors)}; what they say of the parameters is in the draws already, what "
            "they say of data or discretes is not in the prediction"
        )
    attrs = {"predicted": _predicted(program, forward), "factors": factors, "every": every}
    return _dataset(program, drawn.values, chains, {**attrs, **forward.choice.said(), **forward.said(drawn.integrals)})


def _predicted(program: Any, forward: _Forward) -> str:
    """What is predicted, in words; warns where no data are."""
    if any(name in program.observed for name in forward.kept):
        return ", ".join(forward.kept)
    drawn = f"only the discretes ({', '.join(forward.kept)})" if forward.kept else "nothing"
    if forward.choice.held:
        return f"{drawn}, as all that was observed is held"
    words = f"{drawn}, as the program observes no data that could be drawn anew"
    if forward.factors:
        words = (
            f"{drawn}, as the program observes no data that could be drawn anew: it reads them in factors "
            f"({', '.join(forward.factors)}), and a factor says how probable the data are, not how to draw others"
        )
    remedy = "For predictions, observe the data at a site, as numpyro.sample(..., mg.Density(log_prob, ...), obs=y)."
    warnings.warn(MarginaliaWarning(f"predict(): predicted is {words}. {remedy}"), stacklevel=4)
    return words


def prior_predict(program: Any, number: int, *, random_seed: int | None = None) -> xr.Dataset:
    """Draws from the prior and what they predict: latents, discretes and observed sites, (chain, draw, *site shape).

    Draws that a factor forbids (-inf: a hard constraint) are drawn again; other factors do not take part.
    `attrs["factors"]` says so.

    Raises:
        FitError: A prior is improper, a distribution has no sampler, or a factor forbids nearly everything.
    """
    forward = _Forward(program, program.args, dict(program.kwargs))
    rng = np.random.default_rng(random_seed)
    parts: list[_Drawn] = []
    tried = kept = 0
    with float64():
        refuse_improper(program, "prior_predictive()")
        forward.look(np.zeros(2, np.uint32), {})
        while kept < number:
            if tried >= PRIOR_TRIES * number:
                raise FitError(
                    compose(
                        f"only {kept} of {tried} draws from the prior fulfil the program's hard constraints",
                        where="prior_predictive()",
                        got=f"factors of -inf: {', '.join(forward.factors)}",
                        remedy="put the constraint into a support (an ordered vector, say), or ask for fewer draws.",
                    )
                )
            drawn = forward.run(rng.integers(2**32, size=(number, 2), dtype=np.uint32), {})
            parts.append(drawn.take(np.flatnonzero(drawn.allowed)))
            tried, kept = tried + number, kept + int(drawn.allowed.sum())
    values = {n: np.concatenate([part.values[n] for part in parts])[:number] for n in forward.kept}
    integrals = {n: np.concatenate([part.integrals[n] for part in parts]) for n in parts[0].integrals}
    factors = "none"
    if forward.factors:
        factors = (
            f"{', '.join(forward.factors)}: draws that they forbid (-inf) were drawn again, {kept} of {tried} were "
            "possible; finite values are not applied"
        )
    attrs = {"factors": factors, "every": 1, **forward.choice.said(), **forward.said(integrals)}
    return _dataset(program, values, 1, attrs)


@dataclass(frozen=True)
class _Drawn:
    """Values `(n, *site shape)` of the sites, log integrals of hand-written densities `(n, 2)`, factors not -inf."""

    values: Params
    integrals: Params
    allowed: np.ndarray

    def take(self, rows: np.ndarray) -> _Drawn:
        values, integrals = ({n: v[rows] for n, v in part.items()} for part in (self.values, self.integrals))
        return _Drawn(values, integrals, self.allowed[rows])


class _Forward:
    """The program run forward: what is not given is drawn."""

    def __init__(
        self, program: Any, args: tuple, kwargs: dict[str, Any], hold: Sequence[str] = (), draw: Sequence[str] = ()
    ) -> None:
        self._program, self._args, self._kwargs = program, args, kwargs
        self._named = hold, draw
        self.choice = Choice()
        self.factors: list[str] = []
        self.kept: list[str] = []
        self._ways: dict[str, str] = {}
        self._tables = 0
        self._compiled: Callable[..., Any] | None = None

    @property
    def walks(self) -> bool:
        """Whether each draw takes a run of NUTS."""
        return WALKED in self._ways.values()

    def most(self) -> int:
        """How many draws take some seconds, where hand-written densities make each one dear."""
        if self.walks:
            return WALKED_DRAWS
        return max(1, TABLES // self._tables) if self._tables else int(MAX_NUMBERS)

    def _once(self, key: Any, one: Params) -> tuple[dict[str, Any], dict[str, Any], Any]:
        with watching_integrals() as seen, running():
            anew = Anew(self._seeded(key, one), self.choice.held)
            trace = handlers.trace(anew).get_trace(*self._args, **self._kwargs)
        samples = {n: s for n, s in trace.items() if s["type"] == "sample"}
        _same_shapes(samples, one)
        self.factors = [n for n, s in samples.items() if type(s["fn"]).__name__ == "Unit"]
        self.kept = [n for n in samples if n not in one and n not in self.factors and n not in self.choice.held]
        found = {n: density for n in self.kept if (density := find_density(samples[n]["fn"])) is not None}
        self._ways = {n: density.way for n, density in found.items()}
        tables = {n: seen[id(density)] for n, density in found.items() if id(density) in seen}
        self._tables = sum(int(np.prod(table.shape)) for table in tables.values())
        integrals = {n: jnp.stack([jnp.min(table), jnp.max(table)]) for n, table in tables.items()}
        allowed = jnp.ones((), bool)
        for n in self.factors:
            allowed = allowed & jnp.all(samples[n]["fn"].log_prob(samples[n]["value"]) > -jnp.inf)
        whole = combined(trace)
        self.kept += [n for n in whole if n not in self.kept]
        values = {n: samples[n]["value"] if n in samples else whole[n] for n in self.kept}
        return values, integrals, allowed

    def _seeded(self, key: Any, one: dict[str, Any]) -> Callable[..., Any]:
        # Raw bits become a key here, whatever generator the user has set as JAX's default.
        seeded = handlers.seed(self._program.model, jax.random.wrap_key_data(key, impl="threefry2x32"))
        return handlers.substitute(seeded, data=one)

    def _choose(self, key: Any, one: Params) -> Choice:
        def run() -> dict[str, Any]:
            given = {name: jnp.asarray(value) for name, value in one.items()}
            trace = handlers.trace(self._seeded(key, given)).get_trace(*self._args, **self._kwargs)
            _same_shapes({n: s for n, s in trace.items() if s["type"] == "sample"}, one)
            return trace

        return choose(run, self._program.observed, *self._named)

    def look(self, key: Any, one: Params) -> int:
        """Choose what is held, run it abstractly, and say how many numbers one draw gives."""
        self.choice = _refusing(lambda: self._choose(key, one))
        shapes, _, _ = _refusing(lambda: jax.eval_shape(self._once, key, one))
        return max(1, sum(int(np.prod(s.shape)) for s in shapes.values()))

    def run(self, keys: np.ndarray, params: Params) -> _Drawn:
        """One draw per key; densities that have to be inverted go through in batches that fit in memory."""
        if self._compiled is None:
            self._compiled = jax.jit(self._in_batches(len(keys)) if self._ways else jax.vmap(self._once))
        values, integrals, allowed = jax.tree.map(np.asarray, self._compiled(keys, params))
        return _Drawn({n: values[n] for n in self.kept}, integrals, allowed)

    def _in_batches(self, most: int) -> Callable[..., Any]:
        wide = TABLE_NODES * max(1, self._tables)
        batch = 1 if self.walks else int(np.clip(TABLE_NUMBERS // wide, 1, most))
        return lambda *pair: jax.lax.map(lambda one: self._once(*one), pair, batch_size=batch)

    def said(self, integrals: Params) -> dict[str, str]:
        """How draws from hand-written densities were made; warns where their integrals look wrong."""
        words = []
        for name, way in self._ways.items():
            text = f"{name}: {WAYS[way]}"
            if name in integrals:
                low, high = np.exp(np.min(integrals[name][:, 0])), np.exp(np.max(integrals[name][:, 1]))
                text += f" (the density's integral is {low:.3f} to {high:.3f})"
                if not (low > 1 - NORMALISED and high < 1 + NORMALISED):
                    text += "; it should be 1: the density is not normalised, or a narrow peak was missed"
                    warnings.warn(MarginaliaWarning(f"predict(): {text}. Give mg.Density(sample=...)."), stacklevel=4)
            words.append(text)
        return {"densities": "; ".join(words)} if words else {}


def _refusing[T](run: Callable[[], T]) -> T:
    try:
        return run()
    except NotImplementedError as error:
        raise FitError(
            compose(
                "a distribution of this program has no sampler, so there is no prediction",
                where="predict()",
                got=f"NotImplementedError: {error}" if str(error) else "NotImplementedError",
                remedy="give the distribution a sample() method, or use distributions that have one.",
            )
        ) from error


def _same_shapes(samples: dict[str, Any], one: Params) -> None:
    for name, value in one.items():
        if name not in samples:
            raise DataError(
                compose(
                    "the program does not reach this site with the new data",
                    where=f"predict(), site {name!r}",
                )
            )
        fn = samples[name]["fn"]
        wanted = tuple(fn.shape(samples[name]["kwargs"].get("sample_shape") or ()))
        if wanted != tuple(np.shape(value)):
            raise DataError(
                compose(
                    "the new data change the shape of a continuous latent",
                    where=f"predict(), site {name!r}",
                    expected=f"the shape that was fitted, {tuple(np.shape(value))}",
                    got=str(wanted),
                    remedy="predict rows that share the fitted parameters, or fit with these data.",
                )
            )


def _dataset(program: Any, values: Params, chains: int, attrs: dict[str, Any]) -> xr.Dataset:
    import xarray as xr

    known = site_dims(program)
    variables = {}
    for name, value in values.items():
        value = value.reshape(chains, -1, *value.shape[1:])
        dims = known.get(name, [])
        dims = dims if len(dims) == value.ndim - 2 else [f"{name}_dim_{i}" for i in range(value.ndim - 2)]
        variables[name] = array(value, ["chain", "draw", *dims], name=name)
    out = xr.Dataset(variables)
    if "draw" in out.dims:
        out = out.assign_coords(draw=np.arange(out.sizes["draw"]) * attrs["every"])
    out.attrs = {"discretes": "drawn forward from their own distribution, as for new rows", **attrs}
    return out
