"""Equal programs find what was compiled before; programs that differ in anything never do."""

from __future__ import annotations

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import marginalia as mg
from marginalia.errors import MarginaliaWarning
from marginalia.marginal import recall
from marginalia.marginal.marginal import recalled

Y = np.array([-1.0, 0.5, 2.0, 3.5])


def mixture(y, *, prior=10.0, low=0.0, scale=1.0, bend=lambda x: x, rows=slice(None), name="mu", weights=(0.3, 0.7)):
    def model(y):
        with numpyro.plate("component", 2):
            mu = numpyro.sample(name, dist.Normal(0, prior))
        sd = numpyro.sample("sd", dist.Uniform(low, 5.0))
        with numpyro.plate("obs", len(y)), numpyro.handlers.scale(scale=scale):
            z = numpyro.sample("z", dist.Categorical(jnp.array(weights)))
            numpyro.sample("y", dist.Normal(bend(mu)[z], sd), obs=y)

    return recalled(model, y[rows])


def test_an_equal_program_is_recalled_though_it_is_another_function():
    assert mixture(Y).kernel is mixture(Y.copy()).kernel


def _bent(slope):
    """The identity, with a derivative of its own."""

    @jax.custom_jvp
    def same(x):
        return x * 1.0

    @same.defjvp
    def _(primals, tangents):
        return primals[0] * 1.0, slope * tangents[0]

    return same


@pytest.mark.parametrize(
    "other",
    [
        {"prior": 9.0},
        {"low": 0.1},
        {"scale": 2.0},
        {"rows": slice(3)},
        {"name": "location"},
        {"weights": (0.30000000000000004, 0.7)},
        {"bend": lambda x: x + 0.0},
        {"bend": _bent(1.0)},
    ],
    ids=["prior", "support", "scale", "rows", "name", "last digit", "plus zero", "own derivative"],
)
def test_whatever_differs_is_another_program(other):
    assert mixture(Y).kernel is not mixture(Y, **other).kernel


def test_other_data_are_another_program():
    changed = Y.copy()
    changed[2] = np.nextafter(changed[2], 9)
    assert mixture(Y).kernel is not mixture(changed).kernel


def test_derivatives_of_their_own_are_told_apart_by_what_they_compute():
    right, wrong = mixture(Y, bend=_bent(1.0)), mixture(Y, bend=_bent(2.0))
    assert right.kernel is not wrong.kernel
    assert right.kernel is mixture(Y, bend=_bent(1.0)).kernel
    params = {"mu": np.array([0.0, 2.0]), "sd": np.array(1.0)}
    slopes = [jax.grad(lambda mu, m=m: m.log_density({**params, "mu": mu}))(jnp.zeros(2)) for m in (right, wrong)]
    assert not np.allclose(slopes[0], slopes[1])


def test_what_cannot_be_compared_is_like_no_other():
    def called(x):
        return jax.pure_callback(lambda v: np.asarray(v) * 2, jax.ShapeDtypeStruct((), x.dtype), x)

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        shift = jax.lax.stop_gradient(called(jnp.asarray(1.0)))
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(mu + z * shift, 1), obs=y)

    first, second = recalled(model, 0.3), recalled(model, 0.3)
    assert first.kernel is not second.kernel


def test_other_limits_are_another_reading():
    with mg.limits(max_numbers=10**6):
        limited = mixture(Y)
    assert limited.kernel is not mixture(Y).kernel


def test_only_the_latest_few_are_kept_alive():
    for i in range(2 * recall.KEPT):
        mixture(Y + i)
    assert len(recall._latest) == recall.KEPT


def test_a_second_fit_compiles_nothing():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    def fitted():
        with pytest.warns(MarginaliaWarning):
            return mg.fit(model, Y, method=mg.NUTS(20, 20, 2, starts=4), random_seed=1, progressbar=False)

    first = fitted()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    again = fitted()
    assert compiled == []
    for name, value in first.draws.items():
        np.testing.assert_array_equal(value, again.draws[name])


def test_an_ascent_is_recalled_with_all_that_it_depends_on():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    def fitted(**options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MarginaliaWarning)  # so few steps are no good fit
            method = mg.ADVI(steps=100, starts=4, draws=100, **options)
            return mg.fit(model, Y, method=method, random_seed=1, progressbar=False)

    chosen = {"samples": 4}, {"samples": 8}, {"estimator": "plain"}, {"family": "full-rank"}
    first = [fitted(**options) for options in chosen]
    kept = [key for key in first[0].marginal.kernel.compiled["problem", True].programs if key[0] == "ascent"]
    assert len(kept) == len(chosen)
    elbos = [fit.data["approximation"]["elbo"].values for fit in first]
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(elbos, 2))
    for options, elbo in zip(chosen, elbos, strict=True):
        np.testing.assert_array_equal(fitted(**options).data["approximation"]["elbo"].values, elbo)
