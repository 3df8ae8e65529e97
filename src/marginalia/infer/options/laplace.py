"""Options of the Laplace approximation, corrected to the exact density."""

from __future__ import annotations

from dataclasses import dataclass

from marginalia.infer.options.validate import positive, whole


@dataclass(frozen=True)
class Laplace:
    """Proposals from the shape of the density at its modes, each accepted or not by an exact Metropolis step.

    The draws are those of the posterior itself, not of an approximation, as long as the proposals reach where
    the posterior lies. The Pareto k-hat of the importance ratios tells whether they do; above 0.7 the result
    says that it is no posterior. It costs density evaluations only, no gradients, and none of them waits for
    another: the quickest method there is where the data are many.

    Args:
        draws: Draws kept per chain, each from one proposal.
        chains: Number of independent chains.
        df: Degrees of freedom of the Student-t proposals; fewer mean heavier tails. None means the number of
            parameters, at least 5.
        starts: Number of optimisations that look for the modes. None means 64, fewer where one evaluation
            reads a great many data.

    Raises:
        OptionError: A value makes no sense.

    Example:
        >>> Laplace(draws=500).chains
        4
    """

    draws: int = 1000
    chains: int = 4
    df: float | None = None
    starts: int | None = None

    def __post_init__(self) -> None:
        whole(self, "draws", 1)
        whole(self, "chains", 1)
        positive(self, "df", or_none=True)
        whole(self, "starts", 1, or_none=True)
