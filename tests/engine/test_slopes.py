"""The slopes of programs in which some state is impossible, or some branch is not taken: finite, and right.

Each program has a logarithm, a root or a quotient of 0 or the like in a state or branch that counts for nothing.
The density is compared with brute force. Its slopes are compared with central differences of the density, extrapolated:
what JAX gives for these programs written by hand is often not a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import digamma, gammaln
from numpyro import sample
from numpyro.contrib.control_flow import scan

import marginalia as mg
from oracle import enumerate_all
from study import close

COUNTS = np.array([2, 0, 1, 3])
Y = np.array([0.3, -1.2, 0.8])

CASES: list[Any] = []


def case(quick: bool = False, **params: Any) -> Callable[[Any], Any]:
    """Register a program with a point of its latents."""

    def register(model: Any) -> Any:
        marks = [] if quick else [pytest.mark.slow]
        CASES.append(pytest.param(model, params, id=model.__name__, marks=marks))
        return model

    return register


def differences(density: Callable[[dict[str, np.ndarray]], float], at: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Central differences at three steps, extrapolated to none: good to about 1e-11."""
    found = {}
    for name, point in at.items():
        slopes = np.zeros_like(point)
        for i in np.ndindex(point.shape):

            def across(step: float, name: str = name, i: Any = i) -> float:
                sides = []
                for sign in (1, -1):
                    moved = {n: np.array(x) for n, x in at.items()}
                    moved[name][i] += sign * step
                    sides.append(density(moved))
                return (sides[0] - sides[1]) / (2 * step)

            wide, middle, narrow = across(1e-3), across(5e-4), across(2.5e-4)
            slopes[i] = (16 * (4 * narrow - middle) / 3 - (4 * middle - wide) / 3) / 15
        found[name] = slopes
    return found


@case(p=0.3, r=2.0)
def where_minus_inf():
    p = sample("p", dist.Uniform(0, 1))
    r = sample("r", dist.HalfNormal(3))
    with numpyro.plate("o", 4):
        z = sample("z", dist.Categorical(jnp.array([0.2, 0.3, 0.5])))
        q = jnp.where(z == 0, 0.0, jnp.where(z == 1, p, 1.0))
        numpyro.factor("f", jnp.where(COUNTS > 0, jnp.log(q), jnp.log1p(-q)) * r)


@case(quick=True, a=-1.5, b=-0.5, c=0.0)
def functions_that_go_on_below_their_poles():
    a, b, c = (sample(name, dist.Normal(0, 2)) for name in "abc")
    z = sample("z", dist.Bernoulli(0.3))
    numpyro.factor("f", gammaln(a) + digamma(b) + jnp.sum(jnp.power(a, jnp.array([-2.0, -1.0, 3.0]))) + z * a * b)
    numpyro.factor("g", jnp.sum(jnp.power(c, jnp.array([0.0, 1.0, 2.0]))) + z * c)


@case(phi=0.4)
def log_pow():
    phi = sample("phi", dist.Uniform(0, 1))
    with numpyro.plate("o", 4):
        z = sample("z", dist.Bernoulli(0.5))
        numpyro.factor("f", jnp.log(phi**z * (1 - phi) ** (1 - z)) + jnp.where(COUNTS > 0, jnp.log(z * 1.0), 0.0))


@case(p=0.4)
def occupancy():
    p = sample("p", dist.Uniform(0, 1))
    psi = 0.6
    y = np.array([[1, 0], [0, 0], [0, 1]])
    with numpyro.plate("s", 3):
        z = sample("z", dist.Bernoulli(psi))
        numpyro.factor("f", jnp.sum(jnp.where(y == 1, jnp.log(p * z[:, None]), jnp.log1p(-p * z[:, None])), -1))


@case(p=0.4)
def occ_binomial():
    p = sample("p", dist.Uniform(0, 1))
    with numpyro.plate("s", 4):
        z = sample("z", dist.Bernoulli(0.3))
        sample("y", dist.Binomial(3, p * z), obs=COUNTS)


@case(p=0.4)
def occ_bernoulli_probs():
    p = sample("p", dist.Uniform(0, 1))
    y = np.array([[1, 0], [0, 0], [0, 1]])
    with numpyro.plate("s", 3):
        z = sample("z", dist.Bernoulli(0.3))
        sample("y", dist.Bernoulli(p * z[:, None]).to_event(1), obs=y)


