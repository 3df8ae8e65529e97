"""Tiny models × laws: the density, its gradient and all that is recovered equal brute-force enumeration."""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import logsumexp

import marginalia as mg
from oracle import enumerate_all
from study import DRAWS, Study, close, study, value_and_gradient
from zoo import CASES, MU3, W3, Y4, Y8, Y30, Case, _bernoulli_mixture_terms, _forward, _smoother, _viterbi

SIGMAS = 4.5  # how far a frequency may be from its probability, in standard errors


# ---- The laws ---------------------------------------------------------------------------------


def density(s: Study) -> None:
    """log p(observed, params) is the log of the sum over all joint values, in float64."""
    close(s.pure_density, s.true_density, "kernel.log_density")


def public_density(s: Study) -> None:
    """`log_density` is a NumPy float64 whatever the user's own setting, which stays as it was."""
    before = jax.config.jax_enable_x64
    value = s.density
    assert jax.config.jax_enable_x64 == before
    assert np.shape(value) == ()
    assert isinstance(value, np.ndarray | np.float64)
    assert value.dtype == np.float64
    close(value, s.true_density, "log_density")


def gradient(s: Study) -> None:
    """The gradient with respect to every latent is that of brute force, finite at impossible values."""
    assert set(s.gradient) == set(s.params)
    for name, expected in s.true_gradient.items():
        close(s.gradient[name], expected, f"gradient of {name}")


def marginals(s: Study) -> None:
    """P(z = k | observed, params): the site's shape and one axis more, sums to one, equals brute force."""
    assert set(s.posterior) == set(s.true_marginals)
    for name, expected in s.true_marginals.items():
        close(s.posterior[name], expected, f"posterior of {name}")
        close(
            s.posterior[name].sum(-1),
            np.ones(expected.shape[:-1]),
            f"total of the posterior of {name}",
            1e-12,
        )


def draws(s: Study) -> None:
    """Joint draws have the marginals' frequencies, and the right joint probabilities on average."""
    for name, p in s.true_marginals.items():
        support = s.oracle.sites[name].support if s.oracle else np.arange(p.shape[-1])
        values = s.draws[name]
        assert values.shape == (DRAWS, *p.shape[:-1]), f"{name}: shape {values.shape}"
        assert np.isin(values, support).all(), f"{name}: a draw outside the support"
        counts = (values[..., None] == support).sum(0)
        # exact binomial tails: a normal approximation is wrong where a probability is tiny
        p = np.clip(p, 0.0, 1.0)
        tail = np.minimum(stats.binom.cdf(counts, DRAWS, p), stats.binom.sf(counts - 1, DRAWS, p))
        worst = tail.min(initial=1.0)
        assert worst > stats.norm.sf(SIGMAS), f"{name}: frequencies {counts / DRAWS} for {p}"
    if s.oracle is None or not s.true_marginals:
        return
    terms = s.oracle.table[s.oracle.index(s.draws)] - s.oracle.density
    assert np.isfinite(terms).all(), "an impossible draw"
    possible = s.oracle.weights > 0
    w, logs = s.oracle.weights[possible], s.oracle.table[possible] - s.oracle.density
    mean = w @ logs
    error = np.sqrt(w @ (logs - mean) ** 2 / DRAWS)
    assert abs(terms.mean() - mean) <= SIGMAS * error + 1e-9, f"joint: {terms.mean()} instead of {mean} ± {error}"


def mode(s: Study) -> None:
    """No joint value is more probable than the mode."""
    if s.oracle is None:
        for name, expected in s.case.best(s.params, *s.case.args).items():
            assert np.array_equal(s.mode[name], expected), f"mode of {name}"
        return
    assert set(s.mode) == set(s.oracle.sites)
    if s.mode:
        close(s.oracle.table[s.oracle.index(s.mode)], s.oracle.table.max(), "log joint of the mode")


