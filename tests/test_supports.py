"""The support of every distribution of NumPyro that has parameters in it, applied wherever a program may put it.

A value outside a support has log-density -inf: in a plate, in a loop of named sites, in `scan`, under `sample_shape`,
`.to_event`, a mask, and with NumPyro's own validation off. What lies outside may have no number (NaN): neither density
nor gradient shows it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.extend import core
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints, transforms

from marginalia.program import Program, read

pytestmark = pytest.mark.filterwarnings("ignore:Out-of-support values")

LOW, HIGH = 0.5, 2.0
"""A parameter of a support in state 0 and in state 1."""


def _pick(z: Any, first: Any, second: Any) -> Any:
    return jnp.where(z == 0, first, second)


def _mixed(*parts: Any) -> Any:
    return dist.Categorical(probs=jnp.array([0.4, 0.6])), list(parts)


type Family = Callable[[Any, Any], Any]

# A distribution from the state z (0 or 1, one number) and a continuous latent s > 0; and values, some of which have no
# density in one of the states.
FAMILIES: dict[str, tuple[Family, list[Any]]] = {
    "BinomialProbs": (lambda z, s: dist.Binomial(_pick(z, 2, 5), 0.3 * s), [1, 3, 5, 2]),
    "BinomialLogits": (lambda z, s: dist.Binomial(_pick(z, 2, 5), logits=s), [1, 3, 5, 2]),
    "BetaBinomial": (lambda z, s: dist.BetaBinomial(1.5 * s, 2.0, _pick(z, 3, 9)), [2, 7, 3, 9]),
    "DiscreteUniform": (lambda z, s: dist.DiscreteUniform(_pick(z, 0, 2), _pick(z, 3, 9)), [2, 7, 1, 3]),
    "Uniform": (lambda z, s: dist.Uniform(-1.0 * s, s * _pick(z, LOW, HIGH)), [0.1, 1.2, 0.4, -0.3]),
    "LogUniform": (lambda z, s: dist.LogUniform(0.1, s * _pick(z, LOW, HIGH)), [0.2, 1.2, 0.4, 0.3]),
    "Pareto": (lambda z, s: dist.Pareto(s * _pick(z, LOW, HIGH), 1.5), [0.7, 2.5, 1.0, 3.0]),
    "Levy": (lambda z, s: dist.Levy(s * _pick(z, LOW, HIGH), 1.5), [0.7, 2.5, 1.0, 3.0]),
    "LeftTruncatedDistribution": (
        lambda z, s: dist.TruncatedNormal(0.3, s, low=_pick(z, LOW, HIGH)), [0.7, 2.5, 1.0, 3.0]),
    "RightTruncatedDistribution": (
        lambda z, s: dist.TruncatedDistribution(dist.StudentT(4.0, 0.3, s), high=_pick(z, LOW, HIGH)),
        [0.7, -2.5, 1.0, 0.3]),
    "TwoSidedTruncatedDistribution": (
        lambda z, s: dist.TruncatedDistribution(dist.Logistic(0.3, s), low=-1.0, high=_pick(z, LOW, HIGH)),
        [0.7, -0.5, 1.0, 0.3]),
    "LeftTruncatedGamma": (
        lambda z, s: dist.TruncatedGamma(2.0, s, low=_pick(z, LOW, HIGH)), [0.7, 2.5, 1.0, 3.0]),
    "RightTruncatedGamma": (
        lambda z, s: dist.TruncatedGamma(2.0, s, high=_pick(z, LOW, HIGH)), [0.7, 0.3, 1.0, 0.4]),
    "TwoSidedTruncatedGamma": (
        lambda z, s: dist.TruncatedGamma(2.0, s, low=0.2, high=_pick(z, LOW, HIGH)), [0.7, 0.3, 1.0, 0.4]),
    "LowerTruncatedPowerLaw": (
        lambda z, s: dist.LowerTruncatedPowerLaw(-1.0 - s, _pick(z, LOW, HIGH)), [0.7, 2.5, 1.0, 3.0]),
    "DoublyTruncatedPowerLaw": (
        lambda z, s: dist.DoublyTruncatedPowerLaw(-1.0 - s, 0.2, _pick(z, LOW, HIGH)), [0.7, 0.3, 1.0, 0.4]),
    "MultinomialProbs": (
        lambda z, s: dist.Multinomial(_pick(z, 3, 5), jnp.array([0.2, 0.3, 0.5]), total_count_max=5),
        [[1, 1, 1], [2, 2, 1], [0, 0, 3], [5, 0, 0]]),
    "MultinomialLogits": (
        lambda z, s: dist.Multinomial(_pick(z, 3, 5), logits=s * jnp.array([0.2, 0.3, 0.5]), total_count_max=5),
        [[1, 1, 1], [2, 2, 1], [0, 0, 3], [5, 0, 0]]),
    "DirichletMultinomial": (
        lambda z, s: dist.DirichletMultinomial(s * jnp.array([1.0, 2.0, 3.0]), _pick(z, 3, 5), total_count_max=5),
        [[1, 1, 1], [2, 2, 1], [0, 0, 3], [5, 0, 0]]),
    "ZeroInflatedProbs": (
        lambda z, s: dist.ZeroInflatedDistribution(dist.Binomial(_pick(z, 2, 5), 0.3), gate=0.2), [0, 3, 5, 2]),
    "ZeroInflatedLogits": (
        lambda z, s: dist.ZeroInflatedDistribution(dist.DiscreteUniform(0, _pick(z, 2, 5)), gate_logits=s),
        [0, 3, 5, 2]),
    "HurdleProbs": (
        lambda z, s: dist.HurdleDistribution(dist.Binomial(_pick(z, 2, 5), 0.3), gate=0.2), [0, 3, 5, 2]),
    "HurdleLogits": (
        lambda z, s: dist.HurdleDistribution(dist.Binomial(_pick(z, 2, 5), 0.3), gate_logits=s), [0, 3, 5, 2]),
    "LeftCensoredDistribution": (
        lambda z, s: dist.LeftCensoredDistribution(dist.Uniform(0.0, s * _pick(z, LOW, HIGH)), 0.0),
        [0.1, 1.2, 0.4, 0.3]),
    "RightCensoredDistribution": (
        lambda z, s: dist.RightCensoredDistribution(dist.Uniform(0.0, s * _pick(z, LOW, HIGH)), 0.0),
        [0.1, 1.2, 0.4, 0.3]),
    "TransformedDistribution": (  # NumPyro calls the support of this all reals
        lambda z, s: dist.TransformedDistribution(
            dist.Exponential(s), transforms.AffineTransform(_pick(z, LOW, HIGH), 1.0)),
        [0.7, 2.5, 1.0, 3.0]),
    "a transform of three parts": (  # log of a negative number
        lambda z, s: dist.TransformedDistribution(
            dist.Normal(0.0, s), [transforms.ExpTransform(), transforms.AffineTransform(_pick(z, LOW, HIGH), 1.0)]),
        [0.7, 2.5, 1.0, 3.0]),
    "a transform that turns round": (
        lambda z, s: dist.TransformedDistribution(
            dist.Gamma(2.0, s), transforms.AffineTransform(_pick(z, LOW, HIGH), -1.0, domain=constraints.positive)),
        [0.7, -2.5, 1.0, 0.2]),
    "a transform of a uniform": (
        lambda z, s: dist.TransformedDistribution(dist.Uniform(0.0, _pick(z, LOW, HIGH)), transforms.ExpTransform()),
        [1.2, 2.5, 5.0, 1.5]),
    "FoldedDistribution": (
        lambda z, s: dist.FoldedDistribution(dist.Uniform(-s, _pick(z, LOW, HIGH))), [0.1, 1.2, 0.4, 0.3]),
    "MixtureGeneral": (
        lambda z, s: dist.MixtureGeneral(
            *_mixed(dist.Uniform(-3.0, 4.0), dist.Uniform(-1.0, s * _pick(z, LOW, HIGH)))), [0.1, 1.2, 0.4, -2.0]),
    "MixtureSameFamily": (
        lambda z, s: dist.MixtureSameFamily(
            dist.Categorical(probs=jnp.array([0.4, 0.6])),
            dist.TransformedDistribution(
                dist.Exponential(s),
                transforms.AffineTransform(jnp.array([0.0, 1.0]) + _pick(z, LOW, HIGH)[..., None], 1.0))),
        [0.7, 2.5, 1.0, 3.2]),
    "a mixture on all reals": (
        lambda z, s: dist.MixtureGeneral(
            *_mixed(dist.Normal(0.0, s), dist.LogNormal(_pick(z, LOW, HIGH), s)), support=constraints.real),
        [0.7, -2.5, 1.0, 3.2]),
    "ImproperUniform": (
        lambda z, s: dist.ImproperUniform(constraints.interval(0.0, _pick(z, LOW, HIGH)), (), ()),
        [0.1, 1.2, 0.4, 0.3]),
    "IntervalCensoredDistribution": (
        lambda z, s: dist.IntervalCensoredDistribution(dist.Uniform(0.0, s * _pick(z, LOW, HIGH)), False, False),
        [[0.1, 0.3], [0.3, 1.2], [0.8, 1.4], [0.2, 0.4]]),
    "GaussianCopula": (
        lambda z, s: dist.GaussianCopula(
            dist.Pareto(s * _pick(z, LOW, HIGH)[..., None] * jnp.ones(2), 1.5), jnp.array([[1.0, 0.3], [0.3, 1.0]])),
        [[0.7, 0.9], [2.5, 3.0], [0.8, 3.0], [3.0, 2.0]]),
    "Delta": (lambda z, s: dist.Delta(_pick(z, 1.0, 2.0)), [1.0, 2.0, 2.0, 1.0]),
    "a uniform of no width": (lambda z, s: dist.Uniform(0.0, s * _pick(z, 0.0, 2.0)), [0.1, 1.2, 0.4, 0.3]),
    "Gompertz, shifted": (
        lambda z, s: dist.TransformedDistribution(
            dist.Gompertz(s, 1.0), transforms.AffineTransform(_pick(z, LOW, HIGH), 1.0)), [0.7, 2.5, 1.0, 3.0]),
    "Weibull, shifted and stretched": (
        lambda z, s: dist.TransformedDistribution(
            dist.Weibull(1.0, 0.7), transforms.AffineTransform(_pick(z, LOW, HIGH), s)), [0.7, 2.5, 1.0, 3.0]),
}  # fmt: skip

S = 0.9
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiling costs more than running here."""