@case(a=0.4, b=0.3)
def absorbing_hmm():
    a = sample("a", dist.Uniform(0, 1))
    b = sample("b", dist.Uniform(0, 1))
    trans = jnp.array([[1 - a, a, 0.0], [0.0, 1 - b, b], [0.0, 0.0, 1.0]])
    emit = jnp.array([[1.0, 0.0], [1 - b, b], [1.0, 0.0]])
    y = np.array([0, 1, 0, 1, 0, 0])
    z = 0
    for t in range(6):
        z = sample(f"z{t}", dist.Categorical(trans[z]))
        sample(f"y{t}", dist.Categorical(emit[z]), obs=y[t])


@case(a=0.4, b=0.3)
def absorbing_log():
    a = sample("a", dist.Uniform(0, 1))
    b = sample("b", dist.Uniform(0, 1))
    T = jnp.array([[1 - a, a, 0.0], [0.0, 1 - b, b], [0.0, 0.0, 1.0]])
    T2 = jnp.log(T @ T)
    E = jnp.log(jnp.array([[1.0, 0.0], [1 - b, b], [1.0, 0.0]]) * jnp.array([[1.0, 1], [1, 1], [1, 1]]))
    y = np.array([0, 1, 0, 1, 0])
    z = prev = 0
    for t in range(5):
        z = sample(f"z{t}", dist.Categorical(jnp.ones(3) / 3))
        if t:
            numpyro.factor(f"t{t}", T2[prev, z])
        numpyro.factor(f"f{t}", E[z, y[t]])
        prev = z


@case(a=0.4, b=0.3)
def absorbing_scan():
    a = sample("a", dist.Uniform(0, 1))
    b = sample("b", dist.Uniform(0, 1))
    T = jnp.array([[1 - a, a, 0.0], [0.0, 1 - b, b], [0.0, 0.0, 1.0]])

    def step(z, y):
        z = sample("z", dist.Categorical(T[z]))
        q = jnp.where(z == 1, b, 0.0)
        sample("y", dist.Bernoulli(q), obs=y)
        numpyro.deterministic("q", q)
        return z, None

    scan(step, jnp.array(0), np.array([0, 1, 0, 1, 0, 0]))


@case(a=0.4, b=0.3)
def jolly_seber():
    g = sample("a", dist.Uniform(0, 1))
    phi = sample("b", dist.Uniform(0, 1))
    p = 0.6
    y = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]])
    with numpyro.plate("i", 4):
        avail = jnp.ones(4)
        z = jnp.zeros(4)
        for t in range(3):
            q = avail
            mu = z * phi + (1 - z) * q * g
            z = sample(f"z{t}", dist.Bernoulli(mu))
            sample(f"y{t}", dist.Bernoulli(z * p), obs=y[:, t])
            avail = avail * (1 - z)


@case(a=0.4, b=0.3)
def jolly_seber_log():
    g = sample("a", dist.Uniform(0, 1))
    phi = sample("b", dist.Uniform(0, 1))
    p = 0.6
    y = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]])
    with numpyro.plate("i", 4):
        avail = jnp.ones(4)
        z = jnp.zeros(4)
        for t in range(3):
            mu = z * phi + (1 - z) * avail * g
            z = sample(f"z{t}", dist.Bernoulli(0.5))
            numpyro.factor(f"t{t}", jnp.where(z == 1, jnp.log(mu), jnp.log(1 - mu)))
            e = z * p
            numpyro.factor(f"y{t}", jnp.where(y[:, t] == 1, jnp.log(e), jnp.log(1 - e)))
            avail = avail * (1 - z)


@case(quick=True, m=[0.4, -0.2], s=0.8)
def butterfly():
    m = sample("m", dist.Normal(0, 1).expand([2]).to_event(1))
    s = sample("s", dist.HalfNormal(1))
    seen = np.array([[1, 0], [0, 0], [1, 1]])
    with numpyro.plate("sp", 3):
        w = sample("w", dist.Bernoulli(jax.nn.sigmoid(m[0])))
        with numpyro.handlers.mask(mask=np.ones(3, bool)):
            psi = jax.nn.sigmoid(m[1]) * w
            z = sample("z", dist.Bernoulli(psi))
        lp = jnp.log(psi * s / (1 + s))
        ll = jnp.where(
            seen.sum(1) > 0,
            lp + jnp.sum(seen, 1) * jnp.log(z * s / (1 + s)),
            jnp.logaddexp(lp + 2 * jnp.log(1 - s / (1 + s)), jnp.log(1 - psi)),
        )
        numpyro.factor("f", ll)


