"""Options of the random walk Metropolis sampler."""

from __future__ import annotations

from dataclasses import dataclass

from marginalia.infer.options.validate import of_chains, whole


@dataclass(frozen=True)
class Metropolis:
    """A random walk that learns its covariance and its length of step, started at the best optimised point.

    It asks for no gradient, and needs many more steps than `NUTS` for the same number of effective draws.

    Args:
        draws: Draws kept per chain.
        tune: Draws per chain during which the walk learns; they are thrown away.
        chains: Number of independent chains.
        thin: Steps per draw. None means three times the number of parameters, at most 100.
        starts: Number of optimisations that look for the starting point. None means 64, fewer where one
            evaluation reads a great many data.

    Raises:
        OptionError: A value makes no sense.

    Example:
        >>> Metropolis(draws=500, chains=2).tune
        1000
    """

    draws: int = 1000
    tune: int = 1000
    chains: int = 4
    thin: int | None = None
    starts: int | None = None

    def __post_init__(self) -> None:
        of_chains(self)
        whole(self, "thin", 1, or_none=True)
