"""Latents that change their sign or side when two labels change places: p becomes 1 - p, a logit its negative."""

from __future__ import annotations

import math
from typing import Any

from marginalia.infer.candidates import kind_of


def centre(support: Any) -> float | None:
    """The point about which values of a support can be reflected without leaving it; None where there is none.

    A reflection about it keeps volumes, in the unconstrained space too, where it is a change of sign: densities before
    and after can be compared as they are.

    Example:
        >>> from numpyro.distributions import constraints
        >>> centre(constraints.unit_interval), centre(constraints.real), centre(constraints.positive)
        (0.5, 0.0, None)
    """
    kind, low, high = kind_of(support)
    if kind == "real":
        return 0.0
    if kind == "interval" and math.isfinite(low) and math.isfinite(high):
        return 0.5 * (low + high)
    return None
