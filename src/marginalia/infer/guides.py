"""Families of approximations, each over standardised coordinates, as plain functions of one flat parameter vector.

A guide pushes standard normal noise to a point. The point's coordinates are those in which the Gaussian that touches
the mode is standard (or, for the families that start without correlations, has unit conditional variances), so one
step size suits all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from marginalia.infer.curvature import Curvature

LAYERS = 4  # coupling layers of a flow; each moves half of the coordinates
MOST_BEND = 2.0  # log of the largest factor by which one coupling layer stretches
REFERENCE = 32  # fixed draws whose mean and spread sum a flow up
PLAIN_SCALE = 0.1
LOG_TWO_PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Guide:
    """A family of distributions over `dimension` standardised coordinates.

    Attributes:
        noise: Numbers of standard normal noise per draw.
        start: The first parameters, `(parameters,)`.
        push: From parameters and noise `(noise,)` to a point `(dimension,)`.
        log_density: From parameters and a point to its log density.
        entropy: From parameters to the entropy, None where it has no closed form.
        moments: From parameters to mean and root of the covariance, None where they have no closed form.
        summary: From parameters to numbers that settle where the parameters themselves need not, as different ones
            give the same distribution; None where they are their own summary.
    """

    noise: int
    start: np.ndarray
    push: Callable[[Any, Any], Any]
    log_density: Callable[[Any, Any], Any]
    entropy: Callable[[Any], Any] | None = None
    moments: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    summary: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Frame:
    """Standardised coordinates: a point is `centre + root @ standardised`.

    Attributes:
        centre: `(dimension,)`.
        root: `(dimension,)` for a diagonal one, or `(dimension, dimension)`.
        log_det: Log of the root's absolute determinant.
    """

    centre: np.ndarray
    root: np.ndarray
    log_det: float

    def place(self, standardised: Any) -> Any:
        """Points of the unconstrained space for `(..., dimension)` standardised ones."""
        moved = standardised * self.root if np.ndim(self.root) == 1 else standardised @ self.root.T
        return self.centre + moved


def frame_at(centre: np.ndarray, curvature: Curvature | None, family: str) -> Frame:
    """Coordinates around a mode; without curvature all scales are alike and small."""
    size = len(centre)
    if curvature is None:
        root = np.full(size, PLAIN_SCALE)
    elif family in ("full-rank", "flow"):
        return Frame(centre, curvature.root, float(np.linalg.slogdet(curvature.root)[1]))
    else:
        # The best independent Gaussians for a Gaussian have its conditional variances.
        root = 1 / np.sqrt(np.diag(np.linalg.inv(curvature.covariance)))
    if family in ("full-rank", "flow"):
        return Frame(centre, np.diag(root), float(np.log(root).sum()))
    return Frame(centre, root, float(np.log(root).sum()))


def make_guide(family: str, size: int, rank: int | None) -> Guide:
    """The family's functions for points of `size` coordinates."""
    if family == "mean-field":
        return _mean_field(size)
    if family == "full-rank":
        return _full_rank(size)
    if family == "low-rank":
        assert rank is not None
        return _low_rank(size, min(rank, size))
    return _flow(size)


def _standard(noise: Any) -> Any:
    return -0.5 * jnp.sum(noise**2) - 0.5 * len(noise) * LOG_TWO_PI


