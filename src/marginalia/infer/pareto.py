"""Pareto k-hat: how far the draws of an approximation are from those of its target."""

from __future__ import annotations

import numpy as np

LARGEST_K = 0.7
FEWEST = 25  # draws below which a tail cannot be fitted
ALIKE = 1e-6  # log ratios that differ by less are equal
PRIOR_DRAWS, PRIOR_K = 10, 0.5  # a weak prior for the shape, as the paper has it
TINY = 1e-200  # tail values below this part of the largest are beyond floating point


def k_hat(log_ratios: np.ndarray) -> float:
    """Shape of the generalised Pareto distribution that fits the largest importance ratios.

    Above 0.7 estimates by importance weighting fail, and the approximation is not the target (Vehtari, Simpson,
    Gelman, Yao and Gabry 2024, "Pareto smoothed importance sampling").

    Args:
        log_ratios: The target's log density less the approximation's at draws from the approximation, any shape; -inf
            is a draw that the target forbids.

    Returns:
        The shape; -inf where all ratios are alike. NaN with fewer than 25 draws. inf where a ratio is infinite or not
        a number, or the largest few exceed all others beyond floating point.
    """
    flat = np.sort(np.asarray(log_ratios, float).reshape(-1))
    if len(flat) < FEWEST:
        return float("nan")
    if np.isnan(flat).any() or not np.isfinite(flat[-1]):
        return float("inf")
    count = int(np.ceil(min(0.2 * len(flat), 3 * np.sqrt(len(flat)))))
    flat = flat - flat[-1]
    if flat[-count] > -ALIKE:
        return float("-inf")
    with np.errstate(under="ignore"):
        tail = np.exp(flat[-count:]) - np.exp(flat[-count - 1])
    tail = tail[tail > 0]
    if len(tail) < count / 2 or tail[(len(tail) + 2) // 4 - 1] < TINY:
        return float("inf")
    return _shape(tail)


def _shape(x: np.ndarray) -> float:
    """Shape of a generalised Pareto for sorted positive values (Zhang and Stephens 2009, their section 4)."""
    n = len(x)
    size = 30 + int(np.sqrt(n))
    grid = 1 - np.sqrt(size / (np.arange(1, size + 1) - 0.5))
    grid = grid / (3 * x[(n + 2) // 4 - 1]) + 1 / x[-1]
    shapes = np.log1p(-grid[:, None] * x).mean(axis=1)
    profile = n * (np.log(-grid / shapes) - shapes - 1)
    weight = np.exp(profile - profile.max())
    best = float(grid @ weight / weight.sum())
    k = float(np.log1p(-best * x).mean())
    return (n * k + PRIOR_DRAWS * PRIOR_K) / (n + PRIOR_DRAWS)
