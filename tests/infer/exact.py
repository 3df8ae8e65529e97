"""Small models with two or three parameters, and their posterior means and evidence by quadrature on a grid.

The densities here are written by hand in NumPy, from the models' definitions: nothing of the library is in them.
Expectations are of functions that do not depend on labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from arviz_stats.base.array import array_stats
from scipy import special, stats


@dataclass(frozen=True)
class Exact:
    """A model, its arguments, the functions of its draws that are compared, and their exact means.

    `log_density` takes one array per parameter, in the order of the program's; `unit` says that they are of (0, 1).
    """

    model: Callable[..., None]
    args: tuple[Any, ...]
    functions: dict[str, Callable[[dict[str, np.ndarray]], np.ndarray]]
    means: dict[str, float]
    log_evidence: float
    log_density: Callable[..., np.ndarray]
    parameters: int
    unit: bool = False

    def errors(self, draws: dict[str, np.ndarray]) -> dict[str, float]:
        """By how many Monte Carlo standard errors the draws' means differ from the exact ones."""
        out = {}
        for name, function in self.functions.items():
            values = function(draws)
            mcse = array_stats.mcse(values, chain_axis=0, draw_axis=1, method="mean")
            out[name] = float(abs(values.mean() - self.means[name]) / mcse)
        return out


def _on_grid(
    log_density: Callable[..., np.ndarray],
    axes: list[np.ndarray],
    functions: dict[str, Callable[..., np.ndarray]],
    *,
    bounded: bool = False,
) -> tuple[dict[str, float], float]:
    """Means of `functions` of the parameters under `log_density`, which take one grid each; and the log evidence.

    `bounded`: the axes reach to the ends of the support, so mass at the edge of the grid is no error.
    """
    grids = np.meshgrid(*axes, indexing="ij")
    logs = log_density(*grids)
    weight = np.exp(logs - logs.max())
    edges = max(np.take(weight, [0, -1], axis=axis).max() for axis in range(weight.ndim))
    assert bounded or edges < 1e-4, "the grid is too small"
    means = {name: float((weight * function(*grids)).sum() / weight.sum()) for name, function in functions.items()}
    cell = np.prod([axis[1] - axis[0] for axis in axes])
    return means, float(logs.max() + np.log(weight.sum() * cell))


def _middles(low: float, high: float, count: int) -> np.ndarray:
    step = (high - low) / count
    return low + step * (np.arange(count) + 0.5)


