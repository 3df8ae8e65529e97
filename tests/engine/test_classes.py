"""Elements whose data are equal are computed once: the same numbers as when each is computed, gradient included."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from jax.scipy.special import gammaln, logsumexp, xlog1py, xlogy
from numpyro.contrib.control_flow import scan as numpyro_scan

import marginalia as mg
from marginalia.classes.density import by_equal_elements
from marginalia.classes.rules import weighted_sum
from marginalia.marginal.kernel import Kernel
from study import study
from zoo import CASES

RNG = np.random.default_rng(0)
BITS = RNG.integers(0, 2, (60, 4))
COUNTS = RNG.integers(0, 4, (50, 3))
GROUP = np.sort(RNG.integers(0, 12, 60))
HISTORIES = BITS[RNG.integers(0, 6, 60)]
X = RNG.normal(size=60)
STATES = np.arange(6.0)[:, None, None]


def item_responses(p, y):
    """Latent classes: sums over items, then over states."""
    table = y * jnp.log(p["a"])[:, None, None] + (1 - y) * jnp.log1p(-p["a"])[:, None, None]
    return logsumexp(table.sum(-1) + p["b"][:, None], axis=0).sum()


def abundance(p, y):
    ways = gammaln(STATES + 1) - gammaln(y + 1.0) - gammaln(jnp.maximum(STATES - y, 0) + 1.0)
    table = jnp.where(y <= STATES, ways + y * jnp.log(p["a"][0]) + (STATES - y) * jnp.log1p(-p["a"][0]), -jnp.inf)
    rate = jnp.exp(p["b"][0] + 0.1 * jnp.arange(len(y)))
    return logsumexp(table.sum(-1) + STATES[..., 0] * jnp.log(rate) - rate, axis=0).sum()


def entropies(p, y):
    """Functions with derivatives of their own."""
    y = y.astype(float)
    chance = jnp.stack([p["a"], 1 - p["a"]])[:, BITS]
    return (xlogy(y, chance) + xlog1py(1 - y, -chance) + jax.nn.softplus(p["b"][0] * y)).sum()


def histories(p, y):
    def step(carry, now):
        alive = carry[0] * p["a"][0] * jnp.where(now == 1, p["a"][1], 1 - p["a"][1])
        dead = jnp.where(now == 1, 0.0, carry[1] + carry[0] * (1 - p["a"][0]))
        return (alive, dead), alive + dead

    start = (jnp.ones(len(y)), jnp.zeros(len(y)))
    (alive, dead), kept = lax.scan(step, start, y.T)
    return jnp.log(alive + dead).sum() + jnp.sin(kept).sum()


def backwards(p, y):
    return lax.scan(lambda c, now: (jnp.tanh(c * p["a"][0] + now), c), jnp.zeros(4), y, reverse=True)[1].sum()


def groups(p, y):
    own = jnp.log(jnp.where(y == 1, p["a"][0], 1 - p["a"][0])).sum(-1)
    total = jax.ops.segment_sum(own, GROUP, 12)
    wide = jnp.zeros((2, 12)).at[:, GROUP].add(jnp.stack([own, 2 * own]))
    return jnp.exp(total).sum() + jnp.sin(wide).sum()


def looked_up(p, y):
    table = jnp.outer(p["a"], p["b"])
    return (jnp.exp(table[y[:, 0], y[:, 1]]) * p["b"][GROUP % 3]).sum() + jnp.take_along_axis(
        jnp.broadcast_to(p["a"], (60, 3)), y[:, :2], axis=1
    ).prod()


def moved(p, y):
    table = jnp.sin(p["a"][:, None, None] * y)
    parts = [table[:, ::2, 1:3], table[:, 1::2, :2] * p["b"][:, None, None]]
    both = jnp.concatenate(parts, axis=1).transpose(2, 0, 1).reshape(6, -1)[::-1]
    return (both * jnp.cumsum(p["a"])[0]).max(1).sum() + jnp.cumsum(both, axis=0)[3, 5] + jnp.prod(both[:, :3])


def continuous(p, y):
    """Nothing is equal beside the data that are."""
    return logsumexp(p["b"][:, None] - 0.5 * (X - p["a"][:, None] * y[:, 0]) ** 2, axis=0).sum()


def chosen(p, y):
    return lax.cond(p["a"][0] > 0.1, lambda v: jnp.sin(v * p["b"][0]).sum(), lambda v: v.sum() * 1.0, y)


def impossible(p, y):
    """Sums in which some terms are impossible, and where some class is not met at all."""
    table = jnp.where(y == 3, -jnp.inf, jnp.log(p["a"][0]) * y)
    rows = jnp.where((y == 3).any(1), 0.0, table.sum(1))
    return logsumexp(jnp.stack([table.sum(1), jnp.log(p["a"][1]) * y.sum(1)]), axis=0).sum() + rows.sum()


FUNCTIONS = {
    item_responses: BITS, abundance: COUNTS, entropies: BITS, histories: HISTORIES, backwards: BITS, groups: HISTORIES,
    looked_up: BITS, moved: COUNTS, continuous: BITS, chosen: BITS, impossible: COUNTS,
}  # fmt: skip
PARAMS = {"a": np.array([0.3, 0.6, 0.8]), "b": np.array([-0.4, 0.2, 0.9])}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_function_by_classes_is_the_function(function):
    data = (FUNCTIONS[function],)
    with jax.enable_x64(True):
        params = {n: jnp.asarray(v) for n, v in PARAMS.items()}

        def plain(p, d):
            return function(p, d[0])

        found = by_equal_elements(plain, params, data, fewest=0, worth=0.0)
        assert found is not None
        value, slope = jax.value_and_grad(found)(params, data)
        expected, expected_slope = jax.value_and_grad(plain)(params, data)
        assert np.isfinite(expected)
        assert float(value) == pytest.approx(float(expected), rel=1e-12)
        for name in params:
            assert np.asarray(slope[name]) == pytest.approx(np.asarray(expected_slope[name]), rel=1e-10, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_second_derivatives_by_classes_are_those_of_the_function(function):
    data = (FUNCTIONS[function],)
    with jax.enable_x64(True):
        params = {n: jnp.asarray(v) for n, v in PARAMS.items()}

        def plain(p, d):
            return function(p, d[0])

        found = by_equal_elements(plain, params, data, fewest=0, worth=0.0)
        got, expected = jax.hessian(found)(params, data), jax.hessian(plain)(params, data)
        for n, m in ("aa", "ab", "bb"):
            assert np.asarray(got[n][m]) == pytest.approx(np.asarray(expected[n][m]), rel=1e-9, abs=1e-9)


def test_a_class_that_is_not_met_adds_nothing_and_infinities_stay_what_they_are():
    table = np.array([[1.0, -np.inf, np.inf, np.nan, 2.0]])
    rows = [[0, 0, 4], [0, 1], [2, 2], [1, 2], [3], [0, 3, 1], [2, 0], [4]]
    counts = np.zeros((5, len(rows)))
    for r, row in enumerate(rows):
        for c in row:
            counts[c, r] += 1
    with jax.enable_x64(True):
        found = np.asarray(weighted_sum(jnp.asarray(table), counts))[0]
    with np.errstate(invalid="ignore"):
        expected = [table[0, row].sum() for row in rows]
    np.testing.assert_array_equal(found, expected)


def _captures(seen):
    animals, occasions = seen.shape
    phi = numpyro.sample("phi", dist.Uniform(0, 1))
    p = numpyro.sample("p", dist.Uniform(0, 1).expand([occasions]).to_event(1))
    alive = jnp.ones(animals, int)
    with numpyro.plate("animal", animals):
        for t in range(occasions):
            alive = numpyro.sample(f"alive{t}", dist.Bernoulli(phi * alive))
            numpyro.sample(f"seen{t}", dist.Bernoulli(p[t] * alive), obs=seen[:, t])


def _captures_by_scan(seen):
    animals, occasions = seen.shape
    phi = numpyro.sample("phi", dist.Uniform(0, 1))
    p = numpyro.sample("p", dist.Uniform(0, 1).expand([occasions]).to_event(1))

    def step(alive, now):
        chance, own = now
        with numpyro.plate("animal", animals):
            alive = numpyro.sample("alive", dist.Bernoulli(phi * alive))
            numpyro.sample("seen", dist.Bernoulli(chance * alive), obs=own)
        return alive, None

    numpyro_scan(step, jnp.ones(animals, int), (p, seen.T))


@pytest.mark.parametrize("model", [_captures, _captures_by_scan], ids=["loop", "scan"])
def test_equal_histories_are_evaluated_once(model):
    base = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]])
    times = np.array([400, 300, 200, 100])
    seen = np.repeat(base, times, axis=0)[np.random.default_rng(1).permutation(1000)]
    marginal = mg.marginalize(model, seen)
    params = {"phi": 0.7, "p": np.array([0.4, 0.5, 0.6])}
    alpha = np.stack([np.ones(4), np.zeros(4)])
    for t in range(3):
        alive, dead = alpha[0] * 0.7, alpha[1] + alpha[0] * 0.3
        p = params["p"][t]
        alpha = np.stack([alive * np.where(base[:, t], p, 1 - p), np.where(base[:, t], 0.0, dead)])
    each = np.log(alpha.sum(0))
    with jax.enable_x64(True):
        kernel, at = marginal.kernel, {n: jnp.asarray(v) for n, v in params.items()}
        slope, expected = (jax.grad(f)(at, kernel.data) for f in (kernel.log_density, kernel.log_density_whole))
        for n in params:
            assert np.asarray(slope[n]) == pytest.approx(np.asarray(expected[n]), rel=1e-10)
    assert float(marginal.log_density(params)) == pytest.approx(times @ each, rel=1e-12)
    assert marginal.kernel.by_classes.computed * 50 < marginal.kernel.by_classes.otherwise
    assert "Elements whose data are equal are computed once and counted" in marginal.explain()
    # The units, and what is recovered, are of each row.
    (units,) = marginal.log_likelihood(params).values()
    of_row = (seen[:, None] == base).all(-1).argmax(1)
    assert units == pytest.approx(each[of_row], rel=1e-12)
    # Other data are other classes.
    assert float(marginal.rebind(seen[:500]).log_density(params)) == pytest.approx(each[of_row[:500]].sum(), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_every_case_of_the_zoo_is_the_same_by_classes(name, monkeypatch):
    monkeypatch.setattr("marginalia.classes.density._repeats", lambda x: True)
    s = study(name)
    if s.refused:
        pytest.skip("refused, which another test looks at")
    kernel: Kernel = s.marginal.kernel
    with jax.enable_x64(True):
        found = by_equal_elements(
            kernel.log_density_whole, kernel.abstract_params(), kernel.closed, fewest=0, worth=0.0
        )
        if found is None:
            assert not kernel.closed
            return
        value, slope = jax.jit(jax.value_and_grad(found))(s.params, kernel.closed)
        expected, expected_slope = jax.jit(jax.value_and_grad(kernel.log_density_whole))(s.params, kernel.closed)
        assert float(value) == pytest.approx(float(expected), rel=1e-12)
        for n, x in expected_slope.items():
            scale = max(1.0, float(np.abs(x).max(initial=0.0)))
            assert np.asarray(slope[n]) == pytest.approx(np.asarray(x), abs=1e-10 * scale), n
    assert math.isfinite(float(value))
