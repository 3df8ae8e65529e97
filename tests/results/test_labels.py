"""Labels: found by permuting axes, undone exactly, and never touched where they mean something."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from handwritten import MU3, W3, data, gaussian_draws, mixture

import marginalia as mg
from marginalia import labels
from marginalia.fitting import finish
from marginalia.infer.result import Result
from marginalia.labels import find_exchangeable, permute, relabel, stephens
from marginalia.ondraws import OnDraws, flatten

MU22, W22 = [[-0.8, -1.5], [0.8, 1.0]], [0.14, 0.86]


def families_of(marginal, draws):
    return find_exchangeable(OnDraws(marginal), flatten(draws, marginal.program.latents))


def planted(draws, seed=3):
    """The draws with a random permutation a draw, and the permutations."""
    rng = np.random.default_rng(seed)
    chains, length, K = draws["w"].shape
    p = rng.permuted(np.broadcast_to(np.arange(K), (chains, length, K)), axis=2)
    out = dict(draws)
    for name in ("w", "mu"):
        value = draws[name]
        index = p.reshape(*p.shape, *(1 for _ in value.shape[3:]))
        out[name] = np.take_along_axis(value, index, axis=2)
    return out, p


def test_component_axes_are_found():
    draws = gaussian_draws(MU3, W3, 0.8)
    (family,) = families_of(mixture(data(MU3, W3, 0.8), 3), draws)
    assert (family.discretes, family.axes, family.K) == (("z",), {"w": (0,), "mu": (0,)}, 3)


def test_the_component_axis_is_told_from_a_coordinate_axis_of_the_same_length():
    draws = gaussian_draws(MU22, W22, 1.0)
    assert draws["mu"].shape[2:] == (2, 2)
    (family,) = families_of(mixture(data(MU22, W22, 1.0), 2), draws)
    assert family.axes == {"w": (0,), "mu": (0,)}


@pytest.mark.parametrize("options", [{"ordered": "density"}, {"ordered": "support"}, {"informative": True}])
def test_labels_that_mean_something_are_not_exchangeable(options):
    draws = gaussian_draws(MU3, W3, 0.8)
    draws["mu"] = np.sort(draws["mu"], axis=2)
    assert families_of(mixture(data(MU3, W3, 0.8), 3, **options), draws) == ()


def test_a_density_that_is_a_little_asymmetric_is_not_exchangeable():
    marginal = mixture(data(MU3, W3, 0.8), 3)
    symmetric = marginal.kernel.prior_density
    kernel = dataclasses.replace(marginal.kernel, prior_density=lambda p: symmetric(p) + 1e-4 * jnp.tanh(p["mu"][0]))
    assert families_of(dataclasses.replace(marginal, kernel=kernel), gaussian_draws(MU3, W3, 0.8)) == ()


def test_an_invariant_axis_that_no_discrete_follows_is_not_a_label():
    """A site that only its own symmetric prior knows can be permuted too, which says nothing on labels."""
    marginal = mixture(data(MU3, W3, 0.8), 3)
    extra = dataclasses.replace(marginal.program.latents["mu"], name="free", dims=("component",))
    program = dataclasses.replace(marginal.program, latents={**marginal.program.latents, "free": extra})
    symmetric = marginal.kernel.prior_density
    kernel = dataclasses.replace(marginal.kernel, prior_density=lambda p: symmetric(p) - (p["free"] ** 2).sum())
    draws = gaussian_draws(MU3, W3, 0.8)
    draws["free"] = np.random.default_rng(0).standard_normal(draws["mu"].shape)
    (family,) = families_of(dataclasses.replace(marginal, program=program, kernel=kernel), draws)
    assert family.axes == {"w": (0,), "mu": (0,)}


@pytest.mark.parametrize(("mu", "w", "sd"), [(MU3, W3, 0.8), (MU22, W22, 1.0)])
def test_planted_permutations_are_undone_exactly(mu, w, sd):
    marginal = mixture(data(mu, w, sd), len(mu))
    clean = gaussian_draws(mu, w, sd)
    switched, p = planted(clean)
    assert not np.array_equal(switched["mu"], clean["mu"])
    engine = OnDraws(marginal)
    lp = engine.log_density(flatten(switched, marginal.program.latents)).reshape(p.shape[:2])
    found = families_of(marginal, switched)
    out = relabel(engine, switched, lp, found)
    for name in clean:
        np.testing.assert_array_equal(out.draws[name], clean[name])  # mu's order is the numbering as well
    np.testing.assert_array_equal(
        np.take_along_axis(p, out.permutations[0], axis=2), np.broadcast_to(np.arange(len(w)), p.shape)
    )
    assert out.inside
    assert 0 < out.moved < out.total == 200


def test_one_switched_chain_is_counted_and_called_between_chains():
    marginal = mixture(data(MU22, W22, 1.0), 2)
    clean = gaussian_draws(MU22, W22, 1.0)
    switched = {n: v.copy() for n, v in clean.items()}
    for name in ("w", "mu"):
        switched[name][1] = switched[name][1][:, ::-1]
    out = relabel(OnDraws(marginal), switched, np.zeros((4, 50)), families_of(marginal, switched))
    assert (out.moved, out.inside) == (50, False)
    np.testing.assert_array_equal(out.draws["mu"], clean["mu"])


def test_draws_without_switching_are_only_numbered():
    marginal = mixture(data(MU3, W3, 0.8), 3)
    clean = gaussian_draws(MU3[::-1], W3[::-1], 0.8)
    out = relabel(OnDraws(marginal), clean, np.zeros((4, 50)), families_of(marginal, clean))
    assert out.moved == 0
    np.testing.assert_array_equal(out.draws["mu"], clean["mu"][..., ::-1])
    np.testing.assert_array_equal(out.draws["w"], clean["w"][..., ::-1])
    np.testing.assert_array_equal(out.draws["sd"], clean["sd"])


def test_stephens_goes_on_where_the_reference_cannot_tell_two_components():
    rng = np.random.default_rng(0)
    P = np.log(rng.dirichlet(np.full(3, 0.5), size=40)) + 0.5 * rng.standard_normal((41, 40, 3))
    P[0, :, 2] = P[0, :, 1] + 0.2 * rng.standard_normal(40)  # the reference: a coin decides on the second and third
    P = np.exp(P) / np.exp(P).sum(axis=-1, keepdims=True)
    p = rng.permuted(np.broadcast_to(np.arange(3), (41, 3)), axis=1)
    P = np.take_along_axis(P, p[:, None, :], axis=2)

    def labellings(iterations: int) -> int:
        found = np.take_along_axis(p, stephens(P, 0, iterations=iterations), axis=1)[1:]
        return len(np.unique(found, axis=0))

    assert labellings(1) > 1
    assert labellings(50) == 1


def test_both_axes_of_a_transition_matrix_move_together():
    A = np.arange(9.0).reshape(3, 3)
    p = np.array([2, 0, 1])
    np.testing.assert_array_equal(permute(A, (0, 1), p), A[np.ix_(p, p)])


def test_one_compilation_serves_all_checks():
    marginal = mixture(data(MU3, W3, 0.8), 3)
    traced = []
    joint = marginal.kernel.joint
    kernel = dataclasses.replace(marginal.kernel, joint=lambda p, d: traced.append(1) or joint(p, d))
    engine = OnDraws(dataclasses.replace(marginal, kernel=kernel))
    draws = gaussian_draws(MU3, W3, 0.8)
    families = find_exchangeable(engine, flatten(draws, marginal.program.latents))
    relabel(engine, draws, np.zeros((4, 50)), families)
    assert len(traced) == 2  # the density once, the memberships once


def test_of_many_rows_some_tell_the_labels_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program on 500 of its rows gives the same permutations as the memberships of all."""

    def model(y):
        w = numpyro.sample("w", dist.Dirichlet(jnp.ones(3)))
        mu = numpyro.sample("mu", dist.Normal(0, 10).expand([3]))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Categorical(w))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    marginal = mg.marginalize(model, data(MU3, W3, 1.0, N=2000))
    draws = {n: v for n, v in gaussian_draws(MU3, W3, 1.0, length=40).items() if n != "sd"}
    for name in ("mu", "w"):
        draws[name][1] = draws[name][1][:, [1, 2, 0]]
    engine = OnDraws(marginal)
    families = labels.find_exchangeable(engine, flatten(draws, marginal.program.latents))
    lp = engine.log_density(flatten(draws, marginal.program.latents)).reshape(draws["w"].shape[:2])
    by_all = labels.relabel(engine, draws, lp, families)
    monkeypatch.setattr(labels, "MUCH_WORK", 1.0)
    used = []
    make = labels.make_batches
    monkeypatch.setattr(labels, "make_batches", lambda *a: used.append(a) or make(*a))
    by_some = labels.relabel(engine, draws, lp, families)
    assert used
    assert by_some.moved == by_all.moved > 0
    for name, value in by_all.draws.items():
        assert np.array_equal(by_some.draws[name], value), name


