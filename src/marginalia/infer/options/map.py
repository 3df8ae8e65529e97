"""Options of the search for the most probable parameters."""

from __future__ import annotations

from dataclasses import dataclass

from marginalia.infer.options.validate import flag, whole


@dataclass(frozen=True)
class MAP:
    """The most probable parameters: the best of many optimised starts, polished.

    Args:
        starts: Number of optimisations. None means 64, fewer where one evaluation reads a great many data.
        steps: Most iterations of one optimisation.
        jacobian: Maximise the density of the unconstrained parameters (True) or of the parameters as the
            program names them (False, the usual meaning of MAP).

    Raises:
        OptionError: A value makes no sense.

    Example:
        >>> MAP(starts=100).jacobian
        False
    """

    starts: int | None = None
    steps: int = 1000
    jacobian: bool = False

    def __post_init__(self) -> None:
        whole(self, "starts", 1, or_none=True)
        whole(self, "steps", 1)
        flag(self, "jacobian")
