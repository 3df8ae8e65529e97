"""Options of variational inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from marginalia.infer.options.validate import refuse, whole

FAMILIES = ("mean-field", "full-rank", "low-rank", "flow")
ESTIMATORS = ("path-derivative", "plain")
DISCRETES = ("summed", "explicit")


@dataclass(frozen=True)
class ADVI:
    """Automatic differentiation variational inference: the nearest member of a family to the posterior.

    It is an approximation, and says how good: a Pareto k-hat above 0.7 means that it is not the posterior.

    Args:
        family: `"mean-field"` (independent Gaussians), `"full-rank"` (one Gaussian), `"low-rank"` (a Gaussian
            whose covariance is diagonal plus `rank` directions) or `"flow"` (a Gaussian bent by coupling
            layers), in the unconstrained space.
        rank: Number of directions of `"low-rank"`; given alone, it asks for that family.
        optimizer: Any optax optimiser, such as `optax.adagrad(0.1)`. None means Adam at 0.05.
        steps: Number of optimisation steps, neither more nor fewer. None means until converged.
        samples: Draws per step that estimate the ELBO; they come in mirrored pairs, so an even number.
        estimator: `"path-derivative"` (less noise near the optimum) or `"plain"`.
        draws: Draws from the approximation that are kept.
        batch_size: Rows per step. None means all, or the `subsample_size` of the model's own plate.
        discretes: `"summed"` is exact. `"explicit"` gives every discrete element a categorical distribution of
            its own beside the continuous one, for comparison with the exact membership.
        starts: Number of optimisations that look for the starting point. None means 64, fewer where one
            evaluation reads a great many data.

    Raises:
        OptionError: A value makes no sense.

    Example:
        >>> ADVI(rank=2).family
        'low-rank'
    """

    family: str = "mean-field"
    rank: int | None = None
    optimizer: Any = None
    steps: int | None = None
    samples: int = 8
    estimator: str = "path-derivative"
    draws: int = 1000
    batch_size: int | None = None
    discretes: str = "summed"
    starts: int | None = None

    def __post_init__(self) -> None:
        _one_of(self, "family", FAMILIES)
        _one_of(self, "estimator", ESTIMATORS)
        _one_of(self, "discretes", DISCRETES)
        whole(self, "rank", 1, or_none=True)
        if self.rank is not None and self.family == "mean-field":
            object.__setattr__(self, "family", "low-rank")
        if (self.rank is None) == (self.family == "low-rank"):
            expected = "a whole number of at least 1" if self.rank is None else f"None with family={self.family!r}"
            refuse(self, "rank", expected, self.rank)
        if self.optimizer is not None and not all(
            callable(getattr(self.optimizer, part, None)) for part in ("init", "update")
        ):
            refuse(self, "optimizer", "an optax optimiser such as optax.adam(0.01), or None", self.optimizer)
        whole(self, "steps", 1, or_none=True)
        whole(self, "samples", 2)
        if self.samples % 2:
            refuse(self, "samples", "an even number", self.samples)
        whole(self, "draws", 1)
        whole(self, "batch_size", 1, or_none=True)
        whole(self, "starts", 1, or_none=True)
        if self.batch_size is not None and self.discretes == "explicit":
            refuse(self, "batch_size", 'None with discretes="explicit"', self.batch_size)


def _one_of(owner: ADVI, name: str, known: tuple[str, ...]) -> None:
    if getattr(owner, name) not in known:
        refuse(owner, name, "one of " + ", ".join(map(repr, known)), getattr(owner, name))
