"""W1: three Gaussians close together, ordered, unordered and with the density written by hand, by every method.

The truth is computed here by importance sampling in NumPy, and the published answer is compared with it. All
comparisons are in combined Monte Carlo standard errors.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import weighing
from numpyro.distributions import constraints
from scipy import special
from weighing import SIGMAS

import marginalia as mg
from marginalia.errors import FitError, MarginaliaWarning

pytestmark = pytest.mark.xdist_group("w1")

DATA = Path(__file__).parent.parent / "data" / "three_close.csv"
# means from left to right, then their weights
PUBLISHED = [-2.00, 0.38, 1.85, 0.300, 0.344, 0.355]
PUBLISHED_SD = [0.32, 0.53, 0.29, 0.063, 0.076, 0.084]
DIGITS = [0.01] * 3 + [0.001] * 3


def weights():
    return numpyro.sample("p", dist.Dirichlet(jnp.full(3, 10.0)))


def mixture(p, mu, y):
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(p))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def in_order():
    """The density of three Normal(0, 10) where they are in order, up to the constant 3!."""
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (3,)))
    numpyro.factor("prior of mu", dist.Normal(0, 10).log_prob(mu).sum())
    return mu


def ordered(y):
    p, mu = weights(), in_order()
    mixture(p, mu, y)


def ordered_by_factor(y):
    """The same with a proper prior: what is out of order is forbidden."""
    p = weights()
    mu = numpyro.sample("mu", dist.Normal(0, 10).expand([3]).to_event(1))
    numpyro.factor("increasing", jnp.where((mu[1:] > mu[:-1]).all(), 0.0, -jnp.inf))
    mixture(p, mu, y)


def unordered(y):
    p = weights()
    with numpyro.plate("component", 3):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
    mixture(p, mu, y)


def by_hand(y):
    p, mu = weights(), in_order()

    def log_prob(value):
        return jax.nn.logsumexp(jnp.log(p) + dist.Normal(mu, 1.0).log_prob(value[..., None]), axis=-1)

    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", mg.Density(log_prob, support=constraints.real), obs=y)


def by_factor(y):
    """By hand without a likelihood site: then there is nothing to predict."""
    p, mu = weights(), in_order()
    log_rows = jax.nn.logsumexp(jnp.log(p) + dist.Normal(mu, 1.0).log_prob(y[:, None]), axis=-1)
    numpyro.factor("y", log_rows.sum())


@functools.cache
def points() -> np.ndarray:
    return np.loadtxt(DATA, skiprows=1)


def log_posterior(u: np.ndarray) -> np.ndarray:
    """Of three means and two logits of the weights against the last, with the Jacobian; `(S, 5)` to `(S,)`."""
    mu, logits = u[:, :3], np.column_stack([u[:, 3:], np.zeros(len(u))])
    log_p = logits - special.logsumexp(logits, axis=1, keepdims=True)
    terms = log_p[:, None] - 0.5 * (points()[None, :, None] - mu[:, None]) ** 2
    top = terms.max(-1)
    rows = (top + np.log(np.exp(terms - top[..., None]).sum(-1))).sum(1)
    value = rows + 10 * log_p.sum(1) - 0.5 * (mu**2).sum(1) / 100
    return np.where((np.diff(mu, axis=1) > 0).all(1), value, -np.inf)


@functools.cache
def truth() -> weighing.Truth:
    mode = weighing.peak(log_posterior, np.array([-2, 0.4, 1.9, 0, 0]))
    found, log_ratio = weighing.importance(log_posterior, mode, 60_000, seed=1, rounds=2)
    p = special.softmax(np.column_stack([found[:, 3:], np.zeros(len(found))]), axis=1)
    return weighing.weighed(np.column_stack([found[:, :3], p]), log_ratio)


def sorted_draws(fit: mg.Fit) -> np.ndarray:
    """(chain, draw, 6), the components of every draw from left to right: the ordered model's labelling."""
    order = np.argsort(fit.draws["mu"], axis=-1)
    return np.concatenate([np.take_along_axis(fit.draws[n], order, axis=-1) for n in ("mu", "p")], axis=-1)


def run(model, method, seed: int = 1) -> mg.Fit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarginaliaWarning)  # what is said is tested by `status`
        return mg.fit(model, points(), method=method, random_seed=seed, progressbar=False)


def assert_right(values: np.ndarray, *, runs: bool = False) -> None:
    for what, score in weighing.scores(values, truth(), runs=runs).items():
        assert np.abs(score).max() < SIGMAS, (what, score)


