"""What inference hands back: draws, statistics, the modes that the starts found, and findings in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAXIMUM = "maximum"
EDGE = "edge"
UNBOUNDED = "unbounded"
UNFINISHED = "unfinished"

type Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""Names of axes and array of each variable; one named like its only axis labels that axis."""


@dataclass(frozen=True)
class Mode:
    """One place where optimisations ended.

    Attributes:
        params: Constrained parameters there, site name to array.
        log_density: The log density that was maximised (see `Starts.jacobian`).
        count: How many starts ended here. Copies with the labels permuted count as the same place.
        kind: `"maximum"`: the gradient vanishes. `"edge"`: the density is highest where parameters reach the edge of
            their support, a weight of 1, say, and has a value there. `"unbounded"`: it keeps growing while parameters
            run away, for instance a component that collapses on one data point. `"unfinished"`: the
            optimisation stopped before any of these, as at the edge of a hard constraint or on a very flat density.
    """

    params: dict[str, np.ndarray]
    log_density: float
    count: int
    kind: str


@dataclass(frozen=True)
class Starts:
    """The modes that the starts found, the one that was used first.

    Attributes:
        modes: The places, the chosen one first, the others by falling density.
        total: Number of optimisations.
        jacobian: Whether the density includes the Jacobian of the unconstrained parameters.
        rows: Where they looked on some of the rows, and only the best went on on all: how many rows, and of how many.
    """

    modes: tuple[Mode, ...]
    total: int
    jacobian: bool
    rows: tuple[int, int] | None = None

    @property
    def sentence(self) -> str:
        """The agreement in words, as in "61 of 64 starts reach this mode; the next is 3.2 nats lower"."""
        best = self.modes[0]
        place = {MAXIMUM: "this mode", EDGE: "this edge", UNBOUNDED: "this runaway"}.get(best.kind, "this place")
        where = "" if self.rows is None else f" (on {self.rows[0]} of {self.rows[1]} rows)"
        words = f"{best.count} of {self.total} starts{where} reach {place}"
        others = [mode for mode in self.modes[1:] if mode.kind in (MAXIMUM, EDGE)]
        if others:
            gap = best.log_density - others[0].log_density
            words += f"; the next is {abs(gap):.1f} nats {'lower' if gap >= 0 else 'higher'}"
        return words + "."


def stopped(interrupted: bool, made: int, wanted: int) -> tuple[str, ...]:
    """What is said of a run that the user has stopped; `made` and `wanted` are draws per chain."""
    if not interrupted:
        return ()
    return (f"Interrupted: {made} of {wanted} draws per chain are kept. Run again for all of them.",)


@dataclass(frozen=True)
class Result:
    """Draws from the posterior, or its mode, with what was seen on the way.

    Attributes:
        method: `"nuts"`, `"map"`, ...
        draws: Constrained draws, site name to `(chain, draw, *site shape)`, float64.
        stats: Sampler statistics under ArviZ's names, `(chain, draw)`.
        starts: The modes found at the start, or None for a method without starts.
        findings: Plain sentences on what is wrong and what to do; empty when nothing is.
        info: Seconds, step sizes, gradient norms and the like; only JSON types.
        groups: What else the method hands out, each a group of the fit's `data` that is saved and loaded with it.
    """

    method: str
    draws: dict[str, np.ndarray]
    stats: dict[str, np.ndarray] = field(default_factory=dict)
    starts: Starts | None = None
    findings: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Variables] = field(default_factory=dict)
