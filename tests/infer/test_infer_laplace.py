"""Laplace: exact moments, the same bytes, shares of modes, and refusals in words."""

from __future__ import annotations

import numpy as np
import pytest
from exact import funnel
from fake import assert_log_density, assert_moments, bimodal, correlated_gaussian, standard_errors

from marginalia import infer
from marginalia.errors import FitError
from marginalia.infer import laplace
from marginalia.infer.options import Laplace
from marginalia.infer.problem import Problem
from marginalia.infer.progress import Silent
from marginalia.marginal import marginalize
from marginalia.precision import float64


@pytest.fixture(scope="module")
def gaussian():
    return infer.run(correlated_gaussian(), Laplace(starts=4), random_seed=3, progressbar=False)


def test_moments_of_a_correlated_gaussian(gaussian):
    assert_moments(gaussian.draws["x"])


def test_shapes_statistics_and_what_is_told(gaussian):
    assert gaussian.draws["x"].shape == (4, 1000, 2)
    assert set(gaussian.stats) == {"lp", "accepted", "acceptance_rate"}
    assert {value.shape for value in gaussian.stats.values()} == {(4, 1000)}
    assert gaussian.stats["accepted"].dtype == bool
    # A refused proposal leaves the chain where it is; an accepted one moves it.
    moved = np.any(np.diff(gaussian.draws["x"], axis=1) != 0, axis=2)
    assert np.array_equal(moved, gaussian.stats["accepted"][:, 1:])
    assert gaussian.info["k_hat"] < 0.3
    assert gaussian.info["acceptance_rate"] > 0.8
    assert gaussian.info["traces"] == 1
    assert gaussian.findings == ()


def test_lp_is_the_log_density_of_the_draws(gaussian):
    assert_log_density(gaussian.stats["lp"], gaussian.draws["x"])


def test_same_seed_same_bytes(gaussian):
    again = infer.run(correlated_gaussian(), Laplace(starts=4), random_seed=3, progressbar=False)
    other = infer.run(correlated_gaussian(), Laplace(starts=4), random_seed=4, progressbar=False)
    assert again.draws["x"].tobytes() == gaussian.draws["x"].tobytes()
    assert other.draws["x"].tobytes() != gaussian.draws["x"].tobytes()


def test_the_step_is_exact_for_a_proposal_that_does_not_fit():
    # Proposals of another place and width than the target; the draws are the target's all the same.
    rng = np.random.default_rng(0)
    proposal = laplace.Proposal(np.array([[0.7]]), np.array([[[1.5]]]), np.ones(1), 5.0)
    points = proposal.sample(40_000, rng)
    log_ratio = (-0.5 * points[:, 0] ** 2 - proposal.log_density(points)).reshape(10_000, 4)
    _, which, _ = laplace._metropolis(log_ratio, np.full(4, -50.0), rng.random(log_ratio.shape))
    draws = points.reshape(10_000, 4)[which, np.arange(4)].T
    assert standard_errors(draws, 0.0) < 4
    assert standard_errors(draws**2, 1.0) < 4


def test_k_hat_is_that_of_the_generalised_pareto():
    # Ratios of a Gaussian target to a narrower Gaussian have the tail index 1 - variance (as the sample grows).
    rng = np.random.default_rng(1)
    x = 0.5 * rng.normal(size=20_000)
    assert laplace.k_hat(-0.5 * x**2 + 0.5 * (x / 0.5) ** 2) > 0.5
    wide = 2.0 * rng.normal(size=20_000)
    assert laplace.k_hat(-0.5 * wide**2 + 0.5 * (wide / 2) ** 2) < 0.0
    # The ratios themselves Pareto: P(r > t) = t**(-1 / k).
    assert laplace.k_hat(-0.8 * np.log(rng.random(20_000))) == pytest.approx(0.8, abs=0.15)


def test_two_modes_get_the_draws_they_deserve():
    result = infer.run(bimodal(0.3), Laplace(starts=16), random_seed=2, progressbar=False)
    assert result.info["modes"] == 2
    assert standard_errors((result.draws["x"] < 0).astype(float), 0.3) < 4
    assert result.findings == ()


def test_a_shape_that_is_no_gaussian_is_refused_in_words():
    model = funnel(2.0)
    result = infer.run(marginalize(model.model, *model.args), Laplace(draws=500), random_seed=1, progressbar=False)
    k = result.info["k_hat"]
    assert k > 0.7
    assert result.findings[0] == (
        f"These draws are no posterior: the Pareto k-hat of the proposals is {k:.2f}, above 0.7, so they hardly reach "
        'some part of it, and means and intervals may be far off. Use method="nuts".'
    )


def test_a_density_without_a_peak_is_refused_in_words():
    with pytest.raises(FitError) as caught:
        infer.run(bimodal(0.3, flat=True), Laplace(starts=4), random_seed=1, progressbar=False)
    assert str(caught.value) == (
        "Laplace: the density has no mode at which it curves down in all directions, so there is no shape to propose "
        'from. Remedy: use method="nuts"; where the density grows without bound, give scales and weights a proper '
        "prior."
    )


class _Interrupting(Silent):
    """Raises what a user's Ctrl-C raises, once `done` proposals are made."""

    def __init__(self, after: int) -> None:
        self._after, self._on = after, False

    def stage(self, name: str, total: int) -> None:
        self._on = name == "proposals"

    def update(self, done: int, note: str = "") -> None:
        if self._on and done >= self._after:
            raise KeyboardInterrupt


def test_an_interrupted_run_keeps_its_draws(gaussian):
    with float64():
        problem = Problem(correlated_gaussian(), jacobian=True)
        result = laplace.run(problem, Laplace(starts=4), np.random.default_rng(3), _Interrupting(1000))
    made = result.draws["x"].shape[1]
    assert 200 <= made < 1000
    assert result.findings[0].startswith(f"Interrupted: {made} of 1000 draws per chain are kept.")
    assert np.array_equal(result.draws["x"], gaussian.draws["x"][:, :made])
