"""Posteriors by importance sampling in NumPy, and draws compared with them: nothing of the library is in here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from arviz_stats.base.array import array_stats
from scipy import optimize, special

SIGMAS = 4.0
DF = 5
NARROW, WIDE = 400, 80


@dataclass(frozen=True)
class Truth:
    """Means and standard deviations `(n,)`, each with its Monte Carlo error, and the effective draws behind them."""

    mean: np.ndarray
    mean_error: np.ndarray
    sd: np.ndarray
    sd_error: np.ndarray
    effective: float

    def agrees(self, published: list[float], sds: list[float], digits: list[float], draws: int = 2000) -> np.ndarray:
        """By how many standard errors published means are off: of `draws` effective draws, printed to `digits`."""
        rounding = np.array(digits) / np.sqrt(12)
        error = np.sqrt(self.mean_error**2 + np.array(sds) ** 2 / draws + rounding**2)
        return np.abs(self.mean - published) / error


def weighed(values: np.ndarray, log_ratio: np.ndarray) -> Truth:
    """Moments of `values` `(S, n)` under weights, with their errors."""
    weight = special.softmax(log_ratio)
    mean = weight @ values
    square = (values - mean) ** 2
    variance = weight @ square
    sd_error = np.sqrt(weight**2 @ (square - variance) ** 2) / (2 * np.sqrt(variance))
    return Truth(mean, np.sqrt(weight**2 @ square), np.sqrt(variance), sd_error, 1 / float((weight**2).sum()))


def importance(
    log_density: Callable[[np.ndarray], np.ndarray], modes: np.ndarray, count: int, seed: int, *, rounds: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Points `(count, n)` and their log importance ratios.

    Proposals are Student-t around the modes, each with the curvature there. With `rounds`, proposals that follow
    the shape of the posterior come after: narrow ones around points that the round before found, and wide ones
    around their mean.
    """
    rng = np.random.default_rng(seed)
    centres = np.atleast_2d(modes)
    scales = [np.linalg.inv(curvature(log_density, centre)) for centre in centres]
    mixed = Mixture(centres, np.linalg.cholesky(1.3 * np.array(scales)))
    for _ in range(rounds):
        points = mixed.sample(20_000, rng)
        weight = special.softmax(in_parts(log_density, points) - mixed.log_density(points))
        kept = points[rng.choice(len(points), NARROW, p=weight)]
        kept[:WIDE] = weight @ points
        spread = np.linalg.cholesky(np.cov(points.T, aweights=weight))
        mixed = Mixture(kept, np.array([1.5 * spread] * WIDE + [0.5 * spread] * (NARROW - WIDE)))
    points = mixed.sample(count, rng)
    return points, in_parts(log_density, points) - mixed.log_density(points)


def in_parts(log_density: Callable[[np.ndarray], np.ndarray], points: np.ndarray, size: int = 4000) -> np.ndarray:
    parts = np.array_split(points, -(-len(points) // size))
    return np.concatenate([log_density(part) for part in parts])


def peak(log_density: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> np.ndarray:
    """The mode that Nelder and Mead's simplex, then BFGS, reach from a start."""
    rough = optimize.minimize(
        lambda u: -log_density(u[None])[0], start, method="Nelder-Mead", options={"maxiter": 4000}
    )
    return optimize.minimize(lambda u: -log_density(u[None])[0], rough.x, method="BFGS").x


def curvature(log_density: Callable[[np.ndarray], np.ndarray], at: np.ndarray, step: float = 1e-4) -> np.ndarray:
    """Minus the second derivatives, by central differences."""
    n = len(at)
    e = step * np.eye(n)
    corners = np.array([at + a + b for a in (*e, *-e) for b in (*e, *-e)])
    values = log_density(corners).reshape(2, n, 2, n)
    return -(values[0, :, 0] - values[0, :, 1] - values[1, :, 0] + values[1, :, 1]) / (4 * step**2)


@dataclass(frozen=True)
class Mixture:
    """Student-t distributions of equal weight around `centres` `(m, n)`; `roots` `(m, n, n)` are of their scales."""

    centres: np.ndarray
    roots: np.ndarray

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        m, n = self.centres.shape
        which = rng.integers(m, size=count)
        noise = rng.normal(size=(count, n)) / np.sqrt(rng.chisquare(DF, size=(count, 1)) / DF)
        return self.centres[which] + np.einsum("snk,sk->sn", self.roots[which], noise)

    def log_density(self, points: np.ndarray) -> np.ndarray:
        m, n = self.centres.shape
        total = np.full(len(points), -np.inf)
        for centre, root in zip(self.centres, self.roots, strict=True):
            distance = ((points - centre) @ np.linalg.inv(root).T) ** 2
            own = -0.5 * (DF + n) * np.log1p(distance.sum(1) / DF) - np.linalg.slogdet(root)[1]
            total = np.logaddexp(total, own)
        constant = special.gammaln((DF + n) / 2) - special.gammaln(DF / 2) - 0.5 * n * np.log(DF * np.pi)
        return total + constant - np.log(m)


def scores(values: np.ndarray, truth: Truth, *, runs: bool = False) -> dict[str, np.ndarray]:
    """By how many combined standard errors means and standard deviations of draws `(chain, draw, n)` are off.

    `runs`: the chains are clouds of points that share ancestors (SMC), so only whole runs are independent, and
    the error is that of their spread.
    """
    mean, sd = values.mean((0, 1)), values.std((0, 1), ddof=1)
    if runs:
        errors = [f(values, axis=1).std(0, ddof=1) / np.sqrt(len(values)) for f in (np.mean, np.std)]
    else:
        chains = np.moveaxis(values, -1, 0)
        errors = [
            np.array([float(array_stats.mcse(v, chain_axis=0, draw_axis=1, method=what)) for v in chains])
            for what in ("mean", "sd")
        ]
    return {
        "mean": (mean - truth.mean) / np.hypot(errors[0], truth.mean_error),
        "sd": (sd - truth.sd) / np.hypot(errors[1], truth.sd_error),
    }
