"""W5: every row is one of two linear operators applied to the same unknowns; weights for all, by halves, by row.

The truth is computed here by importance sampling in NumPy. All comparisons are in Monte Carlo standard errors.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import weighing
from scipy import special
from weighing import SIGMAS

import marginalia as mg

pytestmark = pytest.mark.xdist_group("w5")

NOISE = 0.01
HALF = np.repeat([0, 1], 30)
BY_ROW = np.tile([[0.9, 0.1], [0.1, 0.9]], (30, 1))


@functools.cache
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y (60,), H1 and H2 (60, 3), drawn in the order of the recipe."""
    state = np.random.RandomState(2)
    H = state.uniform(0, 1, (60, 3))
    y = H @ np.array([[1.0], [2.0], [3.0]]) + state.normal(0, 0.01, (60, 1))
    H1 = 0.1 + H + state.normal(0, 0.1, (60, 3))
    H2 = H + state.normal(0, 0.01, (60, 3))
    return y[:, 0], H1, H2


def rows(w, x, y, H1, H2):
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        mean = jnp.where(z == 0, (H1 @ x)[:, 0], (H2 @ x)[:, 0])
        numpyro.sample("y", dist.Normal(mean, NOISE), obs=y)


def unknowns():
    return numpyro.sample("x", dist.Normal(1.5, 1).expand([3, 1]).to_event(2))


def one_weight(y, H1, H2):
    rows(numpyro.sample("w", dist.Dirichlet(jnp.full(2, 2.0))), unknowns(), y, H1, H2)


def by_halves(y, H1, H2):
    with numpyro.plate("half", 2):
        w = numpyro.sample("w", dist.Dirichlet(jnp.full(2, 2.0)))
    rows(w[HALF], unknowns(), y, H1, H2)


def by_row(y, H1, H2):
    rows(BY_ROW, unknowns(), y, H1, H2)


def twice(y, H1, H2):
    """The common mistake: two likelihoods of the same y, scaled and added; alpha is nobody's business."""
    numpyro.sample("alpha", dist.Dirichlet(jnp.full(2, 2.0)))
    x = unknowns()
    for name, H in (("first", H1), ("second", H2)):
        with numpyro.handlers.scale(scale=0.5), numpyro.plate("rows of " + name, len(y)):
            numpyro.sample(name, dist.Normal((H @ x)[:, 0], NOISE), obs=y)


MODELS = {"one_weight": one_weight, "by_halves": by_halves, "by_row": by_row}
LOGITS = {"one_weight": 1, "by_halves": 2, "by_row": 0}


def log_posterior(u: np.ndarray, name: str) -> np.ndarray:
    """Of x and the logits of the first weight(s), with the Jacobian; `(S, 3 + logits)` to `(S,)`."""
    y, H1, H2 = data()
    x, logits = u[:, :3], u[:, 3:]
    log_w = -np.logaddexp(0, np.stack([-logits, logits], axis=-1))  # (S, logits, 2)
    prior = -0.5 * ((x - 1.5) ** 2).sum(1) + 2 * log_w.sum((1, 2))
    each = {"one_weight": lambda: log_w, "by_halves": lambda: log_w[:, HALF], "by_row": lambda: np.log(BY_ROW)[None]}
    fits = np.stack([-0.5 * ((y - x @ H.T) / NOISE) ** 2 for H in (H1, H2)], axis=-1)
    return prior + special.logsumexp(each[name]() + fits, axis=-1).sum(1)


def values_of(u: np.ndarray) -> np.ndarray:
    return np.column_stack([u[:, :3], special.expit(u[:, 3:])])


def in_columns(fit: mg.Fit) -> np.ndarray:
    """(chain, draw, n): x, then the first weight(s)."""
    x = fit.draws["x"][..., 0]
    if "w" not in fit.draws:
        return x
    w = fit.draws["w"][..., 0]
    return np.concatenate([x, w.reshape(*x.shape[:2], -1)], axis=-1)


@functools.cache
def truth(name: str) -> weighing.Truth:
    def density(u: np.ndarray) -> np.ndarray:
        return log_posterior(u, name)

    start = np.concatenate([np.linalg.lstsq(data()[2], data()[0], rcond=None)[0], np.full(LOGITS[name], -3.0)])
    mode = weighing.peak(density, start)
    found, log_ratio = weighing.importance(density, mode, 60_000, seed=1, rounds=2)
    return weighing.weighed(values_of(found), log_ratio)


def test_the_common_mistake_is_caught() -> None:
    findings = mg.check(twice, *data())
    assert any(f.kind == "twice" and f.where == "sites 'first' and 'second'" for f in findings), findings
    assert any("alpha" in f.where for f in findings), findings


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_right_models_pass_the_check(name: str) -> None:
    assert not mg.check(MODELS[name], *data())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "nuts", "laplace"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_method_gives_the_answer_and_has_nothing_to_complain_of(name: str, method: str) -> None:
    fit = mg.fit(MODELS[name], *data(), method=method, random_seed=1, progressbar=False)
    assert fit.status == ()
    for what, score in weighing.scores(in_columns(fit), truth(name)).items():
        assert np.abs(score).max() < SIGMAS, (what, score)