def of_two(y, beta=2.0):
    """The weight is one number, that of the second component."""
    w = numpyro.sample("w", dist.Beta(2.0, beta))
    mu = numpyro.sample("mu", dist.Normal(0, 10).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(w))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def gated(x, y):
    """Two lines, told apart by a logit of two parts; the lines' common height has nothing to do with it."""
    gate = numpyro.sample("gate", dist.Normal(0, 2).expand([2]))
    height = numpyro.sample("height", dist.Normal(0, 1))
    slope = numpyro.sample("slope", dist.Normal(0, 2).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(logits=gate[0] + gate[1] * x))
        numpyro.sample("y", dist.Normal(height + slope[z] * x, 0.5), obs=y)


def draws_of_two(length=50):
    rng = np.random.default_rng(0)
    return {"w": rng.beta(30, 10, (4, length)), "mu": [-2.0, 3.0] + 0.1 * rng.normal(size=(4, length, 2))}


def test_a_weight_that_is_one_number_is_reflected_when_two_labels_change_places():
    marginal = mg.marginalize(of_two, data([-2, 3], [0.25, 0.75], 1.0))
    clean = draws_of_two()
    (family,) = families_of(marginal, clean)
    assert (family.discretes, family.axes, family.mirrors) == (("z",), {"mu": (0,)}, ("w",))
    swapped = np.random.default_rng(1).random((4, 50)) < 0.5
    switched = {
        "w": np.where(swapped, 1 - clean["w"], clean["w"]),
        "mu": np.where(swapped[..., None], clean["mu"][..., ::-1], clean["mu"]),
    }
    out = relabel(OnDraws(marginal), switched, np.zeros((4, 50)), (family,))
    np.testing.assert_array_equal(out.draws["mu"], clean["mu"])
    np.testing.assert_allclose(out.draws["w"], clean["w"], rtol=1e-14)
    np.testing.assert_array_equal(out.permutations[0][..., 0] == 1, swapped)