def chain_rule(s: Study) -> None:
    """log p(x) + log p(z | x) = log p(x, z), at the mode and at a draw."""
    if s.oracle is None or s.case.closed or not s.mode:
        return
    if s.oracle.independent():
        conditional = np.log(np.maximum(s.oracle.from_marginals(s.posterior), 1e-300))
        for what, values in (("mode", s.mode), ("draw", {name: v[0] for name, v in s.draws.items()})):
            at = s.oracle.index(values)
            close(s.pure_density + conditional[at], s.oracle.table[at], f"log p(x) + log p(z | x) at the {what}")
    else:
        # the first site observed: log p(x, z1) from the engine, summed over what the oracle leaves open
        first = next(iter(s.oracle.sites))
        known = s.oracle.configurations[:, : s.oracle.sites[first].size]
        chosen = np.searchsorted(s.oracle.sites[first].support, s.mode[first]).ravel()
        expected = logsumexp(s.oracle.table[(known == chosen).all(1)])
        close(s.conditioned({first: s.mode[first]}).log_density(s.params), expected, f"log p(x, {first})")


def permuted_rows(s: Study) -> None:
    """The order of the rows changes nothing but the order of what is said about each row."""
    if not s.case.rows:
        return
    close(s.permuted.log_density(s.params), s.true_density, "density of permuted rows")
    if s.case.per_row:
        for name, p in s.permuted.posterior(s.params).items():
            close(p, s.true_marginals[name][s.order], f"posterior of {name}, rows permuted")


def numpyro_program(s: Study) -> None:
    """`marginal.model` is a NumPyro program of the same density, without discretes and arguments."""
    latents: set[str] = set()

    def total(params):
        value, trace = log_density(s.marginal.model, (), {}, params)
        latents.update(n for n, site in trace.items() if site["type"] == "sample" and not site["is_observed"])
        return value

    with jax.enable_x64(True):
        close(jax.jit(total)(s.params), s.true_density, "log density of marginal.model")
    assert latents == set(s.params)


Law = Callable[[Study], None]
LAWS: tuple[Law, ...] = (
    density,
    public_density,
    gradient,
    marginals,
    draws,
    mode,
    chain_rule,
    permuted_rows,
    numpyro_program,
)
WRAPPERS: tuple[Law, ...] = (public_density, numpyro_program)  # the same for every model: each third case will do
DEAR: tuple[Law, ...] = (draws, mode, chain_rule, permuted_rows)  # dear to compile: each third case in a hurry
QUICK: tuple[Law, ...] = (density, gradient, marginals)  # of models that differ in one function: each second in a hurry


def laws_of(place: int, case: Case) -> tuple[Law, ...]:
    if case.quick:
        return QUICK
    return LAWS if place % 3 == 0 else tuple(law for law in LAWS if law not in WRAPPERS)


def matrix(cases: dict[str, Case]) -> list:
    """Every case with every law that is for it; a case's laws side by side, so that they share its study."""
    rows = []
    for place, (name, case) in enumerate(cases.items()):
        for law in laws_of(place, case):
            marks = [pytest.mark.xdist_group(name)]
            if (law in DEAR and place % 3) or (case.quick and place % 2):
                marks.append(pytest.mark.slow)
            rows.append(pytest.param(name, law, id=f"{name}-{law.__name__}", marks=marks))
    return rows


@pytest.mark.parametrize(("name", "law"), matrix(CASES))
def test_law(name: str, law: Law) -> None:
    s = study(name)
    if s.refused:
        assert re.search(r"\bz\b", s.refused), s.refused
        assert "Remedy" in s.refused
        return
    law(s)


# ---- The peers' table, in their own figures ---------------------------------------------------

# z ~ Bernoulli(.3) in plate(3), y = 1 ~ Normal(a + f(z), 1), a ~ Normal(0, 1) at 0: minus log density.
PEERS = {
    "sum": (2.102718, 1.837877),
    "mean": (2.103209, 1.962877),
    "max": (1.982857, 1.837877),
    "any": (1.982857, 1.837877),
    "first": (2.160052, 2.337877),
    "last": (2.160052, 1.837877),
    "pair": (2.096923, 1.837877),
    "weighted": (2.585815, 14.337877),
    "dot": (2.585815, 14.337877),
}


