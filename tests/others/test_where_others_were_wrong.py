"""Public faults of other tools, each as its smallest case with the right value (docs/where-others-were-wrong.md).

The right values come from NumPy and SciPy written out here, from closed forms, or from enumeration.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats
from scipy.special import gammaln, logsumexp

import marginalia as mg
from marginalia.precision import float64
from oracle import enumerate_all


def _gradient(marginal, params):
    """Of the log density, by JAX."""
    with float64():
        params = {name: jnp.asarray(value, float) for name, value in params.items()}
        slopes = jax.jit(jax.grad(marginal.kernel.log_density))(params, marginal.kernel.data)
    return {name: np.asarray(slope) for name, slope in slopes.items()}


def _forward(log_initial, log_transition, log_emission):
    """log p(data) of a hidden Markov chain: the recursion in logarithms, `log_emission` `(T, K)`."""
    now = log_initial + log_emission[0]
    for step in log_emission[1:]:
        now = logsumexp(now[:, None] + log_transition, axis=0) + step
    return logsumexp(now)


P = np.array([[0.95, 0.05], [0.15, 0.85]])
SD = np.array([0.032, 0.070])


def six_a_step(y):
    sd = numpyro.sample("sd", dist.HalfNormal(1).expand([2]))

    def step(z, row):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(P)[z]))
        numpyro.sample("y", dist.Normal(0, sd[z]).expand([6]).to_event(1), obs=row)
        return z, None

    scan(step, 0, y)


def _returns(T):
    rng, z = np.random.default_rng(0), 0
    out = np.empty((T, 6))
    for t in range(T):
        z = rng.choice(2, p=P[z])
        out[t] = rng.normal(0, SD[z], 6)
    return out


def _emission(y, sd):
    return stats.norm.logpdf(y[:, :, None], 0, sd).sum(1)


@pytest.mark.parametrize("T", [200, *(pytest.param(T, marks=pytest.mark.slow) for T in (2000, 100_000))])
def test_a_long_chain_of_high_densities_has_a_finite_gradient(T):
    """pymc-extras 720: the density was right, the gradient NaN from some 90 steps on."""
    y = _returns(T)
    marginal = mg.marginalize(six_a_step, y)
    prior = stats.halfnorm.logpdf(SD).sum()
    truth = _forward(np.log(P[0]), np.log(P), _emission(y, SD)) + prior
    assert truth / T > 7  # nats a step: e^(7 T) overflows
    assert marginal.log_density({"sd": SD}) == pytest.approx(truth, rel=1e-10)
    slope = _gradient(marginal, {"sd": SD})["sd"]
    ahead = [marginal.log_density({"sd": SD + step}) for step in np.eye(2) * 1e-6]
    behind = [marginal.log_density({"sd": SD - step}) for step in np.eye(2) * 1e-6]
    np.testing.assert_allclose(slope, (np.array(ahead) - behind) / 2e-6, rtol=1e-3)


@pytest.mark.parametrize("height", [690.0, pytest.param(-690.0, marks=pytest.mark.slow)], ids=["1e300", "1e-300"])
def test_densities_of_any_height_a_step_do_not_overflow(height):
    """The sibling: each step's density is 10^300, or 10^-300."""

    def model(T):
        m = numpyro.sample("m", dist.Normal(0, 1))

        def step(z, _):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(P)[z]))
            numpyro.factor("f", height + m * z)
            return z, None

        scan(step, 0, jnp.arange(T))

    T, m = 300, 0.3
    marginal = mg.marginalize(model, T)
    logs = np.tile(height + m * np.arange(2), (T, 1))
    truth = _forward(np.log(P[0]), np.log(P), logs) + stats.norm.logpdf(m)
    assert marginal.log_density({"m": m}) == pytest.approx(truth, rel=1e-12)
    np.testing.assert_allclose(marginal.posterior({"m": m})["z"].sum(-1), 1, atol=1e-12)
    assert np.isfinite(_gradient(marginal, {"m": m})["m"])


