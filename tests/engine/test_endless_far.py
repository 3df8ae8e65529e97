"""Sums without end whose terms have a mode far away: exact within the bound that is reported, or refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from endless_pairs import LIKELIHOODS, MANY, PRIORS, exact, program
from numpyro.contrib.control_flow import scan
from scipy import stats
from scipy.special import logsumexp

import marginalia as mg
from marginalia import families
from study import close

FOUND = [
    ("poisson 5", "one of two"),  # once found wrong: the terms fell at the cut, and rose again at 97
    ("poisson 5", "one far bonus"),
    ("poisson 5", "a narrow far table"),
]
INFINITE = {("geometric", "infinite"), ("poisson 5", "without a bound"), ("slow geometric", "growth")}


def compare(prior: str, likelihood: str) -> None:
    """What is kept is no more than the sum, and with what may be lost no less."""
    marginal = mg.marginalize(program(prior, likelihood))
    found, expected = float(marginal.log_density({})), exact(prior, likelihood)
    close(found, expected, f"{prior}, {likelihood}")
    assert marginal.cuts.lost["k"].most <= 1e-12


@pytest.mark.parametrize(("prior", "likelihood"), FOUND)
def test_a_mode_far_away_is_found(prior: str, likelihood: str) -> None:
    compare(prior, likelihood)


@pytest.mark.parametrize(
    ("prior", "likelihood"),
    [*sorted(INFINITE)[:1], *(pytest.param(*p, marks=pytest.mark.slow) for p in sorted(INFINITE)[1:])],
)
def test_a_sum_that_is_infinite_is_refused(prior: str, likelihood: str) -> None:
    with pytest.raises(mg.Refusal, match="cannot be bounded"):
        mg.marginalize(program(prior, likelihood)).log_density({})


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
def test_every_pair_is_exact_or_infinite(likelihood: str) -> None:
    """No pair whose sum is finite is refused."""
    for prior in PRIORS:
        if likelihood not in ("infinite", "without a bound") and (prior, likelihood) not in INFINITE:
            compare(prior, likelihood)


def test_a_family_of_ones_own_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(dist.Poisson):
        """A user's subclass with probabilities of its own is not taken for a Poisson."""

        def log_prob(self, value: Any) -> Any:
            return super().log_prob(value) + jnp.log(2.0)

    class Borel(dist.Distribution):
        """Of a latent: falls as exp(-(m - 1 - log m) k)."""

        support = dist.constraints.nonnegative_integer
        pytree_data_fields = ("m",)

        def __init__(self, m: Any):
            self.m = m
            super().__init__(jnp.shape(m))

        def log_prob(self, value: Any) -> Any:
            n = value + 1.0
            return -self.m * n + (n - 1.0) * jnp.log(self.m * n) - jax.scipy.special.gammaln(n + 1.0)

    def model(kind: Any):
        k = numpyro.sample("k", kind)
        numpyro.sample("y", dist.Normal(1.0 * k, 1.0), obs=2.0)

    for kind in (Doubled(3.0), Borel(0.4)):
        with pytest.raises(mg.Refusal, match="infinitely many states"):
            mg.marginalize(model, kind)

    def tail(start: float, m: Any) -> Any:
        high = np.asarray(m[1], float)
        return np.minimum(
            0.0, start * (1.0 - high + np.log(high)) + 1.0 - high - np.log1p(-np.exp(1.0 - high + np.log(high)))
        )

    monkeypatch.setattr(families, "FAMILIES", [*families.FAMILIES, families.Family((Borel,), lambda fn: (fn.m,), tail)])
    n = MANY[:2000] + 1.0
    log = -0.4 * n + (n - 1) * np.log(0.4 * n) - np.cumsum(np.log(n)) + stats.norm.logpdf(2.0, n - 1, 1.0)
    close(mg.marginalize(model, Borel(0.4)).log_density({}), logsumexp(log), "log density")


def test_up_to_is_on_the_users_word() -> None:
    def model():
        n = numpyro.sample("n", dist.Geometric(0.1))
        numpyro.factor("f", 0.2 * n)  # no finite sum

    with mg.limits(up_to=40):
        marginal = mg.marginalize(model)
    few = np.arange(41)
    expected = logsumexp(stats.geom.logpmf(few + 1, 0.1) + 0.2 * few)
    for each in (marginal, marginal.rebind()):
        close(each.log_density({}), expected, "log density")
        assert each.posterior({})["n"].shape == (41,)
        assert "mg.limits(up_to=...) says" in each.explain()
    with mg.limits(up_to={"other": 40}), pytest.raises(mg.Refusal, match="up_to"):
        mg.marginalize(model).log_density({})
    for wrong in (1, 2.5, {"n": "x"}, True):
        with pytest.raises(mg.OptionError, match="up_to"), mg.limits(up_to=wrong):
            pass


