"""Densities written by hand: the same posterior and the same predictions as their discrete-latent twins."""

from __future__ import annotations

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy import stats

import marginalia as mg
from marginalia.errors import MarginaliaWarning, ModelError
from marginalia.precision import float64
from marginalia.predict import predict

DATA = Path(__file__).parent.parent / "data" / "three_close.csv"
Y = np.loadtxt(DATA, skiprows=1)
SIGMAS = 4.0
POINT = {"p": np.array([0.3, 0.3, 0.4]), "mu": np.array([-2.0, 0.4, 1.8])}


def priors():
    p = numpyro.sample("p", dist.Dirichlet(jnp.full(3, 10.0)))
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (3,)))
    numpyro.factor("order", dist.Normal(0, 10).log_prob(mu).sum())
    return p, mu


def by_hand(y):
    p, mu = priors()

    def log_prob(v):
        return jax.nn.logsumexp(jnp.log(p) + dist.Normal(mu, 1.0).log_prob(v[..., None]), axis=-1)

    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", mg.Density(log_prob, support=constraints.real), obs=y)


def by_latent(y):
    p, mu = priors()
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(p))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def by_component(y):
    p, mu = priors()
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(p))
        own = mg.Density(lambda v: -0.5 * (v - mu[z]) ** 2 - 0.5 * jnp.log(2 * jnp.pi), support=constraints.real)
        numpyro.sample("y", own, obs=y)


def mixture_cdf(y):
    return (POINT["p"] * stats.norm.cdf(np.asarray(y)[..., None], POINT["mu"], 1)).sum(-1)


@pytest.mark.parametrize("model", [by_hand, by_component])
def test_it_is_the_density_of_the_discrete_latent_twin(model):
    twin, own = mg.marginalize(by_latent, Y), mg.marginalize(model, Y)
    np.testing.assert_allclose(own.log_density(POINT), twin.log_density(POINT), rtol=1e-12)
    np.testing.assert_allclose(own.log_likelihood(POINT)["y"], twin.log_likelihood(POINT)["y"], rtol=1e-12)
    if model is by_component:
        np.testing.assert_allclose(own.posterior(POINT)["z"], twin.posterior(POINT)["z"], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("model", "draws"), [(by_hand, 40), pytest.param(by_component, 8, marks=pytest.mark.slow)])
def test_prediction_without_a_sampler_is_that_of_the_mixture(model, draws):
    given = {name: np.broadcast_to(value, (1, draws, 3)) for name, value in POINT.items()}
    out = predict(mg.marginalize(model, Y).program, given, (Y,), {}, random_seed=1)
    assert out["y"].shape == (1, draws, 100)
    assert stats.kstest(out["y"].values.ravel(), mixture_cdf).pvalue > 1e-4
    assert out.attrs["densities"].startswith("y: drawn by inverting its distribution function, found by quadrature")
    assert "not applied: order" in out.attrs["factors"]


@pytest.mark.slow
def test_w1_by_hand_gives_the_answer_of_w1():
    method = mg.NUTS(draws=2000, target_accept=0.95)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarginaliaWarning)  # one draw of 8000 may diverge, as means come close
        fit = mg.fit(by_hand, Y, method=method, random_seed=1, progressbar=False)
        twin = mg.fit(by_latent, Y, method=method, random_seed=2, progressbar=False)
    assert fit.result.info["divergences"] + twin.result.info["divergences"] <= 4
    for name in ("p", "mu"):
        pair = [fit.summary().filter(like=name, axis=0), twin.summary().filter(like=name, axis=0)]
        error = np.hypot(*(table["sd"] / np.sqrt(table["ess_bulk"]) for table in pair))
        assert np.all(np.abs(pair[0]["mean"] - pair[1]["mean"]) < SIGMAS * error)
    ours, theirs = (f.predict(random_seed=3, draws=1000)["y"].values.reshape(-1, 100) for f in (fit, twin))
    for moment in (np.mean, np.std):
        a, b = moment(ours, axis=1), moment(theirs, axis=1)
        assert abs(a.mean() - b.mean()) < SIGMAS * np.hypot(a.std(), b.std()) / np.sqrt(200)


