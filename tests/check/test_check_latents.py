"""Latents that reach no data, data that no latent explains, and priors that are none."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import marginalia as mg

Y = np.array([-1.2, 0.4, 2.9, 0.1])


def found(model, *args, kind: str) -> list[str]:
    """Where findings of one kind lie."""
    return [f.where for f in mg.check(model, *args) if f.kind == kind]


def test_a_weight_beside_the_likelihood_reaches_no_data() -> None:
    """Two likelihoods on the same data, added by hand: the mistake of workflow W5."""
    rng = np.random.RandomState(2)
    x = np.array([[1.0], [2.0], [3.0]])
    h = rng.uniform(size=(60, 3))
    y = h @ x + rng.normal(0, 0.01, (60, 1))
    h1 = 0.1 + h + rng.normal(0, 0.1, (60, 3))
    h2 = h + rng.normal(0, 0.01, (60, 3))

    def model(y):
        x = numpyro.sample("x", dist.Normal(1.5, 1).expand([3, 1]))
        alpha = numpyro.sample("alpha", dist.Dirichlet(jnp.array([2.0, 2.0])))
        first = numpyro.sample("first", dist.Normal(h1 @ x, 0.01), obs=y)
        second = numpyro.sample("second", dist.Normal(h2 @ x, 0.01), obs=y)
        numpyro.deterministic("mixed", alpha[0] * first + alpha[1] * second)

    findings = mg.check(model, y)
    assert {f.kind: f.where for f in findings} == {
        "twice": "sites 'first' and 'second'",
        "unreached": "site 'alpha'",
    }
    assert "Categorical" in findings[0].remedy
    assert "posterior is its prior" in str(findings[1])


def test_a_weight_as_a_scale_of_two_likelihoods_is_refused_and_the_data_are_still_seen_twice() -> None:
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
        alpha = numpyro.sample("alpha", dist.Dirichlet(jnp.ones(2)))
        for k in range(2):
            with handlers.scale(scale=alpha[k]):
                numpyro.sample(f"y{k}", dist.Normal(mu[k], 1), obs=y)

    findings = mg.check(model, Y)
    assert [f.kind for f in findings] == ["twice", "refused"]
    assert "scale" in findings[1].what


def test_every_latent_of_a_hierarchy_reaches_data_through_its_children() -> None:
    def model(y):
        top = numpyro.sample("top", dist.HalfNormal(1))
        spread = numpyro.sample("spread", dist.HalfNormal(top))
        centre = numpyro.sample("centre", dist.Normal(0, 1))
        w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
        with numpyro.plate("component", 2):
            mu = numpyro.sample("mu", dist.Normal(centre, spread))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Categorical(w))
            numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)

    assert not mg.check(model, Y)


def test_a_whole_branch_that_ends_nowhere() -> None:
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        parent = numpyro.sample("parent", dist.Normal(mu, 1))
        numpyro.sample("child", dist.Normal(parent, 1))
        side = numpyro.sample("side", dist.Bernoulli(0.5))
        numpyro.sample("below", dist.Normal(side * 1.0, 1))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    expected = ["site 'parent'", "site 'child'", "site 'below'", "site 'side'"]
    assert found(model, Y, kind="unreached") == expected


@pytest.mark.parametrize("factor", [True, False])
def test_a_factor_is_data(factor: bool) -> None:
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        other = numpyro.sample("other", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        if factor:
            numpyro.factor("near", -jnp.abs(mu - other))

    assert found(model, Y, kind="unreached") == ([] if factor else ["site 'other'"])


def test_an_argument_that_a_helper_does_not_use_is_no_dependence() -> None:
    @jax.jit
    def first(a, b):
        return a + 0

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        idle = numpyro.sample("idle", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(first(mu, idle), 1), obs=y)

    assert found(model, Y, kind="unreached") == ["site 'idle'"]


@pytest.mark.parametrize(("mask", "lost"), [(False, True), (True, False)])
def test_data_that_a_mask_hides_reach_nothing(mask: bool, lost: bool) -> None:
    def model(y, v):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        nu = numpyro.sample("nu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        with handlers.mask(mask=jnp.full(v.shape, mask)):
            numpyro.sample("v", dist.Normal(nu, 1), obs=v)

    assert found(model, Y, Y[:3] * 2, kind="masked") == (["site 'v'"] if lost else [])
    assert found(model, Y, Y[:3] * 2, kind="unreached") == (["site 'nu'"] if lost else [])


def test_a_program_without_data_is_one_finding() -> None:
    def model():
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu, 1))

    assert found(model, kind="unreached") == ["the program"]


@pytest.mark.parametrize("fixed", [True, False])
def test_data_that_no_latent_explains(fixed: bool) -> None:
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        numpyro.sample("v", dist.Normal(0.0 if fixed else mu, 1), obs=y * 2)

    assert found(model, Y, kind="constant") == (["site 'v'"] if fixed else [])


def test_priors_that_do_not_integrate() -> None:
    def model(y):
        flat = numpyro.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ()))
        with handlers.mask(mask=False):
            silent = numpyro.sample("silent", dist.Normal(0, 1))
        wide = numpyro.sample("wide", dist.Normal(0, 1e6))
        numpyro.sample("y", dist.Normal(flat + silent + wide, 1), obs=y)

    findings = mg.check(model, Y)
    assert [f.where for f in findings] == ["site 'flat'", "site 'silent'"]
    assert {(f.kind, f.severity) for f in findings} == {("improper", "note")}
