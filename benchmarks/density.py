"""Rows `density-*`: log density and gradient of a Gaussian mixture of 100 000 rows, from the unmodified program."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.contest import Contender, Goal, Outcome, Row
from benchmarks.timing import evaluate, forget_peak, peak_mb

N = 100_000
Point = dict[str, np.ndarray]


def mixture_data(rows: int, size: int, components: int, *, full: bool = False) -> tuple[np.ndarray, Point]:
    """Data from a mixture, and a point at which to evaluate, near the truth."""
    rng = np.random.default_rng(1)
    w = rng.dirichlet(np.full(components, 5.0))
    mu = rng.normal(0, 3, size=(components, size))
    sd = rng.uniform(0.5, 1.5, size=(components, size))
    z = rng.choice(components, size=rows, p=w)
    y = np.empty((rows, size))
    for part in np.array_split(np.arange(rows), max(1, rows * size // 10**7)):
        y[part] = mu[z[part]] + sd[z[part]] * rng.standard_normal((len(part), size))
    point = {"w": 0.9 * w + 0.1 / components, "mu": mu + 0.1 * rng.normal(size=mu.shape), "sd": 1.1 * sd}
    if full:
        root = np.tril(rng.normal(0, 0.2, size=(components, size, size)), -1) + np.eye(size)
        point["corr"] = root / np.linalg.norm(root, axis=-1, keepdims=True)
    return y, point


def settled(x64: bool) -> float:
    """JAX started, in the float type asked for; the memory held by then."""
    import jax

    jax.config.update("jax_enable_x64", x64)
    jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
    forget_peak()
    return peak_mb()


def ours(program: str, make: Callable[[], tuple[Any, Point]], components: int) -> Outcome:
    """The program through `mg.marginalize`, in float64 as always."""
    y, point = make()
    import jax

    import marginalia as mg
    from benchmarks import programs

    base = settled(x64=False)
    begun = time.perf_counter()
    kernel = mg.marginalize(getattr(programs, program), y, components).kernel
    read = time.perf_counter() - begun
    with jax.enable_x64(True):
        figures, answers = evaluate(kernel.log_density, point, kernel.data, "float64", begun=begun, base_mb=base)
    return Outcome({"read_s": read, **figures}, answers)


def numpyro_enumeration(
    program: str, make: Callable[[], tuple[Any, Point]], components: int, dtype: str, plates: int = 1
) -> Outcome:
    """The same program by NumPyro's own enumeration, which is funsor's."""
    y, point = make()
    from benchmarks import programs

    base = settled(x64=dtype == "float64")
    from numpyro.contrib.funsor import config_enumerate, enum, log_density

    begun = time.perf_counter()
    model = enum(config_enumerate(getattr(programs, program)), -1 - plates)

    def density(params, data):
        return log_density(model, (data, components), {}, params)[0]

    figures, answers = evaluate(density, point, y.astype(dtype), dtype, begun=begun, base_mb=base)
    return Outcome(figures, answers)


def by_hand(kernel: Callable[..., Any], make: Callable[[], tuple[Any, Point]], dtype: str) -> Outcome:
    """A kernel that someone wrote for this one model."""
    y, point = make()
    base = settled(x64=dtype == "float64")
    begun = time.perf_counter()
    function, data = kernel(y.astype(dtype))
    figures, answers = evaluate(function, point, data, dtype, begun=begun, base_mb=base)
    return Outcome(figures, answers)


def _log_prior(params: Any, concentration: float = 1.0) -> Any:
    """Of the weights, means and standard deviations of `programs`, with their constants."""
    import jax.numpy as jnp

    k = params["w"].shape[-1]
    mu, sd = params["mu"], params["sd"]
    value = math.lgamma(k * concentration) - k * math.lgamma(concentration)
    value += -0.5 * jnp.sum((mu / 5) ** 2) - mu.size * (math.log(5) + 0.5 * math.log(2 * math.pi))
    return value - 0.5 * jnp.sum((sd / 2) ** 2) + sd.size * (0.5 * math.log(2 / math.pi) - math.log(2))


def _log_sum(table: Any) -> Any:
    """Log-sum-exp over the first axis, the long one innermost; its gradient needs no second exponential."""
    import jax
    import jax.numpy as jnp

    top = jax.lax.stop_gradient(table.max(0))
    return jnp.sum(top + jnp.log(jnp.exp(table - top).sum(0)))


def columns_kernel(y: np.ndarray) -> Any:
    """Few components and dimensions: column by column, everything unrolled."""
    import jax
    import jax.numpy as jnp

    def function(params, data):
        mu, sd = params["mu"], params["sd"]
        k, size = mu.shape
        log_w = jnp.log(params["w"]) - jnp.log(sd).sum(1) - 0.5 * size * math.log(2 * math.pi)
        terms = [log_w[i] - 0.5 * sum(((data[d] - mu[i, d]) / sd[i, d]) ** 2 for d in range(size)) for i in range(k)]
        top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, terms))
        rows = top + jnp.log(sum(jnp.exp(t - top) for t in terms))
        return jnp.sum(rows) + _log_prior(params)

    return function, tuple(np.ascontiguousarray(column) for column in y.T)


def diagonal_kernel(y: np.ndarray) -> Any:
    """Sufficient statistics of all rows, computed once, times natural parameters: one matrix product."""
    import jax.numpy as jnp

    def function(params, data):
        mu, precision = params["mu"], params["sd"] ** -2.0
        constant = jnp.log(params["w"]) - jnp.log(params["sd"]).sum(1) - 0.5 * (mu**2 * precision).sum(1)
        constant = constant - 0.5 * mu.shape[1] * math.log(2 * math.pi)
        natural = jnp.concatenate([mu * precision, -0.5 * precision], axis=1)
        return _log_sum(natural @ data + constant[:, None]) + _log_prior(params)

    return function, np.ascontiguousarray(np.concatenate([y, y**2], axis=1).T)


def full_kernel(y: np.ndarray) -> Any:
    """The same with all products of two columns."""
    import jax.numpy as jnp
    from jax.scipy.linalg import solve_triangular

    size = y.shape[1]
    i, j = np.tril_indices(size)

    def function(params, data):
        mu, sd, corr = params["mu"], params["sd"], params["corr"]
        root = sd[..., None] * corr
        inverse = solve_triangular(root, jnp.broadcast_to(jnp.eye(size, dtype=mu.dtype), root.shape), lower=True)
        precision = jnp.einsum("kab,kac->kbc", inverse, inverse)
        linear = jnp.einsum("kab,kb->ka", precision, mu)
        diagonal = jnp.diagonal(root, axis1=-2, axis2=-1)
        constant = jnp.log(params["w"]) - jnp.log(diagonal).sum(1) - 0.5 * (linear * mu).sum(1)
        constant = constant - 0.5 * size * math.log(2 * math.pi)
        quadratic = precision[:, i, j] * jnp.where(i == j, -0.5, -1.0).astype(mu.dtype)
        table = jnp.concatenate([linear, quadratic], axis=1) @ data + constant[:, None]
        # LKJ at concentration 1: the powers of the diagonal, and the constant
        powers = jnp.arange(size - 2, -1, -1)
        lkj = (jnp.log(jnp.diagonal(corr, axis1=-2, axis2=-1)[:, 1:]) * powers).sum() - len(mu) * _lkj_constant(size)
        return _log_sum(table) + _log_prior(params) + lkj

    return function, np.ascontiguousarray(np.concatenate([y, y[:, i] * y[:, j]], axis=1).T)


def _lkj_constant(size: int) -> float:
    """Of a Cholesky factor at concentration 1 (Lewandowski, Kurowicka and Joe 2009, section 3.2, eq. 16)."""
    total = 0.0
    for k in range(1, size):
        alpha = 1 + (size - 1 - k) / 2
        # a row's k-th partial correlation is a symmetric Beta(alpha, alpha) on (-1, 1), size - k of them
        log_beta = 2 * math.lgamma(alpha) - math.lgamma(2 * alpha)
        total += (size - k) * (log_beta + (2 * alpha - 1) * math.log(2))
    return total


def row(
    key: str, program: str, size: int, components: int, kernel: Callable[..., Any], what: str, goals: tuple[Goal, ...]
) -> Row:
    make = functools.partial(mixture_data, N, size, components, full=program == "full")
    funsor = ("numpyro", "funsor")
    contenders = [Contender("marginalia", functools.partial(ours, program, make, components), role="ours")]
    for dtype in ("float32", "float64"):
        run = functools.partial(numpyro_enumeration, program, make, components, dtype)
        contenders.append(Contender(f"NumPyro {dtype}", run, needs=funsor))
    for dtype in ("float32", "float64"):
        run = functools.partial(by_hand, kernel, make, dtype)
        contenders.append(Contender(f"by hand {dtype}", run, role="yardstick"))
    return Row(key, what, "ms", "evaluation_ms", tuple(contenders), goals)


def against_peer(least: float) -> Goal:
    return Goal(f"≥ {least:g}×", "marginalia", "evaluation_ms", "peer", least)


HAND = Goal("within 1.3× of by hand", "marginalia", "evaluation_ms", "by hand float64", 1 / 1.3)
MEMORY = Goal("< 200 MB above the data", "marginalia", "peak_mb", most=200)

ROWS = (
    row("density-small", "diagonal", 2, 2, columns_kernel, "density and gradient, N = 100 000, K = 2, D = 2",
        (against_peer(3), HAND)),
    row("density-diagonal", "diagonal", 10, 20, diagonal_kernel,
        "density and gradient, N = 100 000, K = 20, D = 10, diagonal", (against_peer(12), MEMORY)),
    row("density-full", "full", 10, 20, full_kernel,
        "density and gradient, N = 100 000, K = 20, D = 10, full covariance", (against_peer(5), MEMORY)),
)  # fmt: skip
