"""ADVI on batches of rows, and with a distribution for every discrete."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import special, stats

import marginalia as mg
from marginalia import infer

SIGMAS = 4.0
N = 300
STATE = np.random.default_rng(6)
Y = np.where(STATE.random(N) < 0.3, STATE.normal(-1.5, 1, N), STATE.normal(1.5, 1, N))


def model(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.full(2, 2.0)))
    with numpyro.plate("component", 2):
        mu = numpyro.sample("mu", dist.Normal(0, 3))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)


def drawing(y):
    w = numpyro.sample("w", dist.Dirichlet(jnp.full(2, 2.0)))
    with numpyro.plate("component", 2):
        mu = numpyro.sample("mu", dist.Normal(0, 3))
    with numpyro.plate("obs", len(y), subsample_size=20) as rows:
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1), obs=y[rows])


@functools.cache
def fitted(kind: str) -> infer.Result:
    method = {
        "all": mg.ADVI(family="full-rank", starts=2),
        "batches": mg.ADVI(family="full-rank", batch_size=50, starts=2),
        "drawing": mg.ADVI(family="full-rank", starts=2),
        "explicit": mg.ADVI(discretes="explicit", starts=2),
        "summed": mg.ADVI(starts=2),
    }[kind]
    marginal = mg.marginalize(drawing if kind == "drawing" else model, Y)
    return infer.run(marginal, method, random_seed=2, progressbar=False)


def moments(result: infer.Result) -> tuple[np.ndarray, np.ndarray]:
    group = result.groups["approximation"]
    return group["mean"][1], np.sqrt(np.diag(group["covariance"][1]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["batches", "drawing"])
def test_batches_end_where_all_rows_end(kind: str) -> None:
    mean, sd = moments(fitted("all"))
    found, spread = moments(fitted(kind))
    infos = [fitted(name).info for name in (kind, "all")]
    assert all(info["converged"] for info in infos)
    error = SIGMAS * np.hypot(*(max(info["error_of_iterates"], 0.005) for info in infos))
    assert np.all(np.abs(found - mean) / sd < error), (found, mean, sd)
    assert np.all(np.abs(np.log(spread / sd)) < error), (spread, sd)
    assert fitted(kind).findings == ()


def hidden_markov(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("time", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
    numpyro.factor("stay", jnp.where(z[1:] == z[:-1], 0.5, 0.0))
    numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (mg.ADVI(batch_size=5), "cannot be fitted on batches of its rows"),
        (mg.ADVI(discretes="explicit"), "only discretes that are independent given the continuous latents"),
    ],
)
def test_a_chain_is_refused(options: mg.ADVI, words: str) -> None:
    with pytest.raises(mg.Refusal, match=words):
        mg.fit(hidden_markov, Y[:20], method=options, random_seed=1, progressbar=False)


@pytest.mark.slow
def test_explicit_probabilities_are_the_best_for_the_rest() -> None:
    """q(z = k) is proportional to exp(E[log p(z = k, y | w, mu)]), by hand from the Gaussian that was found."""
    group = fitted("explicit").groups["approximation"]
    rng = np.random.default_rng(0)
    size = 20_000
    draws = rng.multivariate_normal(group["mean"][1], group["covariance"][1], size=size)
    names = list(group["coordinate"][1])
    logit, mu = draws[:, names.index("w[0]")], draws[:, [names.index("mu[0]"), names.index("mu[1]")]]
    log_w = -np.logaddexp(0, np.stack([-logit, logit], axis=1))  # stick breaking
    table = log_w[:, None, :] + stats.norm.logpdf(Y[None, :40, None], mu[:, None, :])
    difference = (table[..., 1] - table[..., 0]).mean(axis=0)
    error = (table[..., 1] - table[..., 0]).std(axis=0) * np.sqrt(1 / size + 1 / 256)
    found = group["z"][1][:40]
    assert group["z"][0] == ("obs", "z_state")
    assert np.all(np.abs(special.logit(found[:, 1]) - difference) < SIGMAS * error)
    assert np.allclose(found.sum(axis=1), 1)


@pytest.mark.slow
def test_what_the_explicit_approximation_loses() -> None:
    """Its bound is lower and its spreads are smaller than with the discretes summed out; the memberships are near."""
    explicit, summed = (fitted(kind).groups["approximation"] for kind in ("explicit", "summed"))
    ends = np.stack([group["elbo"][1][-300:] for group in (explicit, summed)])
    assert np.diff(ends.mean(axis=1)) > SIGMAS * np.hypot(*ends.std(axis=1)) / np.sqrt(300)
    assert np.all(moments(fitted("explicit"))[1] < moments(fitted("summed"))[1])
    fit = mg.fit(model, Y, method=mg.ADVI(discretes="explicit", starts=2), random_seed=2, progressbar=False)
    difference = np.abs(fit.data["approximation"]["z"].values - fit.membership()["z"].values)
    assert 0.001 < difference.max() < 0.15