@functools.cache
def truth(name: str) -> np.ndarray:
    """Log-density of each of the values in each of the states (state, value): NumPyro, checked, with known numbers."""
    family, values = FAMILIES[name]
    rows = []
    with jax.enable_x64(True), dist.distribution.validation_enabled(True):
        for z in (0, 1):
            fn = family(z, S)
            found = np.array([fn.log_prob(jnp.asarray(y)) for y in values], float)
            inside = np.array([fn.support(jnp.asarray(y)) for y in values]).reshape(len(values), -1).all(1)
            rows.append(np.where(inside & ~np.isnan(found), found, -np.inf))
    return np.array(rows)


# ---- where a program may put them ------------------------------------------------------------------------------------

SHOWN = np.array([True, True, False, True])
"""What a mask leaves, where there is one."""


def _states(name: str, **how: Any) -> Any:
    return numpyro.sample(f"z {name}", dist.Bernoulli(0.3), **how)


def _missing(values: Any) -> np.ndarray:
    """The values with what is masked missing, as far as their type can say so."""
    values = np.asarray(values)
    return np.where(SHOWN, values, np.nan) if values.dtype.kind == "f" else values


def in_scan(name: str, s: Any) -> None:
    family, values = FAMILIES[name]

    def step(z: Any, y: Any) -> Any:
        z = numpyro.sample(f"z {name}", dist.Bernoulli(jnp.where(z == 1, 0.6, 0.3)))
        numpyro.sample(name, family(z, s), obs=y)
        return z, None

    scan(step, 0, np.asarray(values))


