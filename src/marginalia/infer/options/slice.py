"""Options of the slice sampler."""

from __future__ import annotations

from dataclasses import dataclass

from marginalia.infer.options.validate import of_chains, whole


@dataclass(frozen=True)
class Slice:
    """Slice sampling along the axes of the learned covariance, started at the best optimised point.

    It asks for no gradient and has no length of step to get wrong; a draw costs some six evaluations per parameter.

    Args:
        draws: Draws kept per chain.
        tune: Draws per chain during which the axes are learned; they are thrown away.
        chains: Number of independent chains.
        thin: Sweeps over all axes per draw.
        starts: Number of optimisations that look for the starting point. None means 64, fewer where one
            evaluation reads a great many data.

    Raises:
        OptionError: A value makes no sense.

    Example:
        >>> Slice(draws=500).thin
        1
    """

    draws: int = 1000
    tune: int = 500
    chains: int = 4
    thin: int = 1
    starts: int | None = None

    def __post_init__(self) -> None:
        of_chains(self)
        whole(self, "thin", 1)
