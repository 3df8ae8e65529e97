"""ADVI: the right optimum where it is known, a verdict where a family cannot do it, and the rules of every method."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fake import CORRELATED_COV, CORRELATED_MEAN, _marginal, correlated_gaussian
from numpyro.distributions import constraints
from scipy import stats

import marginalia as mg
from marginalia import infer
from marginalia.infer import advi, guides
from marginalia.infer.ascent import SMALL, Ascent
from marginalia.infer.pareto import k_hat
from marginalia.infer.problem import Problem
from marginalia.infer.progress import Silent
from marginalia.infer.targets import AllRows
from marginalia.precision import float64

PRECISION = np.linalg.inv(CORRELATED_COV)


def climb(family: str, rank: int | None = None, *, estimator: str = "path-derivative", optimizer=None, steps=None):
    """From a place two units off and with a third of the scale, so that there is something to climb."""
    with float64():
        problem = Problem(correlated_gaussian(), jacobian=True)
        guide = guides.make_guide(family, 2, rank)
        frame = guides.frame_at(CORRELATED_MEAN + 2.0, None, family)
        frame = guides.Frame(frame.centre, 3.0 * frame.root, frame.log_det + 2 * np.log(3.0))
        chosen = optax.adam(advi.RATE) if optimizer is None else optimizer
        ascent = Ascent(AllRows(problem), guide, chosen, 8, estimator, decays=optimizer is None)
        end = ascent.run(frame, steps, np.random.default_rng(2), Silent())
        points = frame.place(advi.guide_draws(guide, end.parameters, 20_000, np.random.default_rng(3)))
        return end, points, advi._moments(guide, frame, end.parameters, points)


@pytest.mark.parametrize("estimator", ["path-derivative", "plain"])
def test_mean_field_finds_the_nearest_independent_gaussians(estimator):
    """The optimum of KL(q || p) for a Gaussian p has its mean and its conditional variances (Bishop 2006, 10.1.2)."""
    end, _, (mean, covariance) = climb("mean-field", estimator=estimator)
    sd = 1 / np.sqrt(np.diag(PRECISION))
    assert end.converged
    assert np.all(np.abs(mean - CORRELATED_MEAN) < 4 * SMALL * sd)
    assert np.all(np.abs(np.log(np.sqrt(np.diag(covariance)) / sd)) < 4 * SMALL)
    assert covariance[0, 1] == 0.0


@pytest.mark.parametrize(("family", "rank"), [("full-rank", None), ("low-rank", 1)])
def test_families_that_hold_the_target_find_it(family, rank):
    end, points, (mean, covariance) = climb(family, rank)
    assert end.converged
    sd = np.sqrt(np.diag(CORRELATED_COV))
    assert np.all(np.abs(mean - CORRELATED_MEAN) < 4 * SMALL * sd)
    assert np.all(np.abs(covariance - CORRELATED_COV) < 4 * 2 * SMALL * np.outer(sd, sd))
    # and the moments are those of what is drawn
    error = np.sqrt(np.diag(covariance) / len(points))
    assert np.all(np.abs(points.mean(axis=0) - mean) < 4 * error)


def test_the_estimate_without_the_score_has_no_noise_at_the_optimum():
    """Where q is the posterior, every draw gives the same bound: the log evidence (Roeder et al. 2017)."""
    end, _, _ = climb("full-rank", optimizer=optax.adam(0.02), steps=3000)
    assert np.ptp(end.elbo[-100:]) < 1e-3
    assert abs(end.elbo[-1]) < 1e-3  # the target is a normalised density


def test_any_optimiser_and_a_fixed_number_of_steps():
    end, _, (mean, _) = climb("mean-field", optimizer=optax.adagrad(0.5), steps=1500)
    assert end.elbo.shape == (1500,)
    assert end.converged
    assert np.all(np.abs(mean - CORRELATED_MEAN) < 4 * SMALL / np.sqrt(np.diag(PRECISION)))


@pytest.mark.parametrize(
    ("family", "rank"), [("mean-field", None), ("full-rank", None), ("low-rank", 2), ("flow", None)]
)
def test_log_density_is_that_of_what_is_pushed(family, rank):
    """By the change of variables, with the derivative taken by JAX; for the low rank by its covariance."""
    size = 3
    guide = guides.make_guide(family, size, rank)
    rng = np.random.default_rng(5)
    with float64():
        phi = guide.start + 0.3 * rng.normal(size=guide.start.shape)
        noise = rng.normal(size=guide.noise)
        point = np.asarray(guide.push(phi, noise))
        if family == "low-rank":
            mean, root = guide.moments(phi)
            expected = stats.multivariate_normal(mean, root @ root.T).logpdf(point)
        else:
            slope = np.asarray(jax.jacobian(guide.push, argnums=1)(phi, noise))
            expected = stats.norm.logpdf(noise).sum() - np.linalg.slogdet(slope)[1]
        assert np.isclose(guide.log_density(phi, point), expected, rtol=1e-9, atol=0)
        if guide.entropy is not None:
            _, root = guide.moments(phi)
            entropy = stats.multivariate_normal(np.zeros(size), root @ root.T).entropy()
            assert np.isclose(guide.entropy(phi), entropy, rtol=1e-9, atol=0)


@pytest.fixture(scope="module")
def gaussian():
    return infer.run(correlated_gaussian(), mg.ADVI(family="full-rank", starts=2), random_seed=11, progressbar=False)


def test_a_result_like_any_other(gaussian):
    assert gaussian.draws["x"].shape == (1, 1000, 2)
    assert gaussian.draws["x"].dtype == np.float64
    assert {name: value.shape for name, value in gaussian.stats.items()} == {"lp": (1, 1000), "log_q": (1, 1000)}
    assert gaussian.findings == ()
    assert gaussian.info["converged"]
    assert gaussian.info["traces"] == 1
    centred = gaussian.draws["x"][0] - CORRELATED_MEAN
    lp = stats.multivariate_normal(np.zeros(2), CORRELATED_COV).logpdf(centred)
    np.testing.assert_allclose(gaussian.stats["lp"][0], lp, rtol=1e-9)
    error = np.sqrt(np.diag(CORRELATED_COV) / 1000)
    assert np.all(np.abs(centred.mean(axis=0)) < 4 * error)


def test_the_gaussian_and_its_coordinates_are_handed_out(gaussian):
    group = gaussian.groups["approximation"]
    assert list(group["coordinate"][1]) == ["x[0]", "x[1]"]
    np.testing.assert_allclose(group["mean"][1], CORRELATED_MEAN, atol=SMALL)
    assert group["elbo"][1].shape == (gaussian.info["steps"],)
    assert abs(gaussian.info["elbo"]) < 4 * gaussian.info["elbo_error"] + 1e-3


def test_same_seed_same_bytes(gaussian):
    again = infer.run(correlated_gaussian(), mg.ADVI(family="full-rank", starts=2), random_seed=11, progressbar=False)
    assert again.draws["x"].tobytes() == gaussian.draws["x"].tobytes()
    assert again.groups["approximation"]["elbo"][1].tobytes() == gaussian.groups["approximation"]["elbo"][1].tobytes()


def funnel():
    """A scale and what it scales: x1 ~ Normal(0, exp(x0 / 2)), x0 ~ Normal(0, 3) (Neal 2003)."""

    def density(params, data):
        x = params["x"]
        log_scale = x[0] / 2
        return -0.5 * (x[0] / 3) ** 2 - 0.5 * jnp.sum((x[1:] * jnp.exp(-log_scale)) ** 2) - 4 * log_scale + data.sum()

    return _marginal(
        {"x": constraints.real_vector},
        {"x": (5,)},
        density,
        lambda params, data: {"x": data},
        lambda key: {"x": jax.random.normal(key, (5,))},
        np.zeros(3),
    )


@pytest.mark.parametrize("family", ["mean-field", "full-rank"])
def test_a_funnel_is_refused_as_a_posterior(family):
    result = infer.run(funnel(), mg.ADVI(family=family, starts=4, steps=1000), random_seed=1, progressbar=False)
    assert result.info["k_hat"] > 0.7
    assert any(
        f.startswith(f"The {family} approximation is not the posterior: the Pareto k-hat") for f in result.findings
    )
    # the same words come from the draws alone, as they are asked for once draws are relabelled
    assert infer.judge(result, result.draws) == tuple(f for f in result.findings if "k-hat" in f)


def two_bumps():
    """Two modes of equal mass and different width, so no copies of one another."""

    def density(params, data):
        x = params["x"]
        return (
            jnp.logaddexp(-0.5 * jnp.sum((x + 6) ** 2), -0.5 * jnp.sum((x - 6) ** 2) * 4 + 2 * jnp.log(2.0))
            + data.sum()
        )

    return _marginal(
        {"x": constraints.real_vector},
        {"x": (2,)},
        density,
        lambda params, data: {"x": data},
        lambda key: {"x": 6 * jax.random.normal(key, (2,))},
        np.zeros(3),
    )


def test_a_mode_that_is_left_out_is_said():
    result = infer.run(two_bumps(), mg.ADVI(starts=8, steps=100), random_seed=1, progressbar=False)
    assert any("modes of comparable weight" in f and "method='smc'" in f for f in result.findings)


def test_too_few_steps_are_said():
    result = infer.run(funnel(), mg.ADVI(starts=2, steps=30), random_seed=1, progressbar=False)
    assert any(f.startswith("The ELBO has not converged after 30 steps") for f in result.findings)
    assert not result.info["converged"]


class _Interrupting(Silent):
    """Raises what a user's Ctrl-C raises, once `after` steps are made."""

    def __init__(self, after: int) -> None:
        self._after, self._climbing = after, False

    def stage(self, name: str, total: int) -> None:
        self._climbing = name == "ADVI"

    def update(self, done: int, note: str = "") -> None:
        if self._climbing and done >= self._after:
            raise KeyboardInterrupt