@case(quick=True, mu=[-0.5, 1.2])
def cond_taken():
    mu = sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("o", 3):
        m = mu[sample("z", dist.Bernoulli(0.3))]
        m = jax.lax.cond(mu[0] > 0, lambda m: jnp.log(mu[0]) * m, lambda m: 2 * m, m)
        sample("y", dist.Normal(m, 1), obs=Y)


@case(mu=[-0.5, 1.2])
def switch_taken():
    mu = sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("o", 3):
        m = mu[sample("z", dist.Bernoulli(0.3))]
        i = jnp.where(mu[0] > 0, 0, jnp.where(mu[1] > 0, 1, 2))
        m = jax.lax.switch(i, [lambda m: jnp.sqrt(mu[0]) * m, lambda m: 2 * m + mu[0], lambda m: m / jnp.log(mu[1])], m)
        sample("y", dist.Normal(m, 1), obs=Y)


@case(mu=[-0.5, 1.2])
def select_taken():
    mu = sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("o", 3):
        m = mu[sample("z", dist.Bernoulli(0.3))]
        m = jax.lax.select(m > 0, jnp.log(m), m * m)
        sample("y", dist.Normal(m, 1), obs=Y)


@case(mu=[-0.5, 1.2])
def where_user():
    mu = sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("o", 3):
        m = mu[sample("z", dist.Bernoulli(0.3))]
        m = jnp.where(m > 0, jnp.log(m) * mu[1], jnp.sqrt(-m) * mu[0])
        sample("y", dist.Normal(m, 1), obs=Y)


@case(mu=[-0.5, 1.2])
def where_zero_div():
    mu = sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("o", 3):
        z = sample("z", dist.Bernoulli(0.3))
        m = jnp.where(z == 0, mu[0], mu[1] / (z * mu[0]))
        sample("y", dist.Normal(m, 1), obs=Y)


@case(mu=[-0.5, 1.2])
def cond_on_discrete():
    mu = sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
    z = sample("z", dist.Bernoulli(0.3))
    m = jax.lax.cond(z == 1, lambda a: jnp.log(a[1] * z), lambda a: a[0] * (1 - z), mu)
    sample("y", dist.Normal(m, 1), obs=0.3)


@case(mu=[-0.5, 1.2])
def nested_cond():
    mu = sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
    z = sample("z", dist.Bernoulli(0.3))
    m = jax.lax.cond(
        mu[0] > 0,
        lambda a: jax.lax.cond(z == 1, lambda b: jnp.log(b[0]) * z, lambda b: jnp.sqrt(b[0]), a),
        lambda a: jax.lax.cond(a[1] > 0, lambda b: jnp.log(b[1]) + z * b[0], lambda b: jnp.log(b[1] * z), a),
        mu,
    )
    sample("y", dist.Normal(m, 1), obs=0.3)


@case(mu=[-0.5, 1.2])
def cond_in_scan():
    mu = sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))

    def step(z, y):
        z = sample("z", dist.Bernoulli(jnp.where(z == 1, 0.7, 0.2)))
        m = jax.lax.cond(mu[0] > 0, lambda m: jnp.log(mu[0]) * m, lambda m: 2 * m, mu[z])
        sample("y", dist.Normal(m, 1), obs=y)
        return z, None

    scan(step, jnp.array(0), Y)


@case(mu=[-0.5, 1.2])
def cond_in_scan_plate():
    mu = sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))

    def step(z, y):
        with numpyro.plate("p", 2):
            z = sample("z", dist.Bernoulli(jnp.where(z == 1, 0.7, 0.2)))
            m = jax.lax.cond(mu[0] > 0, lambda m: jnp.log(mu[0]) * m, lambda m: 2 * m, mu[z])
            sample("y", dist.Normal(m, 1), obs=y)
        return z, None

    scan(step, jnp.zeros(2, int), np.stack([Y, Y + 1], 1))


