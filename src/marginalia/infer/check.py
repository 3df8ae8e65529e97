"""What the draws say about the run: convergence and sampler trouble, in sentences with a remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from marginalia.infer import diagnostics

LARGEST_RHAT = 1.01
SMALLEST_ESS_PER_CHAIN = 100
SMALLEST_BFMI = 0.3
LARGEST_SATURATED_PART = 0.02


def hmc(draws: dict[str, np.ndarray], stats: dict[str, np.ndarray], options: dict[str, Any]) -> tuple[str, ...]:
    """Judge a run of HMC.

    Args:
        draws: Site name to `(chain, draw, *shape)`.
        stats: ArviZ's sampler statistics, `(chain, draw)`.
        options: The sampler's, by name.

    Returns:
        One sentence or two per kind of trouble; empty when there is none.
    """
    out: list[str] = []
    chains, length = stats["diverging"].shape
    if length >= 4:
        out += mixing(draws)
        out += _energy(stats["energy"])
    else:
        out.append(f"Only {length} draws per chain: convergence cannot be judged. Ask for more draws.")
    divergent = int(stats["diverging"].sum())
    if divergent:
        out.append(
            f"{divergent} of {chains * length} draws diverged: the sampler could not follow the "
            "density there, and estimates may be biased. Raise target_accept (0.95, say); if they stay, look "
            "for scales near zero and hard constraints, and reparametrise."
        )
    saturated = float(stats["reached_max_tree_depth"].mean())
    if saturated > LARGEST_SATURATED_PART:
        out.append(
            f"{saturated:.0%} of the draws reached the largest tree depth, {options.get('max_tree_depth', 10)}: right, "
            "but slow. Raise max_tree_depth, or reparametrise where parameters hang together."
        )
    return tuple(out)


def chains(draws: dict[str, np.ndarray], stats: dict[str, np.ndarray], options: dict[str, Any]) -> tuple[str, ...]:
    """Judge chains of which only the draws tell anything; arguments and sentences as in `hmc`."""
    length = np.shape(next(iter(draws.values())))[1]
    if length < 4:
        return (f"Only {length} draws per chain: convergence cannot be judged. Ask for more draws.",)
    return tuple(mixing(draws))


def convergence(draws: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """R-hat, bulk and tail effective sample size of each element: `{site: three arrays of the site's shape}`.

    Elements that never change get NaN.
    """
    out = {}
    for name, value in draws.items():
        value = np.asarray(value, float)
        table = diagnostics.convergence(value.reshape(*value.shape[:2], -1))
        rhat, bulk, tail = (row.reshape(value.shape[2:]) for row in table)
        out[name] = (rhat, bulk, tail)
    return out


@dataclass(frozen=True)
class Doubt:
    """The sites of too large an R-hat, and those of too few effective draws, each with its worst number."""

    rhat: dict[str, float]
    ess: dict[str, float]

    @property
    def any(self) -> bool:
        """Whether there is something that more draws may mend."""
        return bool(self.rhat or self.ess)

    @property
    def worst_rhat(self) -> float:
        return max(self.rhat.values(), default=1.0)


def doubt(draws: dict[str, np.ndarray]) -> Doubt:
    """What R-hat and effective sample sizes have against draws of shape `(chain, draw, ...)`."""
    chains = len(next(iter(draws.values())))
    high, low = {}, {}
    for name, (rhat, bulk, tail) in convergence(draws).items():
        worst = float(np.max(rhat, initial=-np.inf, where=np.isfinite(rhat)))
        least = min(float(np.min(ess, initial=np.inf, where=np.isfinite(ess))) for ess in (bulk, tail))
        if worst > LARGEST_RHAT:
            high[name] = worst
        if least < SMALLEST_ESS_PER_CHAIN * chains:
            low[name] = least
    return Doubt(high, low)


def mixing(draws: dict[str, np.ndarray], *, one_will_do: bool = False) -> list[str]:
    """R-hat and effective sample sizes of draws `(chain, draw, ...)`, in sentences.

    `one_will_do`: the method has other means than a second chain to tell that a chain has been everywhere.
    """
    chains = len(next(iter(draws.values())))
    out, found = [], doubt(draws)
    high, low = found.rhat, found.ess
    if high:
        names = ", ".join(f"{name} ({value:.2f})" for name, value in high.items())
        out.append(
            f"The chains do not agree: R-hat is above {LARGEST_RHAT} for {names}. Run longer "
            "(tune, draws); where chains sit in different modes or labels switch, see the starts and "
            "order the components."
        )
    if low:
        names = ", ".join(f"{name} ({value:.0f})" for name, value in low.items())
        out.append(
            f"Few effective draws: below {SMALLEST_ESS_PER_CHAIN * chains} for {names}. Estimates and "
            "intervals of these are noisy. Ask for more draws."
        )
    if chains == 1 and not one_will_do:
        out.append("One chain only: agreement between chains cannot be checked. Run at least 2, better 4.")
    return out


def _energy(energy: np.ndarray) -> list[str]:
    """E-BFMI below the limit: the energy changes too little per draw (Betancourt 2016)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        bfmi = np.mean(np.diff(energy, axis=1) ** 2, axis=1) / np.var(energy, axis=1)
    low = np.flatnonzero(bfmi < SMALLEST_BFMI)
    if not low.size:
        return []
    return [
        f"The energy explores slowly in {low.size} of {len(energy)} chains (E-BFMI {np.min(bfmi):.2f}, below "
        f"{SMALLEST_BFMI}): heavy tails or a funnel. Reparametrise, or narrow the priors of the scales."
    ]
