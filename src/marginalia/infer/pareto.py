"""Pareto k-hat: how far the draws of an approximation are from those of its target."""

from __future__ import annotations

import numpy as np

LARGEST_K = 0.7
FEWEST = 25  # draws below which a tail cannot be fitted


def k_hat(log_ratios: np.ndarray) -> float:
    """Shape of the generalised Pareto that fits the largest importance ratios.

    Above 0.7 estimates by importance weighting fail, and the approximation is not the target (Vehtari, Simpson,
    Gelman, Yao and Gabry 2024, "Pareto smoothed importance sampling"). `log_ratios` is the target's log density less
    the approximation's at draws from the approximation, any shape; -inf is a draw that the target forbids. NaN with
    fewer than 25 draws; infinite where a ratio is, or where no draw is possible.
    """
    from arviz_stats.base.array import array_stats  # half a second to import: not before it is needed

    flat = np.asarray(log_ratios, float).reshape(-1)
    if np.isnan(flat).any() or np.isposinf(flat).any() or not np.isfinite(flat).any():
        return float("inf")
    if len(flat) < FEWEST:
        return float("nan")
    flat = flat - flat.max()
    if np.ptp(flat) < 1e-6:
        return float("-inf")  # the ratios are all alike: the approximation is exact
    # A ratio of zero has no logarithm; far below the tail that is fitted, any number does.
    lowest = np.min(flat[np.isfinite(flat)])
    # ArviZ takes log likelihoods, of which the log ratios of leave-one-out are the negatives.
    return float(array_stats.psislw(-np.where(np.isfinite(flat), flat, lowest - 50.0))[1])