def two_weibulls(y):
    w = numpyro.sample("w", dist.Beta(1, 1))
    k = numpyro.sample("k", dist.LogNormal(0, 1).expand([2]))
    s = numpyro.sample("s", dist.LogNormal(3, 1).expand([2]))
    with numpyro.plate("row", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(w))
        numpyro.sample("y", dist.Weibull(s[z], k[z]), obs=y)


def test_equal_rows_count_as_often_as_they_are():
    """SurPyval 254: n equal rows gave n times the components' sum in the wrong place; right is (sum of w f)^n."""
    rng = np.random.default_rng(1)
    exact = np.concatenate([10 * rng.weibull(2.0, 300), 40 * rng.weibull(5.0, 300)])
    y = np.maximum(np.round(exact), 1.0)
    assert len(np.unique(y)) < 70
    params = {"w": 0.45, "k": np.array([2.0, 5.0]), "s": np.array([10.0, 40.0])}
    parts = np.stack(
        [stats.weibull_min.logpdf(y, k, scale=s) for k, s in zip(params["k"], params["s"], strict=True)], 1
    )
    truth = logsumexp(parts + np.log([0.55, 0.45]), axis=1).sum()
    truth += sum(stats.lognorm.logpdf(params[n], 1, scale=np.exp(m)).sum() for n, m in (("k", 0), ("s", 3)))
    assert mg.marginalize(two_weibulls, y).log_density(params) == pytest.approx(truth, rel=1e-12)


@pytest.mark.slow
def test_rounded_data_give_the_weights_of_the_data_that_were_rounded():
    """The consequence there: weights (.138, .862) from rounded data, (.504, .496) from the same data jittered."""
    rng = np.random.default_rng(1)
    exact = np.concatenate([10 * rng.weibull(2.0, 300), 40 * rng.weibull(5.0, 300)])
    weights = []
    for y in (np.maximum(np.round(exact), 1.0), exact):
        fit = mg.fit(two_weibulls, y, method=mg.MAP(starts=16), random_seed=1, progressbar=False)
        w = float(fit.draws["w"][0, 0])
        weights.append(max(w, 1 - w) if fit.draws["s"][0, 0, 0] < fit.draws["s"][0, 0, 1] else min(w, 1 - w))
    assert abs(weights[0] - weights[1]) < 0.02
    assert all(abs(w - 0.5) < 0.05 for w in weights)


def padded(y, length):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
    transition = jnp.array([[0.8, 0.2], [0.3, 0.7]])

    def step(z, row):
        t, value = row
        z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, w, transition[z])))
        numpyro.sample("y", dist.Normal(jnp.array([0.0, 3.0])[z], 0.5).mask(t < length), obs=value)
        return z, None

    scan(step, 0, (jnp.arange(len(y)), y))


def test_padding_adds_nothing_to_a_shorter_sequence():
    """distrax 337: with two padded steps the posteriors of the three that there were came out as zeros."""
    y = np.array([0.05, 2.9, 0.1, 99.0, 99.0])
    params = {"w": np.array([0.6, 0.4])}
    long, short = mg.marginalize(padded, y, 3), mg.marginalize(padded, y[:3], 3)
    logs = stats.norm.logpdf(y[:3, None], [0, 3], 0.5)
    truth = _forward(np.log([0.6, 0.4]), np.log([[0.8, 0.2], [0.3, 0.7]]), logs)
    assert long.log_density(params) == pytest.approx(truth, rel=1e-12)
    assert short.log_density(params) == pytest.approx(truth, rel=1e-12)
    np.testing.assert_allclose(long.posterior(params)["z"][:3], short.posterior(params)["z"], atol=1e-12)
    assert long.posterior(params)["z"][:3].max(-1).min() > 0.99


def _by_index(w, mu, y):
    with numpyro.plate("row", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)


def _by_mixture(w, mu, y):
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(mu, 1)), obs=y)


