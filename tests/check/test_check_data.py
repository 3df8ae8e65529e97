"""Data that cannot be, and programs that cannot be read or summed: findings instead of the first error alone."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

import marginalia as mg

Y = np.array([-1.2, 0.4, 2.9, 0.1])


def several(y, wait, kind):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    rate = numpyro.sample("rate", dist.HalfNormal(3))
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        numpyro.sample("wait", dist.Exponential(rate), obs=wait)
        numpyro.sample("kind", dist.Categorical(p), obs=kind)


GOOD = (Y, np.array([0.5, 1.5, 2.0, 1.0]), np.array([0, 1, 2, 2]))


def test_good_data() -> None:
    findings = mg.check(several, *GOOD)
    assert not findings
    assert not findings.unchecked


def test_every_bad_value_is_found_at_once() -> None:
    y = np.array([np.nan, np.inf, 2.9, np.nan])
    wait = np.array([0.5, -1.5, np.nan, -2.0])
    findings = mg.check(several, y, wait, np.array([0, 3, 1, 2]))
    assert [(f.kind, f.where) for f in findings] == [
        ("data", "site 'y', row 0 (counting from 0)"),
        ("data", "site 'y', row 1 (counting from 0)"),
        ("data", "site 'wait', row 2 (counting from 0)"),
        ("data", "site 'wait', row 1 (counting from 0)"),
        ("data", "site 'kind', row 1 (counting from 0)"),
    ]
    assert [f.got for f in findings] == [
        "nan, and 1 more such values",
        "inf",
        "nan",
        "-1.5, and 1 more such values",
        "3",
    ]
    assert all(f.remedy and f.severity == "error" for f in findings)


def test_bad_values_do_not_hide_a_lost_latent() -> None:
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3))
        numpyro.sample("alpha", dist.Beta(1, 1))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    findings = mg.check(model, np.array([1.0, np.nan]))
    assert [f.kind for f in findings] == ["data", "unreached"]
    assert findings.unchecked == ("whether the discretes can be summed out",)


def test_vectors_outside_their_support() -> None:
    def model(y):
        a = numpyro.sample("a", dist.HalfNormal(1).expand([3]).to_event(1))
        numpyro.sample("share", dist.Dirichlet(a + 1), obs=y)

    (finding,) = mg.check(model, np.array([[0.2, 0.3, 0.5], [0.2, 0.3, 0.6]]))
    assert "row 1" in finding.where
    assert "Dirichlet" in finding.what


def test_masked_values_may_be_anything() -> None:
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3))
        with handlers.mask(mask=~np.isnan(y)):
            numpyro.sample("y", dist.Normal(mu, 1), obs=np.nan_to_num(y))

    assert not mg.check(model, np.array([1.0, np.nan, 2.0]))


def test_every_wrong_shape_is_found_at_once() -> None:
    def model(y, v):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3]))
        nu = numpyro.sample("nu", dist.Normal(0, 3))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        numpyro.sample("v", dist.Normal(nu, 1).expand([2]), obs=v)

    findings = mg.check(model, Y[:, None], np.zeros(0))
    assert [(f.kind, f.where) for f in findings] == [("shape", "site 'y'"), ("shape", "site 'v'")]
    assert "no rows" in findings[1].what
    assert any("reaches data" in line for line in findings.unchecked)


def test_every_argument_that_holds_text() -> None:
    bad = np.array(["1", "x"])
    findings = mg.check(several, bad, np.array([1.0, None], object), kind=GOOD[2])
    assert [(f.kind, f.where) for f in findings] == [
        ("data", "argument 'y', row 0"),
        ("data", "argument 'wait', row 1"),
    ]


def test_arguments_that_do_not_fit() -> None:
    (finding,) = mg.check(several, Y)
    assert finding.kind == "program"
    assert "wait" in finding.what


def test_a_python_if_on_a_discrete() -> None:
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1).expand([2]))
        kind = numpyro.sample("kind", dist.Bernoulli(0.4))
        if kind == 0:
            numpyro.sample("y", dist.Normal(mu[0], 1), obs=y)
        else:
            numpyro.sample("y", dist.Normal(mu[1], 1), obs=y)

    (finding,) = mg.check(model, Y)
    line = model.__code__.co_firstlineno + 3
    assert (finding.kind, finding.where) == ("python", f"test_check_data.py, line {line}")
    assert "'kind'" in finding.what
    assert "if kind == 0" in finding.what
    assert "jnp.where" in finding.remedy


def test_the_same_choice_as_an_array_operation() -> None:
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1).expand([2]))
        kind = numpyro.sample("kind", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(jnp.where(kind == 0, mu[0], mu[1]), 1), obs=y)

    assert not mg.check(model, Y)


def scaled(both: bool):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
        with numpyro.plate("obs", len(y)):
            outer = handlers.scale(scale=2.0 if both else 1.0)
            with outer:
                z = numpyro.sample("z", dist.Bernoulli(0.4))
            with handlers.scale(scale=2.0):
                numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    return model


def test_unequal_scales_under_one_sum() -> None:
    (finding,) = mg.check(scaled(both=False), Y)
    assert finding.kind == "refused"
    assert "different scales" in finding.what
    assert not mg.check(scaled(both=True), Y)


def test_what_cannot_be_summed_is_a_finding_with_its_size() -> None:
    def model(y):
        z = numpyro.sample("z", dist.Bernoulli(0.4).expand([60]))
        w = numpyro.sample("w", dist.Normal(0, 1).expand([60]))
        numpyro.sample("y", dist.Normal(jnp.sum(w * z), 1.0), obs=y)

    (finding,) = mg.check(model, 1.0)
    assert finding.kind == "refused"
    assert finding.remedy


def test_two_sites_of_one_name() -> None:
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        numpyro.sample("y", dist.Normal(mu, 2), obs=y)

    (finding,) = mg.check(model, Y)
    assert finding.kind == "program"


def test_plates() -> None:
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        with numpyro.plate("rows", 2):
            numpyro.sample("v", dist.Normal(mu, 1), obs=Y[:2] * 2)
        with numpyro.plate("idle", 3):
            pass

    findings = mg.check(model, Y)
    assert [(f.kind, f.where) for f in findings] == [("plate", "plate 'rows'"), ("plate", "plate 'idle'")]
    assert "2 and 4" in findings[0].got


def test_a_plate_entered_twice_is_one_plate() -> None:
    def model(y):
        rows = numpyro.plate("rows", len(y))
        with rows:
            mu = numpyro.sample("mu", dist.Normal(0, 1))
        with rows:
            numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    assert not mg.check(model, Y)