@case(v=0.7)
def sqrt_zero():
    v = sample("v", dist.HalfNormal(1))
    with numpyro.plate("o", 3):
        z = sample("z", dist.Bernoulli(0.3))
        sample("y", dist.Normal(jnp.sqrt(v * z), 1), obs=Y)


@case(v=[0.7, 0.2])
def norm_zero():
    v = sample("v", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("o", 3):
        z = sample("z", dist.Bernoulli(0.3))
        sample("y", dist.Normal(jnp.linalg.norm(v * z[:, None], axis=-1), 1), obs=Y)


@case(v=0.7)
def sqrtvar_zero():
    v = sample("v", dist.HalfNormal(1))
    with numpyro.plate("o", 3):
        z = sample("z", dist.Bernoulli(0.3))
        sample("y", dist.Normal(0.0, jnp.sqrt(v * z) + 0.1), obs=Y)


@case(v=[0.7, 0.2, 0.1])
def lse_all_inf():
    v = sample("v", dist.HalfNormal(1).expand([3]).to_event(1))
    with numpyro.plate("o", 3):
        z = sample("z", dist.Bernoulli(0.3))
        numpyro.factor("f", jax.nn.logsumexp(jnp.log(v * z[:, None]) + Y[:, None], axis=-1))


@case(v=[0.7, 0.2, 0.1])
def logaddexp_inf():
    v = sample("v", dist.HalfNormal(1).expand([3]).to_event(1))
    with numpyro.plate("o", 3):
        z = sample("z", dist.Bernoulli(0.3))
        numpyro.factor("f", jnp.logaddexp(jnp.log(v[0] * z), jnp.log(v[1] * (1 - z) * z)))


@case(r=[1.5, 0.4])
def lgamma_pole():
    r = sample("r", dist.Gamma(2, 1).expand([2]).to_event(1))
    n = sample("n", dist.Categorical(jnp.ones(5) / 5).expand([4]).to_event(1))
    k = n - COUNTS
    lp = gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(COUNTS + 1.0) + COUNTS * jnp.log(0.4) + k * jnp.log(0.6)
    numpyro.factor("f", jnp.sum(jnp.where(k >= 0, lp * r[0], -jnp.inf)))
    numpyro.factor("g", jnp.sum(n * jnp.log(r[1]) - r[1]))


@case(p=0.3)
def clip_case():
    p = sample("p", dist.Uniform(0, 1))
    with numpyro.plate("o", 4):
        z = sample("z", dist.Bernoulli(0.4))
        q = jnp.clip(p * z, 0.0, 1.0)
        numpyro.factor("f", jnp.where(COUNTS > 0, jnp.log(q), jnp.log(1 - q)))


@case(p=0.3, m=-0.4)
def minus_inf_times_param():
    p = sample("p", dist.Uniform(0, 1))
    m = sample("m", dist.Normal(0, 1))
    with numpyro.plate("o", 4):
        z = sample("z", dist.Bernoulli(0.4))
        numpyro.factor("f", jnp.where(COUNTS > 0, jnp.exp(m) * jnp.log(p * z), m * z))


@case(p=0.3)
def scan_cumulative():
    p = sample("p", dist.Uniform(0, 1))
    with numpyro.plate("o", 4):
        z = sample("z", dist.Bernoulli(0.4))
        q = jnp.cumprod(jnp.stack([p * z, 1 - p * z, z * 1.0]), 0)
        numpyro.factor("f", jnp.where(COUNTS > 0, jnp.log(q[2]), jnp.log(1 - q[0])))


@case(a=0.4, b=0.3)
def one_hot_dot():
    a = sample("a", dist.Uniform(0, 1))
    b = sample("b", dist.Uniform(0, 1))
    with numpyro.plate("o", 4):
        z = sample("z", dist.Categorical(jnp.array([0.2, 0.3, 0.5])))
        P = jnp.log(jnp.array([[a, 1 - a, 0.0], [0.0, b, 1 - b], [0.0, 0.0, 1.0]]))
        oh = jax.nn.one_hot(z, 3)
        numpyro.factor("f", jnp.log(oh @ jnp.exp(P))[jnp.arange(4), np.minimum(COUNTS, 2)])


@case(t=[0.4, 1.3])
def pow_zero():
    t = sample("t", dist.HalfNormal(1).expand([2]).to_event(1))
    with numpyro.plate("o", 3):
        z = sample("z", dist.Bernoulli(0.4))
        numpyro.factor("f", jnp.log((t[0] * z) ** t[1] + (Y < 0) * 0.5))


@case(t=0.6)
def plain_where():
    t = sample("t", dist.Normal(0, 1))
    z = sample("z", dist.Bernoulli(0.4))
    numpyro.factor("f", jnp.where(t > 1, jnp.log(t - 1), 0.0) + z * t)


@case(quick=True, t=0.6)
def plain_scan_pole():
    t = sample("t", dist.Uniform(0, 1))
    z = sample("z", dist.Bernoulli(0.4))
    _, c = jax.lax.scan(lambda c, k: (c * k, jnp.log(c)), t, jnp.array([1.0, 0.0, 1.0]))
    numpyro.factor("f", jnp.where(jnp.isfinite(c), c, 0.0).sum() * z)


@case(r=1.4)
def nbinom_zero():
    r = sample("r", dist.Gamma(2, 1))
    with numpyro.plate("o", 4):
        z = sample("z", dist.Bernoulli(0.4))
        sample("y", dist.NegativeBinomial2(r * z, 2.0), obs=COUNTS)


@case(r=1.4)
def gamma_zero():
    r = sample("r", dist.Gamma(2, 1))
    with numpyro.plate("o", 3):
        z = sample("z", dist.Bernoulli(0.4))
        sample("y", dist.Gamma(r * z, 2.0), obs=np.exp(Y))


@case(r=1.4)
def expo_zero():
    r = sample("r", dist.Gamma(2, 1))
    with numpyro.plate("o", 3):
        z = sample("z", dist.Bernoulli(0.4))
        sample("y", dist.Exponential(r * z), obs=np.exp(Y))


@case(a=0.3)
def complex_functions():
    """Their real part may be negative where they have no pole."""
    a = sample("a", dist.Normal(0, 1))
    with numpyro.plate("o", 3):
        z = sample("z", dist.Bernoulli(0.4))
        m = jnp.sqrt(jnp.log(Y + z + 1j * jnp.exp(a))) / (Y + 1j * a)
        sample("y", dist.Normal(m.imag + jnp.abs(m), 1), obs=Y)


@pytest.mark.parametrize(("model", "params"), CASES)
def test_a_state_or_branch_that_counts_for_nothing_leaves_the_slopes_alone(model, params):
    at = {name: np.asarray(value, float) for name, value in params.items()}
    kernel = mg.marginalize(model).kernel
    with jax.enable_x64(True):
        both = jax.jit(jax.value_and_grad(kernel.log_density))
        value, gradient = both(at, kernel.data)
        expected = differences(lambda point: float(both(point, kernel.data)[0]), at)
    close(value, enumerate_all(model, (), at).density, "density")
    for name, slopes in expected.items():
        close(gradient[name], slopes, f"slope along {name}", 1e-9)


def test_second_derivatives_and_forward_mode_pass_a_pole():
    """z = 1 is impossible: what is left is log(0.7) + 4 log(rate) - rate, twice differentiated."""

    def model():
        rate = sample("rate", dist.ImproperUniform(dist.constraints.positive, (), ()))
        z = sample("z", dist.Bernoulli(0.3))
        sample("y", dist.Poisson(rate * (1 - z)), obs=np.array(4))

    kernel = mg.marginalize(model).kernel
    with jax.enable_x64(True):
        density = lambda rate: kernel.log_density({"rate": rate}, kernel.data)  # noqa: E731
        forward = jax.jit(jax.jacfwd(density))(2.5)
        second = jax.jit(jax.hessian(density))(2.5)
    close(forward, 4 / 2.5 - 1, "slope")
    close(second, -4 / 2.5**2, "curvature")


def test_a_program_without_poles_is_left_as_it_is():
    """Nothing is made dearer where no slope can be infinite."""

    def model():
        w = sample("w", dist.Dirichlet(jnp.ones(3)))
        mu, sd = sample("mu", dist.Normal(0, 3).expand([3])), sample("sd", dist.HalfNormal(2).expand([3]))
        z = sample("z", dist.Categorical(w).expand([3]))
        sample("y", dist.Normal(mu[z], sd[z]), obs=Y)
        sample("n", dist.Poisson(jnp.exp(mu[z])), obs=COUNTS[:3])

    assert "stop_gradient" not in str(mg.marginalize(model).program.jaxpr)