@pytest.mark.parametrize("way", [_by_index, _by_mixture])
def test_a_weight_of_zero_has_the_exact_gradient(way):
    """numpyro 2224: w = (0, .5, .5), a right value and a gradient of NaN."""

    def model(y):
        a = numpyro.sample("a", dist.Uniform(0, 1))
        mu = numpyro.sample("mu", dist.Normal(0, 10).expand([3]))
        way(jnp.stack([a - a, a, 1 - a]), mu, y)

    params = {"a": 0.5, "mu": np.array([0.0, 1.0, 2.0])}
    marginal = mg.marginalize(model, np.array([0.3]))
    parts = 0.5 * stats.norm.pdf(0.3, [1, 2])
    likelihood = marginal.log_density(params) - stats.norm.logpdf(params["mu"], 0, 10).sum()
    assert likelihood == pytest.approx(np.log(parts.sum()), rel=1e-12)
    slope = _gradient(marginal, params)
    responsible = np.array([0.0, *parts / parts.sum()])
    np.testing.assert_allclose(slope["mu"], responsible * (0.3 - params["mu"]) - params["mu"] / 100, rtol=1e-10)
    density = stats.norm.pdf(0.3, [1, 2])
    assert slope["a"] == pytest.approx((density[0] - density[1]) / parts.sum(), rel=1e-10)


@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_a_hurdle_has_a_finite_gradient_where_the_data_hold_a_zero(family):
    """pymc 8057: the gradient of hurdle gamma and hurdle lognormal is NaN once an observation is 0."""
    y = np.array([0.0, 1.3, 0.0, 2.2])

    def model(y):
        psi = numpyro.sample("psi", dist.Beta(1, 1).expand([2]))
        a = numpyro.sample("a", dist.LogNormal(0, 1).expand([2]))
        with numpyro.plate("row", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("positive", dist.Bernoulli(psi[z]), obs=y > 0)
            size = dist.Gamma(a[z], 2.0) if family == "gamma" else dist.LogNormal(jnp.log(a[z]), 0.5)
            numpyro.sample("y", size.mask(y > 0), obs=y)

    psi, a = np.array([0.3, 0.8]), np.array([0.7, 2.5])
    law = [stats.gamma(s, scale=0.5) if family == "gamma" else stats.lognorm(0.5, scale=s) for s in a]

    def truth(psi, law):
        rows = np.where(y[:, None] > 0, psi * np.stack([one.pdf(y) for one in law], 1), 1 - psi)
        return np.log(rows @ [0.6, 0.4]).sum() + stats.lognorm.logpdf(a, 1).sum()

    marginal = mg.marginalize(model, y)
    assert marginal.log_density({"psi": psi, "a": a}) == pytest.approx(truth(psi, law), rel=1e-10)
    slope = _gradient(marginal, {"psi": psi, "a": a})
    assert np.all(np.isfinite(slope["a"]))
    step = np.array([1e-6, 0])
    assert slope["psi"][0] == pytest.approx((truth(psi + step, law) - truth(psi - step, law)) / 2e-6, rel=1e-5)


def test_a_batch_scales_the_objective_and_no_rows_likelihood():
    """pymc 8300: the log likelihood of each row came multiplied by N / batch, so LOO was wrong."""
    y = np.random.default_rng(0).normal(size=40)

    def model(y, batch):
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]))
        with numpyro.plate("row", len(y), subsample_size=batch) as rows:
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal(mu[z], 1), obs=jnp.asarray(y)[rows])

    params = {"mu": np.array([-1.0, 1.0])}
    batched, whole = mg.marginalize(model, y, 10), mg.marginalize(model, y, None)
    truth = np.log(stats.norm.pdf(y[:, None], params["mu"]) @ [0.7, 0.3])
    np.testing.assert_allclose(batched.log_likelihood(params)["y"], truth, rtol=1e-12)
    assert batched.log_density(params) == pytest.approx(whole.log_density(params), rel=1e-12)


