"""What a program reads is what it was when it was read, whatever becomes of the user's arrays."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections import namedtuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpyro import handlers

import marginalia as mg
from marginalia.arguments import keep
from marginalia.fitting import finish
from marginalia.infer.result import Result

Y, X = np.linspace(-2.0, 2.0, 6), np.linspace(0.0, 1.0, 6)
Pair = namedtuple("Pair", "y x")
GLOBAL = {"y": Y.copy(), "x": [X.copy()]}
ROWS = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    y: np.ndarray
    x: np.ndarray


class Model:
    def __init__(self, y, x):
        self.y, self.x = y, x

    def __call__(self):
        return total(self.y, self.x)

    def method(self):
        return total(self.y, self.x)


def total(y, x):
    return float(np.sum(np.asarray(y)) + 10 * np.sum(np.asarray(x)))


def of_globals():
    return total(GLOBAL["y"][:ROWS], of_a_helper())


def of_a_helper():
    return GLOBAL["x"][0]


def closing_over(y, x):
    def inner():
        return x

    return lambda: total(y, inner())


def wrapped(function):
    @functools.wraps(function)
    def outer():
        return function()

    return outer


WAYS = {
    "arguments": lambda y, x: (total, (y, x)),
    "a view": lambda y, x: (total, (y[::-1], x[:])),
    "dict": lambda y, x: (lambda d: total(d["y"], d["x"]["of"][0]), ({"y": y, "x": {"of": [x]}},)),
    "named tuple": lambda y, x: (lambda p: total(p.y, p.x), (Pair(y, x),)),
    "dataclass": lambda y, x: (lambda p: total(p.y, p.x), (Slots(y, x),)),
    "namespace": lambda y, x: (lambda p: total(p.y, p.x), (types.SimpleNamespace(y=y, x=x),)),
    "object": lambda y, x: (lambda p: total(p.y, p.x), (Model(y, x),)),
    "closure": lambda y, x: (closing_over(y, x), ()),
    "decorated": lambda y, x: (wrapped(closing_over(y, x)), ()),
    "default": lambda y, x: (lambda a=y, *, b=x: total(a, b), ()),
    "partial": lambda y, x: (functools.partial(total, y, x=x), ()),
    "callable": lambda y, x: (Model(y, x), ()),
    "method": lambda y, x: (Model(y, x).method, ()),
}


@pytest.mark.parametrize("way", WAYS)
def test_arrays_are_copied_however_the_model_comes_by_them(way):
    y, x = Y.copy(), X.copy()
    model, args = WAYS[way](y, x)
    kept, args, _ = keep(model, args, {})
    again, _, _ = keep(kept, args, {})
    y[:], x[:] = 7.0, 7.0
    assert kept(*args) == again(*args) == total(Y, X)


def test_lists_and_frames_are_copied_too():
    numbers, frame = list(X), pd.DataFrame({"y": Y})
    model, args, kwargs = keep(lambda d, x: total(d["f"]["y"], x), ({"f": frame},), {"x": numbers})
    numbers[0], frame["y"] = 99.0, 0.0
    assert model(*args, **kwargs) == total(Y, X)


def test_globals_may_be_changed_and_their_names_given_to_others(monkeypatch):
    kept, _, _ = keep(of_globals, (), {})
    monkeypatch.setitem(GLOBAL, "y", Y + 1)
    GLOBAL["x"][0][:] += 1
    monkeypatch.setitem(globals(), "ROWS", 3)
    try:
        assert kept() == total(Y, X)
        assert of_globals() != total(Y, X)
    finally:
        GLOBAL["x"][0][:] -= 1


def test_a_model_that_reaches_no_data_stays_what_it_is_and_one_may_keep_its_own_accounts():
    runs, last = [], {}
    count = 0

    def model(y):
        nonlocal count
        count += 1
        runs.append(len(y))
        last["y"] = y[0]

    for _ in range(2):
        kept, args, _ = keep(model, (Y,), {})
        kept(*args)
    assert keep(total, (Y, X), {})[0] is total
    assert (count, runs, last) == (2, [6, 6], {"y": -2.0})


def mixture(y, x):
    mu = numpyro.sample("mu", dist.Normal(jnp.array([-2.0, 2.0]), 1.0).to_event(1))
    with numpyro.plate("obs", np.shape(y)[0]):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
        numpyro.sample("y", dist.Normal(mu[z] + x, 1.0), obs=y)


def test_a_fit_answers_as_before_when_its_arrays_have_been_changed():
    y, x = Y.copy(), X.copy()
    # The data by a handler around the model, the covariate by closing over it.
    marginal = mg.marginalize(handlers.condition(lambda: mixture(jnp.zeros(6), x), {"y": y}))
    params = {"mu": np.array([-1.0, 1.5])}

    def answers(marginal):
        fit = finish(marginal, Result("map", {"mu": params["mu"][None, None]}, {}, info={"random_seed": 0}))
        return {
            "density": marginal.log_density(params),
            "data": np.array(fit.data["observed_data"]["y"]),
            "predicted": fit.predict(draws=3)["y"].values,
            "membership": fit.membership()["z"].values,
            "recovered": fit.recover()["z"].values,
        }

    before = answers(mg.marginalize(mixture, Y, X))
    y[:], x[:] = 99.0, -5.0
    after = answers(marginal)
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
