"""The density of some rows: right in expectation, and refused where rows cannot be taken apart.

The average of the estimate over the batches of a partition is the whole density, exactly: every row is in one batch.
The whole density is written by hand here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy import special, stats

import marginalia as mg
from marginalia.marginal.batches import make_batches
from marginalia.precision import float64

N, B = 12, 4
RNG = np.random.default_rng(3)
Y = RNG.normal(size=N)
X = RNG.normal(size=(N, 3))
PLANE = RNG.normal(size=(N, 2))
ITEMS = (RNG.random((N, 4)) < 0.5).astype(int)


def plane(y):
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.full(2, 0.5)))
    with numpyro.plate("component", 2):
        mu = numpyro.sample("mu", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("y", dist.MultivariateNormal(mu[z], jnp.eye(2)), obs=y)


def plane_by_hand(p, y):
    prior = stats.dirichlet.logpdf(p["pi"], [0.5, 0.5]) + stats.norm.logpdf(p["mu"]).sum()
    rows = stats.norm.logpdf(y[:, None], p["mu"]).sum(-1) + np.log(p["pi"])
    return prior + special.logsumexp(rows, axis=1).sum()


def regressions(x, y):
    g = numpyro.sample("g", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("component", 2):
        b = numpyro.sample("b", dist.Normal(0, 3).expand([3]).to_event(1))
    s = numpyro.sample("s", dist.HalfNormal(1.0))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(logits=x @ g))
        numpyro.sample("y", dist.Normal((x * b[z]).sum(-1), s), obs=y)


def regressions_by_hand(p, x, y):
    prior = stats.norm.logpdf(p["g"]).sum() + stats.norm.logpdf(p["b"], 0, 3).sum() + stats.halfnorm.logpdf(p["s"])
    logit = x @ p["g"]
    weights = np.stack([-np.logaddexp(0, logit), -np.logaddexp(0, -logit)], axis=1)
    return prior + special.logsumexp(weights + stats.norm.logpdf(y[:, None], x @ p["b"].T, p["s"]), axis=1).sum()


def classes(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
    p = numpyro.sample("p", dist.Beta(jnp.full((3, 4), 2.0), 1.0).to_event(2))
    with numpyro.plate("people", y.shape[0]):
        c = numpyro.sample("c", dist.Categorical(w))
        numpyro.sample("y", dist.Bernoulli(p[c]).to_event(1), obs=y)


def classes_by_hand(p, y):
    prior = stats.dirichlet.logpdf(p["w"], np.ones(3)) + stats.beta.logpdf(p["p"], 2, 1).sum()
    rows = stats.bernoulli.logpmf(y[:, None], p["p"]).sum(-1) + np.log(p["w"])
    return prior + special.logsumexp(rows, axis=1).sum()


def around_the_mean(y):
    """A prior that is scaled by all of the data: it belongs to no row."""
    mu = numpyro.sample("mu", dist.Normal(jnp.mean(y), np.std(y)).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)


def around_the_mean_by_hand(p, y):
    rows = stats.norm.logpdf(y[:, None], p["mu"]) + np.log([0.7, 0.3])
    return stats.norm.logpdf(p["mu"], y.mean(), y.std()).sum() + special.logsumexp(rows, axis=1).sum()


def drawing(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y), subsample_size=B) as rows:
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(mu[z], 1), obs=y[rows])


def drawing_by_hand(p, y, weight=1.0):
    rows = stats.norm.logpdf(y[:, None], p["mu"]) + np.log([0.7, 0.3])
    return stats.norm.logpdf(p["mu"], 0, 3).sum() + weight * special.logsumexp(rows, axis=1).sum()


CASES = {
    "mixture in the plane": (plane, (PLANE,), plane_by_hand),
    "regressions": (regressions, (X, Y), regressions_by_hand),
    "latent classes": (classes, (ITEMS,), classes_by_hand),
    "prior from the data": (around_the_mean, (Y,), around_the_mean_by_hand),
    "a plate that draws": (drawing, (Y,), drawing_by_hand),
}


@pytest.mark.parametrize("name", CASES)
def test_the_batches_of_a_partition_average_to_the_whole(name: str) -> None:
    model, args, by_hand = CASES[name]
    marginal = mg.marginalize(model, *args)
    batches = make_batches(marginal, B)
    with float64():
        params = {n: np.asarray(v) for n, v in marginal.program.prior(jax.random.key(1)).items()}
        estimate = jax.jit(batches.log_density)
        parts = np.random.default_rng(1).permutation(N).reshape(-1, B)
        values = np.array([estimate(params, rows, batches.data) for rows in parts])
    assert np.ptp(values) > 0.1, "a batch is not the whole"
    assert np.isclose(values.mean(), by_hand(params, *args), rtol=1e-12, atol=0)
    assert np.isclose(marginal.log_density(params), by_hand(params, *args), rtol=1e-12, atol=0)


def test_the_scale_comes_after_the_sum() -> None:
    """One batch by hand: a scale inside of the sum over the discretes would give another number."""
    marginal = mg.marginalize(drawing, Y)
    batches = make_batches(marginal, B)
    rows = np.array([7, 2, 9, 0])
    params = {"mu": np.array([-0.5, 1.5])}
    with float64():
        value = float(batches.log_density(params, rows, batches.data))
    assert np.isclose(value, drawing_by_hand(params, Y[rows], N / B), rtol=1e-12, atol=0)


def test_rows_that_the_user_has_chosen_are_taken() -> None:
    rows = np.array([7, 2, 9, 0])
    model = handlers.substitute(drawing, data={"obs": jnp.asarray(rows)})
    params = {"mu": np.array([-0.5, 1.5])}
    value = mg.marginalize(model, Y).log_density(params)
    assert np.isclose(value, drawing_by_hand(params, Y[rows], N / B), rtol=1e-12, atol=0)


def test_a_plate_that_draws_is_read_on_all_rows_and_that_is_said() -> None:
    marginal = mg.marginalize(drawing, Y)
    assert marginal.program.drawn == {"obs": B}
    assert "Plate obs draws 4 of its 12 rows in each run; here all of them are used" in marginal.explain()
    assert marginal.posterior({"mu": np.array([0.0, 1.0])})["z"].shape == (N, 2)
    assert marginal.rebind(Y[::-1].copy()).program.drawn == {"obs": B}


def test_the_marginal_of_a_plate_that_draws_is_a_program_for_numpyro() -> None:
    marginal = mg.marginalize(drawing, Y)
    params = {"mu": jnp.array([-0.5, 1.5])}
    value, _ = numpyro.infer.util.log_density(handlers.seed(marginal.model, 0), (), {}, params)
    assert np.isclose(value, drawing_by_hand({"mu": np.array([-0.5, 1.5])}, Y), rtol=1e-5, atol=0)


def mixture_with_replicates(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)
        numpyro.sample("later", dist.Poisson(1.0 + z))


def test_batches_leave_out_what_no_data_reach() -> None:
    batches = make_batches(mg.marginalize(mixture_with_replicates, Y), B)
    mu, rows = np.array([-0.5, 1.5]), np.array([1, 5, 7, 2])
    with jax.enable_x64(True):
        value = batches.log_density({"mu": jnp.asarray(mu)}, rows, batches.data)
    each = np.logaddexp(*(np.log(p) + stats.norm.logpdf(Y[rows], m) for p, m in zip((0.7, 0.3), mu, strict=True)))
    assert np.isclose(value, N / B * each.sum() + stats.norm.logpdf(mu, 0, 3).sum(), rtol=1e-12, atol=0)


def hidden_markov(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("time", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.factor("stay", jnp.where(z[1:] == z[:-1], 0.5, 0.0))
    numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)


def looped_markov(y):
    """Written so that no shape tells: the last point is tied to the first."""
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("time", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(mu[z] + 0.5 * jnp.roll(z, 1), 1), obs=y)


def total(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)
    numpyro.factor("few", -0.1 * z.sum() ** 2)


def grouped(y, group):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("groups", 4):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", dist.Normal(mu[z[group]], 1), obs=y)


def twins(y, other):
    """Each row reads the discrete of a row that the data name."""
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(mu[z[other]], 1), obs=y)


def centred(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(mu[z], 1), obs=y - jnp.mean(y))


def centred_in_numpy(y):
    return centred_by(y, np.mean(y))


def centred_by(y, centre):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(mu[z] + centre, 1), obs=y)


def own_effects(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y)):
        e = numpyro.sample("e", dist.Normal(0, 1))
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(mu[z] + e, 1), obs=y)


def weighted(y, weights):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y)), handlers.scale(scale=weights):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)


def counts(n, y):
    p = numpyro.sample("p", dist.Beta(2, 2))
    with numpyro.plate("obs", len(y)):
        k = numpyro.sample("k", dist.Binomial(n, p))
        numpyro.sample("y", dist.Normal(k, 1), obs=y)


def summed(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.factor("likelihood", dist.Normal(mu[z], 1).log_prob(y).sum())


REFUSALS = {
    "chain": (hidden_markov, (Y,), "the shape of 'stay' depends on the rows"),
    "loop": (looped_markov, (Y,), "not independent|are not the same"),
    "total": (total, (Y,), "'few' reads the discretes of many rows"),
    "groups": (grouped, (Y, np.arange(N) % 4), "its discrete 'z' is shared by rows"),
    "twins": (twins, (Y, np.arange(N) // 3), "not independent|are not the same"),
    "mean of the data": (centred, (Y,), "are not the same when the model sees a part of the rows"),
    "mean in NumPy": (centred_in_numpy, (Y,), "are not the same when the model sees a part of the rows"),
    "effects": (own_effects, (Y,), "its continuous latent 'e' has a value for each row"),
    "weights": (weighted, (Y, np.linspace(1, 2, N)), "have weights of their own"),
    "counts": (counts, (np.arange(N) % 3 + 1, Y), "the support of its discrete 'k' differs from row to row"),
    "summed likelihood": (summed, (Y,), "none of its terms has a row axis|no observed site"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_rows_that_cannot_be_taken_apart_are_refused(name: str) -> None:
    model, args, words = REFUSALS[name]
    marginal = mg.marginalize(model, *args)
    with pytest.raises(mg.Refusal, match=words) as caught:
        make_batches(marginal, B)
    assert "cannot be fitted on batches of its rows" in str(caught.value)
    assert "Remedy" in str(caught.value)


def test_a_batch_is_a_part() -> None:
    with pytest.raises(mg.Refusal, match="there are 12 rows"):
        make_batches(mg.marginalize(drawing, Y), N)


def test_data_that_are_no_arguments_are_refused() -> None:
    with pytest.raises(mg.Refusal, match="none of its arguments has 12 rows"):
        make_batches(mg.marginalize(lambda: centred_by(Y, 0.0)), B)


def test_check_reads_a_plate_that_draws() -> None:
    assert not list(mg.check(drawing, Y))