def test_a_missing_cell_is_integrated_out_and_its_row_is_classified():
    """mHMMbayes 33, exploratory 1632, scikit-learn 33624: a missing cell stopped the fit, or cost the row."""
    y = np.array([[0.2, np.nan], [3.0, 4.1], [np.nan, np.nan]])

    def model(y):
        w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
        with numpyro.plate("row", len(y)):
            z = numpyro.sample("z", dist.Categorical(w))
            mean = jnp.array([[0.0, 0.0], [3.0, 4.0]])[z]
            numpyro.sample("y", dist.Normal(mean, 1).mask(~np.isnan(y)).to_event(1), obs=y)

    w = np.array([0.3, 0.7])
    marginal = mg.marginalize(model, y)
    parts = np.exp(np.nansum(stats.norm.logpdf(y[:, None], np.array([[0.0, 0.0], [3.0, 4.0]])), axis=-1)) * w
    assert marginal.log_density({"w": w}) == pytest.approx(np.log(parts.sum(1)).sum(), rel=1e-12)
    belongs = marginal.posterior({"w": w})["z"]
    np.testing.assert_allclose(belongs, parts / parts.sum(1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(belongs[2], w, rtol=1e-12)  # a row of which nothing is known


def test_a_survey_that_was_not_made_sums_to_one():
    """ubms 85, unmarked 40: a missing survey, or a missing first period, broke the likelihood."""

    def model(seen):
        psi = numpyro.sample("psi", dist.Beta(1, 1))
        p = numpyro.sample("p", dist.Beta(1, 1))
        with numpyro.plate("site", len(seen), dim=-2):
            z = numpyro.sample("z", dist.Bernoulli(psi))
            made = ~np.isnan(seen)
            numpyro.sample("y", dist.Bernoulli(z * p).mask(made), obs=np.nan_to_num(seen))

    seen = np.array([[np.nan, 1, 0], [np.nan, 0, 0], [np.nan, np.nan, np.nan], [0, 0, 1]])
    params = {"psi": 0.6, "p": 0.4}
    truth = np.log([0.6 * 0.4 * 0.6, 0.4 + 0.6 * 0.6**2, 1.0, 0.6 * 0.6**2 * 0.4]).sum()
    marginal = mg.marginalize(model, seen)
    assert marginal.log_density(params) == pytest.approx(truth, rel=1e-12)
    np.testing.assert_allclose(marginal.posterior(params)["z"][2, 0], [0.4, 0.6], rtol=1e-12)


def test_noise_that_is_known_step_by_step_is_just_written():
    """dynamax 446: emissions N(m_k, S_k + R_t) with R_t known have no place in a fixed family."""
    rng = np.random.default_rng(0)
    y, known = rng.normal(size=12), rng.uniform(0.1, 2, size=12)

    def model(y, known):
        m = numpyro.sample("m", dist.Normal(0, 3).expand([2]))

        def step(z, row):
            value, noise = row
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(P)[z]))
            numpyro.sample("y", dist.Normal(m[z], jnp.sqrt(0.5 + noise)), obs=value)
            return z, None

        scan(step, 0, (y, known))

    m = np.array([-1.0, 1.0])
    logs = stats.norm.logpdf(y[:, None], m, np.sqrt(0.5 + known)[:, None])
    truth = _forward(np.log(P[0]), np.log(P), logs) + stats.norm.logpdf(m, 0, 3).sum()
    assert mg.marginalize(model, y, known).log_density({"m": m}) == pytest.approx(truth, rel=1e-12)


def persons(y, person):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("person", int(person.max()) + 1):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mu[z[person]], 1), obs=y)


