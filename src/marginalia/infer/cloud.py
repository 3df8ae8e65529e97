"""The shape of a cloud of points."""

from __future__ import annotations

import numpy as np


def cloud_root(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A root of the weighted covariance, shrunk to its diagonal where the points are few for it."""
    centred = points - weights @ points
    covariance = (centred * weights[:, None]).T @ centred
    effective = 1.0 / np.sum(weights**2)
    size = points.shape[1]
    part = min(1.0, size / effective)
    diagonal = np.maximum(np.diag(covariance), 1e-20)
    shrunk = (1 - part) * covariance
    shrunk[np.diag_indices(size)] = diagonal * (1 + 1e-9)
    return np.linalg.cholesky(shrunk)
