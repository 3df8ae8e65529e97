"""Options of the No-U-Turn sampler."""

from __future__ import annotations

from dataclasses import dataclass

from marginalia.infer.options.validate import fraction, of_chains, one_of, whole

METRICS = ("diagonal", "dense", "low-rank")


@dataclass(frozen=True)
class NUTS:
    """The No-U-Turn sampler, started at the best of many optimised points.

    Args:
        draws: Draws kept per chain.
        tune: Steps per chain that adapt step size and metric; they are thrown away.
        chains: Number of independent chains.
        target_accept: Acceptance rate that the step size aims at; nearer to 1 means smaller steps.
        max_tree_depth: A trajectory has at most `2**max_tree_depth - 1` steps.
        metric: What the tuning adapts: `"diagonal"`, one scale for each parameter; `"dense"`, correlations as well; or
            `"low-rank"`, the scales and some directions, from draws and gradients. All begin with the curvature at
            the mode. None means dense up to 50 parameters, and low-rank beyond.
        starts: Number of optimisations that look for the starting point. None means 64, fewer where one
            evaluation reads a great many data.
        max_draws: If given, sampling goes on until the judge is content: up to so many draws per chain, twice as
            many each time; where draws diverge, it begins again with half the step size. None: never.

    Raises:
        OptionError: A value makes no sense.

    Example:
        >>> NUTS(draws=500, chains=2).tune
        1000
    """

    draws: int = 1000
    tune: int = 1000
    chains: int = 4
    target_accept: float = 0.8
    max_tree_depth: int = 10
    metric: str | None = None
    starts: int | None = None
    max_draws: int | None = None

    def __post_init__(self) -> None:
        of_chains(self)
        whole(self, "max_tree_depth", 1)
        whole(self, "max_draws", 1, or_none=True)
        if self.metric is not None:
            one_of(self, "metric", METRICS)
        fraction(self, "target_accept")
