"""Coordinates in which the posterior is round: a scale for each parameter, and some directions that are stretched.

A metric of low rank: for a round v, u = frame.out(v) has the covariance S (I + U (L - I) U') S, with S diagonal and the
columns of U orthonormal. It takes (rank + 1) x dimension numbers where a dense one takes dimension squared, which are
more than a warm-up can tell: from some hundred draws a covariance of as many parameters is nearly singular.

Seyboldt, Carlson and Carpenter (2026), "Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence": the
metric to take is the geometric mean of the draws' covariance and the inverse of the gradients'. That of a Gaussian is
found exactly from more draws than parameters. Written here rather than taken from BlackJAX, whose adaptation is one
compiled loop over one chain, in which nothing can be shown, stopped or kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

MOST_DIRECTIONS = 50
MOST_DRAWS = 1000
ORDINARY = 2.0  # a direction whose variance is within this factor of the scales' is left as it is
SOFT = 1e-5  # added to the covariances, which may be singular
FLATTEST = 1e-8  # scales that differ by more than this are no measurement


class Frame(NamedTuple):
    """The coordinates.

    Attributes:
        scale: S, `(dimension,)`.
        directions: U, `(dimension, rank)`; columns of 0 stand for no direction.
        stretch: Square roots of L, less 1: `(rank,)`.
    """

    scale: Any
    directions: Any
    stretch: Any

    def out(self, round_: Any) -> Any:
        """A round point `(dimension,)` in the problem's coordinates."""
        return self.scale * self._stretched(round_, self.stretch)

    def inside(self, point: Any) -> Any:
        """The inverse of `out`."""
        return self._stretched(point / self.scale, 1 / (1 + self.stretch) - 1)

    def gradient(self, gradient: Any) -> Any:
        """A gradient `(dimension,)` in the problem's coordinates as one in the round ones."""
        return self._stretched(self.scale * gradient, self.stretch)

    def _stretched(self, vector: Any, by: Any) -> Any:
        return vector + self.directions @ (by * (self.directions.T @ vector))


def rank_of(dimension: int) -> int:
    """How many directions a frame has room for."""
    return min(MOST_DIRECTIONS, dimension)


def of_covariance(covariance: np.ndarray) -> Frame:
    """The frame nearest to a covariance `(dimension, dimension)` that is known."""
    scale = np.sqrt(np.diag(covariance))
    return _kept(scale, np.eye(len(scale)), covariance / scale / scale[:, None])


def plain(dimension: int) -> Frame:
    """The problem's own coordinates."""
    return Frame(np.ones(dimension), np.zeros((dimension, rank_of(dimension))), np.zeros(rank_of(dimension)))


def of_draws(points: np.ndarray, gradients: np.ndarray) -> Frame:
    """The frame that draws and the gradients of the log density there suggest, each `(draw, dimension)`."""
    spread, slope = (np.maximum(s, FLATTEST * s.max()) for s in (points.std(axis=0), gradients.std(axis=0)))
    scale = np.sqrt(spread / slope)
    moves = (points - points.mean(axis=0)) / scale
    slopes = (gradients - gradients.mean(axis=0)) * scale
    # Beyond the space that draws and gradients span nothing is known, and nothing changed.
    some = 2 * len(points) < len(scale)
    basis = np.linalg.qr(np.concatenate([moves, slopes]).T)[0] if some else np.eye(len(scale))
    wide, steep = (
        part.T @ part / len(part) + SOFT * np.eye(basis.shape[1]) for part in (moves @ basis, slopes @ basis)
    )
    return _kept(scale, basis, _between(wide, steep))


def _between(wide: np.ndarray, steep: np.ndarray) -> np.ndarray:
    """The geometric mean of a covariance and the inverse of another: the matrix M for which M steep M is wide."""
    root, back = _root(steep), _root(np.linalg.inv(steep))
    return back @ _root(root @ wide @ root) @ back


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def _kept(scale: np.ndarray, basis: np.ndarray, covariance: np.ndarray) -> Frame:
    """The frame of the directions in which a covariance, in some basis, differs most from the identity."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    values = np.maximum(values, FLATTEST)
    away = np.abs(np.log(values))
    rank = rank_of(len(scale))
    chosen = np.argsort(-away, kind="stable")[:rank]
    chosen = chosen[away[chosen] > np.log(ORDINARY)]
    frame = plain(len(scale))
    frame.directions[:, : len(chosen)] = basis @ vectors[:, chosen]
    frame.stretch[: len(chosen)] = np.sqrt(values[chosen]) - 1
    return frame._replace(scale=scale)
