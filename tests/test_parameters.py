"""Parameters that a distribution cannot have are told when the program is read, with its line, and cost nothing."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.extend import core
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.distributions.distribution import COERCIONS
from scipy.stats import norm

import marginalia as mg
from compiled import compilations
from marginalia.jaxpr import constants
from marginalia.parameters import checked_parameters, in_words

Y = np.array([0.1, 1.0, 5.0, 6.0, 7.0])
BAD = np.array([[1.0, 2.0], [2.0, 1.0]])


def mixture(y, distribution):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    with numpyro.plate("row", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("y", distribution(mu, z), obs=y)


CASES = {
    "a Python number": (lambda mu, z: dist.Normal(mu[z], -1.0), "`scale` of dist.Normal", "Got -1.0."),
    "an array of NumPy": (
        lambda mu, z: dist.Normal(mu[z], np.array([1, 1, -1, 1, -3.0])),
        "`scale` of dist.Normal",
        "Got -1.0 at index 2 (counting from 0), and 1 more such values.",
    ),
    "an array of JAX": (lambda mu, z: dist.Normal(mu[z], jnp.array(-1.0)), "`scale` of dist.Normal", "Got -1.0."),
    "computed without a latent": (
        lambda mu, z: dist.Normal(mu[z], jnp.log(jnp.array([1.0, 2, 3, 4, 0.5]))),
        "`scale` of dist.Normal",
        "Got 0.0 at index 0 (counting from 0), and 1 more such values.",
    ),
    "a missing value": (lambda mu, z: dist.Normal(mu[z], np.nan), "positive numbers", "Got nan."),
    "inside a mixture": (
        lambda mu, z: dist.MixtureSameFamily(dist.Categorical(jnp.array([0.5, 0.2])), dist.Normal(mu, 1.0)),
        "`probs` of dist.CategoricalProbs",
        "Got [0.5, 0.2].",
    ),
    "under an event and a mask": (
        lambda mu, z: dist.Normal(mu[z][:, None], jnp.array([[-2.0]])).to_event(1).mask(True),
        "`scale` of dist.Normal",
        "Got -2.0.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_parameter_that_cannot_be_is_told_with_its_line(name):
    distribution, what, got = CASES[name]
    y = Y[:, None] if "event" in name else Y
    with pytest.raises(mg.ModelError) as told:
        mg.marginalize(mixture, y, distribution)
    text = str(told.value)
    assert what in text
    assert got in text
    assert text.startswith("test_parameters.py, line ")


def test_a_distribution_whose_parameters_would_give_a_finite_but_wrong_density_is_refused():
    # the log gamma function of a negative number is finite: nothing else would notice
    def model(y):
        p = numpyro.sample("p", dist.Dirichlet(jnp.array([1.0, -0.5])))
        z = numpyro.sample("z", dist.Categorical(p))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    with pytest.raises(mg.ModelError, match=r"`concentration` of dist\.Dirichlet"):
        mg.marginalize(model, 1.0)


@pytest.mark.parametrize("wrap", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_a_covariance_that_is_none_is_refused_whoever_made_it(wrap):
    def model(y):
        mu = numpyro.sample("mu", dist.MultivariateNormal(jnp.zeros(2), wrap(BAD)))
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(mu[0] + z, 1.0), obs=y)

    with pytest.raises(mg.ModelError, match="symmetric positive definite"):
        mg.marginalize(model, 1.0)


def test_parameters_of_a_factor_are_checked_too():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.factor("seen", dist.Normal(mu + z, -1.0).log_prob(y))

    with pytest.raises(mg.ModelError, match=r"`scale` of dist\.Normal"):
        mg.marginalize(model, 1.0)


def test_a_program_that_says_so_is_not_checked():
    def model(y):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(z, jnp.array([1.0, -1.0]), validate_args=False).mask(True), obs=y)

    assert mg.marginalize(model, np.ones(2)).program.discretes


def test_inside_a_scan_what_is_a_number_is_checked_and_what_is_traced_is_left():
    def model(y, scale):
        def step(z, y_t):
            z = numpyro.sample("z", dist.Categorical(jnp.array([[0.5, 0.5], [0.1, 0.9]])[z]))
            numpyro.sample("y", dist.Normal(z, scale()), obs=y_t)
            return z, None

        scan(step, 0, y)

    assert np.isfinite(mg.marginalize(model, Y, lambda: jnp.array(1.0)).log_density({}))
    with pytest.raises(mg.ModelError, match=r"`scale` of dist\.Normal"):
        mg.marginalize(model, Y, lambda: -1.0)


def test_numpyros_own_checks_are_back_afterwards_and_never_gone_elsewhere():
    before = list(COERCIONS)
    other: list[str] = []

    def elsewhere():
        try:
            dist.Normal(0.0, -1.0)
        except ValueError as error:
            other.append(str(error))

    with checked_parameters():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert other == ["Normal distribution got invalid scale parameter."]
    assert before == COERCIONS
    with pytest.raises(mg.ModelError):
        mg.marginalize(mixture, Y, CASES["a Python number"][0])
    assert before == COERCIONS
    with pytest.raises(ValueError, match="got invalid scale"):
        dist.Normal(0.0, -1.0)


def test_one_program_may_be_read_inside_another():
    inner = mg.marginalize(mixture, Y, lambda mu, z: dist.Normal(mu[z], 1.0))

    def outer(y):
        inner.model()
        z = numpyro.sample("z of its own", dist.Bernoulli(0.5))
        numpyro.sample("y of its own", dist.Normal(z, 1.0), obs=y)

    params = {"weights": np.array([0.4, 0.6]), "mu": np.array([0.5, 6.0])}
    own = np.logaddexp(np.log(0.5) + norm.logpdf(0.3, 0, 1), np.log(0.5) + norm.logpdf(0.3, 1, 1))
    found = mg.marginalize(outer, 0.3).log_density(params)
    np.testing.assert_allclose(found, inner.log_density(params) + own, rtol=1e-12)


def test_a_distribution_with_a_way_of_its_own_to_be_made_is_left_to_it():
    class Unit(dist.Normal):
        def __new__(cls, *args, **kwargs):
            return super().__new__(cls)

    with checked_parameters(), pytest.raises(ValueError, match="Unit distribution got invalid scale parameter"):
        Unit(0.0, -1.0)


def test_a_handler_that_makes_something_else_of_distributions_is_heard():
    def louder(cls, args, kwargs):
        return "heard" if cls is dist.Cauchy else None

    COERCIONS.append(louder)
    try:
        with checked_parameters():
            assert dist.Cauchy(0.0, 1.0) == "heard"
            assert isinstance(dist.Normal(0.0, 1.0), dist.Normal)
    finally:
        COERCIONS.remove(louder)


def test_a_distribution_is_the_same_object_as_without_the_checks():
    plain = dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    with checked_parameters():
        ours = dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    assert set(ours.__dict__) == set(plain.__dict__)
    assert jax.tree.structure(ours) == jax.tree.structure(plain)


def test_reading_a_program_with_a_covariance_compiles_nothing():
    def model(y):
        with numpyro.plate("component", 2):
            mu = numpyro.sample("mu", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2) / 3.0))
        with numpyro.plate("row", len(y)):
            z = numpyro.sample("z", dist.Categorical(np.array([0.2, 0.8])))
            numpyro.sample("y", dist.MultivariateNormal(mu[z], jnp.eye(2)), obs=y)

    with compilations() as compiled:
        mg.marginalize(model, np.arange(14.0).reshape(7, 2))
    assert not compiled


MOVES = {
    "broadcast_in_dim": lambda x: jax.lax.broadcast_in_dim(x, (4, 3, 2), (1, 2)),
    "iota": lambda x: jax.lax.broadcasted_iota(int, (3, 2), 0),
    "reshape": lambda x: jax.lax.reshape(x, (2, 3)),
    "squeeze": lambda x: jax.lax.squeeze(jax.lax.slice(x, (0, 0), (1, 2)), (0,)),
    "transpose": lambda x: jax.lax.transpose(x, (1, 0)),
    "slice": lambda x: jax.lax.slice(x, (0, 1), (3, 2), (2, 1)),
    "concatenate": lambda x: jax.lax.concatenate([x, x + 1], 1),
    "div": lambda x: jax.lax.div(x, x + 3),
    "reduce_and": lambda x: (x > 0).all(1),
    "reduce_or": lambda x: (x > 4).any(),
}


@pytest.mark.parametrize("name", MOVES)
def test_what_numpy_moves_or_divides_is_what_jax_does(name):
    x = jnp.arange(6.0).reshape(3, 2)
    closed = jax.make_jaxpr(MOVES[name])(x)
    values = {closed.jaxpr.invars[0]: np.asarray(x)}
    names = []
    for equation in closed.jaxpr.eqns:
        given = [np.asarray(a.val) if isinstance(a, core.Literal) else values[a] for a in equation.invars]
        (values[equation.outvars[0]],) = constants.evaluate(equation.primitive, equation.params, given)
        names.append(equation.primitive.name)
    found = values[closed.jaxpr.outvars[0]]
    np.testing.assert_array_equal(found, np.asarray(MOVES[name](x)))
    assert found.dtype == MOVES[name](x).dtype
    assert name in names


def test_integers_are_divided_as_jax_does_it():
    closed = jax.make_jaxpr(jax.lax.div)(np.array([7, -7, 3]), np.array([2, 2, 0]))
    (found,) = constants.evaluate(
        closed.jaxpr.eqns[0].primitive, closed.jaxpr.eqns[0].params, [np.array([7, -7, 3]), np.array([2, 2, 0])]
    )
    np.testing.assert_array_equal(found, jax.lax.div(np.array([7, -7, 3]), np.array([2, 2, 0])))


def test_every_constraint_has_words():
    assert in_words(constraints.positive) == "positive numbers"
    assert in_words(constraints.independent(constraints.positive, 1)) == "positive numbers"
    assert in_words(constraints.integer_interval(0, 3)) == "values inside IntegerInterval(lower_bound=0, upper_bound=3)"
