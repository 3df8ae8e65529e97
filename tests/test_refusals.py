"""What cannot be summed out exactly is refused, in the user's own words; never guessed.

The messages are our main interface, so each is read for its parts: the site, what was got, what was
expected, the remedy. Whole sentences are not compared.
"""

from __future__ import annotations

import inspect
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

Y = np.array([-1.2, 0.4, 2.9, 0.1])


def refusal(model: Callable[..., Any], *args: Any, kinds: tuple[type, ...] = (mg.Refusal,)) -> str:
    """The words of the refusal, which must come from `marginalize` itself."""
    with pytest.raises(kinds) as caught:
        mg.marginalize(model, *args)
    message = str(caught.value)
    assert "Remedy" in message, message
    return message


def density_or_words(model: Callable[..., Any], *args: Any) -> Any:
    """The log density of a model without continuous latents, or the words in which it is refused."""
    try:
        return mg.marginalize(model, *args).log_density({})
    except mg.MarginaliaError as error:
        return str(error)


def names(message: str, *sites: str) -> bool:
    """Whether the message names the sites as words of their own."""
    return all(re.search(rf"\b{re.escape(site)}\b", message) for site in sites)


# ---- Python that wants to know the value of a discrete


def with_if(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1).expand([2]))
    kind = numpyro.sample("kind", dist.Bernoulli(0.4))
    if kind == 0:
        numpyro.sample("y", dist.Normal(mu[0], 1), obs=y)
    else:
        numpyro.sample("y", dist.Normal(mu[1], 1), obs=y)


def with_float(y):
    kind = numpyro.sample("kind", dist.Bernoulli(0.4))
    numpyro.sample("y", dist.Normal(float(kind), 1), obs=y)


def with_list(y):
    kind = numpyro.sample("kind", dist.Bernoulli(0.4))
    numpyro.sample("y", dist.Normal([0.0, 1.0][kind], 1), obs=y)


def with_range(y):
    kind = numpyro.sample("kind", dist.Categorical(jnp.ones(3) / 3))
    numpyro.sample("y", dist.Normal(sum(1.0 for _ in range(kind)), 1), obs=y)


def with_numpy(y):
    kind = numpyro.sample("kind", dist.Bernoulli(0.4).expand([4]))
    numpyro.sample("y", dist.Normal(np.sqrt(kind), 1), obs=y)


def with_boolean_index(y):
    kind = numpyro.sample("kind", dist.Bernoulli(0.4).expand([4]))
    numpyro.sample("y", dist.Normal(0, 1), obs=y)
    numpyro.factor("extra", -jnp.ones(4)[kind == 1].sum())


PYTHON = {
    with_if: "if kind == 0",
    with_float: "float(kind)",
    with_list: "[0.0, 1.0][kind]",
    with_range: "range(kind)",
    with_numpy: "np.sqrt(kind)",
    with_boolean_index: "[kind == 1]",
}


@pytest.mark.parametrize("model", PYTHON, ids=lambda m: m.__name__)
def test_python_branch_names_the_site_and_the_line(model: Callable[..., Any]) -> None:
    lines, first = inspect.getsourcelines(model)
    at = first + next(i for i, line in enumerate(lines) if PYTHON[model] in line)
    message = refusal(model, Y, kinds=(mg.Refusal, mg.ModelError))
    assert names(message, "kind"), message
    assert re.search(rf"\b{at}\b", message), f"line {at} in: {message}"
    assert "jnp." in message or "lax." in message, message


def test_if_is_answered_with_where_and_cond() -> None:
    message = refusal(with_if, Y, kinds=(mg.Refusal, mg.ModelError))
    assert "jnp.where" in message, message
    assert "lax.cond" in message, message


def test_if_on_a_continuous_latent_does_not_blame_a_discrete() -> None:
    def model(y):
        slope = numpyro.sample("slope", dist.Normal(0, 1))
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(z, 1.0) if slope > 0 else dist.Normal(-z, 1.0), obs=y)

    message = refusal(model, Y, kinds=(mg.Refusal, mg.ModelError))
    assert names(message, "slope"), message


# ---- Supports that cannot be listed


def counts():
    return dist.Multinomial(total_count=3, probs=jnp.array([0.2, 0.3, 0.5]))


def heavy():
    return dist.BetaNegativeBinomial(2.0, 3.0, 4.0)


@pytest.mark.parametrize("latent", [counts, heavy], ids=lambda f: f.__name__)
def test_a_support_that_cannot_be_listed(latent: Callable[[], Any]) -> None:
    def model(y):
        rate = numpyro.sample("rate", dist.HalfNormal(1.0))
        number = numpyro.sample("number", latent())
        numpyro.sample("y", dist.Normal(rate * number.sum(), 1.0), obs=y)

    message = refusal(model, Y)
    assert names(message, "number"), message
    assert "is a vector" in message or "infinitely many states" in message, message


# ---- Too many states


def largest_of_sixty(y):
    with numpyro.plate("gene", 60):
        on = numpyro.sample("on", dist.Bernoulli(0.1))
    numpyro.sample("y", dist.Normal(jnp.max(on), 1.0), obs=y)


@pytest.mark.parametrize("count", [2_000, 50_000])
def test_more_joint_states_than_a_float_can_hold(count: int) -> None:
    def model():
        z = numpyro.sample("z", dist.Bernoulli(0.3).expand([count]))
        weight = numpyro.sample("weight", dist.Normal(0, 1).expand([count]))
        numpyro.sample("y", dist.Normal(jnp.max(z * weight), 1), obs=1.0)

    message = refusal(model)
    assert f"about 10^{int((count + 1) * np.log10(2))} joint states" in message, message


