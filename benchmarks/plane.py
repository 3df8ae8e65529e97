"""Rows `w3` and `w4`: two Gaussians in the plane, 100 points and 100 000: variational, and the full posterior."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import samplers
from benchmarks.contest import Answer, Contender, Goal, Outcome, Row, prepared

# from left to right: the first coordinates of the means, the second ones, the weights
ADVI_MEAN = np.array([-0.79, 0.79, -1.49, 1.00])
ADVI_SD = np.array([0.291, 0.113, 0.325, 0.116])
W4_MEAN = [-0.9963, 0.9975, -1.4876, 1.0042, 0.20007, 0.79993]
W4_SD = [0.0085, 0.0038, 0.0086, 0.0039, 0.0015, 0.0015]


def points(large: bool) -> np.ndarray:
    """The data: made before the clocks start, where a whole row of the table is run."""
    name = "large" if large else "small"
    return prepared(name, lambda: drawn()[name])


def drawn() -> dict[str, np.ndarray]:
    """The 100 rows of W3, and the 100 000 that follow in the same random state."""
    state = np.random.RandomState(123)  # this is how the workflow defines its data

    def rows(count: int) -> np.ndarray:
        chosen = np.array([state.multinomial(1, [0.2, 0.8]) for _ in range(count)])
        both = [state.multivariate_normal(m, np.eye(2), size=count) for m in ([-1, -1.5], [1, 1])]
        return np.where(chosen[:, :1] == 1, both[0], both[1])

    return {"small": rows(100), "large": rows(100_000)}


def columns(draws: Mapping[str, np.ndarray]) -> np.ndarray:
    mu, pi = np.asarray(draws["mu"]), np.asarray(draws["pi"])
    order = np.argsort(mu[..., 0], axis=-1)
    parts = [np.take_along_axis(part, order, axis=-1) for part in (mu[..., 0], mu[..., 1], pi)]
    return np.concatenate(parts, axis=-1)


def approximated(found: Outcome, sd: np.ndarray, error: float) -> Outcome:
    """Means and spreads of a variational posterior, from its draws; the last iterate is off by `error` spreads."""
    values = columns(found.draws)
    values = values.reshape(-1, values.shape[-1])[:, : len(sd)]
    answers = {
        "variational means": Answer(values.mean(0), error * sd),
        "variational spreads": Answer(values.std(0), error * sd),
    }
    return Outcome(found.figures, answers, note=found.note)


def ours_advi(large: bool) -> Outcome:
    if large:
        found = samplers.ours("plane", points(True), lambda mg: mg.ADVI(batch_size=200, steps=1500), 0.1)
        return approximated(found, np.array(W4_SD), 1.0)
    return approximated(samplers.ours("plane", points(False), lambda mg: mg.ADVI()), ADVI_SD, 0.1)


def model_of_numpyro(y: Any, precision: float = 1.0, total: int | None = None, batch: int | None = None) -> None:
    """The mixture as one distribution; with `batch` of `total` rows at a time."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    pi = numpyro.sample("pi", dist.Dirichlet(jnp.full(2, 0.1)))
    mu = numpyro.sample("mu", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2) / precision).expand([2]))
    parts = dist.Normal(mu, 1.0).to_event(1)  # unit covariances: the same density without factorisations
    with numpyro.plate("obs", total or len(y), subsample_size=batch):
        rows = numpyro.subsample(y, event_dim=1)
        numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(pi), parts), obs=rows)


def numpyro_advi(large: bool, steps: int, rate: float) -> Outcome:
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO, autoguide

    y = points(large).astype("float32")
    options = {"precision": 0.1, "total": len(y), "batch": 200} if large else {}
    guide = autoguide.AutoNormal(model_of_numpyro)
    svi = SVI(model_of_numpyro, guide, numpyro.optim.Adam(rate), Trace_ELBO())
    params = svi.run(jax.random.key(1), steps, y, progress_bar=False, **options).params
    found = guide.sample_posterior(jax.random.key(2), params, sample_shape=(1, 4000))
    found = Outcome(draws={name: np.asarray(found[name]) for name in ("mu", "pi")})
    return approximated(found, np.array(W4_SD) if large else ADVI_SD, 1.0 if large else 0.1)


