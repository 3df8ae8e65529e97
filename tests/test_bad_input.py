"""Data that cannot be used are refused by every entry point: site, row, what was expected, what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy import stats

import marginalia as mg
from study import close

GOOD = np.array([-1.2, 0.4, 2.9, 0.1, 3.3, 0.7])


def normal(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("obs", 6):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("speed", dist.Normal(mu[z], 1.0), obs=y)


def of_any_length(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("speed", dist.Normal(mu[z], 1.0), obs=y)


def without_plate(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    z = numpyro.sample("z", dist.Bernoulli(0.4).expand([6]))
    numpyro.sample("speed", dist.Normal(mu[z], 1.0), obs=y)


def in_the_plane(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2, 2]).to_event(2))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("place", dist.Normal(mu[z], 1.0).to_event(1), obs=y)


def waiting(y):
    rate = numpyro.sample("rate", dist.HalfNormal(3).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("wait", dist.Exponential(rate[z]), obs=y)


def answers(y):
    p = numpyro.sample("p", dist.Beta(1, 1).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("answer", dist.Bernoulli(p[z]), obs=y)


def kinds(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("kind", dist.Categorical(p[z]), obs=y)


def numbers(y):
    rate = numpyro.sample("rate", dist.HalfNormal(3).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("number", dist.Poisson(rate[z]), obs=y)


def shares(y):
    c = numpyro.sample("c", dist.HalfNormal(3).expand([2]))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("share", dist.Beta(1.0 + c[z], 2.0), obs=y)


def no_latent_discrete(y):
    rate = numpyro.sample("rate", dist.HalfNormal(3))
    numpyro.sample("wait", dist.Exponential(rate).expand([len(y)]), obs=y)


def changed(values: Any, row: int, value: Any) -> np.ndarray:
    answer = np.array(values)
    answer[row] = value
    return answer


# model, data, the words that must be there (each a regular expression)
BAD: dict[str, tuple[Callable[..., Any], Any, tuple[str, ...]]] = {
    "nan": (normal, changed(GOOD, 3, np.nan), (r"\bspeed\b", r"\b3\b", r"(?i)nan|missing", "mask")),
    "infinite": (normal, changed(GOOD, 4, np.inf), (r"\bspeed\b", r"\b4\b", r"(?i)inf")),
    "nan_in_the_plane": (
        in_the_plane,
        changed(np.arange(12.0).reshape(6, 2), (4, 1), np.nan),
        (r"\bplace\b", r"\b4\b", r"(?i)nan|missing"),
    ),
    "minus_infinite": (waiting, changed(np.abs(GOOD), 2, -np.inf), (r"\bwait\b", r"\b2\b")),
    "empty": (of_any_length, np.array([]), (r"(?i)empty|no rows|no data|0 rows",)),
    "too_short": (normal, GOOD[:5], (r"\bspeed\b", r"\b5\b", r"\b6\b")),
    "too_long_without_plate": (without_plate, np.r_[GOOD, 1.0], (r"\bspeed\b", r"\b7\b", r"\b6\b")),
    "a_column_too_many": (normal, np.ones((6, 2)), (r"\bspeed\b", r"6, 2|6 × 2|2")),
    "a_column_vector": (normal, GOOD[:, None], (r"\bspeed\b", r"6, 1|6 × 1")),
    "a_column_vector_without_plate": (without_plate, GOOD[:, None], (r"\bspeed\b", r"6, 1|6 × 1")),
    "scalar": (normal, 1.0, (r"\bspeed\b", r"\(\)|scalar|one number|single")),
    "text": (normal, np.array(["1.0", "2", "x", "3", "4", "5"]), (r"(?i)text|number|str",)),
    "objects": (normal, np.array([1.0, None, 2, 3, 4, 5], dtype=object), (r"(?i)text|number|object|None",)),
    "negative_wait": (
        waiting,
        np.array([0.5, 1.5, -2.0, 1.0]),
        (r"\bwait\b", r"\b2\b", r"-2", "positive|support|≥|>="),
    ),
    "three_under_bernoulli": (answers, np.array([0, 1, 3, 0]), (r"\banswer\b", r"\b2\b", r"\b3\b")),
    "half_under_bernoulli": (answers, np.array([0.0, 0.5, 1.0]), (r"\banswer\b", r"\b1\b", r"0\.5")),
    "category_too_large": (kinds, np.array([0, 1, 3, 2]), (r"\bkind\b", r"\b2\b", r"\b3\b")),
    "category_negative": (kinds, np.array([0, -1, 1, 2]), (r"\bkind\b", r"\b1\b", r"-1")),
    "half_under_poisson": (numbers, np.array([2.0, 0.0, 1.5]), (r"\bnumber\b", r"\b2\b", r"1\.5")),
    "negative_count": (numbers, np.array([2, -1, 4]), (r"\bnumber\b", r"\b1\b", r"-1")),
    "share_above_one": (shares, np.array([0.2, 1.2, 0.5]), (r"\bshare\b", r"\b1\b", r"1\.2")),
    "without_any_discrete": (no_latent_discrete, np.array([0.5, 1.5, -2.0]), (r"\bwait\b", r"\b2\b", r"-2")),
}


def by_marginalize(model: Callable[..., Any], y: Any) -> Any:
    return mg.marginalize(model, y)


def by_fit(model: Callable[..., Any], y: Any) -> Any:
    return mg.fit(model, y, method="map", random_seed=1, progressbar=False)


@pytest.mark.parametrize("entry", [by_marginalize, by_fit], ids=["marginalize", "fit"])
@pytest.mark.parametrize("what", BAD)
def test_refused_with_site_and_row(what: str, entry: Callable[..., Any]) -> None:
    model, y, words = BAD[what]
    with pytest.raises(mg.DataError) as caught:
        entry(model, y)
    message = str(caught.value)
    missing = [word for word in words if not re.search(word, message)]
    assert not missing, f"{missing} not in: {message}"
    assert "Remedy" in message, message


@pytest.mark.parametrize("what", ["nan", "negative_wait", "too_short"])
def test_new_rows_are_checked_like_the_first(what: str) -> None:
    """`rebind`, the way to other data, is an entry point as well."""
    model, y, words = BAD[what]
    good = {"normal": GOOD, "waiting": np.abs(GOOD)}[model.__name__]
    marginal = mg.marginalize(model, good)
    with pytest.raises(mg.DataError) as caught:
        marginal.rebind(y)
    assert re.search(words[0], str(caught.value)), str(caught.value)


def test_the_first_of_many_bad_rows_and_their_number() -> None:
    y = np.array([1.0, np.nan, 2.0, np.nan, np.nan, 0.0])
    with pytest.raises(mg.DataError) as caught:
        mg.marginalize(normal, y)
    assert re.search(r"\b1\b", str(caught.value)), str(caught.value)
    assert re.search(r"\b3\b|\b2 more\b", str(caught.value)), str(caught.value)


def test_nothing_is_changed_in_the_users_array() -> None:
    y = GOOD.copy()
    y.setflags(write=False)
    mg.marginalize(normal, y)
    assert np.array_equal(y, GOOD)


# ---- What looks bad and is not


def _rows(y: np.ndarray, mu: tuple[float, float]) -> float:
    return np.log(0.6 * stats.norm.pdf(y, mu[0]) + 0.4 * stats.norm.pdf(y, mu[1])).sum()


def test_a_mask_allows_missing_values() -> None:
    """Rows behind a mask may hold anything, NaN and impossible values included."""
    y = GOOD.copy()
    y[[1, 4]] = np.nan, np.inf

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            with handlers.mask(mask=np.isfinite(y)):
                numpyro.sample("speed", dist.Normal(mu[z], 1.0), obs=y)

    mu = (0.2, 1.7)
    value = mg.marginalize(model, y).log_density({"mu": np.array(mu)})
    close(value, stats.norm.logpdf(mu, 0, 3).sum() + _rows(y[np.isfinite(y)], mu), "density of the seen rows")


def test_a_mask_that_misses_one_hides_nothing() -> None:
    y = GOOD.copy()
    y[[1, 4]] = np.nan
    seen = np.arange(6) != 1

    def model(y):
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            with handlers.mask(mask=seen):
                numpyro.sample("speed", dist.Normal(1.0 * z, 1.0), obs=y)

    with pytest.raises(mg.DataError, match=r"\b4\b"):
        mg.marginalize(model, y)


@pytest.mark.parametrize("kind", [np.float32, np.int64, jnp.asarray])
def test_other_kinds_of_numbers_are_taken(kind: Callable[..., Any]) -> None:
    y = np.array([-1.0, 0.0, 3.0, 0.0, 3.0, 1.0])
    given = kind(y) if kind is jnp.asarray else y.astype(kind)
    mu = (0.2, 1.7)
    value = mg.marginalize(normal, given).log_density({"mu": np.array(mu)})
    close(value, stats.norm.logpdf(mu, 0, 3).sum() + _rows(y, mu), "density")


def test_a_plain_list_is_taken_or_refused_in_our_words() -> None:
    """NumPyro itself stumbles over lists with a TypeError."""
    mu, y = (0.2, 1.7), [-1.0, 0.0, 3.0, 0.0, 3.0, 1.0]
    try:
        value = mg.marginalize(normal, y).log_density({"mu": np.array(mu)})
    except mg.DataError:
        return
    close(value, stats.norm.logpdf(mu, 0, 3).sum() + _rows(np.array(y), mu), "density")


def test_whole_numbers_stored_as_floats_are_counts() -> None:
    params = {"rate": np.array([0.8, 4.0])}
    as_floats = mg.marginalize(numbers, np.array([2.0, 0.0, 5.0])).log_density(params)
    close(as_floats, mg.marginalize(numbers, np.array([2, 0, 5])).log_density(params), "density")


# ---- Arguments of `fit` as other tools call them ----------------------------------------------


@pytest.mark.parametrize(
    ("given", "method", "remedy"),
    [
        ({"seed": 1}, "auto", "`random_seed=...`"),
        ({"rng_key": 0}, "auto", "`random_seed=...`"),
        ({"progress_bar": False}, "auto", "`progressbar=...`"),
        ({"draws": 500}, "auto", "`method=mg.Auto(draws=500)`"),
        ({"draws": 500}, "map", "`method=mg.NUTS(draws=500)`"),
        ({"num_samples": 500}, mg.SMC(), "`method=mg.SMC(draws=500)`"),
        ({"target_accept_prob": 0.9}, "auto", "`method=mg.NUTS(target_accept=0.9)`"),
        ({"batch_size": 100}, "advi", "`method=mg.ADVI(batch_size=100)`"),
    ],
)
def test_an_argument_by_another_name_or_in_another_place_is_told_where_it_belongs(given, method, remedy) -> None:
    (name,) = given
    with pytest.raises(mg.OptionError, match=re.escape(f"takes an argument `{name}`")) as told:
        mg.fit(normal, GOOD, method=method, **given)
    assert remedy in str(told.value)


def test_an_argument_of_the_models_own_is_left_to_it() -> None:
    def model(y, draws):
        mu = numpyro.sample("mu", dist.Normal(0, draws))
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("speed", dist.Normal(mu + z, 1.0).expand([6]).to_event(1), obs=y)

    assert mg.fit(model, GOOD, method="map", draws=3.0, progressbar=False).method == "map"
    with pytest.raises(mg.ModelError, match="the arguments do not fit the model"):
        mg.fit(normal, GOOD, colour=3.0)
