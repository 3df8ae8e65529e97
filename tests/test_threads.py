"""Programs read, fitted and run in several threads at once give what they give in one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers, primitives
from numpyro.distributions.distribution import COERCIONS

import marginalia as mg
import marginalia.entered

Y = np.array([-3.1, -2.7, 2.9, 3.3, 2.8, -3.4])


def mixture(components: int, pause: float = 0.0) -> Callable[[Any], None]:
    """A mixture that stops between its sites, so that another thread has its turn there."""

    def model(y: Any) -> None:
        w = numpyro.sample("w", dist.Dirichlet(jnp.ones(components)))
        time.sleep(pause)
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([components]).to_event(1))
        with numpyro.plate("rows", len(y)):
            time.sleep(pause)
            z = numpyro.sample("z", dist.Categorical(w))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    return model


def density(components: int) -> float:
    marginal = mg.marginalize(mixture(components, 0.002), Y)
    at = {"w": np.ones(components) / components, "mu": np.linspace(-3, 3, components)}
    return float(marginal.log_density(at))


def by_hand(components: int) -> float:
    mu = np.linspace(-3, 3, components)
    rows = np.log(np.exp(-((Y[:, None] - mu) ** 2) / 2).mean(1) / np.sqrt(2 * np.pi)).sum()
    prior = -(mu**2).sum() / 50 - components * np.log(5 * np.sqrt(2 * np.pi))
    return rows + prior + np.log(float(np.prod(np.arange(1, components))))


def test_programs_are_read_in_threads_beside_numpyro_s_own_handlers():
    shared, stop, seen = primitives._PYRO_STACK, threading.Event(), []

    def other() -> None:
        """What a user does meanwhile with NumPyro alone: his sites are his, whoever reads programs."""
        while not stop.is_set():
            with handlers.seed(rng_seed=0), handlers.trace() as sites:
                mixture(2, 0.001)(Y)
            seen.append(set(sites))

    with ThreadPoolExecutor(5) as pool:
        user = pool.submit(other)
        found = list(pool.map(density, (2, 3, 2, 3)))
        stop.set()
        user.result()
    np.testing.assert_allclose(found, [by_hand(k) for k in (2, 3, 2, 3)], rtol=1e-12)
    assert seen
    assert all(names == {"w", "mu", "rows", "z", "y"} for names in seen)
    assert primitives._PYRO_STACK is shared
    assert not shared
    assert not COERCIONS


def test_handlers_are_those_of_the_thread_that_entered_them_wherever_the_others_are():
    """One thread waits inside handlers, in code of its own; one conditions what it reads, inside NumPyro."""
    entered, done = threading.Event(), threading.Event()

    def other() -> set[str]:
        with handlers.trace() as sites, handlers.seed(rng_seed=0):
            numpyro.sample("mine", dist.Normal(0, 1))
            entered.set()
            done.wait(60)
        return set(sites)

    def within() -> None:
        """The same, but its thread waits while it is inside NumPyro."""
        handlers.seed(lambda: (entered.set(), done.wait(60)), rng_seed=0)()

    def read() -> list[str]:
        return list(mg.marginalize(mixture(2), Y).program.latents)

    with ThreadPoolExecutor(1) as pool:
        try:
            user = pool.submit(other)
            assert entered.wait(60)
            assert read() == ["w", "mu"]
        finally:
            done.set()
        assert user.result() == {"mine"}
        entered.clear(), done.clear()
        try:
            pool.submit(within)
            assert entered.wait(60)
            with handlers.condition(data={"mu": jnp.array([-3.0, 3.0])}):
                assert read() == ["w"]
        finally:
            done.set()
    assert not primitives._PYRO_STACK


def test_a_program_read_inside_another_keeps_its_sites_to_itself():
    inner = np.array(0.0)

    def model():
        nonlocal inner
        a = numpyro.sample("a", dist.Normal(0, 1))
        inner = mg.marginalize(mixture(2), Y).program.latents.keys()
        numpyro.sample("y", dist.Normal(a, 1), obs=0.5)

    assert list(mg.marginalize(model).program.latents) == ["a"]
    assert list(inner) == ["w", "mu"]


def test_handlers_around_the_call_hold_and_an_error_leaves_nothing_behind():
    with handlers.condition(data={"mu": jnp.array([-3.0, 3.0])}):
        assert list(mg.marginalize(mixture(2), Y).program.latents) == ["w"]

    def broken():
        numpyro.sample("a", dist.Normal(0, 1))
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        mg.marginalize(broken)
    assert type(primitives._PYRO_STACK) is list
    assert not primitives._PYRO_STACK
    assert not COERCIONS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::marginalia.errors.MarginaliaWarning")  # so few draws are too few
def test_fits_in_eight_threads_are_those_of_one():
    def fitted(components: int) -> list[np.ndarray]:
        options = mg.NUTS(draws=50, tune=50, chains=2)
        fit = mg.fit(mixture(components, 0.001), np.tile(Y, 5), method=options, random_seed=components)
        return [fit.draws["mu"], fit.membership()["z"].values, fit.predict(random_seed=1)["y"].values]

    stop = threading.Event()

    def other() -> int:
        rounds = 0
        while not stop.is_set():
            kernel = numpyro.infer.NUTS(lambda: numpyro.sample("x", dist.Normal(0, 1)))
            mcmc = numpyro.infer.MCMC(kernel, num_warmup=10, num_samples=10, progress_bar=False)
            mcmc.run(jax.random.key(0))
            assert set(mcmc.get_samples()) == {"x"}
            rounds += 1
        return rounds

    wanted = (2, 3, 2, 2, 3, 2, 2, 3)
    alone = {k: fitted(k) for k in set(wanted)}
    with ThreadPoolExecutor(9) as pool:
        user = pool.submit(other)
        together = list(pool.map(fitted, wanted))
        stop.set()
        assert user.result() > 0
    for components, found in zip(wanted, together, strict=True):
        for mine, theirs in zip(alone[components], found, strict=True):
            np.testing.assert_array_equal(mine, theirs)