def by_hand_advi(steps: int) -> Outcome:
    """Mean-field ascent for this one density in JAX, from near the mode: no program read, no starts, no judgement."""
    import jax
    import jax.numpy as jnp
    import numpyro  # noqa: F401 - whoever has a program in it imports it

    jax.config.update("jax_enable_x64", True)
    y = points(False)

    def log_density(u: Any, y: Any) -> Any:
        share, mu = jax.nn.sigmoid(u[0]), u[1:].reshape(2, 2)
        log_pi = jnp.log(jnp.array([share, 1 - share]))
        rows = jax.scipy.special.logsumexp(log_pi - 0.5 * jnp.sum((y[:, None] - mu) ** 2, axis=-1), axis=1)
        return jnp.sum(rows) - 0.5 * jnp.sum(mu**2) + 0.1 * jnp.sum(log_pi)

    def elbo(phi: Any, noise: Any, y: Any) -> Any:
        drawn = phi[:5] + jnp.exp(phi[5:]) * noise
        return jnp.mean(jax.vmap(log_density, (0, None))(drawn, y)) + jnp.sum(phi[5:])

    @jax.jit
    def climbed(phi: Any, key: Any, y: Any) -> Any:
        def step(carry: Any, given: Any) -> Any:
            (phi, first, second), (key, count) = carry, given
            slope = jax.grad(elbo)(phi, jax.random.normal(key, (8, 5)), y)
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            rate = 0.01 / (jnp.sqrt(second / (1 - 0.999**count)) + 1e-8)
            return (phi + rate * first / (1 - 0.9**count), first, second), phi

        given = jax.random.split(key, steps), jnp.arange(1.0, steps + 1)
        path = jax.lax.scan(step, (phi, jnp.zeros(10), jnp.zeros(10)), given)[1]
        return jnp.mean(path[steps // 2 :], axis=0)

    phi = np.asarray(climbed(np.array([-1.0, -1, -1, 1, 1, *[-2.0] * 5]), jax.random.key(1), y))
    drawn = phi[:5] + np.exp(phi[5:]) * np.random.default_rng(2).normal(size=(1, 4000, 5))
    share = 1 / (1 + np.exp(-drawn[..., :1]))
    draws = {"mu": drawn[..., 1:].reshape(1, 4000, 2, 2), "pi": np.concatenate([share, 1 - share], axis=-1)}
    return approximated(Outcome(draws=draws), ADVI_SD, 0.1)


def _model_of_pymc(pm: Any, y: Any, precision: float, total: int | None = None) -> Any:
    with pm.Model() as model:
        pi = pm.Dirichlet("pi", np.full(2, 0.1), initval=np.full(2, 0.5))
        start = np.array([[-1.0, -1.0], [1.0, 1.0]])
        mu = pm.MvNormal("mu", np.zeros(2), cov=np.eye(2) / precision, shape=(2, 2), initval=start)
        parts = [pm.MvNormal.dist(mu[k], cov=np.eye(2)) for k in range(2)]
        pm.Mixture("y", w=pi, comp_dists=parts, observed=y, total_size=total)
    return model


def pymc_advi(large: bool, steps: int) -> Outcome:
    import pymc as pm

    y = points(large)
    batch = pm.Minibatch(y, batch_size=200) if large else y
    model = _model_of_pymc(pm, batch, 0.1 if large else 1.0, len(y) if large else None)
    with model:
        # its default optimiser needs many thousands of steps from anywhere
        fitted = pm.fit(
            steps, method="advi", random_seed=1, progressbar=False, obj_optimizer=pm.adam(learning_rate=0.01)
        )
        found = fitted.sample(4000, random_seed=2)
    found = Outcome(draws={name: found.posterior[name].values for name in ("mu", "pi")})
    return approximated(found, np.array(W4_SD) if large else ADVI_SD, 1.0 if large else 0.1)


def pymc_full(nutpie: bool) -> Outcome:
    y = points(True)
    return samplers.by_pymc(lambda pm: _model_of_pymc(pm, y, 1.0), draws=1000, tune=1000, chains=2, nutpie=nutpie)


def numpyro_full() -> Outcome:
    return samplers.by_numpyro(model_of_numpyro, points(True), draws=1000, tune=1000, chains=2, parallel=2)


def ours_full(method: Any) -> Outcome:
    return samplers.ours("plane", points(True), method)


def _answer(mean: Any, sd: Any, error: float) -> Mapping[str, Answer]:
    return {
        "variational means": Answer(np.array(mean), error * np.array(sd)),
        "variational spreads": Answer(np.array(sd), error * np.array(sd)),
    }


ROWS = (
    Row(
        "w3-advi",
        "W3, two Gaussians in the plane, N = 100: ADVI, whole process",
        "s",
        "wall_s",
        (
            Contender("marginalia", functools.partial(ours_advi, False), role="ours"),
            Contender("NumPyro", functools.partial(numpyro_advi, False, 5000, 0.01)),
            Contender("PyMC", functools.partial(pymc_advi, False, 5000), needs=("pymc",)),
            Contender("by hand in JAX", functools.partial(by_hand_advi, 5000), role="yardstick"),
        ),
        (Goal("≥ 4×", "marginalia", "wall_s", "peer", 4),),
        reference=_answer(ADVI_MEAN, ADVI_SD, 0.1),
        note="Peers: 5000 steps.",
        prepare=drawn,
    ),
    Row(
        "w4-advi",
        "W4, the same with N = 100 000: ADVI, batches of 200, 1500 steps, whole process",
        "s",
        "wall_s",
        (
            Contender("marginalia", functools.partial(ours_advi, True), role="ours"),
            Contender("NumPyro", functools.partial(numpyro_advi, True, 1500, 0.01)),
            Contender("PyMC", functools.partial(pymc_advi, True, 1500), needs=("pymc",)),
        ),
        (Goal("≥ 3×", "marginalia", "wall_s", "peer", 3),),
        reference=_answer(W4_MEAN, W4_SD, 1.0),
        prepare=drawn,
    ),
    Row(
        "w4",
        "W4, the full posterior: effective draws a second, whole process",
        "a second",
        "effective_per_s",
        (
            Contender("marginalia", functools.partial(ours_full, lambda mg: mg.Laplace(draws=5000)), role="ours"),
            Contender("marginalia auto", functools.partial(ours_full, lambda mg: "auto"), role="ours"),
            Contender("NumPyro", numpyro_full),
            Contender("PyMC", functools.partial(pymc_full, False), needs=("pymc",)),
            Contender("nutpie", functools.partial(pymc_full, True), needs=("pymc", "nutpie")),
        ),
        (Goal("≥ 25×", "marginalia", "effective_per_s", "peer", 25),),
        more_is_better=True,
        columns=columns,
        reference=samplers.published(W4_MEAN, W4_SD, [0.0001] * 4 + [0.00001] * 2),
        note="Peers: 2 chains of 1000 draws after 1000 of tuning. Ours: 4 chains of 5000 by Laplace, and auto.",
        prepare=drawn,
    ),
)  # fmt: skip
