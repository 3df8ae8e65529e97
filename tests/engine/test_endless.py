"""Discretes without a largest value: cut where nothing is lost that a double could hold, or refused.

The oracles sum tens of thousands of terms with SciPy, or know the sum in closed form.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats
from scipy.special import logsumexp

import marginalia as mg
from marginalia.marginal import cut
from study import close

MANY = np.arange(20_000)


def by_numpyro(make: Any, expected: np.ndarray) -> np.ndarray:
    """NumPyro's own numbers, which for negative binomials are right to 1e-5 only (its log-beta is a series)."""
    with jax.enable_x64(True):
        found = np.asarray(make().log_prob(MANY))
    assert np.abs(found - expected).max() < 1e-4
    return found


def families() -> dict[str, tuple[Any, Any]]:
    """Distribution of the latent given a rate, and its log-probabilities by SciPy."""
    return {
        "poisson": (lambda r: dist.Poisson(r), lambda r: stats.poisson.logpmf(MANY, r)),
        "geometric": (lambda r: dist.Geometric(1 / (1 + r)), lambda r: stats.geom.logpmf(MANY + 1, 1 / (1 + r))),
        "negative_binomial": (
            lambda r: dist.NegativeBinomial2(r, 0.3),  # a concentration below 1: neighbours' ratio grows
            lambda r: by_numpyro(
                lambda: dist.NegativeBinomial2(r, 0.3), stats.nbinom.logpmf(MANY, 0.3, 0.3 / (0.3 + r))
            ),
        ),
        "gamma_poisson": (
            lambda r: dist.GammaPoisson(4.0, 4.0 / r),
            lambda r: by_numpyro(
                lambda: dist.GammaPoisson(4.0, 4.0 / r), stats.nbinom.logpmf(MANY, 4.0, (4.0 / r) / (1 + 4.0 / r))
            ),
        ),
        "zero_inflated": (
            lambda r: dist.ZeroInflatedPoisson(0.4, r),
            lambda r: np.logaddexp(
                np.where(MANY == 0, np.log(0.4), -np.inf), np.log(0.6) + stats.poisson.logpmf(MANY, r)
            ),
        ),
        "hurdle": (
            lambda r: dist.HurdlePoisson(0.3, r),
            lambda r: np.where(
                MANY == 0, np.log(0.3), np.log(0.7) + stats.poisson.logpmf(MANY, r) - np.log1p(-np.exp(-r))
            ),
        ),
    }


Y = np.array([[1, 0, 2], [9, 7, 11]])


RATES = {"hurdle": 1.5, "gamma_poisson": 1.5, "zero_inflated": 1.5}


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in ("poisson", "zero_inflated") else pytest.mark.slow) for f in sorted(families())],
)
def test_counts_behind_counts_and_behind_measurements_are_exact(family: str) -> None:
    latent, log_prior = families()[family]
    rate = RATES.get(family, 40.0)

    def model(y, x):
        r = numpyro.sample("r", dist.Exponential(0.1))
        with numpyro.plate("site", 2):
            n = numpyro.sample("n", latent(r))
            m = numpyro.sample("m", latent(r))
            numpyro.sample("x", dist.Normal(1.0 * m, 2.0), obs=x)
        numpyro.sample("y", dist.Binomial(n[:, None], 0.3).expand([2, 3]).to_event(2), obs=y)

    x = np.array([0.5, 25.0])
    marginal = mg.marginalize(model, Y, x)
    prior = log_prior(rate)
    expected = stats.expon.logpdf(rate, scale=10)
    counts = prior + stats.binom.logpmf(Y[:, :, None], MANY, 0.3).sum(1)
    measured = prior + stats.norm.logpdf(x[:, None], MANY, 2.0)
    expected += logsumexp(counts, axis=1).sum() + logsumexp(measured, axis=1).sum()
    close(marginal.log_density({"r": rate}), expected, "log density")
    posterior = marginal.posterior({"r": rate})
    for name, terms in (("n", counts), ("m", measured)):
        kept = posterior[name].shape[-1]
        close(posterior[name], np.exp(terms - logsumexp(terms, axis=1)[:, None])[:, :kept], name)
    assert marginal.cuts.accepted