def test_a_whole_person_is_in_one_class_and_is_one_unit_of_loo():
    """brms 1659, 1905: rows of one person were classified, and left out, each for itself."""
    rng = np.random.default_rng(0)
    person = np.array([0, 0, 1, 2, 1, 2, 2, 0])
    y, mu = rng.normal(size=8), np.array([-1.0, 1.0])
    marginal = mg.marginalize(persons, y, person)
    logs = stats.norm.logpdf(y[:, None], mu)
    each = np.array([logsumexp(np.log([0.6, 0.4]) + logs[person == i].sum(0)) for i in range(3)])
    truth = each.sum() + stats.norm.logpdf(mu, 0, 3).sum()
    assert marginal.log_density({"mu": mu}) == pytest.approx(truth, rel=1e-12)
    (units,) = marginal.log_likelihood({"mu": mu}).values()
    np.testing.assert_allclose(np.sort(units), np.sort(each), rtol=1e-12)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A fit of persons in classes, saved, and loaded again with its model."""
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(6), 3)
    y = rng.normal(size=18) + 5 * (person % 2)
    fit = mg.fit(persons, y, person, method=mg.Laplace(draws=500, starts=8), random_seed=1, progressbar=False)
    path = tmp_path_factory.mktemp("fit") / "fit.nc"
    fit.save(path)
    return mg.load(path, persons, y, person), (y, person)


def test_likelihood_and_states_are_those_of_the_same_draw(loaded):
    """zcurve 30, JuliaBUGS 504: the likelihood of the step before, states beside stale parameters.

    log p(x) + log p(z | x) = log p(x, z) at every stored draw of a loaded fit.
    """
    fit, args = loaded
    for chain in range(2):
        for draw in range(0, 500, 125):
            params = {"mu": np.asarray(fit.draws["mu"])[chain, draw]}
            found = enumerate_all(persons, args, params)
            stored = np.asarray(fit.data["log_likelihood"]["y"])[chain, draw].sum()
            assert stored == pytest.approx(found.density - stats.norm.logpdf(params["mu"], 0, 3).sum(), rel=1e-10)
            states = fit.marginal.sample(params, jax.random.key(draw))
            joint = found.table[found.index(states)]
            belongs = fit.marginal.posterior(params)["z"]
            chosen = np.log(belongs[np.arange(6), states["z"]]).sum()
            assert fit.marginal.log_density(params) + chosen == pytest.approx(joint, rel=1e-10)


def test_switched_labels_are_shown_beside_the_relabelled():
    """ferx 1145: intervals from switched labels looked right most of the time; here raw R-hat stands beside."""
    y = np.repeat([-3.0, 3.0], 12) + np.random.default_rng(0).normal(size=24)

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
        with numpyro.plate("row", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)

    fit = mg.fit(model, y, method=mg.Laplace(draws=500, starts=8), random_seed=1, progressbar=False)
    assert {"r_hat", "r_hat_raw"} <= set(fit.summary().columns)


def regimes(y, trial):
    drift = numpyro.sample("drift", dist.Normal(0, 2).expand([2]))
    stay = numpyro.sample("stay", dist.Beta(8, 2))
    transition = jnp.array([[stay, 1 - stay], [1 - stay, stay]])

    def step(z, value):
        z = numpyro.sample("z", dist.Categorical(transition[z]))
        numpyro.sample("y", dist.Normal(drift[z], 1), obs=value)
        return z, None

    for i in range(int(trial.max()) + 1):
        scan(numpyro.handlers.scope(step, prefix=f"trial{i}"), 0, y[trial == i])


def test_regimes_by_trial_have_their_likelihood_and_states_for_nothing():
    """HSSM 968, 1000: a hand-written forward pass, and each trial's LOO rebuilt afterwards."""
    rng = np.random.default_rng(0)
    trial, y = np.repeat(np.arange(3), 7), rng.normal(size=21)
    marginal = mg.marginalize(regimes, y, trial)
    drift, stay = np.array([-1.0, 1.0]), 0.8
    matrix = np.log([[stay, 1 - stay], [1 - stay, stay]])
    logs = stats.norm.logpdf(y[:, None], drift)
    each = [_forward(matrix[0], matrix, logs[trial == i]) for i in range(3)]
    found = marginal.log_likelihood({"drift": drift, "stay": stay})
    assert len(found) == 3
    np.testing.assert_allclose([float(np.sum(v)) for v in found.values()], each, rtol=1e-12)
    beta = gammaln(10) - gammaln(8) - gammaln(2) + 7 * np.log(stay) + np.log(1 - stay)
    prior = stats.norm.logpdf(drift, 0, 2).sum() + beta
    assert marginal.log_density({"drift": drift, "stay": stay}) == pytest.approx(sum(each) + prior, rel=1e-12)
    assert len(marginal.mode({"drift": drift, "stay": stay})) == 3
