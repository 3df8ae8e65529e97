"""What summing out costs as a model grows: `python -m benchmarks.elimination`.

Four families, each grown along one size: rows (N) and states (K) of a mixture, steps (T) of a hidden Markov chain
written as a `scan` and as a Python loop of named sites, levels of a tree of groups within groups. For each the seconds
to read the program and to trace and compile density and gradient, the fastest of several evaluations, and the slope on
a log-log scale against the size before: 1 is a straight line through zero, below 1 there are fixed costs. A chain's
and a mixture's cost per state is K^2 and K. It asserts nothing.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import marginalia as mg
from benchmarks.programs import hidden_markov
from benchmarks.timing import fastest


def mixture(y, components):
    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(components)))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([components]).to_event(1))
    with numpyro.plate("obs", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def named_chain(y, states):
    transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones((states, states))).to_event(1))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([states]).to_event(1))
    z = 0
    for t, now in enumerate(y):
        z = numpyro.sample(f"z{t}", dist.Categorical(transition[z]))
        numpyro.sample(f"y{t}", dist.Normal(mu[z], 1.0), obs=now)


def tree(y, levels):
    """Each level has as many groups as there are rows; two of them share a group of the level above."""
    transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones((3, 3))).to_event(1))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3]).to_event(1))
    above = np.arange(len(y)) // 2
    z = numpyro.sample("z0", dist.Categorical(jnp.ones(3) / 3).expand([len(y)]))
    for level in range(1, levels):
        z = numpyro.sample(f"z{level}", dist.Categorical(transition[z[above]]))
    numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def families(largest: float) -> Iterator[tuple[str, list[int], Callable[[int], tuple[Any, tuple[Any, ...]]]]]:
    """Name, sizes, and for each size a model with its arguments."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=10**6)

    def upto(sizes: list[int]) -> list[int]:
        return [n for n in sizes if n <= largest]

    yield "mixture, rows N (K = 3)", upto([10**3, 10**4, 10**5, 10**6]), lambda n: (mixture, (y[:n], 3))
    yield "mixture, states K (N = 20 000)", [2, 4, 8, 16, 32], lambda k: (mixture, (y[:20_000], k))
    yield "scan, steps T (K = 5)", upto([10**2, 10**3, 10**4, 10**5]), lambda t: (hidden_markov, (y[:t], 5))
    yield "scan, states K (T = 2000)", [2, 4, 8, 16, 32], lambda k: (hidden_markov, (y[:2000], k))
    yield "scan, steps T (K = 10)", upto([10**3, 10**4]), lambda t: (hidden_markov, (y[:t], 10))
    yield "Python loop, steps T (K = 3)", [20, 100, 500], lambda t: (named_chain, (y[:t], 3))
    yield "tree, levels (20 000 groups each)", [1, 2, 4, 8], lambda n: (tree, (y[:20_000], n))


def measure(model: Callable[..., Any], args: tuple[Any, ...]) -> tuple[float, float, float]:
    """Seconds to read, to trace and compile, and of the fastest evaluation of density and gradient."""
    begun = time.perf_counter()
    kernel = mg.marginalize(model, *args).kernel
    read = time.perf_counter() - begun
    with jax.enable_x64(True):
        params = jax.jit(kernel.prior)(jax.random.key(0))
        data = jax.device_put(kernel.data)
        begun = time.perf_counter()
        function = jax.jit(jax.value_and_grad(kernel.log_density)).lower(params, data).compile()
        compiled = time.perf_counter() - begun
        evaluation = fastest(lambda: jax.block_until_ready(function(params, data)), seconds=0.5)
    return read, compiled, evaluation


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of elimination against the size of the model.")
    parser.add_argument("--largest", type=float, default=10**6, help="no size beyond this")
    options = parser.parse_args()
    for name, sizes, make in families(options.largest):
        print(f"\n{name}\n{'size':>9} {'read s':>8} {'compile s':>10} {'ms':>9} {'us per size':>12} {'slope':>6}")
        before: tuple[int, float] | None = None
        for size in sizes:
            read, compiled, seconds = measure(*make(size))
            slope = "" if before is None else f"{math.log(seconds / before[1]) / math.log(size / before[0]):6.2f}"
            row = (
                f"{size:>9} {read:>8.2f} {compiled:>10.2f} {1e3 * seconds:>9.3f} {1e6 * seconds / size:>12.4f} {slope}"
            )
            print(row, flush=True)
            before = (size, seconds)


if __name__ == "__main__":
    main()
