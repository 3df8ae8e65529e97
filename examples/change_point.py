"""When did the rate change? One and two change points in the yearly coal-mining disasters of Great Britain.

B. P. Carlin, A. E. Gelfand and A. F. M. Smith, "Hierarchical Bayesian analysis of changepoint problems", Applied
Statistics 41 (1992) 389-405, section 2: y_t ~ Poisson(early) up to the change, Poisson(late) after it, the year of the
change uniform. Two change points: P. J. Green, Biometrika 82 (1995) 711-732, section 4, at a fixed number of steps.

Data: explosions with ten deaths or more, counted by year, 1851 to 1962, from the dates in R. G. Jarrett, "A note on the
intervals between coal-mining disasters", Biometrika 66 (1979) 191-193 (dated list: `coal` in R's package boot).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import marginalia as mg

FIRST_YEAR = 1851
DISASTERS = np.array(
    [
        *(4, 5, 4, 1, 0, 4, 3, 4, 0, 6, 3, 3, 4, 0, 2, 6, 3, 3, 5, 4, 5, 3, 1, 4, 4, 1, 5, 5, 3, 4, 2, 5, 2, 2, 3, 4),
        *(2, 1, 3, 2, 2, 1, 1, 1, 1, 3, 0, 0, 1, 0, 1, 1, 0, 0, 3, 1, 0, 3, 2, 2, 0, 1, 1, 1, 0, 1, 0, 1, 0, 0, 0, 2),
        *(1, 0, 0, 0, 1, 1, 0, 2, 3, 3, 1, 1, 2, 1, 1, 1, 1, 2, 3, 3, 0, 0, 0, 1, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0),
        *(0, 1, 0, 1),
    ]
)


def model(y):
    """One change point: year `change` is the first of the late ones."""
    early = numpyro.sample("early", dist.Exponential(1))
    late = numpyro.sample("late", dist.Exponential(1))
    change = numpyro.sample("change", dist.DiscreteUniform(1, len(y) - 1))
    with numpyro.plate("year", len(y)) as year:
        numpyro.sample("y", dist.Poisson(jnp.where(year < change, early, late)), obs=y)


def two_changes(y):
    """Two change points: two different years, in whichever order they come."""
    rate = numpyro.sample("rate", dist.Exponential(1).expand([3]).to_event(1))
    a = numpyro.sample("a", dist.DiscreteUniform(1, len(y) - 1))
    b = numpyro.sample("b", dist.DiscreteUniform(1, len(y) - 1))
    with numpyro.plate("year", len(y)) as year:
        regime = (year >= jnp.minimum(a, b)).astype(int) + (year >= jnp.maximum(a, b))
        numpyro.sample("y", dist.Poisson(rate[regime]), obs=y)


def ordered_changes(y):
    """Two change points, the second not before the first: its support depends on the first."""
    rate = numpyro.sample("rate", dist.Exponential(1).expand([3]).to_event(1))
    first = numpyro.sample("first", dist.DiscreteUniform(1, len(y) - 1))
    second = numpyro.sample("second", dist.DiscreteUniform(first, len(y) - 1))
    with numpyro.plate("year", len(y)) as year:
        regime = (year >= first).astype(int) + (year >= second)
        numpyro.sample("y", dist.Poisson(rate[regime]), obs=y)


def simulate(seed, n_years=112, change=40, early=3.1, late=0.9):
    """Counts with one change."""
    rng = np.random.default_rng(seed)
    y = rng.poisson(np.where(np.arange(n_years) < change, early, late))
    return (y,), {"early": early, "late": late, "change": change}


def main():
    fit = mg.fit(model, DISASTERS, random_seed=1)
    print(fit)
    print(f"early: {fit.draws['early'].mean():.2f}, late: {fit.draws['late'].mean():.2f} disasters a year")
    print(f"  averages to 1891 and after it: {DISASTERS[:41].mean():.2f} and {DISASTERS[41:].mean():.2f}")
    year = fit.membership()["change"].values
    best = np.argsort(-year)[:4]
    print("last year of the old rate:", ", ".join(f"{FIRST_YEAR + i} ({year[i]:.2f})" for i in best))

    # 111 x 111 pairs of years for each of the 112 counts: the mode takes seconds, NUTS a quarter of an hour.
    fit = mg.fit(ordered_changes, DISASTERS, method=mg.MAP(starts=8), random_seed=1)
    print(fit)
    print(f"two changes: rates {fit.draws['rate'].mean((0, 1)).round(2)}")
    first, second = (FIRST_YEAR + int(fit.labels()[name]) for name in ("first", "second"))
    print(f"  new rates most probably from {first} and from {second} on")


if __name__ == "__main__":
    main()