# A chain that turns at the edge where two means meet diverges with longer steps, and says so.
CAREFUL = mg.NUTS(draws=2000, target_accept=0.98)
# Along single axes it takes 12 sweeps for an effective draw: without thinning one seed in ten has too large an R-hat by
# chance, and says so.
LONG = mg.Slice(draws=2000, thin=4)
RIGHT = [
    (ordered, "auto"),
    (ordered, CAREFUL),
    (ordered, "ensemble"),
    (ordered, mg.Metropolis(draws=2000)),
    (ordered, "slice"),
    (unordered, "auto"),
    (unordered, mg.NUTS(draws=2000)),
    (unordered, "ensemble"),
    (unordered, mg.Metropolis(draws=2000)),
    (unordered, LONG),
    (by_hand, "auto"),
    (by_factor, "auto"),
]


@pytest.mark.slow
def test_the_published_answer_is_the_truth() -> None:
    assert np.all(truth().agrees(PUBLISHED, PUBLISHED_SD, DIGITS) < SIGMAS), truth()
    assert np.abs(truth().sd / PUBLISHED_SD - 1).max() < SIGMAS / np.sqrt(2 * 2000) + 0.02  # and two digits
    assert truth().effective > 20_000


def test_all_ways_to_write_it_are_one_density() -> None:
    point = {"p": np.array([0.3, 0.3, 0.4]), "mu": np.array([-2.0, 0.4, 1.8])}
    values = [
        float(mg.marginalize(m, points()).log_density(point))
        for m in (ordered, ordered_by_factor, unordered, by_hand, by_factor)
    ]
    assert np.allclose(values, values[0], rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "method"), RIGHT)
def test_a_method_gives_the_answer_and_has_nothing_to_complain_of(model, method) -> None:
    fit = run(model, method)
    assert fit.status == ()
    assert_right(sorted_draws(fit))
    if model is unordered:
        # One labelling for all draws, chosen by the library, is that of the ordered model.
        assert any("relabelled" in note for note in fit.notes)
        as_given = np.concatenate([fit.draws["mu"], fit.draws["p"]], axis=-1)
        assert_right(as_given)


@pytest.mark.slow
@pytest.mark.parametrize("model", [unordered, ordered_by_factor])
def test_smc_gives_the_answer(model) -> None:
    fit = run(model, mg.SMC(chains=8))
    assert fit.status == ()
    assert_right(sorted_draws(fit), runs=True)


def test_smc_refuses_the_improper_prior() -> None:
    with pytest.raises(FitError, match="the prior of 'mu' is improper"):
        mg.fit(ordered, points(), method="smc", random_seed=1, progressbar=False)


@pytest.mark.slow
@pytest.mark.parametrize("model", [ordered, unordered])
def test_laplace_never_poses_as_this_posterior(model) -> None:
    """The second component wanders between the others: proposals around one mode hardly reach it."""
    marginal = mg.marginalize(model, points())
    for seed in range(100, 106):
        with pytest.warns(MarginaliaWarning, match="no posterior|do not agree|Few effective draws"):
            mg.fit(marginal, method="laplace", random_seed=seed, progressbar=False)
    with pytest.warns(MarginaliaWarning, match="Pareto k-hat of the proposals"):
        mg.fit(marginal, method="laplace", random_seed=102, progressbar=False)


@pytest.mark.slow
def test_a_hard_edge_is_said_where_it_makes_draws_diverge() -> None:
    """NUTS cannot see a factor of -inf coming; the ordered support has no edge, and neither have the labels."""
    fit = run(ordered_by_factor, "auto")
    assert any("diverged" in words and "hard constraints" in words for words in fit.status)
    assert_right(sorted_draws(fit))


@pytest.mark.slow
def test_what_can_be_predicted() -> None:
    """Replicates cover the data, from a density by hand too; a likelihood that is a factor predicts nothing."""
    hand, factor = run(by_hand, "auto"), run(by_factor, "auto")
    new = hand.predict(draws=400)["y"].values.reshape(-1, 100)
    for statistic in (np.mean, np.std):
        replicated = statistic(new, axis=1)
        assert abs(statistic(points()) - replicated.mean()) < SIGMAS * replicated.std()
    with pytest.warns(MarginaliaWarning, match="predicted is nothing"):
        nothing = factor.predict(draws=400)
    assert not nothing.data_vars
    assert nothing.attrs["factors"].startswith("not applied: prior of mu, y")