SHAPES = {
    "far and narrow": (dist.Normal(1000.0, 0.001), stats.norm(1000, 0.001).cdf),
    "heavy tails": (dist.Cauchy(5.0, 2.0), stats.cauchy(5, 2).cdf),
    "a pole at 0": (dist.Gamma(0.3, 2.0), stats.gamma(0.3, scale=0.5).cdf),
    "both edges": (dist.Beta(0.5, 0.2), stats.beta(0.5, 0.2).cdf),
}


@pytest.mark.parametrize("name", SHAPES)
def test_inversion_follows_the_distribution_function(name):
    true, cdf = SHAPES[name]
    with float64():
        own = mg.Density(true.log_prob, support=true.support)
        drawn, log_integral = jax.jit(lambda key: (own.sample(key, (4000,)), own.table().log_integral))(
            jax.random.key(0)
        )
    assert stats.kstest(np.asarray(drawn), cdf).pvalue > 1e-4
    assert abs(float(log_integral)) < 0.005


def test_two_narrow_peaks_far_apart_are_both_found():
    weight, loc, scale = jnp.array([0.3, 0.7]), jnp.array([-500.0, 1000.0]), jnp.array([0.01, 0.1])

    def log_prob(v):
        return jax.nn.logsumexp(jnp.log(weight) + dist.Normal(loc, scale).log_prob(v[..., None]), axis=-1)

    with float64():
        own = mg.Density(log_prob, support=constraints.real)
        drawn = np.asarray(jax.jit(lambda key: own.sample(key, (4000,)))(jax.random.key(0)))
    assert abs((drawn < 0).mean() - 0.3) < SIGMAS * np.sqrt(0.21 / 4000)


@pytest.mark.parametrize(
    ("true", "support", "values"),
    [
        (dist.Binomial(5, 0.3), constraints.integer_interval(0, 5), 6),
        (dist.Poisson(7.0), constraints.nonnegative_integer, 30),
        (dist.Bernoulli(0.2), constraints.boolean, 2),
    ],
)
def test_values_of_a_discrete_are_listed(true, support, values):
    with float64():
        own = mg.Density(true.log_prob, support=support)
        drawn = np.asarray(own.sample(jax.random.key(1), (5000,)))
        chance = np.exp(np.asarray(true.log_prob(jnp.arange(values))))
    counts = np.bincount(drawn, minlength=values)
    seen = chance * 5000 > 5
    assert stats.chisquare(counts[seen], counts[seen].sum() * chance[seen] / chance[seen].sum()).pvalue > 1e-4


@pytest.mark.slow
def test_vectors_are_drawn_by_nuts_with_the_right_share_of_each_mode():
    mu = jnp.array([[-4.0, 0.0], [4.0, 1.0]])

    def log_prob(v):
        parts = dist.MultivariateNormal(mu, jnp.eye(2)).log_prob(v[..., None, :])
        return jax.nn.logsumexp(jnp.log(jnp.array([0.25, 0.75])) + parts, axis=-1)

    with float64():
        own = mg.Density(log_prob, support=constraints.real, event_shape=(2,))
        assert own.way == "walked"
        drawn = np.asarray(jax.jit(lambda key: own.sample(key, (150,)))(jax.random.key(3)))
    left = drawn[:, 0] < 0
    assert abs(left.mean() - 0.25) < SIGMAS * np.sqrt(0.1875 / 150)
    right = drawn[~left] - np.array([4.0, 1.0])
    assert np.all(np.abs(right.mean(0)) < SIGMAS / np.sqrt(len(right)))
    assert np.all(np.abs(right.var(0) - 1) < SIGMAS * np.sqrt(2 / len(right)))


def test_it_takes_numpyros_wrappers_and_is_a_pytree():
    loc = jnp.array([0.0, 3.0])
    own = mg.Density(lambda v, loc: -0.5 * (v - loc) ** 2, support=constraints.real, params={"loc": loc})
    assert own.batch_shape == (2,)
    assert own.expand((4, 2)).log_prob(jnp.zeros((4, 2))).shape == (4, 2)
    assert own.expand((4, 2)).sample(jax.random.key(0)).shape == (4, 2)
    grouped = own.to_event(1)
    assert (grouped.batch_shape, grouped.event_shape) == ((), (2,))
    np.testing.assert_allclose(grouped.log_prob(jnp.zeros(2)), -4.5)
    np.testing.assert_allclose(own.mask(jnp.array([True, False])).log_prob(jnp.ones(2)), [-0.5, 0.0])
    moved = jax.jit(lambda d: jax.tree.map(lambda leaf: leaf + 1, d))(own)
    np.testing.assert_allclose(moved.log_prob(jnp.zeros(2)), [-0.5, -8.0])