@pytest.mark.xdist_group("peers")
@pytest.mark.parametrize("name", PEERS)
def test_what_the_peers_get_wrong(name: str) -> None:
    exact, elsewhere = PEERS[name]
    value = -float(study(f"peers_{name}").density)
    assert abs(value - exact) < 1e-6
    assert abs(value - elsewhere) > 1e-2


# ---- The oracle itself, against figures by hand -----------------------------------------------


@pytest.mark.parametrize("name", PEERS)
def test_oracle_on_the_peers_table(name: str) -> None:
    def function(z: np.ndarray) -> float:
        return {
            "sum": z.sum(), "mean": z.mean(), "max": z.max(), "any": z.any(), "first": z[0], "last": z[2],
            "pair": z[0] + z[1], "weighted": z @ [1, 2, 3], "dot": z @ [1, 2, 3],
        }[name]  # fmt: skip

    total, weighted = 0.0, np.zeros(3)
    for z in np.ndindex(2, 2, 2):
        z = np.array(z)
        p = np.prod(np.where(z == 1, 0.3, 0.7)) * stats.norm.pdf(0.0) * stats.norm.pdf(1.0, function(z))
        total += p
        weighted += p * z
    s = study(f"peers_{name}")
    assert abs(-np.log(total) - PEERS[name][0]) < 1e-6
    close(s.oracle.density, np.log(total), "density")
    close(s.oracle.marginals()["z"][:, 1], weighted / total, "marginals")


def test_oracle_on_a_mixture_in_closed_form() -> None:
    o = study("gaussian_mixture").oracle
    sd = CASES["gaussian_mixture"].params["sd"]
    joint = W3 * stats.norm.pdf(Y8[:, None], MU3, sd)
    prior = np.log(2.0) + stats.norm.logpdf(MU3, 0, 10).sum() + np.log(2 * stats.norm.pdf(sd, 0, 5)).sum()
    responsibility = joint / joint.sum(1, keepdims=True)
    close(o.density, prior + np.log(joint.sum(1)).sum(), "density")
    close(o.marginals()["z"], responsibility, "responsibilities")
    slope = (responsibility * (Y8[:, None] - MU3) / sd**2).sum(0) - MU3 / 100
    close(o.gradient["mu"], slope, "gradient of mu")
    close(o.log_likelihood([{"y": n} for n in range(8)]), np.log(joint.sum(1)), "log p(y_n)")
    assert o.independent()
    assert np.array_equal(o.configurations[joint.argmax(1) @ 3 ** np.arange(7, -1, -1)], joint.argmax(1))
    assert o.table.argmax() == o.index({"z": joint.argmax(1)})


def test_closed_forms_agree_with_enumeration() -> None:
    """The long chains' recursions and the scaled cases' terms, on models that can be enumerated too."""
    s = study("loop_of_6_steps")
    with jax.enable_x64(True):
        close(_forward(s.params, *s.case.args), s.oracle.density, "forward recursion")
        prior, rows = _bernoulli_mixture_terms({"mu": CASES["scaled_plate"].params["mu"]}, Y4)
        close(prior + rows.sum(), study("scaled_plate").oracle.density, "terms of the scaled cases")
    for name, p in _smoother(s.params, *s.case.args).items():
        close(p, s.oracle.marginals()[name], f"smoother at {name}")
    assert s.oracle.table.argmax() == s.oracle.index(_viterbi(s.params, *s.case.args))


def test_oracle_respects_masks_and_refuses_the_large() -> None:
    whole, part = CASES["missing_by_handler"], CASES["scaled_plate"].unscaled
    seen = whole.args[0][~np.isnan(whole.args[0])]
    with_gap = enumerate_all(whole.model, whole.args, whole.params)
    close(
        with_gap.density,
        enumerate_all(part, (seen,), whole.params).density,
        "a masked row counts for nothing",
    )
    with pytest.raises(ValueError, match="configurations"):
        enumerate_all(CASES["thirty_named"].model, (Y30,), CASES["thirty_named"].params)


# ---- A planted fault is seen by each law ------------------------------------------------------


def _fault_density(s: Study) -> None:
    s.pure_density = s.pure_density * (1 + 1e-9)


