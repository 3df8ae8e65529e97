"""Structured programs beside the same sum written by hand in JAX: `python -m benchmarks.structured [--only NAME]`.

Nine shapes of the literature: a change point with counts that nothing observes, capture histories (one state and
several), a hidden Markov chain with a mixture at each step, a semi-Markov chain written with a counter, abundances per
site (Royle-Nichols, N-mixture), diagnosis by noisy-or. By hand means what one writes who knows the model: the forward
recursion of the states that there are, equal histories counted, binary tables. Both are compiled in this process, one
after the other, and must agree to 1e-10; the table gives seconds to read (`marginalize`), to trace and compile, the
milliseconds of density and gradient, and their ratio. A time is never asserted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import gammaln, logsumexp
from jax.scipy.stats import norm
from numpyro.contrib.control_flow import scan
from scipy import special

import marginalia as mg
from benchmarks.timing import fastest

AGREE = 1e-10


class Shape(NamedTuple):
    """A program with its arguments, and the same density by hand as a function of the parameters."""

    name: str
    model: Callable[..., Any]
    args: tuple[Any, ...]
    by_hand: Callable[[dict[str, Any]], Any]


# ---- priors, as the programs have them ------------------------------------------------------------------------------


def uniform(x: Any) -> Any:
    return 0.0 * jnp.sum(x)


def exponential(x: Any, rate: float = 1.0) -> Any:
    return jnp.sum(jnp.log(rate) - rate * x)


def standard_normal(x: Any, scale: float = 1.0) -> Any:
    return jnp.sum(norm.logpdf(x, 0.0, scale))


def flat_dirichlet(x: Any) -> Any:
    k = x.shape[-1]
    return gammaln(float(k)) * (x.size // k)


# ---- a change point, with counts to come that nothing observes ------------------------------------------------------


def disasters(y):
    switch = numpyro.sample("switch", dist.DiscreteUniform(0, len(y) - 1))
    early = numpyro.sample("early", dist.Exponential(1.0))
    late = numpyro.sample("late", dist.Exponential(1.0))
    rate = jnp.where(jnp.arange(len(y)) < switch, early, late)
    with numpyro.plate("year", len(y)):
        numpyro.sample("disasters", dist.Poisson(rate), obs=y)
        numpyro.sample("replicated", dist.Poisson(rate))


def change_point() -> Shape:
    rng = np.random.default_rng(1)
    years, switch = 111, 40
    y = rng.poisson(np.where(np.arange(years) < switch, 3.1, 0.9))

    def by_hand(p: dict[str, Any]) -> Any:
        before = y * jnp.log(p["early"]) - p["early"] - gammaln(y + 1.0)
        after = y * jnp.log(p["late"]) - p["late"] - gammaln(y + 1.0)
        head = jnp.concatenate([jnp.zeros(1), jnp.cumsum(before)[:-1]])
        tail = jnp.sum(after) - jnp.concatenate([jnp.zeros(1), jnp.cumsum(after)[:-1]])
        return exponential(p["early"]) + exponential(p["late"]) + logsumexp(head + tail) - jnp.log(years)

    return Shape("change point, latent replicates", disasters, (y,), by_hand)


# ---- capture histories ----------------------------------------------------------------------------------------------


def cormack_jolly_seber(seen):
    animals, occasions = seen.shape
    phi = numpyro.sample("phi", dist.Uniform(0, 1))
    p = numpyro.sample("p", dist.Uniform(0, 1).expand([occasions - 1]).to_event(1))
    first = np.argmax(seen, axis=1)
    with numpyro.plate("animal", animals):
        alive = jnp.ones(animals, int)
        for t in range(1, occasions):
            begun = t > first
            alive = numpyro.sample(f"alive{t}", dist.Bernoulli(jnp.where(begun, phi * alive, 1.0)))
            numpyro.sample(f"seen{t}", dist.Bernoulli(jnp.where(begun, p[t - 1] * alive, 0.0)), obs=seen[:, t] * begun)


def simulated_captures(animals: int, occasions: int, phi: float, p: float) -> np.ndarray:
    rng = np.random.default_rng(2)
    first = rng.integers(0, 2, animals) * rng.integers(0, occasions - 1, animals)
    alive = np.ones(animals, bool)
    seen = np.zeros((animals, occasions), int)
    for t in range(occasions):
        alive = np.where(t > first, alive & (rng.random(animals) < phi), True)
        seen[:, t] = np.where(t == first, 1, (t > first) & alive & (rng.random(animals) < p))
    return seen


def captures(animals: int = 3000, occasions: int = 8) -> Shape:
    seen = simulated_captures(animals, occasions, 0.7, 0.5)
    kinds, times = np.unique(seen, axis=0, return_counts=True)
    first = np.argmax(kinds, axis=1)

    def by_hand(p: dict[str, Any]) -> Any:
        alpha = jnp.stack([jnp.ones(len(kinds)), jnp.zeros(len(kinds))])
        for t in range(1, occasions):
            alive = alpha[0] * p["phi"]
            dead = alpha[1] + alpha[0] * (1 - p["phi"])
            q = p["p"][t - 1]
            new = jnp.stack([alive * jnp.where(kinds[:, t], q, 1 - q), jnp.where(kinds[:, t], 0.0, dead)])
            alpha = jnp.where(t > first, new, alpha)
        return jnp.sum(times * jnp.log(alpha.sum(0)))

    return Shape(f"capture histories ({animals})", cormack_jolly_seber, (seen,), by_hand)


def multistate(seen):
    """Sites A and B and death; seen is 0 (not seen), 1 or 2; all are marked at the first occasion."""
    animals, occasions = seen.shape
    phi = numpyro.sample("phi", dist.Uniform(0, 1).expand([2]).to_event(1))
    psi = numpyro.sample("psi", dist.Uniform(0, 1).expand([2]).to_event(1))
    p = numpyro.sample("p", dist.Uniform(0, 1).expand([2]).to_event(1))
    stay, zero, one = phi * (1 - psi), jnp.zeros(()), jnp.ones(())
    move = phi * psi
    transition = jnp.stack(
        [
            jnp.stack([stay[0], move[0], 1 - phi[0]]),
            jnp.stack([move[1], stay[1], 1 - phi[1]]),
            jnp.stack([zero, zero, one]),
        ]
    )
    detection = jnp.stack(
        [jnp.stack([1 - p[0], p[0], zero]), jnp.stack([1 - p[1], zero, p[1]]), jnp.stack([one, zero, zero])]
    )
    with numpyro.plate("animal", animals):
        z = seen[:, 0] - 1
        for t in range(1, occasions):
            z = numpyro.sample(f"z{t}", dist.Categorical(transition[z]))
            numpyro.sample(f"seen{t}", dist.Categorical(detection[z]), obs=seen[:, t])


def several_states(animals: int = 1500, occasions: int = 6) -> Shape:
    rng = np.random.default_rng(3)
    transition = np.array([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.0, 0.0, 1.0]])
    detection = np.array([[0.5, 0.5, 0.0], [0.3, 0.0, 0.7], [1.0, 0.0, 0.0]])

    def choose(table: np.ndarray) -> np.ndarray:
        return (rng.random((len(table), 1)) > np.cumsum(table, 1)).sum(1).clip(0, 2)

    z = rng.integers(0, 2, animals)
    seen = [z + 1]
    for _ in range(1, occasions):
        z = choose(transition[z])
        seen.append(choose(detection[z]))
    histories = np.stack(seen, 1)
    kinds, times = np.unique(histories, axis=0, return_counts=True)

    def by_hand(p: dict[str, Any]) -> Any:
        phi, psi, q = p["phi"], p["psi"], p["p"]
        alpha = [jnp.where(kinds[:, 0] == 1, 1.0, 0.0), jnp.where(kinds[:, 0] == 2, 1.0, 0.0), jnp.zeros(len(kinds))]
        for t in range(1, occasions):
            a = alpha[0] * phi[0] * (1 - psi[0]) + alpha[1] * phi[1] * psi[1]
            b = alpha[0] * phi[0] * psi[0] + alpha[1] * phi[1] * (1 - psi[1])
            d = alpha[2] + alpha[0] * (1 - phi[0]) + alpha[1] * (1 - phi[1])
            now = kinds[:, t]
            alpha = [
                a * jnp.where(now == 0, 1 - q[0], jnp.where(now == 1, q[0], 0.0)),
                b * jnp.where(now == 0, 1 - q[1], jnp.where(now == 2, q[1], 0.0)),
                jnp.where(now == 0, d, 0.0),
            ]
        return jnp.sum(times * jnp.log(alpha[0] + alpha[1] + alpha[2]))

    return Shape(f"multistate capture-recapture ({animals})", multistate, (histories,), by_hand)


# ---- chains ---------------------------------------------------------------------------------------------------------


def mixture_emissions(y, states, parts):
    transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones((states, states))).to_event(1))
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones((states, parts))).to_event(1))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([states, parts]).to_event(2))

    def step(z, now):
        z = numpyro.sample("z", dist.Categorical(transition[z]))
        c = numpyro.sample("c", dist.Categorical(weights[z]))
        numpyro.sample("y", dist.Normal(mu[z, c], 1.0), obs=now)
        return z, None

    scan(step, 0, y)


def mixtures_in_chain(steps: int = 1000, states: int = 2, parts: int = 2) -> Shape:
    y = np.random.default_rng(4).normal(size=steps) * 3

    def by_hand(p: dict[str, Any]) -> Any:
        prior = flat_dirichlet(p["transition"]) + flat_dirichlet(p["weights"]) + standard_normal(p["mu"], 3.0)
        emission = logsumexp(jnp.log(p["weights"]) + norm.logpdf(y[:, None, None], p["mu"], 1.0), -1)
        return prior + forward(jnp.log(p["transition"][0]), p["transition"], emission)

    return Shape(f"chain with mixture emissions ({steps})", mixture_emissions, (y, states, parts), by_hand)


def forward(start: Any, transition: Any, emission: Any) -> Any:
    """The scaled forward recursion of one sequence; `start` in logarithms, `transition` not."""
    top = jnp.max(jax.lax.stop_gradient(emission), 1, keepdims=True)
    likely = jnp.exp(emission - top)
    alpha = jnp.exp(start) * likely[0]

    def step(carry: Any, own: Any) -> Any:
        alpha, total = carry
        alpha = (alpha @ transition) * own
        s = alpha.sum()
        return (alpha / s, total + jnp.log(s)), None

    s = alpha.sum()
    (_, total), _ = jax.lax.scan(step, (alpha / s, jnp.log(s)), likely[1:])
    return total + jnp.sum(top)


def semi_markov(y, states, longest):
    """State k is kept for d more steps, drawn as it is entered; then another is entered."""
    durations = numpyro.sample("durations", dist.Dirichlet(jnp.ones((states, longest))).to_event(1))
    jump = numpyro.sample("jump", dist.Dirichlet(jnp.ones((states, states))).to_event(1))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([states]).to_event(1))

    def step(carry, now):
        k, d = carry
        stay = jnp.eye(states)[k]
        k = numpyro.sample("k", dist.Categorical(jnp.where(d > 0, stay, jump[k])))
        down = jnp.eye(longest)[jnp.maximum(d - 1, 0)]
        d = numpyro.sample("d", dist.Categorical(jnp.where(d > 0, down, durations[k])))
        numpyro.sample("y", dist.Normal(mu[k], 1.0), obs=now)
        return (k, d), None

    scan(step, (0, 0), y)


def with_counter(steps: int = 500, states: int = 3, longest: int = 8) -> Shape:
    y = np.random.default_rng(5).normal(size=steps) * 2

    def by_hand(p: dict[str, Any]) -> Any:
        prior = flat_dirichlet(p["durations"]) + flat_dirichlet(p["jump"]) + standard_normal(p["mu"], 3.0)
        emission = norm.logpdf(y[:, None], p["mu"], 1.0)
        top = jnp.max(jax.lax.stop_gradient(emission), 1, keepdims=True)
        likely = jnp.exp(emission - top)

        def step(carry: Any, own: Any) -> Any:
            alpha, total = carry  # (states, longest)
            entered = (alpha[:, 0] @ p["jump"])[:, None] * p["durations"]
            kept = jnp.concatenate([alpha[:, 1:], jnp.zeros((states, 1))], 1)
            alpha = (entered + kept) * own[:, None]
            s = alpha.sum()
            return (alpha / s, total + jnp.log(s)), None

        begin = jnp.zeros((states, longest)).at[0, 0].set(1.0)
        (_, total), _ = jax.lax.scan(step, (begin, 0.0), likely)
        return prior + total + jnp.sum(top)

    return Shape(f"semi-Markov with a counter ({steps})", semi_markov, (y, states, longest), by_hand)


# ---- abundances -----------------------------------------------------------------------------------------------------


def royle_nichols(y, x):
    sites, visits = y.shape
    a = numpyro.sample("a", dist.Normal(0, 1).expand([2]).to_event(1))
    r = numpyro.sample("r", dist.Uniform(0, 1))
    with numpyro.plate("site", sites):
        n = numpyro.sample("n", dist.Poisson(jnp.exp(a[0] + a[1] * x)))
        seen = 1 - (1 - r) ** n
        with numpyro.plate("visit", visits):
            numpyro.sample("y", dist.Bernoulli(seen), obs=y.T)


def n_mixture(y, x):
    sites, visits = y.shape
    a = numpyro.sample("a", dist.Normal(0, 1).expand([2]).to_event(1))
    p = numpyro.sample("p", dist.Uniform(0, 1))
    with numpyro.plate("site", sites):
        n = numpyro.sample("n", dist.Poisson(jnp.exp(a[0] + a[1] * x)))
        with numpyro.plate("visit", visits):
            numpyro.sample("y", dist.Binomial(n, p), obs=y.T)


def poisson_table(rate: Any, last: int) -> Any:
    n = np.arange(last + 1.0)[:, None]
    return n * jnp.log(rate) - rate - gammaln(n + 1)


def abundance(name: str, sites: int = 200, visits: int = 5, values: int = 64) -> Shape:
    rng = np.random.default_rng(6)
    x = rng.normal(size=sites)
    n = rng.poisson(np.exp(0.7 + 0.4 * x))
    binary = name == "Royle-Nichols"
    chance = 1 - 0.7 ** n[:, None] if binary else 0.4
    y = rng.binomial(1 if binary else n[:, None], chance, (sites, visits))
    grid = np.arange(float(values))[:, None]
    total = y.sum(1)

    def detections(p: dict[str, Any]) -> Any:
        if binary:
            missed = grid * jnp.log1p(-p["r"])
            found = jnp.log(-jnp.expm1(jnp.where(grid > 0, missed, -1.0)))
            found = jnp.where(grid > 0, found, -jnp.inf)
            return jnp.where(total > 0, total * found, 0.0) + (visits - total) * missed
        ways = special.gammaln(grid + 1)[..., None] - special.gammaln(y[None] + 1.0)
        fixed = (ways - special.gammaln(np.maximum(grid[..., None] - y[None], 0) + 1.0)).sum(-1)
        fixed = np.where(grid >= y.max(1), fixed, -np.inf)
        return fixed + total * jnp.log(p["p"]) + (visits * grid - total) * jnp.log1p(-p["p"])

    def by_hand(p: dict[str, Any]) -> Any:
        rate = jnp.exp(p["a"][0] + p["a"][1] * x)
        table = poisson_table(rate, values - 1) + detections(p)
        return standard_normal(p["a"]) + jnp.sum(logsumexp(table, 0))

    return Shape(f"{name} ({sites} sites)", royle_nichols if binary else n_mixture, (y, x), by_hand)


# ---- diagnosis ------------------------------------------------------------------------------------------------------


def noisy_or(y, links):
    patients, findings = y.shape
    diseases = links.shape[1]
    prior = numpyro.sample("prior", dist.Beta(1.0, 1.0).expand([diseases]).to_event(1))
    leak = numpyro.sample("leak", dist.Beta(1.0, 1.0).expand([findings]).to_event(1))
    fails = numpyro.sample("fails", dist.Beta(1.0, 1.0).expand([findings, diseases]).to_event(2))
    with numpyro.plate("patient", patients, dim=-2), numpyro.plate("disease", diseases, dim=-1):
        d = numpyro.sample("d", dist.Bernoulli(prior))
    log_fails = jnp.log(leak) + (d[:, None, :] * links * jnp.log(fails)).sum(-1)
    with numpyro.plate("patients", patients, dim=-2), numpyro.plate("finding", findings, dim=-1):
        numpyro.sample("y", dist.Bernoulli(-jnp.expm1(log_fails)), obs=y)


def diagnosis(patients: int = 300, diseases: int = 6, findings: int = 8) -> Shape:
    rng = np.random.default_rng(7)
    links = (rng.random((findings, diseases)) < 0.5).astype(float)
    d = rng.random((patients, diseases)) < 0.3
    y = (rng.random((patients, findings)) < 1 - 0.9 * np.exp((d[:, None] * links * np.log(0.4)).sum(-1))).astype(int)
    states = ((np.arange(2**diseases)[:, None] >> np.arange(diseases)) & 1).astype(float)

    def by_hand(p: dict[str, Any]) -> Any:
        log_prior = states @ jnp.log(p["prior"]) + (1 - states) @ jnp.log1p(-p["prior"])
        off = jnp.log(p["leak"]) + states @ (links * jnp.log(p["fails"])).T  # (joint states, findings)
        on = jnp.log(-jnp.expm1(off))
        table = log_prior[:, None] + on @ y.T.astype(float) + off @ (1.0 - y.T)
        return jnp.sum(logsumexp(table, 0))

    return Shape(f"noisy-or ({patients} patients)", noisy_or, (y, links), by_hand)


SHAPES: dict[str, Callable[[], Shape]] = {
    "change": change_point,
    "captures": captures,
    "multistate": several_states,
    "mixtures": mixtures_in_chain,
    "counter": with_counter,
    "royle": lambda: abundance("Royle-Nichols"),
    "nmixture": lambda: abundance("N-mixture"),
    "noisyor": diagnosis,
}


# ---- measuring ------------------------------------------------------------------------------------------------------


def timed(function: Callable[..., Any], params: Any, data: Any) -> tuple[float, Callable[[], Any]]:
    """Seconds to trace and compile density and gradient, and the compiled call."""
    begun = time.perf_counter()
    run = jax.jit(jax.value_and_grad(function)).lower(params, data).compile()
    return time.perf_counter() - begun, lambda: jax.block_until_ready(run(params, data))


def measure(shape: Shape) -> str:
    begun = time.perf_counter()
    marginal = mg.marginalize(shape.model, *shape.args)
    read = time.perf_counter() - begun
    with jax.enable_x64(True):
        params = jax.jit(marginal.kernel.prior)(jax.random.key(1))
        marginal = marginal.covering({n: v[None] for n, v in params.items()})
        kernel = marginal.kernel
        data = jax.device_put(kernel.data)
        compiled, ours = timed(kernel.log_density, params, data)
        by_hand_compiled, theirs = timed(lambda p, _: shape.by_hand(p), params, ())
        (value, gradient), (right, slope) = ours(), theirs()
        pairs = [(value, right), *((gradient[n], slope[n]) for n in params)]
        # A difference relative to the largest number of its array.
        apart = float(np.max([np.abs(np.subtract(a, b)).max() / max(np.abs(b).max(), 1.0) for a, b in pairs]))
        here, hand = fastest(ours, seconds=0.7), fastest(theirs, seconds=0.7)
    verdict = "" if apart <= AGREE else f"   DIFFERS by {apart:.1e}"
    seconds = f"{shape.name:<40} {read:>7.2f} {compiled:>8.2f} {by_hand_compiled:>8.2f}"
    return f"{seconds} {1e3 * here:>9.3f} {1e3 * hand:>9.3f} {here / hand:>7.1f}{verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Structured programs beside the same sum by hand.")
    parser.add_argument("--only", default="", help=f"some of {', '.join(SHAPES)}")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else list(SHAPES)
    measure(change_point())  # what JAX and NumPyro do once in a process
    print(f"{'shape':<40} {'read s':>7} {'comp. s':>8} {'hand s':>8} {'ms':>9} {'hand ms':>9} {'ratio':>7}")
    for name in wanted:
        print(measure(SHAPES[name]()), flush=True)


if __name__ == "__main__":
    main()
