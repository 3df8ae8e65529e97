"""Whether draws diverged at a hard edge, beyond which the density is 0: no step size mends that."""

from __future__ import annotations

import numpy as np

from marginalia.infer.optimise import Optimiser

ASKED = 256  # draws that diverged and are looked around
REACH = 1.0  # how far around, in standard deviations of all draws
PART = 0.05  # of the points around them that must be impossible; a draw may lie far from where its path diverged


def findings(optimiser: Optimiser, points: np.ndarray, diverging: np.ndarray) -> tuple[str, ...]:
    """Say so where it is so.

    Args:
        optimiser: Evaluates the density.
        points: Draws, unconstrained, `(chain, draw, dimension)`.
        diverging: Which of them diverged, `(chain, draw)`.
    """
    away = points[diverging]
    if not len(away):
        return ()
    some = away[np.linspace(0, len(away) - 1, ASKED).round().astype(int)]
    noise = np.random.default_rng(0).normal(size=some.shape)
    values, _ = optimiser.evaluate(some + REACH * points.std(axis=(0, 1)) * noise)
    if np.mean(~np.isfinite(values)) < PART:
        return ()
    return (
        "Draws diverged at an edge beyond which the density is 0, as that of a factor of -inf: the sampler cannot see "
        'it coming, and smaller steps hardly help. Use method="smc", or put the constraint into a support (an '
        "ordered vector, an interval).",
    )