def test_a_sampler_that_is_given_is_used():
    own = mg.Density(
        lambda v, low: jnp.zeros_like(v) + low * 0,
        support=constraints.unit_interval,
        sample=lambda key, shape, low: jnp.full(shape, low),
        params={"low": jnp.array([0.25, 0.5])},
    )
    np.testing.assert_array_equal(own.sample(jax.random.key(0), (3,)), np.tile([0.25, 0.5], (3, 1)))
    bad = mg.Density(jnp.zeros_like, support=constraints.real, sample=lambda key, shape: jnp.zeros(7))
    with pytest.raises(ModelError, match="the sampler does not give the shape"):
        bad.sample(jax.random.key(0))


def test_a_density_that_is_not_normalised_is_said_when_it_predicts():
    def model(y):
        a = numpyro.sample("a", dist.Normal(0, 1))
        own = mg.Density(lambda v: -0.5 * (v - a) ** 2, support=constraints.real)
        numpyro.sample("y", own.expand([len(y)]), obs=y)

    program = mg.marginalize(model, Y).program
    with pytest.warns(MarginaliaWarning, match=r"the density's integral is 2\.50\d to 2\.5\d\d.*it should be 1"):
        predict(program, {"a": np.zeros((1, 2))}, (Y,), {}, random_seed=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"log_prob": 3.0, "support": constraints.real}, "the log density is no function"),
        ({"log_prob": jnp.sum, "support": "real"}, "the support is no constraint"),
        ({"log_prob": jnp.sum, "support": constraints.simplex}, "the support is one of longer values"),
        ({"log_prob": jnp.sum, "support": constraints.real, "sample": 1}, "the sampler is no function"),
    ],
)
def test_what_cannot_be_a_density_is_refused(arguments, words):
    with pytest.raises(ModelError, match=words):
        mg.Density(**arguments)


def test_a_density_that_sums_over_rows_is_refused():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        own = mg.Density(lambda v: dist.Normal(mu, 1.0).log_prob(v).sum(), support=constraints.real)
        numpyro.sample("y", own.expand([len(y)]), obs=y)

    with pytest.raises(ModelError, match=r"does not give one number per value.*do not sum over rows"):
        mg.marginalize(model, Y)


def test_what_the_prior_predicts():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(1.0, 2.0))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.25))
            numpyro.sample("y", dist.Normal(mu + 10 * z, 1.0), obs=y)

    out = mg.marginalize(model, Y[:5]).prior_predictive(2000, random_seed=4)
    assert out["y"].dims == ("chain", "draw", "obs")
    assert out["y"].shape == (1, 2000, 5)
    rows = out["y"].values[0].mean(axis=1)
    assert abs(rows.mean() - 3.5) < SIGMAS * rows.std() / np.sqrt(2000)
    assert abs(out["mu"].values.std() - 2) < SIGMAS * 2 / np.sqrt(4000)
    assert abs(out["z"].values.mean() - 0.25) < SIGMAS * np.sqrt(0.1875 / 10_000)
    np.testing.assert_array_equal(
        out["y"].values, mg.marginalize(model, Y[:5]).prior_predictive(2000, random_seed=4)["y"].values
    )


def test_prior_draws_fulfil_hard_constraints():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 10).expand([3]))
        numpyro.factor("order", jnp.where(jnp.all(jnp.diff(mu) > 0), 0.0, -jnp.inf))
        numpyro.sample("y", dist.Normal(mu[0], 1.0).expand([len(y)]), obs=y)

    out = mg.marginalize(model, Y[:4]).prior_predictive(200, random_seed=0)
    assert np.all(np.diff(out["mu"].values, axis=-1) > 0)
    assert out["mu"].shape == (1, 200, 3)
    assert "order: draws that they forbid (-inf) were drawn again" in out.attrs["factors"]


def test_nothing_is_drawn_from_an_improper_prior():
    def model(y):
        mu = numpyro.sample("mu", dist.ImproperUniform(constraints.positive, (), (2,)))
        numpyro.sample("y", dist.Normal(mu.sum(), 1.0).expand([len(y)]), obs=y)

    with pytest.raises(mg.FitError, match=r"prior_predictive\(\): the prior of 'mu' is improper.*Remedy"):
        mg.marginalize(model, Y).prior_predictive(10)
