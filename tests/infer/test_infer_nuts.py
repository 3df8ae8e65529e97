"""NUTS: right moments, same seed same draws, one labelling, interruption, and few traces."""

from __future__ import annotations

import numpy as np
import pytest
from exact import schools
from fake import assert_log_density, assert_moments, correlated_gaussian, gaussian_mixture

from marginalia import infer
from marginalia.infer import edge, nuts
from marginalia.infer.optimise import Optimiser
from marginalia.infer.options import NUTS
from marginalia.infer.problem import Problem
from marginalia.infer.progress import Silent
from marginalia.infer.result import UNBOUNDED
from marginalia.marginal import marginalize
from marginalia.precision import float64

STATS = {
    "lp",
    "diverging",
    "energy",
    "tree_depth",
    "n_steps",
    "acceptance_rate",
    "step_size",
    "reached_max_tree_depth",
}


@pytest.fixture(scope="module")
def gaussian():
    options = NUTS(draws=1000, tune=300, chains=3, starts=4)
    return infer.run(correlated_gaussian(), options, random_seed=11, progressbar=False)


def test_moments_of_a_correlated_gaussian(gaussian):
    assert_moments(gaussian.draws["x"])


def test_shapes_statistics_and_no_findings(gaussian):
    assert gaussian.draws["x"].shape == (3, 1000, 2)
    assert gaussian.draws["x"].dtype == np.float64
    assert set(gaussian.stats) == STATS
    assert {value.shape for value in gaussian.stats.values()} == {(3, 1000)}
    assert gaussian.stats["diverging"].dtype == bool
    depth, steps = gaussian.stats["tree_depth"], gaussian.stats["n_steps"]
    assert np.all((2 ** (depth - 1) <= steps) & (steps < 2**depth))
    # After tuning the step size stays.
    assert np.all(gaussian.stats["step_size"] == gaussian.stats["step_size"][:, :1])
    assert gaussian.findings == ()


def test_lp_is_the_log_density_of_the_draws(gaussian):
    assert_log_density(gaussian.stats["lp"], gaussian.draws["x"])


def test_the_program_is_traced_once(gaussian):
    assert gaussian.info["traces"] == 1


@pytest.mark.parametrize(
    "options",
    [NUTS(30, 20, 2, starts=4), pytest.param(NUTS(30, 20, 2, starts=4, metric="diagonal"), marks=pytest.mark.slow)],
)
def test_same_seed_same_bytes(options):
    first, second = (infer.run(correlated_gaussian(), options, random_seed=5, progressbar=False) for _ in range(2))
    assert first.draws["x"].tobytes() == second.draws["x"].tobytes()
    assert all(first.stats[name].tobytes() == second.stats[name].tobytes() for name in STATS)
    assert np.any(first.draws["x"][0] != first.draws["x"][1])


def test_chains_of_a_mixture_share_one_labelling():
    rng = np.random.default_rng(1)
    y = np.concatenate([rng.normal(-4, 1, 30), rng.normal(0, 0.7, 20), rng.normal(5, 1, 30)])
    result = infer.run(gaussian_mixture(y, 3), NUTS(300, 300, 4, starts=16), random_seed=2, progressbar=False)
    means, spread = result.draws["mu"].mean(axis=1), result.draws["mu"].std(axis=1).mean(axis=0)
    assert np.all(np.ptp(means, axis=0) < spread)  # labels that switch would move a mean by many spreads
    order = np.argsort(means[0])
    assert np.all(np.abs(means.mean(axis=0)[order] - [-4, 0, 5]) < 4 * spread[order])  # the values behind the data
    assert not result.stats["diverging"].any()


class _Interrupting(Silent):
    """Raises what a user's Ctrl-C raises, once `done` sampling steps are made."""

    def __init__(self, after: int) -> None:
        self._after, self._sampling = after, False

    def stage(self, name: str, total: int) -> None:
        self._sampling = name == "sampling"

    def update(self, done: int, note: str = "") -> None:
        if self._sampling and done >= self._after:
            raise KeyboardInterrupt


def _interrupted(after: int):
    with float64():
        problem = Problem(correlated_gaussian(), jacobian=True)
        options = NUTS(draws=2000, tune=100, chains=2, starts=2)
        return nuts.run(problem, options, np.random.default_rng(0), _Interrupting(after))


def test_an_interrupted_run_keeps_its_draws():
    result = _interrupted(after=1000)
    made = result.draws["x"].shape[1]
    assert 100 <= made < 2000
    assert result.stats["lp"].shape == (2, made)
    assert result.findings[0].startswith(f"Interrupted: {made} of 2000 draws per chain are kept.")
    assert result.info["interrupted"]


def test_an_interrupt_before_the_first_draw_is_passed_on():
    with pytest.raises(KeyboardInterrupt):
        _interrupted(after=1)


@pytest.mark.slow
def test_modes_that_are_not_copies_are_said():
    # Three groups and two components: the middle joins the left or the right, mirror images of one height.
    y = np.concatenate([np.linspace(-1, 1, 10), np.linspace(9, 11, 2), np.linspace(-11, -9, 2)])
    result = infer.run(gaussian_mixture(y, 2, scale_prior=1.0), NUTS(50, 50, 2), random_seed=2, progressbar=False)
    maxima = [mode for mode in result.starts.modes if mode.kind == "maximum"]
    assert len(maxima) > 1
    assert any("modes of comparable weight" in finding for finding in result.findings)


def test_where_every_start_runs_away_chains_begin_below_the_spike():
    model = schools()
    options = NUTS(draws=500, tune=300, chains=2, starts=32, target_accept=0.9)
    result = infer.run(marginalize(model.model, *model.args), options, random_seed=1, progressbar=False)
    assert {mode.kind for mode in result.starts.modes} == {UNBOUNDED}
    assert max(mode.params["tau"] for mode in result.starts.modes) < 1e-9
    assert not result.stats["reached_max_tree_depth"].all()
    for name, score in model.errors(result.draws).items():
        assert score < 4, name


def test_divergences_at_a_hard_edge_are_told_from_others():
    rng = np.random.default_rng(0)
    y = rng.normal(size=20)
    with float64():
        hard = Optimiser(Problem(gaussian_mixture(y, 2, ordered_factor=True), jacobian=True), 5)
        soft = Optimiser(Problem(gaussian_mixture(y, 2), jacobian=True), 5)
        points = np.zeros((2, 100, 5))
        points[..., 1:3] = np.sort(rng.normal(size=(2, 100, 2)), axis=-1)  # the locations
        diverging = points[..., 2] - points[..., 1] < 0.3
        assert 3 < diverging.sum() < 100
        (said,) = edge.findings(hard, points, diverging)
        assert said.startswith("Draws diverged at an edge beyond which the density is 0")
        assert 'Use method="smc", or put the constraint into a support' in said
        assert edge.findings(hard, points, points[..., 2] - points[..., 1] > 3.5) == ()
        assert edge.findings(soft, points, diverging) == ()
        assert edge.findings(hard, points, diverging & False) == ()