def test_the_gradient_is_that_of_the_whole_sum() -> None:
    def model():
        r = numpyro.sample("r", dist.Exponential(0.1))
        n = numpyro.sample("n", dist.Poisson(r))
        numpyro.sample("y", dist.Binomial(n, 0.3), obs=4)  # thinned: y ~ Poisson(0.3 r)

    marginal = mg.marginalize(model)
    with jax.enable_x64(True):
        slope = jax.grad(lambda r: marginal.log_density({"r": r}))(jnp.asarray(7.0))
    close(slope, -0.1 - 0.3 + 4 / 7.0, "gradient")


def test_a_sum_of_two_is_the_sum_of_their_rates() -> None:
    def model():
        a = numpyro.sample("a", dist.Poisson(3.0))
        b = numpyro.sample("b", dist.Poisson(4.5))
        numpyro.sample("y", dist.Normal(1.0 * (a + b), 0.7), obs=9.2)

    expected = logsumexp(stats.poisson.logpmf(MANY, 7.5) + stats.norm.logpdf(9.2, MANY, 0.7))
    close(mg.marginalize(model).log_density({}), expected, "log density")


def test_more_values_are_kept_where_parameters_need_them() -> None:
    def model():
        r = numpyro.sample("r", dist.Exponential(1.0))
        n = numpyro.sample("n", dist.Poisson(r))
        numpyro.sample("y", dist.Normal(1.0 * n, 1.0), obs=3.0)

    marginal = mg.marginalize(model)
    first = len(marginal.program.discretes["n"].values)
    near, far = marginal.log_density({"r": 2.0}), marginal.log_density({"r": 700.0})
    for rate, found in ((2.0, near), (700.0, far)):
        terms = stats.poisson.logpmf(MANY, rate) + stats.norm.logpdf(3.0, MANY, 1.0)
        close(found, -rate + logsumexp(terms), f"rate {rate}")
    assert first == 64
    fixed = marginal.covering({"r": np.array([2.0, 400.0])})
    assert fixed.cuts.accepted