def conjugate() -> Exact:
    """One mean under a normal prior: the posterior is a normal in closed form."""
    y = np.random.default_rng(1).normal(1.0, 1.0, 20)

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 2))
        with numpyro.plate("obs", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    precision = len(y) + 1 / 4
    mean = y.sum() / precision
    functions = {"mu": lambda d: d["mu"], "mu squared": lambda d: d["mu"] ** 2}
    means = {"mu": mean, "mu squared": mean**2 + 1 / precision}
    evidence = float(stats.multivariate_normal.logpdf(y, cov=np.eye(len(y)) + 4))

    def log_density(mu):
        return stats.norm.logpdf(mu, 0, 2) + stats.norm.logpdf(y, np.asarray(mu)[..., None], 1).sum(-1)

    return Exact(model, (y,), functions, means, evidence, log_density, 1)


def mixture() -> Exact:
    """Two normals of one known spread and equal weights: the labels are exchangeable."""
    rng = np.random.default_rng(2)
    y = np.concatenate([rng.normal(-1.2, 1, 20), rng.normal(1.8, 1, 20)])

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
            numpyro.sample("y", dist.Normal(mu[z], 1), obs=y)

    def log_density(a, b):
        out = stats.norm.logpdf(a, 0, 3) + stats.norm.logpdf(b, 0, 3)
        for value in y:
            out = out + np.logaddexp(stats.norm.logpdf(value, a, 1), stats.norm.logpdf(value, b, 1)) + np.log(0.5)
        return out

    known = _on_grid(log_density, [_middles(-5, 5, 240)] * 2, {"lower": np.minimum, "upper": np.maximum})
    functions = {"lower": lambda d: d["mu"].min(axis=-1), "upper": lambda d: d["mu"].max(axis=-1)}
    return Exact(model, (y,), functions, *known, log_density, 2)


def hidden_markov() -> Exact:
    """Two states with known outcomes; the two chances to stay are unknown."""
    rng = np.random.default_rng(3)
    states = [0]
    for _ in range(39):
        states.append(states[-1] if rng.random() < (0.9, 0.7)[states[-1]] else 1 - states[-1])
    y = np.where(np.array(states) == 0, -1.0, 1.0) + 0.7 * rng.normal(size=40)

    def model(y):
        stay = numpyro.sample("stay", dist.Beta(2, 1).expand([2]).to_event(1))
        rows = jnp.stack([jnp.stack([stay[0], 1 - stay[0]]), jnp.stack([1 - stay[1], stay[1]])])
        levels = jnp.array([-1.0, 1.0])
        z = numpyro.sample("z_0", dist.Categorical(jnp.array([0.5, 0.5])))
        numpyro.sample("y_0", dist.Normal(levels[z], 0.7), obs=y[0])
        for t in range(1, len(y)):
            z = numpyro.sample(f"z_{t}", dist.Categorical(rows[z]))
            numpyro.sample(f"y_{t}", dist.Normal(levels[z], 0.7), obs=y[t])

    def log_density(a, b):
        terms = [np.exp(stats.norm.logpdf(y, level, 0.7)) for level in (-1, 1)]
        low, high, out = 0.5 * terms[0][0] + 0 * a, 0.5 * terms[1][0] + 0 * a, stats.beta.logpdf(a, 2, 1)
        out = out + stats.beta.logpdf(b, 2, 1)
        for t in range(1, len(y)):
            low, high = (low * a + high * (1 - b)) * terms[0][t], (low * (1 - a) + high * b) * terms[1][t]
            total = low + high
            low, high, out = low / total, high / total, out + np.log(total)
        return out

    on_grid = {"stay 0": lambda a, b: a, "stay 1": lambda a, b: b}
    known = _on_grid(log_density, [_middles(0, 1, 400)] * 2, on_grid, bounded=True)
    functions = {"stay 0": lambda d: d["stay"][..., 0], "stay 1": lambda d: d["stay"][..., 1]}
    return Exact(model, (y,), functions, *known, log_density, 2, unit=True)


def latent_class(people: int = 150, tell: float = 8.0) -> Exact:
    """Two classes and four yes-no items; the share of the first and the chance of a yes in each are unknown.

    The prior tells the classes apart: Beta(tell, 2) and Beta(2, tell). With 40 people and `tell=4` there is a
    second mode, with 2 % of the mass; with 150 it has less than 1 %.
    """
    rng = np.random.default_rng(4)
    classes = rng.random(people) < 0.4
    y = (rng.random((people, 4)) < np.where(classes, 0.85, 0.25)[:, None]).astype(int)

    def model(y):
        share = numpyro.sample("share", dist.Beta(2, 2))
        yes = numpyro.sample("yes", dist.Beta(jnp.array([tell, 2.0]), jnp.array([2.0, tell])).to_event(1))
        with numpyro.plate("person", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(1 - share))
            numpyro.sample("y", dist.Bernoulli(yes[z][:, None]).expand([len(y), 4]).to_event(1), obs=y)

    counts = np.bincount(y.sum(axis=1), minlength=5)

    def log_density(share, a, b):
        out = stats.beta.logpdf(share, 2, 2) + stats.beta.logpdf(a, tell, 2) + stats.beta.logpdf(b, 2, tell)
        for k, count in enumerate(counts):
            one = np.log(share) + special.xlogy(k, a) + special.xlog1py(4 - k, -a)
            other = np.log1p(-share) + special.xlogy(k, b) + special.xlog1py(4 - k, -b)
            out = out + count * np.logaddexp(one, other)
        return out

    axes = [_middles(0, 1, 100)] * 3
    functions = {"share": lambda s, a, b: s, "yes 0": lambda s, a, b: a, "yes 1": lambda s, a, b: b}
    known = _on_grid(log_density, axes, functions, bounded=True)
    on_draws = {
        "share": lambda d: d["share"],
        "yes 0": lambda d: d["yes"][..., 0],
        "yes 1": lambda d: d["yes"][..., 1],
    }
    return Exact(model, (y,), on_draws, *known, log_density, 3, unit=True)


def regressions() -> Exact:
    """Two lines through the origin, with known noise and weights."""
    rng = np.random.default_rng(5)
    x = rng.uniform(-2, 2, 50)
    y = np.where(rng.random(50) < 0.3, 1.5 * x, -0.5 * x) + 0.5 * rng.normal(size=50)

    def model(x, y):
        slope = numpyro.sample("slope", dist.Normal(0, 2).expand([2]).to_event(1))
        with numpyro.plate("obs", len(y)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.3, 0.7])))
            numpyro.sample("y", dist.Normal(slope[z] * x, 0.5), obs=y)

    def log_density(a, b):
        out = stats.norm.logpdf(a, 0, 2) + stats.norm.logpdf(b, 0, 2)
        for u, v in zip(x, y, strict=True):
            one = np.log(0.3) + stats.norm.logpdf(v, a * u, 0.5)
            out = out + np.logaddexp(one, np.log(0.7) + stats.norm.logpdf(v, b * u, 0.5))
        return out

    known = _on_grid(log_density, [_middles(-3, 3, 300)] * 2, {"slope 0": lambda a, b: a, "slope 1": lambda a, b: b})
    functions = {"slope 0": lambda d: d["slope"][..., 0], "slope 1": lambda d: d["slope"][..., 1]}
    return Exact(model, (x, y), functions, *known, log_density, 2)