def _mean_field(size: int) -> Guide:
    def push(phi: Any, noise: Any) -> Any:
        return phi[:size] + jnp.exp(phi[size:]) * noise

    def log_density(phi: Any, point: Any) -> Any:
        return _standard((point - phi[:size]) * jnp.exp(-phi[size:])) - jnp.sum(phi[size:])

    def entropy(phi: Any) -> Any:
        return jnp.sum(phi[size:]) + 0.5 * size * (1 + LOG_TWO_PI)

    def moments(phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return phi[:size], np.diag(np.exp(phi[size:]))

    return Guide(size, np.zeros(2 * size), push, log_density, entropy, moments)


def _full_rank(size: int) -> Guide:
    """Mean, log diagonal and strictly lower part of the root."""
    rows, columns = np.tril_indices(size, -1)

    def root(phi: Any) -> Any:
        lower = jnp.zeros((size, size)).at[rows, columns].set(phi[2 * size :])
        return lower + jnp.diag(jnp.exp(phi[size : 2 * size]))

    def push(phi: Any, noise: Any) -> Any:
        return phi[:size] + root(phi) @ noise

    def log_density(phi: Any, point: Any) -> Any:
        noise = solve_triangular(root(phi), point - phi[:size], lower=True)
        return _standard(noise) - jnp.sum(phi[size : 2 * size])

    def entropy(phi: Any) -> Any:
        return jnp.sum(phi[size : 2 * size]) + 0.5 * size * (1 + LOG_TWO_PI)

    def moments(phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lower = np.diag(np.exp(phi[size : 2 * size]))
        lower[rows, columns] = phi[2 * size :]
        return phi[:size], lower

    return Guide(size, np.zeros(2 * size + len(rows)), push, log_density, entropy, moments)


def _low_rank(size: int, rank: int) -> Guide:
    """Mean, log scales, and `rank` directions (Ong, Nott and Smith 2018)."""

    def parts(phi: Any) -> tuple[Any, Any, Any]:
        return phi[:size], phi[size : 2 * size], phi[2 * size :].reshape(size, rank)

    def push(phi: Any, noise: Any) -> Any:
        mean, log_scale, directions = parts(phi)
        return mean + jnp.exp(log_scale) * noise[:size] + directions @ noise[size:]

    def inner(log_scale: Any, directions: Any) -> tuple[Any, Any]:
        """The directions in units of the scales, and the root of the small matrix of Woodbury's identity."""
        scaled = directions * jnp.exp(-log_scale)[:, None]
        return scaled, jnp.linalg.cholesky(jnp.eye(rank) + scaled.T @ scaled)

    def half_log_det(phi: Any) -> Any:
        _, log_scale, directions = parts(phi)
        return jnp.sum(log_scale) + jnp.sum(jnp.log(jnp.diag(inner(log_scale, directions)[1])))

    def log_density(phi: Any, point: Any) -> Any:
        mean, log_scale, directions = parts(phi)
        scaled, small = inner(log_scale, directions)
        centred = (point - mean) * jnp.exp(-log_scale)
        along = solve_triangular(small, scaled.T @ centred, lower=True)
        return -0.5 * (centred @ centred - along @ along) - 0.5 * size * LOG_TWO_PI - half_log_det(phi)

    def entropy(phi: Any) -> Any:
        return half_log_det(phi) + 0.5 * size * (1 + LOG_TWO_PI)

    def moments(phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        directions = phi[2 * size :].reshape(size, rank)
        covariance = np.diag(np.exp(2 * phi[size : 2 * size])) + directions @ directions.T
        return phi[:size], np.linalg.cholesky(covariance)

    def summary(phi: Any) -> Any:
        mean, log_scale, directions = parts(phi)
        return jnp.concatenate([mean, 0.5 * jnp.log(jnp.exp(2 * log_scale) + jnp.sum(directions**2, axis=1))])

    # Directions of zero would stay zero: no draw would show which way to go.
    first = 0.3 * np.random.default_rng(0).normal(size=(size, rank)) / math.sqrt(rank)
    start = np.concatenate([np.zeros(2 * size), first.reshape(-1)])
    return Guide(size + rank, start, push, log_density, entropy, moments, summary)


def _flow(size: int) -> Guide:
    """Affine coupling layers (Dinh, Sohl-Dickstein and Bengio 2017) over a Gaussian of any mean and scales.

    In each layer one half of the coordinates stretches and moves the other half, through one hidden layer.
    """
    hidden = max(8, 2 * size)
    masks = [np.arange(size) % 2 == layer % 2 for layer in range(LAYERS)]
    shapes = [(size, hidden), (hidden,), (hidden, 2 * size), (2 * size,)]
    counts = [math.prod(shape) for shape in shapes]
    per_layer = sum(counts)

    def bend(phi: Any, layer: int, point: Any) -> tuple[Any, Any]:
        """Log stretch and shift of the moved half, from the half that stays."""
        at, weights = 2 * size + layer * per_layer, []
        for shape, length in zip(shapes, counts, strict=True):
            weights.append(phi[at : at + length].reshape(shape))
            at += length
        first, bias, second, last = weights
        out = jnp.tanh(jnp.where(masks[layer], point, 0.0) @ first + bias) @ second + last
        moved = ~masks[layer]
        return jnp.where(moved, MOST_BEND * jnp.tanh(out[:size] / MOST_BEND), 0.0), jnp.where(moved, out[size:], 0.0)

    def push(phi: Any, noise: Any) -> Any:
        point = noise
        for layer in range(LAYERS):
            stretch, shift = bend(phi, layer, point)
            point = point * jnp.exp(stretch) + shift
        return phi[:size] + jnp.exp(phi[size : 2 * size]) * point

    def log_density(phi: Any, point: Any) -> Any:
        point = (point - phi[:size]) * jnp.exp(-phi[size : 2 * size])
        total = -jnp.sum(phi[size : 2 * size])
        for layer in reversed(range(LAYERS)):
            stretch, shift = bend(phi, layer, point)
            point = (point - shift) * jnp.exp(-stretch)
            total = total - jnp.sum(stretch)
        return total + _standard(point)

    rng = np.random.default_rng(0)
    reference = rng.normal(size=(REFERENCE // 2, size))
    reference = np.concatenate([reference, -reference])

    def summary(phi: Any) -> Any:
        points = jax.vmap(push, (None, 0))(phi, reference)
        return jnp.concatenate([jnp.mean(points, axis=0), jnp.log(jnp.std(points, axis=0))])

    # The last weights of a layer are zero: the flow begins as the Gaussian.
    layer = [rng.normal(size=shapes[0]).reshape(-1) / math.sqrt(size), *(np.zeros(count) for count in counts[1:])]
    return Guide(size, np.concatenate([np.zeros(2 * size), *(layer * LAYERS)]), push, log_density, summary=summary)


def names(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """One name per unconstrained coordinate, as in `mu[0,1]`."""
    out: list[str] = []
    for name, shape in shapes.items():
        places = np.ndindex(*shape)
        out += [name if not shape else f"{name}[{','.join(map(str, place))}]" for place in places]
    return out


def standard_noise(key: jax.Array, samples: int, noise: int) -> jax.Array:
    """Noise in mirrored pairs, `(samples, noise)`: what is odd in it cancels from an average."""
    half = jax.random.normal(key, (samples // 2, noise))
    return jnp.concatenate([half, -half])
