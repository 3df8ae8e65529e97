"""Rows paired with components because there are as many of both; and pairs that are meant."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import marginalia as mg

Y3 = np.array([-1.2, 0.4, 2.9])
X33 = np.arange(9.0).reshape(3, 3) ** 0.5


def forgotten_index(y):
    with numpyro.plate("component", 3):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        sd = numpyro.sample("sd", dist.HalfNormal(5))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))
        numpyro.sample("y", dist.Normal(mu, sd[z]), obs=y)


def forgotten_index_without_plates(y):
    mu = numpyro.sample("mu", dist.Normal(0, 10).expand([3]))
    sd = numpyro.sample("sd", dist.HalfNormal(5).expand([3]))
    z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3).expand([len(y)]))
    numpyro.sample("y", dist.Normal(mu, sd[z]), obs=y)


def coefficients_along_the_rows(y, x):
    """A slope for each column, multiplied into one column."""
    with numpyro.plate("column", x.shape[1]):
        b = numpyro.sample("b", dist.Normal(0, 1))
    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", dist.Normal(b * x[:, 0], 1), obs=y)


def number_of_components_as_an_argument(y, k):
    with numpyro.plate("component", k):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.ones(k) / k))
        numpyro.sample("y", dist.Normal(mu * (1 + z), 1), obs=y)


def latent_of_the_rows(y):
    """The pair is made under a latent of the rows, before any data."""
    with numpyro.plate("component", 3):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
    with numpyro.plate("obs", len(y)):
        x = numpyro.sample("x", dist.Normal(mu, 1))
        numpyro.sample("y", dist.Normal(x, 1), obs=y)


ACCIDENTS = {
    "forgotten_index": (forgotten_index, (Y3,), "y", ("mu",)),
    "without_plates": (forgotten_index_without_plates, (Y3,), "y", ("mu",)),
    "columns": (coefficients_along_the_rows, (Y3, X33), "y", ("b",)),
    "as_an_argument": (number_of_components_as_an_argument, (Y3, 3), "y", ("mu",)),
    "latent": (latent_of_the_rows, (Y3,), "x", ("mu",)),
}


@pytest.mark.parametrize("name", ACCIDENTS)
def test_rows_that_meet_components_by_accident(name: str) -> None:
    model, args, site, carriers = ACCIDENTS[name]
    findings = [f for f in mg.check(model, *args) if f.kind == "coincidence"]
    assert [f.where for f in findings] == [f"site '{site}'"]
    assert all(f"'{carrier}'" in findings[0].what for carrier in carriers)
    assert "both are 3" in findings[0].what
    assert "mu[z]" in findings[0].remedy


def indexed(y):
    with numpyro.plate("component", 3):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))
        numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)


def one_each_in_another_plate(y):
    with numpyro.plate("subject", len(y)):
        theta = numpyro.sample("theta", dist.Normal(0, 1))
    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", dist.Normal(theta, 1), obs=y)


def schools(j, sigma, y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("school", j):
        theta = numpyro.sample("theta", dist.Normal(mu, 1))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def number_of_rows_written_down(y):
    with numpyro.plate("subject", 3):
        theta = numpyro.sample("theta", dist.Normal(0, 1))
    with numpyro.plate("obs", 3):
        numpyro.sample("y", dist.Normal(theta, 1), obs=y)


def columns_of_rows(x):
    """As many rows as columns, and the columns rightly along the second axis."""
    with numpyro.plate("column", 3):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("obs", len(x)):
        numpyro.sample("x", dist.Normal(mu, 1).to_event(1), obs=x)


def regression(y, x):
    b = numpyro.sample("b", dist.Normal(0, 1).expand([x.shape[1]]))
    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", dist.Normal(x @ b, 1), obs=y)


def distances(y, far):
    """A process over the rows, from a matrix of rows by rows."""
    f = numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(len(y)), jnp.exp(-far)))
    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", dist.Normal(f, 1), obs=y)


FIXED = np.array([[1.0], [2.0], [0.5]])


def fixed_design(y):
    """Rows that the model knows from elsewhere: it does not fit one row more, and rightly."""
    centre = numpyro.sample("centre", dist.Normal(0, 10).expand([3]))
    with numpyro.plate("component", 3):
        mu = numpyro.sample("mu", dist.Normal(centre, 1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))
        numpyro.sample("y", dist.Normal(mu[z] + FIXED[:, 0], 1), obs=y)


def one_each_with_a_fixed_design(y):
    with numpyro.plate("subject", len(y)):
        theta = numpyro.sample("theta", dist.Normal(0, 1))
    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", dist.Normal(theta + FIXED[:, 0], 1), obs=y)


def one_each_only_if_there_are_as_many(y):
    """It fits any number of rows, and says itself what it does with three."""
    with numpyro.plate("component", 3):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))
        numpyro.sample("y", dist.Normal(mu * (1 + z) if len(y) == 3 else mu[z], 1), obs=y)


def groups_from_the_data(y, group):
    with numpyro.plate("group", int(group.max()) + 1):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
    with numpyro.plate("obs", len(y)):
        numpyro.sample("y", dist.Normal(mu[group], 1), obs=y)


MEANT = {
    "indexed": (indexed, (Y3,)),
    "one_each_in_another_plate": (one_each_in_another_plate, (Y3,)),
    "schools": (schools, (3, np.ones(3), Y3)),
    "number_of_rows_written_down": (number_of_rows_written_down, (Y3,)),
    "columns_of_rows": (columns_of_rows, (X33,)),
    "regression": (regression, (Y3, X33)),
    "distances": (distances, (Y3, np.abs(Y3[:, None] - Y3[None, :]))),
    "fixed_design": (fixed_design, (Y3,)),
    "one_each_with_a_fixed_design": (one_each_with_a_fixed_design, (Y3,)),
    "one_each_only_if_there_are_as_many": (one_each_only_if_there_are_as_many, (Y3,)),
    "groups_from_the_data": (groups_from_the_data, (Y3, np.array([0, 1, 2]))),
    "jax_arrays": (indexed, (jnp.array(Y3),)),
}


@pytest.mark.parametrize("name", MEANT)
def test_pairs_that_are_meant(name: str) -> None:
    model, args = MEANT[name]
    assert not mg.check(model, *args)


@pytest.mark.parametrize("rows", [2, 4])
def test_only_where_the_numbers_agree(rows: int) -> None:
    """With another number of rows the same mistake is an error of shapes, which the program itself raises."""
    with pytest.raises((TypeError, ValueError)):
        mg.check(forgotten_index, np.arange(float(rows)))
