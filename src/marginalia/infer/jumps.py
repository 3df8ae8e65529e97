"""Jumps between modes: an exact move that takes a chain from around one mode to the like place around another.

Two modes are often copies but for the priors: components have changed places, an effect and all that it multiplies
have changed signs. So each site is first permuted and reflected to be most like the other mode's (M). Then the
Gaussians that touch the modes are mapped on each other by the linear map of least transport, A = S^-1/2 (S^1/2 T
S^1/2)^1/2 S^-1/2 from covariance S to T: a point keeps its place relative to the mode, and between exact copies A is
the identity.

Whose a point is, the nearest Gaussian says; a jump that does not come back the same way is refused, so the move is
its own inverse. The rule of Metropolis accepts it, with the volume that the map stretches (Tjelmeland and Hegstad
2001, "Mode jumping proposals in MCMC"; Green 1995). Where modes are nearly Gaussian or nearly copies, most jumps are
accepted; where they are neither, few, and R-hat says that the chains do not agree.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy.linalg import block_diag
from scipy.optimize import linear_sum_assignment

from marginalia.infer.modes import Modes
from marginalia.infer.problem import Problem


class Jumps:
    """Jumps between the modes that have some mass; at least two."""

    def __init__(self, problem: Problem, weighed: Modes) -> None:
        self._evaluate = weighed.found.optimiser.evaluate
        self._centres = np.stack([mode.point for mode in weighed.every])
        covariances = np.stack([mode.curvature.covariance for mode in weighed.every])
        self._inverses = np.linalg.inv(covariances)
        self._log_volumes = 0.5 * np.linalg.slogdet(covariances)[1]
        count = len(covariances)
        self._maps = np.tile(np.eye(problem.dimension), (count, count, 1, 1))
        self._log_stretches = np.zeros((count, count))
        for i, j in itertools.combinations(range(count), 2):
            alike = _likening(problem, self._centres[[i, j]], covariances[[i, j]])
            self._maps[i, j] = _transport(alike @ covariances[i] @ alike.T, covariances[j]) @ alike
            self._maps[j, i] = np.linalg.inv(self._maps[i, j])
            self._log_stretches[i, j] = np.linalg.slogdet(self._maps[i, j])[1]
            self._log_stretches[j, i] = -self._log_stretches[i, j]

    def owners(self, points: np.ndarray) -> np.ndarray:
        """The mode whose Gaussian is highest at each of `points` `(n, dimension)`: `(n,)`."""
        away = points[:, None] - self._centres
        return np.argmin(np.einsum("nmi,mij,nmj->nm", away, self._inverses, away) / 2 + self._log_volumes, axis=1)

    def around_means(self, points: np.ndarray) -> np.ndarray:
        """`points` `(n, dimension)` less the mean of those that belong to the same mode."""
        owners = self.owners(points)
        out = points.copy()
        for mode in np.unique(owners):
            out[owners == mode] -= points[owners == mode].mean(axis=0)
        return out

    def __call__(
        self, points: np.ndarray, values: np.ndarray, gradients: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One try for each chain: points `(chain, dimension)`, log densities `(chain,)` and gradients after it."""
        count = len(points)
        here = self.owners(points)
        there = (here + rng.integers(1, len(self._centres), size=count)) % len(self._centres)
        uniforms = rng.random(count)
        moves = points - self._centres[here]
        proposed = self._centres[there] + np.einsum("nij,nj->ni", self._maps[here, there], moves)
        new_values, new_gradients = self._evaluate(proposed)
        with np.errstate(over="ignore"):
            chance = np.exp(np.minimum(new_values - values + self._log_stretches[here, there], 0.0))
        taken = (self.owners(proposed) == there) & (uniforms < chance)
        return (
            np.where(taken[:, None], proposed, points),
            np.where(taken, new_values, values),
            np.where(taken[:, None], new_gradients, gradients),
        )


def jumps_between(problem: Problem, weighed: Modes) -> Jumps | None:
    """The jumps, or None where there is one mode only."""
    return Jumps(problem, weighed) if len(weighed.every) > 1 else None


def _likening(problem: Problem, centres: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """A signed permutation `(dimension, dimension)`, site by site, that makes the first mode most like the second."""
    spreads = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    latents = problem.marginal.program.latents
    labels = {len(site.values) for site in problem.marginal.program.discretes.values()}
    blocks, at = [], 0
    for name, shape in problem.shapes.items():
        size = math.prod(shape)
        part = slice(at, at + size)
        # The coordinates of a simplex are no components.
        axes = [i for i, n in enumerate(shape) if n in labels] if tuple(latents[name].shape) == shape else []
        blocks.append(_block(shape, axes, centres[:, part], spreads[:, part]))
        at += size
    return np.asarray(block_diag(*blocks))


def _block(shape: tuple[int, ...], axes: list[int], centres: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    """The best of: as it is or reflected, and an axis of components permuted."""
    (one, two), scale = centres, np.sum(spreads**2, axis=0)
    index = np.arange(len(one)).reshape(shape)
    best, least = np.eye(len(one)), np.inf
    for sign in (1.0, -1.0):
        orders = [index]
        for axis in axes:
            rows_of = np.moveaxis(index, axis, 0).reshape(shape[axis], -1)
            away = (two[rows_of][:, None] - sign * one[rows_of][None]) ** 2 / scale[rows_of][:, None]
            orders.append(np.take(index, linear_sum_assignment(away.sum(axis=2))[1], axis=axis))
        for order in orders:
            cost = float(np.sum((two - sign * one[order.ravel()]) ** 2 / scale))
            if cost < least:
                best, least = sign * np.eye(len(one))[order.ravel()], cost
    return best


def _transport(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The map of least transport between two covariances, in units of the first one's spreads."""
    spreads = np.sqrt(np.diag(before))
    before, after = (part / spreads / spreads[:, None] for part in (before, after))
    root, back = _root(before, 0.5), _root(before, -0.5)
    return spreads[:, None] * (back @ _root(root @ after @ root, 0.5) @ back) / spreads


def _root(matrix: np.ndarray, power: float) -> np.ndarray:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.maximum(values, 1e-300) ** power) @ vectors.T