def weighted_sum_of_sixty(y):
    with numpyro.plate("gene", 60):
        on = numpyro.sample("on", dist.Bernoulli(0.1))
    numpyro.sample("y", dist.Normal((on * jnp.sqrt(1.0 + jnp.arange(60))).sum(), 1.0), obs=y)


def forty_and_twenty(y):
    a = numpyro.sample("left", dist.Bernoulli(0.1).expand([40]))
    b = numpyro.sample("right", dist.Bernoulli(0.1).expand([20]))
    numpyro.sample("y", dist.Normal(jnp.sin(jnp.concatenate([a, b]) @ jnp.sqrt(1.0 + jnp.arange(60))), 1.0), obs=y)


def sixty_cells(y):
    """Rows × columns: each cell reads one row and one column, and the whole hangs together."""
    r = numpyro.sample("r", dist.Bernoulli(0.3).expand([30]))
    c = numpyro.sample("c", dist.Bernoulli(0.6).expand([30]))
    numpyro.sample("y", dist.Normal(r[:, None] - c[None, :], 1.0), obs=np.zeros((30, 30)))


@pytest.mark.parametrize(
    ("model", "sites", "states"),
    [
        (largest_of_sixty, ("on",), 60),
        (weighted_sum_of_sixty, ("on",), 60),
        (forty_and_twenty, ("left", "right"), 60),
        (sixty_cells, ("r", "c"), 31),  # 30 rows summed one by one leave 2^30 columns, and one row
    ],
    ids=lambda v: v.__name__ if callable(v) else None,
)
def test_too_many_states(model: Callable[..., Any], sites: tuple[str, ...], states: int) -> None:
    message = refusal(model, Y)
    assert names(message, *sites), message
    figures = [
        float(f.replace(",", "").replace(" ", "")) for f in re.findall(r"\d[\d, ]*(?:\.\d+)?(?:e\+?\d+)?", message)
    ]
    powers = [float(b) ** float(e) for b, e in re.findall(r"(\d+)\s*(?:\^|\*\*)\s*(\d+)", message)]
    assert any(f >= 2.0 ** (states - 2) for f in figures + powers), f"number of states: {message}"
    assert "limit" in message or "at most" in message, message


def test_sum_of_sixty_is_exact_or_refused() -> None:
    """A plain sum can be served by counting; until it is, it is refused: it is never approximate."""

    def model(y):
        on = numpyro.sample("on", dist.Bernoulli(0.1).expand([60]))
        numpyro.sample("y", dist.Normal(on.sum(), 1.0), obs=y)

    value = density_or_words(model, 5.0)
    if isinstance(value, str):
        assert names(value, "on"), value
    else:
        n = np.arange(61)
        close(value, np.log(stats.binom.pmf(n, 60, 0.1) @ stats.norm.pdf(5.0, n)), "density by counting")


# ---- Continuous latents and scales


def test_support_of_a_latent_that_depends_on_a_discrete() -> None:
    """NumPyro's Uniform has no zero outside its bounds; and inference needs one support to work on."""

    def model(y):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        width = numpyro.sample("width", dist.Uniform(0.0, 1.0 + 2.0 * z))
        numpyro.sample("y", dist.Normal(0, width), obs=y)

    message = refusal(model, Y, kinds=(mg.Refusal, mg.ModelError))
    assert names(message, "width", "z"), message
    assert "support" in message, message


def test_unequal_scales_under_one_sum() -> None:
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            with handlers.scale(scale=7.0):
                numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    message = refusal(model, Y, kinds=(mg.Refusal, mg.ModelError))
    assert names(message, "z", "y"), message
    assert "scale" in message, message


def test_a_mini_batch_of_a_shared_discrete() -> None:
    """One z for all rows cannot be summed out from a part of the rows."""

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        with numpyro.plate("obs", len(y)), handlers.scale(scale=25.0):
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    assert "scale" in refusal(model, Y, kinds=(mg.Refusal, mg.ModelError))


# ---- Parameters


def _mixture(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]))
    sd = numpyro.sample("sd", dist.HalfNormal(3))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(mu[z], sd), obs=y)


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"mu": np.zeros(2)}, "sd"),
        ({"mu": np.zeros(3), "sd": 1.0}, "mu"),
        ({"mu": np.zeros(2), "sd": 1.0, "sigma": 1.0}, "sigma"),
        ({"mu": np.zeros(2), "sd": 1.0, "z": np.zeros(4, int)}, "z"),
        ({"mu": ["a", "b"], "sd": 1.0}, "mu"),
    ],
    ids=["missing", "shape", "unknown", "discrete", "text"],
)
def test_parameters_that_are_not_those_of_the_model(params: dict[str, Any], word: str) -> None:
    marginal = mg.marginalize(_mixture, Y)
    with pytest.raises(mg.MarginaliaError) as caught:
        marginal.log_density(params)
    assert names(str(caught.value), word), str(caught.value)


def test_every_refusal_is_one_of_ours_and_of_python() -> None:
    assert issubclass(mg.Refusal, mg.MarginaliaError)
    assert issubclass(mg.Refusal, NotImplementedError)
    assert issubclass(mg.ModelError, ValueError)
    assert issubclass(mg.DataError, ValueError)
