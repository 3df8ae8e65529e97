"""What a Python loop writes out is read once: the same numbers as term by term, and a program that does not grow.

Read term by term, the engine is checked against enumeration elsewhere; here every verb must agree with that reading.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import marginalia as mg
from marginalia.lanes import alike
from marginalia.marginal import recall
from study import close

RNG = np.random.default_rng(5)
Y6, Y62, X63 = RNG.normal(size=6), RNG.normal(size=(6, 2)), RNG.normal(size=(6, 3))
MU = {"mu": np.array([-0.8, 1.3])}


def _mu():
    return numpyro.sample("mu", dist.Normal(0, 2).expand([2]).to_event(1))


def independent(y):
    mu = _mu()
    for i, now in enumerate(y):
        z = numpyro.sample(f"z{i}", dist.Bernoulli(0.3))
        numpyro.sample(f"y{i}", dist.Normal(mu[z], 1.0), obs=now)


def two_outcomes_and_vectors(y):
    mu = _mu()
    for i, now in enumerate(y):
        z = numpyro.sample(f"z{i}", dist.Bernoulli(0.3))
        numpyro.sample(f"y{i}", dist.Normal(mu[z], 1.0).expand([2]).to_event(1), obs=now)
        numpyro.sample(f"x{i}", dist.Bernoulli(jnp.where(z == 1, 0.9, 0.2)), obs=i % 2)


def transitions_by_covariates(y):
    mu = _mu()
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3, 2, 2]).to_event(3))
    z = 0
    for t, now in enumerate(y):
        logits = jnp.einsum("i,ijk->jk", jnp.asarray(X63)[t], w)
        z = numpyro.sample(f"z{t}", dist.Categorical(logits=logits[z]))
        numpyro.sample(f"y{t}", dist.Normal(mu[z], 1.0), obs=now)


def each_its_own_scale(y):
    mu = _mu()
    for i, now in enumerate(y):
        with handlers.scale(scale=1.0 + i % 3):
            z = numpyro.sample(f"z{i}", dist.Bernoulli(0.3))
            numpyro.sample(f"y{i}", dist.Normal(mu[z], 1.0), obs=now)


def sums_kept_apart(y):
    mu = _mu()
    for i, now in enumerate(y):
        with numpyro.plate(f"in{i}", 2):
            z = numpyro.sample(f"z{i}", dist.Bernoulli(0.3))
        numpyro.factor(f"f{i}", (mu[z] * now).sum())


def every_other_has_three_states(y):
    mu = _mu()
    for i, now in enumerate([*y, *y]):
        probabilities = jnp.array([0.2, 0.5, 0.3][: 2 + i % 2])
        z = numpyro.sample(f"z{i}", dist.Categorical(probabilities / probabilities.sum()))
        numpyro.sample(f"y{i}", dist.Normal(mu[0] + z * mu[1], 1.0), obs=now)


def counts_that_differ(y):
    mu = _mu()
    for i, now in enumerate(y):
        z = numpyro.sample(f"z{i}", dist.Binomial(1 + i // 2, 0.4))
        numpyro.sample(f"y{i}", dist.Normal(mu[0] + z * mu[1], 1.0), obs=now)


def some_are_masked(y):
    mu = _mu()
    for i, now in enumerate(y):
        z = numpyro.sample(f"z{i}", dist.Bernoulli(0.3))
        numpyro.sample(f"y{i}", dist.Normal(mu[z], 1.0).mask(i != 2), obs=now)


def a_running_sum(y):
    mu, before = _mu(), 0.0
    for t, now in enumerate(y):
        z = numpyro.sample(f"z{t}", dist.Bernoulli(0.3))
        before = 0.5 * before + mu[z]
        numpyro.sample(f"y{t}", dist.Normal(before, 1.0), obs=now)


MODELS = {
    "independent": (independent, Y6, {}, True),
    "two_outcomes_and_vectors": (two_outcomes_and_vectors, Y62, {}, True),
    "transitions_by_covariates": (transitions_by_covariates, Y6, {"w": RNG.normal(size=(3, 2, 2))}, True),
    "each_its_own_scale": (each_its_own_scale, Y6, {}, True),
    "sums_kept_apart": (sums_kept_apart, Y6, {}, True),
    "every_other_has_three_states": (every_other_has_three_states, Y6, {}, True),
    "counts_that_differ": (counts_that_differ, Y6, {}, False),
    "some_are_masked": (some_are_masked, Y6, {}, True),
    "a_running_sum": (a_running_sum, Y6, {}, True),
}


def everything(marginal: mg.Marginal, params: dict[str, Any]) -> dict[str, Any]:
    """All verbs at one point, in one compilation."""
    kernel = marginal.kernel

    def verbs(p: Any, data: Any) -> Any:
        density, gradient = jax.value_and_grad(kernel.log_density)(p, data)
        return {
            "density": density,
            "gradient": gradient,
            "likelihood": kernel.log_likelihood(p, data),
            "posterior": kernel.posterior(p, data),
            "mode": kernel.mode(p, data),
            "sites": kernel.site_densities(p, data),
        }

    with jax.enable_x64(True):
        return jax.device_get(jax.jit(verbs)({n: jnp.asarray(v) for n, v in params.items()}, kernel.data))


# every other one in a hurry
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if i % 2 else ()) for i, n in enumerate(sorted(MODELS))]
)
def test_read_together_and_apart_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, more, grouped = MODELS[name]
    params = MU | more
    together = mg.marginalize(model, data)
    assert bool(together.kernel.alike.batches) == grouped
    monkeypatch.setattr(alike, "FEWEST", 10**9)
    monkeypatch.setattr(recall, "fingerprint", lambda program: None)  # read anew, not recalled as it was
    apart = mg.marginalize(model, data)
    assert not apart.kernel.alike.batches
    found, expected = everything(together, params), everything(apart, params)
    assert [u.name for u in together.kernel.units] == [u.name for u in apart.kernel.units]
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, value), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        close(value, other, f"{name}{jax.tree_util.keystr(path)}")


def test_units_of_separately_named_rows_are_those_rows() -> None:
    marginal = mg.marginalize(independent, Y6)
    found = marginal.log_likelihood(MU)
    assert list(found) == [f"y{i}" for i in range(6)]
    dens = np.exp(-0.5 * (Y6[:, None] - MU["mu"]) ** 2) / np.sqrt(2 * np.pi)
    close(np.array([found[f"y{i}"].item() for i in range(6)]), np.log(dens @ [0.7, 0.3]), "rows")


def test_terms_that_are_constants_are_no_obstacle() -> None:
    def model(y):
        independent(y)
        for i in range(5):
            numpyro.factor(f"constant{i}", jnp.float64(0.5) if i % 2 else 0.25)

    plain, more = mg.marginalize(independent, Y6), mg.marginalize(model, Y6)
    close(more.log_density(MU), plain.log_density(MU) + 3 * 0.25 + 2 * 0.5, "density")


def test_unequal_scales_under_one_sum_are_refused_by_name() -> None:
    def model(y):
        mu = _mu()
        for i, now in enumerate(y):
            z = numpyro.sample(f"z{i}", dist.Bernoulli(0.3))
            with handlers.scale(scale=2.0 if i == 3 else 1.0):
                numpyro.sample(f"y{i}", dist.Normal(mu[z], 1.0), obs=now)

    with pytest.raises(mg.Refusal, match="'y3' has 2"):
        mg.marginalize(model, Y6)


def test_the_compiled_program_does_not_grow_with_the_loop() -> None:
    def model(y):
        mu, z = _mu(), 0
        for t, now in enumerate(y):
            z = numpyro.sample(f"z{t}", dist.Categorical(jnp.asarray([[0.8, 0.2], [0.3, 0.7]])[z]))
            numpyro.sample(f"y{t}", dist.Normal(mu[z], 1.0), obs=now)

    operations = []
    for length in (20, 80):
        kernel = mg.marginalize(model, RNG.normal(size=length)).kernel
        with jax.enable_x64(True):
            params = {"mu": jax.ShapeDtypeStruct((2,), float)}
            text = jax.jit(kernel.log_density).lower(params, kernel.data).as_text()
        work = [line for line in text.splitlines() if any(w in line for w in ("dot", "exp", "log", "gather", "while"))]
        operations.append(len(work))
    assert operations[0] == operations[1]


def test_a_rule_for_derivatives_that_changes_along_the_loop_keeps_each_step_apart() -> None:
    def model(y):
        a = numpyro.sample("a", dist.Normal(0, 1))
        for i, now in enumerate(y):

            @jax.custom_jvp
            def scaled(x):
                return x * 1.0

            scaled.defjvps(lambda slope, answer, x, by=float(i + 1): by * slope)
            z = numpyro.sample(f"z{i}", dist.Bernoulli(0.4))
            numpyro.sample(f"y{i}", dist.Normal(z + scaled(a), 1.0), obs=now)

    kernel = mg.marginalize(model, Y6).kernel
    with jax.enable_x64(True):
        slope = jax.grad(lambda a: kernel.log_density({"a": a}, kernel.data))(jnp.asarray(0.3))
    density = np.stack([0.6 * np.exp(-0.5 * (Y6 - 0.3) ** 2), 0.4 * np.exp(-0.5 * (Y6 - 1.3) ** 2)])
    weight = density / density.sum(0)
    each = weight[0] * (Y6 - 0.3) + weight[1] * (Y6 - 1.3)
    close(slope, -0.3 + (each * np.arange(1, 7)).sum(), "gradient by the rules as they were given")


def test_zeros_of_either_sign_are_told_apart() -> None:
    def model(y):
        a = numpyro.sample("a", dist.Normal(0, 1))
        for i, now in enumerate(y):
            z = numpyro.sample(f"z{i}", dist.Bernoulli(0.4))
            numpyro.sample(f"y{i}", dist.Normal(jnp.arctan2([0.0, -0.0][i % 2], -1.0 - z) + a, 1.0), obs=now)

    found = mg.marginalize(model, Y6).log_density({"a": 0.0})
    mean = np.where(np.arange(6) % 2 == 0, np.pi, -np.pi)
    normal = -0.5 * np.log(2 * np.pi)
    close(found, normal + (normal - 0.5 * (Y6 - mean) ** 2).sum(), "density")


def test_what_cannot_be_vectorised_is_read_one_by_one() -> None:
    def model(y):
        a = numpyro.sample("a", dist.Normal(0, 1))
        for i, now in enumerate(y):
            z = numpyro.sample(f"z{i}", dist.Bernoulli(0.4))
            shift = jax.pure_callback(lambda x: np.asarray(x, float), jax.ShapeDtypeStruct((), float), 1.0 * i)
            numpyro.sample(f"y{i}", dist.Normal(z + a + shift, 1.0), obs=now)

    found = mg.marginalize(model, Y6).log_density({"a": 0.0})
    distance = Y6 - np.arange(6)
    rows = np.log(0.6 * np.exp(-0.5 * distance**2) + 0.4 * np.exp(-0.5 * (distance - 1) ** 2)) - 0.5 * np.log(2 * np.pi)
    close(found, -0.5 * np.log(2 * np.pi) + rows.sum(), "density")