def test_a_logit_changes_its_sign_and_what_has_no_part_in_it_stays():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 40)
    marginal = mg.marginalize(gated, x, np.where(rng.random(40) < 0.5, x, -2 * x))
    (family,) = families_of(
        marginal, {n: rng.normal(size=(1, 20, *s.shape)) for n, s in marginal.program.latents.items()}
    )
    assert (family.axes, family.mirrors) == ({"slope": (0,)}, ("gate",))


def test_a_weight_whose_prior_tells_the_labels_apart_is_not_reflected():
    marginal = mg.marginalize(lambda y: of_two(y, 2.001), data([-2, 3], [0.25, 0.75], 1.0))
    assert families_of(marginal, draws_of_two()) == ()


def test_where_only_a_reflection_tells_labels_apart_the_same_side_is_chosen_whatever_the_draws():
    def both_sides(y):
        level = numpyro.sample("level", dist.Normal(0, 3))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(jnp.where(z == 1, level, -level), 1.0), obs=y)

    marginal = mg.marginalize(both_sides, data([-4, 4], [0.5, 0.5], 1.0))
    level = 4 + 0.1 * np.random.default_rng(0).normal(size=(2, 30))
    for sign in (np.ones((2, 1)), -np.ones((2, 1)), np.array([[1], [-1]])):
        (family,) = families_of(marginal, {"level": sign * level})
        assert (family.axes, family.mirrors) == ({}, ("level",))
        out = relabel(OnDraws(marginal), {"level": sign * level}, np.zeros((2, 30)), (family,))
        np.testing.assert_array_equal(out.draws["level"], level)


def test_a_saved_fit_remembers_what_was_reflected(tmp_path):
    marginal = mg.marginalize(of_two, data([-2, 3], [0.25, 0.75], 1.0))
    clean = draws_of_two()
    switched = {n: v.copy() for n, v in clean.items()}
    switched["w"][1], switched["mu"][1] = 1 - clean["w"][1], clean["mu"][1][:, ::-1]
    fit = finish(marginal, Result("laplace", switched, {"lp": np.zeros((4, 50))}, info={"random_seed": 7}))
    assert fit.notes == (
        "labels switched between chains: 50 of 200 draws were relabelled; summary() shows R-hat before and after.",
    )
    table = fit.summary()
    assert table.loc["w", "r_hat"] < 1.05 < 1.5 < table.loc["w", "r_hat_raw"]
    back = mg.load(fit.save(tmp_path / "fit.nc"))
    assert back.families == fit.families
    np.testing.assert_array_equal(back.draws["w"], fit.draws["w"])