def in_a_loop(name: str, s: Any) -> None:
    family, values = FAMILIES[name]
    z = 0
    for i, y in enumerate(values):
        z = numpyro.sample(f"z {name} {i}", dist.Bernoulli(jnp.where(z == 1, 0.6, 0.3)))
        numpyro.sample(f"{name} {i}", family(z, s), obs=np.asarray(y))


def in_a_plate(name: str, s: Any) -> None:
    family, values = FAMILIES[name]
    with numpyro.plate(f"rows {name}", 4):
        numpyro.sample(name, family(_states(name), s), obs=np.asarray(values))


def of_sample_shape(name: str, s: Any) -> None:
    family, values = FAMILIES[name]
    numpyro.sample(name, family(_states(name, sample_shape=(4,)), s), obs=np.asarray(values))


def in_an_event(name: str, s: Any) -> None:
    family, values = FAMILIES[name]
    z = numpyro.sample(f"z {name}", dist.Bernoulli(0.3).expand([4]).to_event(1))
    numpyro.sample(name, family(z, s).to_event(len(family(z, s).batch_shape)), obs=np.asarray(values))


def masked(name: str, s: Any) -> None:
    family, values = FAMILIES[name]
    with numpyro.plate(f"rows {name}", 4), handlers.mask(mask=SHOWN):
        with handlers.mask(mask=True):
            z = _states(name)
        numpyro.sample(name, family(z, s), obs=_missing(values))