def funnel(scale: float = 1.5, count: int = 3) -> Exact:
    """A spread on a log scale and offsets of that spread, hardly told by the data: no Gaussian has this shape."""
    y = np.linspace(-1, 1.5, count)

    def model(y):
        v = numpyro.sample("v", dist.Normal(0, scale))
        with numpyro.plate("unit", len(y)):
            x = numpyro.sample("x", dist.Normal(0, jnp.exp(v / 2)))
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(x + z, 1), obs=y)

    def log_density(v):
        spread = np.sqrt(1 + np.exp(v))
        out = stats.norm.logpdf(v, 0, scale)
        for value in y:
            out = out + np.logaddexp(stats.norm.logpdf(value, 0, spread), stats.norm.logpdf(value, 1, spread))
        return out

    known = _on_grid(log_density, [_middles(-8 * scale, 8 * scale, 4000)], {"v": lambda v: v})
    return Exact(model, (y,), {"v": lambda d: d["v"]}, *known, log_density, 1)


def schools() -> Exact:
    """Eight schools (Rubin 1981): the density has no top, as it grows without bound where the spread tau goes to 0."""
    y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    error = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("school", len(y)):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, error), obs=y)

    def log_density(mu, log_tau):
        tau = np.exp(log_tau)
        out = stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(tau, scale=5) + log_tau
        for value, sd in zip(y, error, strict=True):
            out = out + stats.norm.logpdf(value, mu, np.hypot(sd, tau))
        return out

    axes = [_middles(-25, 35, 300), _middles(-12, 8, 800)]
    known = _on_grid(log_density, axes, {"mu": lambda mu, t: mu, "log tau": lambda mu, t: t})
    functions = {"mu": lambda d: d["mu"], "log tau": lambda d: np.log(d["tau"])}
    return Exact(model, (y,), functions, *known, log_density, 2)


MODELS: dict[str, Callable[[], Exact]] = {
    "conjugate": conjugate,
    "mixture": mixture,
    "hidden Markov": hidden_markov,
    "latent class": latent_class,
    "regressions": regressions,
}
