"""Options of the choice of a method."""

from __future__ import annotations

from dataclasses import dataclass

from marginalia.infer.options.validate import of_chains, whole


@dataclass(frozen=True)
class Auto:
    """Let the library choose the method by what it measures, and run it until nothing wrong is found.

    The fit's `method` is the one that was chosen; `info["choice"]` and the fit's notes say why. The rules are in
    `marginalia.infer.auto`.

    Args:
        draws: Draws kept per chain to begin with.
        tune: Steps per chain that adapt a sampler; they are thrown away.
        chains: Number of independent chains.
        max_draws: Sampling goes on, twice as long each time, until the judge is content or so many draws per
            chain are made. The number of `draws` or less: never longer.
        starts: Number of optimisations that look for the modes. None means 64, fewer where one evaluation
            reads a great many data.

    Raises:
        OptionError: A value makes no sense.

    Example:
        >>> Auto(draws=500).chains
        4
    """

    draws: int = 1000
    tune: int = 1000
    chains: int = 4
    max_draws: int = 16_000
    starts: int | None = None

    def __post_init__(self) -> None:
        of_chains(self)
        whole(self, "max_draws", 1)