def test_a_cut_that_loses_something_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: never moving the cut gives another number, which the bounds do not accept."""

    def model():
        n = numpyro.sample("n", dist.Poisson(55.0))
        numpyro.sample("y", dist.Normal(1.0 * n, 5.0), obs=60.0)

    marginal = mg.marginalize(model)
    expected = logsumexp(stats.poisson.logpmf(MANY, 55.0) + stats.norm.logpdf(60.0, MANY, 5.0))
    close(marginal.log_density({}), expected, "log density")

    def never(self, points, kept, before=None):
        return cut.Proof(dict(kept), self._cuts(kept, dict.fromkeys(kept, np.inf)))

    monkeypatch.setattr(cut.Check, "widened", never)
    narrow = mg.marginalize(model)
    assert abs(narrow.log_density({}) - expected) > 1e-3
    assert not narrow.cuts.accepted


def poisson(rate: float) -> np.ndarray:
    return stats.poisson.logpmf(MANY, rate)


def classes_far_apart():
    z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
    numpyro.sample("n", dist.Poisson(jnp.array([5.0, 500.0])[z]))
    numpyro.sample("x", dist.Normal(jnp.array([0.0, 3.0])[z], 1.0), obs=3.0)


def counted_by_class():
    z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.sample("n", dist.Poisson(jnp.where(z == 1, 300.0, 4.0)))
    numpyro.sample("x", dist.Bernoulli(0.1 + 0.8 * z), obs=1)


def poisson_of_a_poisson():
    a = numpyro.sample("a", dist.Poisson(0.7))
    numpyro.sample("b", dist.Poisson(1 + 500.0 * a))
    numpyro.sample("x", dist.Normal(1.0 * a, 0.5), obs=2.0)


def remainder():
    n = numpyro.sample("n", dist.Poisson(90.0))
    numpyro.sample("y", dist.Normal(1.0 * (n % 50), 0.01), obs=0.0)


def beyond_a_threshold():
    n = numpyro.sample("n", dist.Poisson(20.0))
    numpyro.sample("y", dist.Normal(jnp.where(n > 70, 10.0, 0.0), 0.5), obs=10.0)


HIDDEN = {
    classes_far_apart: logsumexp(np.log(0.5) + stats.norm.logpdf(3.0, [0.0, 3.0])),
    counted_by_class: np.log(0.5 * 0.1 + 0.5 * 0.9),
    poisson_of_a_poisson: logsumexp(poisson(0.7) + stats.norm.logpdf(2.0, MANY, 0.5)),
    remainder: logsumexp(poisson(90.0) + stats.norm.logpdf(0.0, MANY % 50, 0.01)),
    beyond_a_threshold: logsumexp(poisson(20.0) + stats.norm.logpdf(10.0, np.where(MANY > 70, 10.0, 0.0), 0.5)),
}


@pytest.mark.parametrize(
    "model",
    [pytest.param(m, marks=pytest.mark.slow if m.__name__ == "poisson_of_a_poisson" else ()) for m in HIDDEN],
    ids=lambda m: m.__name__,
)
def test_what_lies_beyond_the_first_cut_is_not_missed(model: Any) -> None:
    """Once found wrong: a class whose counts all lie beyond the cut, a term that rises again there."""
    close(mg.marginalize(model).log_density({}), HIDDEN[model], "log density")


def test_a_chain_of_counts_is_exact() -> None:
    seen = np.array([1.0, 3.0, 2.0, 0.0, 1.0])

    def model():
        def step(before, now):
            n = numpyro.sample("n", dist.Poisson(0.5 * before + 1.0))
            numpyro.sample("y", dist.Normal(1.0 * n, 1.0), obs=now)
            return n, None

        scan(step, 2, jnp.asarray(seen))

    few = MANY[:200]
    log = stats.poisson.logpmf(few, 2.0) + stats.norm.logpdf(seen[0], few, 1.0)
    for now in seen[1:]:
        log = logsumexp(log + stats.poisson.logpmf(few[:, None], 0.5 * few + 1.0), axis=1) + stats.norm.logpdf(now, few)
    close(mg.marginalize(model).log_density({}), logsumexp(log), "log density")


def test_draws_modes_and_explanation_speak_of_the_values() -> None:
    def model(y):
        r = numpyro.sample("r", dist.Gamma(2.0, 0.1))
        with numpyro.plate("site", 2, dim=-2):
            n = numpyro.sample("n", dist.Poisson(r))
            with numpyro.plate("visit", 3):
                numpyro.sample("y", dist.Binomial(n, 0.3), obs=y)

    marginal = mg.marginalize(model, Y)
    drawn, mode = marginal.sample({"r": 20.0}, 0)["n"], marginal.mode({"r": 20.0})["n"]
    assert (drawn >= Y.max(1, keepdims=True)).all()
    terms = stats.poisson.logpmf(MANY, 20.0) + stats.binom.logpmf(Y[:, :, None], MANY, 0.3).sum(1)
    assert np.array_equal(mode[:, 0], terms.argmax(1))
    assert "0, 1, ... cut after" in marginal.explain()
    assert "times that (proved)" in marginal.explain()
    assert mg.verify(marginal).agrees
    again = marginal.rebind(Y + 1)
    assert again.program.discretes["n"].values[-1] == marginal.program.discretes["n"].values[-1]


def test_starts_are_drawn_where_latents_hang_on_counts() -> None:
    """JAX's Poisson variates know one generator alone, and that of the starts is another."""

    def model():
        n = numpyro.sample("n", dist.Poisson(3.0))
        x = numpyro.sample("x", dist.Normal(1.0 * n, 0.1))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=2.0)

    kernel = mg.marginalize(model).kernel
    with jax.enable_x64(True):
        x = kernel.draw_prior(np.random.default_rng(1).integers(2**32, size=(1000, 2), dtype=np.uint32))["x"]
    assert abs(x.mean() - 3) < 4 * np.sqrt(3.01 / 1000)
    assert abs(x.var() - 3.01) < 4 * np.sqrt((3 + 2 * 3.01**2) / 1000)