def in_a_masked_scan(name: str, s: Any) -> None:
    family, values = FAMILIES[name]

    def step(z: Any, y: Any) -> Any:
        z = numpyro.sample(f"z {name}", dist.Bernoulli(jnp.where(z == 1, 0.6, 0.3)))
        numpyro.sample(name, family(z, s), obs=y)
        return z, None

    with handlers.mask(mask=SHOWN):
        scan(step, 0, _missing(values))


CONTEXTS: dict[str, Callable[[str, Any], None]] = {
    "scan": in_scan,
    "loop": in_a_loop,
    "plate": in_a_plate,
    "sample_shape": of_sample_shape,
    "to_event": in_an_event,
    "mask": masked,
    "masked scan": in_a_masked_scan,
}

FEW = [
    "BinomialProbs",
    "BetaBinomial",
    "Uniform",
    "Pareto",
    "LeftTruncatedDistribution",
    "a transform of three parts",
    "a uniform of no width",
]


@contextlib.contextmanager
def off(yes: bool) -> Iterator[None]:
    """NumPyro's validation off, as a user turns it off."""
    if not yes:
        yield
        return
    numpyro.enable_validation(False)
    try:
        yield
    finally:
        numpyro.enable_validation(True)


def model_of(names: list[str], context: Callable[[str, Any], None]) -> Callable[[], None]:
    def model() -> None:
        s = numpyro.sample("s", dist.HalfNormal(1.0).expand([len(names)]))
        for i, name in enumerate(names):
            context(name, s[i])

    return model


def in_both_states(program: Program) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every site's log-density with all discretes in state 0 and in state 1, and the derivatives of what is finite."""
    whole = core.jaxpr_as_fun(program.jaxpr)

    def total(s: Any, state: Any) -> Any:
        terms = whole(s, *[jnp.full(d.shape, state) for d in program.discretes.values()])
        return sum(jnp.sum(jnp.where(jnp.isfinite(t), t, 0.0)) for t in terms), terms

    both = jax.jit(jax.vmap(jax.grad(total, has_aux=True), in_axes=(None, 0)), compiler_options=FAST)
    slopes, terms = jax.device_get(both(np.full(program.latents["s"].shape, S), np.arange(2)))
    return dict(zip([t.name for t in program.terms], terms, strict=True)), slopes


def _hold(names: list[str], context: str, checked: bool) -> None:
    with off(not checked), jax.enable_x64(True):
        found, slopes = in_both_states(read(model_of(names, CONTEXTS[context])))
    for name in names:
        own = found[name] if name in found else np.stack([found[f"{name} {i}"] for i in range(4)], axis=1)
        expected = np.where(SHOWN, truth(name), 0.0) if "mask" in context else truth(name)
        np.testing.assert_allclose(own, expected, rtol=1e-10, err_msg=name)
    assert not [name for name, slope in zip(names, slopes.T, strict=True) if not np.isfinite(slope).all()]


@pytest.mark.parametrize("context", ["masked scan", "sample_shape"])
def test_a_few_families(context: str) -> None:
    """Those of every kind, with validation off: their log-densities in both states, and slopes that are numbers."""
    _hold(FEW, context, checked=False)


@pytest.mark.slow
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("context", CONTEXTS)
def test_every_family(context: str, checked: bool) -> None:
    """All families side by side, each with states of its own."""
    _hold(list(FAMILIES), context, checked)


def test_every_distribution_of_numpyro_is_placed() -> None:
    """A distribution that a new NumPyro brings is in the table, or is known to have one support for all parameters."""
    tried = {type(part).__name__ for name in FAMILIES for part in _nested(FAMILIES[name][0](np.array(0), S))}
    classes = {
        n: c for n in dist.__all__ if isinstance(c := getattr(dist, n), type) and issubclass(c, dist.Distribution)
    }
    moving = {n for n, c in classes.items() if isinstance(c.support, property) or c.support is constraints.dependent}
    fixed_by_shape = {"CategoricalLogits", "EulerMaruyama", "OrderedLogistic", "ZeroSumNormal"}
    abstract = {"Distribution", "Independent", "MaskedDistribution"}  # the latter are contexts here
    assert moving - tried - fixed_by_shape - abstract == set()


def _nested(fn: Any) -> Iterator[Any]:
    yield fn
    for part in fn.__dict__.values():
        for inner in part if isinstance(part, list) else [part]:
            if isinstance(inner, dist.Distribution):
                yield from _nested(inner)
