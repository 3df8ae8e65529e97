"""Jumps between modes: an exact move that takes a chain from around one mode to the like place around another.

The Gaussians that touch two modes are mapped on each other by the linear map of least transport, A = S^-1/2 (S^1/2 T
S^1/2)^1/2 S^-1/2 from covariance S to T, so a point keeps its place relative to the mode. Whose a point is, the nearest
Gaussian says; a jump that does not come back the same way is refused, so the move is its own inverse. The rule of
Metropolis accepts it, with the volume that the map stretches (Tjelmeland and Hegstad 2001, "Mode jumping proposals in
MCMC"; Green 1995). Where the posterior is nearly Gaussian around its modes, most jumps are accepted; where it is far
from that, few, and R-hat says that the chains do not agree.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from marginalia.infer.modes import Modes

type Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Jumps:
    """Jumps between the modes that have some mass; at least two."""

    def __init__(self, weighed: Modes, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._centres = np.stack([mode.point for mode in weighed.every])
        covariances = np.stack([mode.curvature.covariance for mode in weighed.every])
        self._inverses = np.linalg.inv(covariances)
        self._log_volumes = 0.5 * np.linalg.slogdet(covariances)[1]
        self._maps = np.stack([[_transport(a, b) for b in covariances] for a in covariances])

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
        stretched = self._log_volumes[there] - self._log_volumes[here]
        with np.errstate(over="ignore"):
            chance = np.exp(np.minimum(new_values - values + stretched, 0.0))
        taken = (self.owners(proposed) == there) & (uniforms < chance)
        return (
            np.where(taken[:, None], proposed, points),
            np.where(taken, new_values, values),
            np.where(taken[:, None], new_gradients, gradients),
        )


def jumps_between(weighed: Modes, evaluate: Evaluate) -> Jumps | None:
    """The jumps, or None where there is one mode only."""
    return Jumps(weighed, evaluate) if len(weighed.every) > 1 else None


def _transport(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    root, back = _root(before, 0.5), _root(before, -0.5)
    return back @ _root(root @ after @ root, 0.5) @ back


def _root(matrix: np.ndarray, power: float) -> np.ndarray:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.maximum(values, 1e-300) ** power) @ vectors.T