@pytest.mark.slow
def test_a_fit_keeps_what_its_draws_need() -> None:
    def model(y):
        r = numpyro.sample("r", dist.LogNormal(0.0, 3.0))
        with numpyro.plate("row", 3):
            n = numpyro.sample("n", dist.Poisson(r))
            numpyro.sample("y", dist.Normal(1.0 * n, 10.0), obs=y)

    y = np.array([310.0, 290.0, 305.0])
    fit = mg.fit(model, y, method=mg.NUTS(draws=1000, tune=500, chains=2), random_seed=1, progressbar=False)
    assert fit.marginal.cuts.accepted
    grid = np.linspace(230.0, 400.0, 400)
    each = logsumexp(
        stats.poisson.logpmf(MANY[:600], grid[:, None, None]) + stats.norm.logpdf(y[:, None], MANY[:600], 10.0), 2
    )
    weight = np.exp(each.sum(1) + stats.lognorm.logpdf(grid, 3.0) - each.sum(1).max())
    exact = (weight * grid).sum() / weight.sum()
    summary = fit.summary().loc["r"]
    assert abs(summary["mean"] - exact) < 4 * summary["sd"] / np.sqrt(summary["ess_bulk"])
    assert fit.membership(y + 40.0)["n"].shape[0] == 3


def test_a_sum_without_end_is_refused() -> None:
    def grows():
        n = numpyro.sample("n", dist.Geometric(0.1))
        numpyro.factor("f", 0.2 * n)

    def masked():
        n = numpyro.sample("n", dist.Poisson(3.0).mask(False))
        numpyro.sample("y", dist.Normal(0.0 * n, 1.0), obs=1.0)

    for model in (grows, masked):
        with pytest.raises(mg.Refusal) as caught:
            mg.marginalize(model).log_density({})
        for words in ("site 'n'", "cannot be bounded", "max_lost", "Remedy"):
            assert words in str(caught.value)


def test_the_largest_loss_is_a_setting() -> None:
    def model():
        n = numpyro.sample("n", dist.Geometric(0.05))
        numpyro.sample("y", dist.Bernoulli(1 / (1.0 + n)), obs=1)

    strict = mg.marginalize(model)
    with mg.limits(max_lost=1e-3):
        lax = mg.marginalize(model)
        lax.log_density({})
    strict.log_density({})
    assert len(lax.program.discretes["n"].values) < len(strict.program.discretes["n"].values)
    with pytest.raises(mg.OptionError, match="max_lost"), mg.limits(max_lost=2.0):
        pass


def test_partly_observed_counts() -> None:
    seen = np.array([5, 0, 130])
    mask = np.array([True, False, True])

    def model(y):
        r = numpyro.sample("r", dist.Exponential(0.1))
        with numpyro.plate("row", 3):
            n = numpyro.sample("n", dist.Poisson(r), obs=seen, obs_mask=mask)
            numpyro.sample("y", dist.Normal(1.0 * n, 2.0), obs=y)

    y = np.array([4.0, 8.0, 128.0])
    marginal = mg.marginalize(model, y)
    expected = stats.expon.logpdf(9.0, scale=10) + stats.poisson.logpmf(seen, 9.0)[mask].sum()
    expected += stats.norm.logpdf(y, seen, 2.0)[mask].sum()
    expected += logsumexp(stats.poisson.logpmf(MANY, 9.0) + stats.norm.logpdf(8.0, MANY, 2.0))
    close(marginal.log_density({"r": 9.0}), expected, "log density")