def _fault_public_density(s: Study) -> None:
    s.density = s.density * (1 + 1e-9)


def _fault_gradient(s: Study) -> None:
    s.gradient = {n: g + 1e-8 for n, g in s.gradient.items()}


def _fault_marginals(s: Study) -> None:
    s.posterior = {n: np.roll(p, 1, axis=0) for n, p in s.posterior.items()}


def _fault_draws(s: Study) -> None:
    # the right marginals, but z1 and z2 drawn apart: only the joint law can see it
    s.draws = {n: np.random.default_rng(i).permutation(v) for i, (n, v) in enumerate(s.draws.items())}


def _fault_mode(s: Study) -> None:
    s.mode = {n: np.where(np.arange(np.size(v)) == 0, 1 - v, v) for n, v in s.mode.items()}


def _fault_chain_rule(s: Study) -> None:
    s.conditioned = lambda values: study("discrete_given_discrete").marginal


def _fault_permuted_rows(s: Study) -> None:
    s.order = np.arange(4)[::-1]


FAULTS = (
    _fault_density,
    _fault_public_density,
    _fault_gradient,
    _fault_marginals,
    _fault_draws,
    _fault_mode,
    _fault_chain_rule,
    _fault_permuted_rows,
)


@pytest.mark.xdist_group("discrete_given_discrete")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: Law) -> None:
    sound = study("discrete_given_discrete")
    faulty = Study(sound.case)
    answers = (
        "oracle",
        "marginal",
        "density",
        "pure_density",
        "gradient",
        "posterior",
        "draws",
        "mode",
        "order",
        "permuted",
    )
    for answer in answers:
        setattr(faulty, answer, getattr(sound, answer))
    law = next(law for law in LAWS if fault.__name__ == f"_fault_{law.__name__}")
    law(faulty)
    fault(faulty)
    with pytest.raises(AssertionError):
        law(faulty)


# ---- Rows in numbers

MANY = [pytest.param(n, marks=pytest.mark.xdist_group(n)) for n, c in CASES.items() if c.per_row and c.grows]


# ---- Particular points ------------------------------------------------------------------------


def _weighted_by_p(y):
    p = numpyro.sample("p", dist.Uniform(0, 1))
    mu = numpyro.sample("mu", dist.Normal(0, 10).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.stack([1.0 - p, p])))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_gradient_is_finite_where_a_weight_becomes_zero(p: float) -> None:
    """A weight that is itself a latent, at the edge: an empty component feels its prior only."""
    params = {"p": np.array(p), "mu": np.array([0.3, 1.9])}
    value, slope = value_and_gradient(mg.marginalize(_weighted_by_p, Y4), params)
    full = int(p)
    prior = stats.norm.logpdf(params["mu"], 0, 10).sum()
    close(value, prior + stats.norm.logpdf(Y4, params["mu"][full], 1).sum(), "density at the edge")
    assert np.isfinite(slope["p"]), slope
    close(slope["mu"][1 - full], -params["mu"][1 - full] / 100, "gradient of the empty component")


@pytest.mark.parametrize("name", MANY)
def test_many_rows_are_a_sum_of_rows(name: str) -> None:
    """Each row thirty times, 120 rows and more: the same exactness, where enumeration has 2^120 states and more."""
    s = study(name)
    args = [np.concatenate([a] * 30) if i in s.case.rows else a for i, a in enumerate(s.case.args)]
    prior = s.oracle.log_prior_of_latents()
    value = mg.marginalize(s.case.model, *args).log_density(s.params)
    close(value, prior + 30 * (s.true_density - prior), "density of 30 times the rows")