def test_an_interrupted_climb_keeps_what_it_reached():
    with float64():
        problem = Problem(correlated_gaussian(), jacobian=True)
        options = mg.ADVI(starts=2, steps=5000)
        result = advi.run(problem, options, np.random.default_rng(0), _Interrupting(300))
    assert result.findings[0].startswith("Interrupted after 300 steps")
    assert result.info["interrupted"]
    assert result.draws["x"].shape == (1, 1000, 2)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_k_hat_is_the_shape_of_the_tail(shape):
    """Ratios with an exact Pareto tail. The estimate is drawn to 1/2 with the weight of 10 of the M tail values."""
    rng = np.random.default_rng(4)
    size, replicates = 10_000, 40
    tail = int(3 * np.sqrt(size))
    found = np.array([k_hat(shape * rng.exponential(size=size)) for _ in range(replicates)])
    expected = (tail * shape + 5) / (tail + 10)
    assert abs(found.mean() - expected) < 4 * found.std(ddof=1) / np.sqrt(replicates)


def test_k_hat_of_what_cannot_be_judged():
    assert np.isnan(k_hat(np.zeros(10)))
    assert k_hat(np.array([np.nan] * 100)) == np.inf
    assert k_hat(np.zeros(100)) == -np.inf
    rng = np.random.default_rng(0)
    ratios = 0.1 * rng.normal(size=1000)
    assert k_hat(np.where(rng.random(1000) < 0.3, -np.inf, ratios)) < 0.7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"family": "gauss"}, "'family'"),
        ({"rank": 0}, "'rank'"),
        ({"rank": 2, "family": "flow"}, "'rank'"),
        ({"family": "low-rank"}, "'rank'"),
        ({"optimizer": "adam"}, "'optimizer'"),
        ({"steps": 0}, "'steps'"),
        ({"samples": 3}, "'samples'"),
        ({"estimator": "score"}, "'estimator'"),
        ({"batch_size": 10, "discretes": "explicit"}, "'batch_size'"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(mg.OptionError, match=words):
        mg.ADVI(**options)
