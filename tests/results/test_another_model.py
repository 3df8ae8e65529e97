"""A file is read with the model and the data that were fitted, and with no others."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import marginalia as mg
from marginalia.fitting import finish
from marginalia.infer.result import Result
from marginalia.ondraws import OnDraws

N = 12
Y, X = np.linspace(-3.0, 3.0, N), np.linspace(0.0, 1.0, N) ** 2


def make(**changed):
    """A model whose parts can be exchanged one by one."""
    part = {
        "mu": dist.Normal(0, 10),
        "sd": dist.HalfNormal(5.0),
        "weights": jnp.ones(2),
        "likelihood": dist.Normal,
        "name": "mu",
        "K": 2,
        "mask": True,
        "factor": 0.0,
        "x": X,
        **changed,
    }

    def model(y):
        w = numpyro.sample("w", dist.Dirichlet(part["weights"]))
        with numpyro.plate("component", part["K"]):
            mu = numpyro.sample(part["name"], part["mu"])
        sd = numpyro.sample("sd", part["sd"])
        numpyro.factor("more", part["factor"] * mu[0])
        with numpyro.plate("obs", len(y)), numpyro.handlers.mask(mask=part["mask"]):
            z = numpyro.sample("z", dist.Categorical(w))
            numpyro.sample("y", part["likelihood"](mu[z] + part["x"][: len(y)], sd), obs=y)

    return model


def renamed_inside(rows):
    """The same model in other words, its sites in another order."""
    scale = numpyro.sample("sd", dist.HalfNormal(5.0))
    share = numpyro.sample("w", dist.Dirichlet(np.ones(2)))
    centre = numpyro.sample("mu", dist.Normal(jnp.zeros(2), 10.0))
    numpyro.factor("more", 0.0 * centre.sum())
    with numpyro.plate("rows", N):
        label = numpyro.sample("z", dist.Categorical(probs=share))
        at = jnp.where(label == 0, centre[0], centre[1]) + jnp.array(X)
        numpyro.sample("y", dist.Normal(at, scale), obs=jnp.asarray(rows))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    marginal = mg.marginalize(make(), Y)
    draws = {n: v[None] for n, v in OnDraws(marginal).prior(10).items()}
    fit = finish(marginal, Result("laplace", draws, {"lp": np.zeros((1, 10))}, info={"random_seed": 7}))
    return fit.save(tmp_path_factory.mktemp("fits") / "fit.nc")


ALMOST = Y + 1e-9 * (np.arange(N) == 4)
OTHERS = {
    "fewer rows": (make(), Y[:7], r"data 'y' had the shape \(12,\) and have \(7,\)"),
    "one value": (make(), ALMOST, r"1 of the 12 values of 'y' are others, the first in row 4 \(counting from 0\)"),
    "another name": (make(name="nu"), Y, r"latents were mu \(2,\), sd \(\), w \(2,\) and are w \(2,\), nu \(2,\)"),
    "more components": (make(K=3, weights=jnp.ones(3)), Y, r"latents were .* and are w \(3,\), mu \(3,\)"),
    "a prior": (make(mu=dist.Normal(0, 10.001)), Y, r"the log density of 'mu' at a draw of the fit was"),
    "a family": (make(sd=dist.HalfCauchy(5.0)), Y, r"the log density of 'sd' at a draw"),
    "weights": (make(weights=jnp.array([1.0, 1.0001])), Y, r"the log density of 'w' at a draw"),
    "a factor": (make(factor=1e-3), Y, r"the log density of 'more' at a draw"),
    "a likelihood": (make(likelihood=lambda m, s: dist.StudentT(9.0, m, s)), Y, "what the data are compared with"),
    "a covariate": (make(x=X + 1e-5 * (np.arange(N) == 2)), Y, "what the data are compared with"),
    "a mask": (make(mask=np.arange(N) != 3), Y, "what the data are compared with"),
}


FAST = {"fewer rows", "one value", "a prior", "a covariate"}


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]
)
def test_another_model_or_other_data_are_refused_with_what_differs(path, name):
    model, y, words = OTHERS[name]
    with pytest.raises(mg.DataError, match=f"another model or of other data.*{words}") as refused:
        mg.load(path, model, y)
    assert "fit.membership(rows) classifies new rows" in str(refused.value)


def test_the_same_model_in_other_words_is_the_same(path):
    for model, y in ((make(), Y), (renamed_inside, list(Y))):
        back = mg.load(path, model, y)
        assert back.membership(Y[:3])["z"].shape == (3, 2) if model is not renamed_inside else back.membership()


def test_a_file_without_densities_is_compared_by_its_sites_and_data(path, tmp_path):
    import json

    import xarray as xr

    from marginalia import store

    tree = xr.open_datatree(path, engine="h5netcdf").load()
    about = json.loads(tree.attrs[store.KEY])
    del about["identity"]
    old = store.write(tmp_path / "old.nc", tree, about)
    mg.load(old, make(), Y)
    with pytest.raises(mg.DataError, match="1 of the 12 values"):
        mg.load(old, make(), ALMOST)
