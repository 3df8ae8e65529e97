"""Options of the ensemble: many short chains in step."""

from __future__ import annotations

from dataclasses import dataclass

from marginalia.infer.options.validate import fraction, refuse, whole


@dataclass(frozen=True)
class Ensemble:
    """Many short chains of Hamiltonian Monte Carlo, stepped together and tuned on each other.

    Chains that begin at the same point form a superchain; whether the superchains agree (nested R-hat) says
    whether chains this short have forgotten where they began.

    Args:
        draws: Draws kept per chain: few, as there are many chains.
        tune: Steps per chain that adapt step size, trajectory length and metric; they are thrown away.
        chains: Number of chains, a multiple of `superchains`.
        superchains: Number of points where chains begin.
        target_accept: Acceptance rate (the harmonic mean over the chains) that the step size aims at.
        starts: Number of optimisations that look for the modes. None means 64, fewer where one evaluation
            reads a great many data.
        max_draws: Go on after `draws`, doubling them, until R-hat and effective sample sizes are content or so many
            are made. None makes `draws`.

    Raises:
        OptionError: A value makes no sense.

    Example:
        >>> Ensemble(draws=50).chains
        64
    """

    draws: int = 100
    tune: int = 300
    chains: int = 64
    superchains: int = 8
    target_accept: float = 0.65
    starts: int | None = None
    max_draws: int | None = None

    def __post_init__(self) -> None:
        whole(self, "draws", 1)
        whole(self, "tune", 0)
        whole(self, "superchains", 2)
        whole(self, "chains", 4)
        fraction(self, "target_accept")
        whole(self, "starts", 1, or_none=True)
        whole(self, "max_draws", 1, or_none=True)
        if self.chains % self.superchains or self.chains < 2 * self.superchains:
            refuse(
                self, "chains", f"a multiple of superchains ({self.superchains}), at least twice as many", self.chains
            )
