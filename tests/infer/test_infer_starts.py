"""Starts and MAP: the right mode, hard constraints, densities without a maximum or without a start."""

from __future__ import annotations

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from fake import FakeMarginal, FakeProgram, correlated_gaussian, five_points, gaussian_mixture
from known import SEEN, two_modes
from scipy.stats import norm

from marginalia import infer
from marginalia.errors import FitError, OptionError
from marginalia.infer import driver
from marginalia.infer.candidates import clustering
from marginalia.infer.progress import Silent
from marginalia.infer.result import EDGE, MAXIMUM, UNBOUNDED, Mode, Starts
from marginalia.marginal import marginalize


def _map(marginal, seed=3, **options):
    return infer.run(marginal, infer.MAP(**options), random_seed=seed, progressbar=False)


@pytest.fixture(scope="module")
def five():
    return _map(five_points())


def test_five_points_reach_the_known_mode(five):
    by_place = np.argsort(five.draws["locs"][0, 0])
    assert five.draws["locs"].shape == (1, 1, 2)
    np.testing.assert_allclose(five.draws["locs"][0, 0][by_place], [0.4989, 10.9845], atol=1e-4)
    np.testing.assert_allclose(five.draws["weights"][0, 0][by_place], [0.375, 0.625], atol=1e-4)
    np.testing.assert_allclose(five.draws["scale"][0, 0], 0.6514, atol=1e-4)


def test_five_points_report_agreement_and_gradients(five):
    best = five.starts.modes[0]
    assert best.kind == MAXIMUM
    assert best.count >= 32
    assert five.starts.total == sum(mode.count for mode in five.starts.modes) == 64
    assert five.info["agreement"].startswith(f"{best.count} of 64 starts reach this mode")
    norms = five.info["gradient_norms"]
    assert norms[0] > 1e-2
    assert norms[-1] < 1e-5
    np.testing.assert_allclose(five.info["log_density"], five.stats["lp"][0, 0])


def test_a_density_that_grows_without_bound_is_said(five):
    # Dirichlet(1/2, 1/2) has a density of infinity where a weight is 0.
    runaways = [mode for mode in five.starts.modes if mode.kind == UNBOUNDED]
    assert runaways
    (finding,) = five.findings
    assert "grew without bound while 'weights' ran away" in finding
    assert "the reported mode is the highest proper one" in finding


@pytest.mark.parametrize("a", [1.0, 0.9])
def test_an_ordinary_edge_is_told_from_a_runaway(a):
    """All rows are of the second kind: under a flat prior the weight is 1; under Beta(0.9, 0.9) there is no top."""

    def model(y):
        w = numpyro.sample("w", dist.Beta(a, a))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(w))
            numpyro.sample("y", dist.Normal(3.0 * z, 1.0), obs=y)

    y = np.linspace(2.5, 3.5, 10)
    result = _map(marginalize(model, y), starts=4)
    (finding,) = result.findings
    if a == 1.0:
        assert finding.startswith("The density is highest at the edge of the support of 'w', as of a weight that is 0")
        assert result.starts.modes[0].kind == EDGE
        assert result.info["agreement"] == "4 of 4 starts reach this edge."
        np.testing.assert_allclose(result.draws["w"].item(), 1.0, rtol=1e-6)
        np.testing.assert_allclose(result.info["log_density"], norm.logpdf(y, 3).sum(), rtol=1e-6)
    else:
        assert "the density grew without bound while 'w' ran away" in finding
        assert result.starts.modes[0].kind == UNBOUNDED


def test_an_interrupted_search_says_so_and_is_not_kept_as_complete(monkeypatch, tmp_path):
    class Interrupting(Silent):
        def update(self, done, note=""):
            if 2 <= done < 4:
                raise KeyboardInterrupt

    marginal = marginalize(two_modes, np.array(SEEN))
    options = {"random_seed": 3, "progressbar": False, "checkpoint": tmp_path / "run"}
    with monkeypatch.context() as patch:
        patch.setattr(driver, "make_progress", lambda show: Interrupting())
        part = infer.run(marginal, infer.MAP(starts=4), **options)
    assert part.findings[0].startswith("Interrupted: the mode is the best place found until then.")
    assert part.info["interrupted"]
    whole = infer.run(marginal, infer.MAP(starts=4), **options)
    assert (whole.starts.total, whole.info["interrupted"]) == (4, False)


def test_the_jacobian_moves_the_mode(five):
    other = _map(five_points(), jacobian=True)
    assert other.starts.jacobian
    assert not other.findings
    assert abs(other.draws["scale"].item() - five.draws["scale"].item()) > 0.01


def test_a_gaussian_has_its_mean_as_mode():
    result = _map(correlated_gaussian(), starts=5)
    np.testing.assert_allclose(result.draws["x"][0, 0], [1.0, -2.0], atol=1e-6)
    assert result.info["agreement"] == "5 of 5 starts reach this mode."
    assert result.findings == ()


def test_starts_respect_a_hard_constraint():
    y = np.concatenate([np.random.default_rng(0).normal(m, 1.0, 20) for m in (0.0, 10.0, 20.0)])
    result = _map(gaussian_mixture(y, 3, ordered_factor=True), starts=16)
    error = 1.0 / np.sqrt(20)  # standard error of a group's mean
    assert np.all(np.abs(result.draws["mu"][0, 0] - [0.0, 10.0, 20.0]) < 4 * error)
    assert result.starts.modes[0].kind == MAXIMUM


def test_too_few_steps_are_said():
    y = np.random.default_rng(0).normal(size=20)
    result = _map(gaussian_mixture(y, 2), starts=4, steps=2)
    assert "2 iterations are too few" in result.findings[0]


def test_impossible_rows_are_named():
    y = np.array([0.0, 1.0, np.nan, 3.0])
    with pytest.raises(FitError, match=r"'y': 1 of 4 terms are impossible at every start \(the first: 2\)"):
        _map(gaussian_mixture(y, 2))


def test_an_impossible_prior_is_named():
    good = gaussian_mixture(np.arange(5.0), 2)
    kernel = good.kernel

    class Impossible(type(kernel)):
        def log_density(self, params, data):
            return kernel.log_density(params, data) - np.inf

    broken = Impossible(kernel.data, kernel.supports, kernel.shapes, kernel.density, kernel.rows, kernel.prior)
    with pytest.raises(FitError, match="so a prior or a factor is not"):
        _map(FakeMarginal(broken, good.program))


def test_no_continuous_latent_is_refused():
    kernel = correlated_gaussian().kernel
    empty = type(kernel)(kernel.data, {}, {}, kernel.density, kernel.rows, lambda key: {})
    with pytest.raises(FitError, match="no continuous latent"):
        infer.run(FakeMarginal(empty, FakeProgram({})), "auto", progressbar=False)


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_a_senseless_seed_is_refused(seed):
    with pytest.raises(OptionError, match="random_seed: the seed makes no sense"):
        infer.run(correlated_gaussian(), "map", random_seed=seed)


def test_clusters_never_start_collapsed():
    rows = np.array([0.0, 0.0, 0.0, 50.0])
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = clustering(rows, 3, rng, increasing=True)
        assert np.all(found.spreads > 0)
        assert np.all(np.diff(found.centres[:, 0]) >= 0)
        np.testing.assert_allclose(found.shares.sum(), 1.0)


def test_agreement_in_words():
    modes = (Mode({}, -10.0, 61, MAXIMUM), Mode({}, -13.2, 3, MAXIMUM))
    assert Starts(modes, 64, True).sentence == "61 of 64 starts reach this mode; the next is 3.2 nats lower."
