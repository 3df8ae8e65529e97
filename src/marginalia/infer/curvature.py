"""The shape of the density around a mode: covariance, and the mass under a Gaussian there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from marginalia.infer.optimise import Optimiser

MOST_DIMENSIONS = 300  # 2 x dimension gradients are evaluated and a dimension x dimension matrix decomposed
DIFFERENCE = 1e-5
FLATTEST = 1e-9  # an eigenvalue below this part of the largest counts as flat


@dataclass(frozen=True)
class Curvature:
    """The Gaussian that touches the log density at a mode.

    Attributes:
        covariance: `(dimension, dimension)`.
        root: A matrix whose product with its transpose is the covariance.
        log_mass: Log of the Gaussian's integral, with the density's height.
    """

    covariance: np.ndarray
    root: np.ndarray
    log_mass: float


def curvature_at(optimiser: Optimiser, point: np.ndarray, log_density: float) -> Curvature | None:
    """The curvature at `point` by differences of the gradient; None where it is not that of a peak."""
    size = len(point)
    if size > MOST_DIMENSIONS:
        return None
    steps = DIFFERENCE * np.minimum(np.maximum(1.0, np.abs(point)), optimiser.scale)
    moves = np.diag(steps)
    _, gradients = optimiser.evaluate(np.concatenate([point + moves, point - moves]))
    hessian = (gradients[size:] - gradients[:size]) / (2 * steps[:, None])
    if not np.all(np.isfinite(hessian)):
        return None
    hessian = (hessian + hessian.T) / 2
    # Scaled to unit diagonal: parameters of very different size do not look flat.
    diagonal = np.diag(hessian)
    if np.any(diagonal <= 0):
        return None
    scale = 1 / np.sqrt(diagonal)
    values, vectors = np.linalg.eigh(hessian * scale[:, None] * scale)
    if values[0] <= FLATTEST * values[-1]:
        return None
    root = scale[:, None] * vectors / np.sqrt(values)
    log_determinant = np.log(values).sum() - 2 * np.log(scale).sum()
    log_mass = log_density + 0.5 * (size * np.log(2 * np.pi) - log_determinant)
    return Curvature(root @ root.T, root, float(log_mass))