def test_far_away_data_do_not_underflow() -> None:
    """Every component is 1e5 standard deviations away: finite, and linear space would give log 0."""
    s = study("gaussian_mixture")
    params = {**s.params, "sd": np.full(3, 1e-4)}
    o = enumerate_all(s.case.model, s.case.args, params)
    close(s.marginal.log_density(params), o.density, "density")
    close(s.marginal.posterior(params)["z"], o.marginals()["z"], "memberships")


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_bounds_of_the_data_that_depend_on_a_discrete(kind: Callable) -> None:
    y = np.array([0.5, 1.5, 2.5])

    def model(y):
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("y", dist.Uniform(1.0 * z, 2.0 + z), obs=y)

    rows = 0.6 * stats.uniform.pdf(y, 0, 2) + 0.4 * stats.uniform.pdf(y, 1, 2)
    close(mg.marginalize(model, kind(y)).log_density({}), np.log(rows).sum(), "density")


def test_a_support_of_its_own_for_every_element() -> None:
    """Binomials of different totals: one site, ragged supports."""
    totals = np.array([2, 4, 1])

    def model(y):
        p = numpyro.sample("p", dist.Beta(1, 1))
        with numpyro.plate("obs", 3):
            n = numpyro.sample("n", dist.Binomial(totals, p))
            numpyro.sample("y", dist.Normal(n, 1.0), obs=y)

    marginal, p = mg.marginalize(model, Y4[:3]), {"p": np.array(0.3)}
    k = np.arange(5)
    joint = stats.binom.pmf(k, totals[:, None], 0.3) * stats.norm.pdf(Y4[:3, None], k)
    close(marginal.log_density(p), np.log(joint.sum(1)).sum(), "density")
    close(marginal.posterior(p)["n"], joint / joint.sum(1, keepdims=True), "posterior of n")
    assert (marginal.mode(p)["n"] <= totals).all()


def test_one_draw_has_the_site_shapes_and_follows_its_key() -> None:
    s = study("two_discretes_per_row")
    one = s.marginal.sample(s.params, key=jax.random.key(3))
    again = s.marginal.sample(s.params, key=jax.random.key(3))
    assert {n: v.shape for n, v in one.items()} == {"z1": (4,), "z2": (4,)}
    assert all(np.array_equal(one[n], again[n]) for n in one)
    assert all(isinstance(v, np.ndarray) for v in one.values())


def test_other_parameters_are_not_the_first_ones() -> None:
    """A second point through the same marginal: nothing of the first is baked in."""
    s = study("class_per_group")
    params = {"w": np.array([0.8, 0.2]), "mu": np.array([-1.0, 3.0])}
    o = enumerate_all(s.case.model, s.case.args, params)
    close(s.marginal.log_density(params), o.density, "density")
    close(s.marginal.posterior(params)["z"], o.marginals()["z"], "memberships")


def test_explain_names_every_discrete() -> None:
    for name in ("two_discretes_per_row", "class_per_group", "spike_and_slab"):
        s = study(name)
        words = str(s.marginal.explain())
        assert all(site in words for site in s.oracle.sites), words


@pytest.mark.parametrize("columns", [2, 4])
def test_the_scale_of_a_row_is_that_of_all_its_columns(columns: int) -> None:
    """A scale per row over an event of columns, as many columns as rows among them; no discrete, then one per row."""
    weight = np.array([1.0, 2.0, 0.5, 3.0])
    y = np.linspace(-1, 1, 4 * columns).reshape(4, columns)

    def plain(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3))
        with numpyro.plate("rows", 4), numpyro.handlers.scale(scale=weight):
            numpyro.sample("y", dist.Normal(mu, 1).expand([4, columns]).to_event(1), obs=y)

    def mixed(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3))
        with numpyro.plate("rows", 4), numpyro.handlers.scale(scale=weight):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal((mu + z)[:, None], 1).expand([4, columns]).to_event(1), obs=y)

    mu = 0.4
    prior = stats.norm.logpdf(mu, 0, 3)
    rows = stats.norm.logpdf(y, mu, 1).sum(1)
    other = stats.norm.logpdf(y, mu + 1, 1).sum(1)
    both = logsumexp([np.log(0.7) + rows, np.log(0.3) + other], axis=0)
    assert float(mg.marginalize(plain, y).log_density({"mu": mu})) == pytest.approx(prior + weight @ rows, rel=1e-12)
    assert float(mg.marginalize(mixed, y).log_density({"mu": mu})) == pytest.approx(prior + weight @ both, rel=1e-12)
