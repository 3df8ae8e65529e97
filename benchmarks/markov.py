"""Row `markov`: log density and gradient of a hidden Markov chain of 10 000 steps, from the unmodified `scan`."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import numpy as np

from benchmarks.contest import Contender, Goal, Outcome, Row
from benchmarks.density import Point, numpyro_enumeration, ours, settled
from benchmarks.timing import evaluate

T, K = 10_000, 5


def chain_data() -> tuple[np.ndarray, Point]:
    """A chain that stays where it is nine times out of ten, and a point near the truth."""
    rng = np.random.default_rng(2)
    transition = 0.1 * rng.dirichlet(np.ones(K), size=K) + 0.9 * np.eye(K)
    mu = np.linspace(-4, 4, K)
    states = np.zeros(T, int)
    for t in range(1, T):
        states[t] = rng.choice(K, p=transition[states[t - 1]])
    y = mu[states] + rng.standard_normal(T)
    return y, {"transition": 0.8 * transition + 0.2 / K, "mu": mu + 0.2 * rng.standard_normal(K)}


def _log_prior(params: Any) -> Any:
    import jax.numpy as jnp

    scaled = params["mu"] / 5
    normal = -0.5 * jnp.sum(scaled**2) - K * (math.log(5) + 0.5 * math.log(2 * math.pi))
    return normal + K * math.lgamma(K)


def by_dynamax(dtype: str) -> Outcome:
    """dynamax's filter on the table of log likelihoods: the chain's first state comes from state 0."""
    y, point = chain_data()
    base = settled(x64=dtype == "float64")
    from dynamax.hidden_markov_model import hmm_filter

    begun = time.perf_counter()

    def density(params, data):
        table = -0.5 * (data[:, None] - params["mu"]) ** 2 - 0.5 * math.log(2 * math.pi)
        found = hmm_filter(params["transition"][0], params["transition"], table)
        return found.marginal_loglik + _log_prior(params)

    figures, answers = evaluate(density, point, y.astype(dtype), dtype, begun=begun, base_mb=base)
    return Outcome(figures, answers)


ROWS = (
    Row(
        "markov",
        "density and gradient of a hidden Markov chain, T = 10 000, K = 5",
        "ms",
        "evaluation_ms",
        (
            Contender("marginalia", functools.partial(ours, "hidden_markov", chain_data, K), role="ours"),
            *(
                Contender(
                    f"NumPyro {dtype}",
                    functools.partial(numpyro_enumeration, "hidden_markov", chain_data, K, dtype, plates=0),
                    needs=("numpyro", "funsor"),
                )
                for dtype in ("float32", "float64")
            ),
            *(
                Contender(
                    f"dynamax {dtype}", functools.partial(by_dynamax, dtype), needs=("dynamax",), role="yardstick"
                )
                for dtype in ("float32", "float64")
            ),
        ),
        (
            Goal("≥ 20×", "marginalia", "evaluation_ms", "peer", 20),
            Goal("≥ 1× dynamax", "marginalia", "evaluation_ms", "dynamax float64", 1),
        ),
        note="dynamax is handed the table of likelihoods; the programs are not.",
    ),
)
