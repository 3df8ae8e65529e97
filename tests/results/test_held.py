"""What a prediction draws, and what it holds at what was observed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan

import marginalia as mg
from marginalia.fitting import finish
from marginalia.infer.result import Result

Y, X = np.array([-2.0, 2.0, -2.0, 2.0, 0.0]), np.linspace(0.0, 4.0, 5)
N = 400


def fit_of(model, *args, **params):
    """Draws that are all the same: what varies in a prediction is what it draws itself."""
    draws = {n: np.broadcast_to(np.asarray(v, float), (1, N, *np.shape(v))) for n, v in params.items()}
    return finish(mg.marginalize(model, *args), Result("laplace", draws, {}, info={"random_seed": 0}))


def rows(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    sd = numpyro.sample("sd", dist.HalfNormal(5.0))
    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", dist.Normal(mu, sd), obs=y)


def with_covariate(x, y):
    a = numpyro.sample("a", dist.Normal(0, 1))
    with numpyro.plate("obs", len(y)):
        x = numpyro.sample("x", dist.Normal(0, 10.0), obs=x)
        numpyro.sample("y", dist.Normal(a + 3 * x, 0.1), obs=y)


def close(found, mean, sd):
    found = found.values[0]
    assert abs(found.std(0) / sd - 1).max() < 5 / np.sqrt(2 * N)
    assert (abs(found.mean(0) - mean) < 5 * sd / np.sqrt(N)).all()


def test_a_row_whose_label_was_given_keeps_it():
    def model(y, known, given):
        mu = numpyro.sample("mu", dist.Normal(jnp.array([-2.0, 2.0]), 0.1).to_event(1))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])), obs=known, obs_mask=given)
            numpyro.sample("y", dist.Normal(mu[z], 0.1), obs=y)

    fit = fit_of(model, Y, np.array([0, 1, 0, 0, 0]), np.arange(5) < 2, mu=[-2.0, 2.0])
    found = fit.predict()
    close(found["y"][..., :2], [-2, 2], 0.1)
    assert np.all(found["z"].values[..., :2] == [0, 1])
    assert abs(found["z"].values[..., 2:].mean() - 0.6) < 5 * np.sqrt(0.24 / (3 * N))
    assert found.attrs["held"] == "at what was observed: z_observed, given for some elements and read by y"
    assert fit.predict(draw="z")["y"].values[..., 0].std() > 1


def test_a_parameter_that_was_fixed_stays_so_and_so_does_one_that_priors_read():
    found = fit_of(handlers.condition(rows, {"sd": 2.5}), Y, mu=0.0).predict()
    close(found["y"], 0.0, 2.5)
    assert set(found) == {"y"}
    assert found.attrs["held"] == "at what was observed: sd, shared by several numbers of y"

    def deeper(y):
        level = numpyro.sample("level", dist.Normal(0, 100.0))
        mu = numpyro.sample("mu", dist.Normal(level, 1.0))
        with numpyro.plate("obs", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    found = fit_of(handlers.condition(deeper, {"level": 3.0}), Y, mu=0.0).predict()
    assert found.attrs["held"] == "at what was observed: level, read by mu, whose draws were made with it"
    assert set(found) == {"y"}


@pytest.mark.slow
def test_data_given_by_a_handler_are_drawn_and_so_is_each_value_of_a_series():
    close(fit_of(handlers.condition(rows, {"y": Y}), np.zeros(5), mu=0.0, sd=2.0).predict()["y"], 0.0, 2.0)

    def series(y):
        a, before = numpyro.sample("a", dist.Normal(0, 1)), 0.0
        for i in range(3):
            before = numpyro.sample(f"y{i}", dist.Normal(a * before, 1.0), obs=y[i])

    found = fit_of(series, Y, a=2.0).predict()
    close(found["y2"], 0.0, np.sqrt(1 + 4 + 16))


def test_a_covariate_follows_its_own_distribution_unless_it_is_held():
    fit = fit_of(with_covariate, X, Y, a=0.0)
    found = fit.predict()
    close(found["y"], 0.0, 30.0)
    words = "x is drawn anew, and y follows what was drawn: hold='x' keeps what was observed"
    assert found.attrs["covariates"] == words
    found = fit.predict(hold="x")
    close(found["y"], 3 * X, 0.1)
    assert (set(found), found.attrs["held"]) == ({"y"}, "at what was observed: x, as asked for")
    with pytest.raises(mg.OptionError, match=r"there is no observed site 'w'\. Expected some of x, y"):
        fit.predict(hold=["w"])
    with pytest.raises(mg.OptionError, match="'x': a site cannot be held and drawn"):
        fit.predict(hold="x", draw=["x"])


def test_what_is_drawn_at_a_step_of_a_scan_is_what_the_next_step_reads():
    def walk(y):
        numpyro.sample("a", dist.Normal(0, 1))

        def step(before, now):
            return numpyro.sample("y", dist.Normal(before, 0.1), obs=now), None

        scan(step, 100.0, y)

    close(fit_of(walk, Y, a=0.0).predict()["y"], 100.0, 0.1 * np.sqrt(np.arange(1, 6)))


@pytest.mark.slow
def test_a_seed_of_the_users_own_makes_no_draw_the_same_as_another():
    model = handlers.condition(handlers.seed(rows, jax.random.key(1)), {"sd": 2.5})
    close(fit_of(model, Y, mu=0.0).predict()["y"], 0.0, 2.5)
    found = mg.marginalize(model, Y).prior_predictive(N, random_seed=0)
    assert set(found) == {"mu", "y"}
    assert len(np.unique(found["mu"])) == N


def test_pairs_of_a_site_with_itself_and_of_two_sites_further_along():
    def model(y):
        with numpyro.plate("obs", 3):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.3, 0.7])))
            u = numpyro.sample("u", dist.Categorical(jnp.array([0.2, 0.3, 0.5])))
        numpyro.sample("y", dist.Normal((z.sum() + z[0] * u[1]).astype(float), 1.0), obs=y)

    marginal = mg.marginalize(model, 1.5)
    own = marginal.posterior({})["z"]
    np.testing.assert_allclose(marginal.pairwise({}, "z", "z"), own[..., None] * np.eye(2), atol=1e-12)
    z, u = (np.stack(np.meshgrid(*[np.arange(k)] * 3, indexing="ij"), -1).reshape(-1, 3) for k in (2, 3))
    mean = z.sum(1)[:, None] + z[:, :1] * u[:, 1]
    weight = np.array([0.3, 0.7])[z].prod(1)[:, None] * np.array([0.2, 0.3, 0.5])[u].prod(1)
    weight *= np.exp(-((1.5 - mean) ** 2) / 2)
    expected = [[[weight[z[:, i] == a][:, u[:, i + 1] == b].sum() for b in range(3)] for a in range(2)] for i in (0, 1)]
    np.testing.assert_allclose(marginal.pairwise({}, "z", "u", lag=1), expected / weight.sum(), atol=1e-12)


def test_new_rows_are_read_under_the_limits_of_the_model():
    def model(y):
        z = numpyro.sample("z", dist.Categorical(jnp.ones(2) / 2).expand([6]).to_event(1))
        numpyro.sample("y", dist.Normal(jnp.max(z * jnp.arange(6.0)), 1.0).expand([len(y)]).to_event(1), obs=y)

    with mg.limits(max_states=16), pytest.raises(mg.Refusal):
        mg.marginalize(model, Y)
    with mg.limits(max_states=64):
        marginal = mg.marginalize(model, Y)
    with mg.limits(max_states=16):
        new = marginal.rebind(Y[:2])
    assert new.log_density({}) != marginal.log_density({})
