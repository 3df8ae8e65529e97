"""Options of tempered sequential Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass

from marginalia.infer.options.validate import fraction, whole


@dataclass(frozen=True)
class SMC:
    """Sequential Monte Carlo: a cloud of points led from the prior to the posterior, with the log evidence.

    It needs no start and does not get stuck in one mode: points are in every mode that the prior reaches, in
    proportion to its mass. Priors must be proper.

    Args:
        draws: Points of one run, all of them draws at the end.
        chains: Number of independent runs; their spread is the error of the log evidence.
        target_ess: Each step towards the posterior is so long that this part of the points stays effective.
        moves: Most Hamiltonian moves of every point after a step; fewer where they forget their start sooner.

    Raises:
        OptionError: A value makes no sense.

    Example:
        >>> SMC(draws=2000).chains
        4
    """

    draws: int = 1000
    chains: int = 4
    target_ess: float = 0.5
    moves: int = 10

    def __post_init__(self) -> None:
        whole(self, "draws", 10)
        whole(self, "chains", 1)
        whole(self, "moves", 1)
        fraction(self, "target_ess")