def test_up_to_serves_families_whose_tails_are_not_known() -> None:
    def model():
        k = numpyro.sample("k", dist.BetaNegativeBinomial(4.0, 3.0, 5.0))
        numpyro.sample("y", dist.Poisson(0.5 + k), obs=3)

    with pytest.raises(mg.Refusal, match=r"up_to=\{'k': 500\}"):
        mg.marginalize(model)
    with mg.limits(up_to={"k": 300}):
        found = mg.marginalize(model).log_density({})
    with jax.enable_x64(True):
        k = jnp.arange(301)
        log = dist.BetaNegativeBinomial(4.0, 3.0, 5.0).log_prob(k) + dist.Poisson(0.5 + k).log_prob(3)
    close(found, logsumexp(np.asarray(log)), "log density")


def poisson(rate: float) -> np.ndarray:
    return stats.poisson.logpmf(MANY, rate)


def bonus_to_each_of_a_plate():
    with numpyro.plate("i", 3):
        k = numpyro.sample("k", dist.Poisson(jnp.array([1.0, 5.0, 20.0])))
    numpyro.factor("f", jnp.where(k == 150, 900.0, 0.0).sum())


def bonus_in_one_class():
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    k = numpyro.sample("k", dist.Poisson(jnp.where(z == 1, 2.0, 6.0)))
    numpyro.factor("f", jnp.where((k == 180) & (z == 1), 2000.0, 0.0))


def steps_of_a_scan():
    def step(carry, y):
        k = numpyro.sample("k", dist.Poisson(3.0))
        numpyro.sample("y", dist.Normal(jnp.where(k == 100, 50.0, 0.0), 0.1), obs=y)
        return carry, None

    scan(step, 0, jnp.array([0.1, 50.0]))


def both_of_two():
    a, b = (numpyro.sample(name, dist.Poisson(4.0)) for name in "ab")
    numpyro.factor("f", jnp.where((a == 90) & (b == 80), 1500.0, 0.0))


def twice_by_scale():
    with numpyro.handlers.scale(scale=2.0):
        k = numpyro.sample("k", dist.Poisson(5.0))
        numpyro.factor("f", jnp.where(k == 150, 900.0, 0.0))


def growing_chain():
    n = 2
    for t, y in enumerate([3.0, 5.0, 9.0]):
        n = numpyro.sample(f"n{t}", dist.Poisson(1.6 * n + 0.1))
        numpyro.sample(f"y{t}", dist.Normal(1.0 * n, 2.0), obs=y)


def chained() -> float:
    few = MANY[:1000]
    log = stats.poisson.logpmf(few, 3.3) + stats.norm.logpdf(3.0, few, 2.0)
    for y in (5.0, 9.0):
        step = stats.poisson.logpmf(few[None], 1.6 * few[:, None] + 0.1)
        log = logsumexp(log[:, None] + step, axis=0) + stats.norm.logpdf(y, few, 2.0)
    return float(logsumexp(log))


def at(place: int, more: float) -> np.ndarray:
    return np.where(place == MANY, more, 0.0)


FAR: dict[Any, float] = {
    bonus_to_each_of_a_plate: sum(logsumexp(poisson(rate) + at(150, 900.0)) for rate in (1.0, 5.0, 20.0)),
    bonus_in_one_class: np.logaddexp(np.log(0.7), np.log(0.3) + logsumexp(poisson(2.0) + at(180, 2000.0))),
    steps_of_a_scan: sum(logsumexp(poisson(3.0) + stats.norm.logpdf(y, at(100, 50.0), 0.1)) for y in (0.1, 50.0)),
    both_of_two: np.logaddexp(0.0, 1500.0 + poisson(4.0)[90] + poisson(4.0)[80]),
    twice_by_scale: 2 * logsumexp(poisson(5.0) + at(150, 900.0)),
    growing_chain: chained(),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", FAR, ids=lambda m: m.__name__)
def test_what_several_discretes_have_far_away_is_found(model: Any) -> None:
    close(mg.marginalize(model).log_density({}), FAR[model], "log density")


def test_values_that_are_needed_and_cannot_be_held_are_refused_in_words():
    def model():
        k = numpyro.sample("k", dist.Poisson(5.0).expand([2]))
        numpyro.sample("y", dist.Normal(jnp.max(k), 1.0), obs=60.0)

    with mg.limits(max_states=64 * 64), pytest.raises(mg.Refusal, match=r"cannot be held"):
        mg.marginalize(model).log_density({})
