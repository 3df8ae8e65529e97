"""Hidden Markov models, as loops and as scans, against the forward-backward recursions by hand."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import agrees, normalised, works
from scipy import stats

import hmm

INITIAL, TRANSITION = np.array([0.6, 0.4]), np.array([[0.9, 0.1], [0.3, 0.7]])
MU, SD, RATE = np.array([-1.0, 2.0]), np.array([1.0, 0.7]), np.array([3.0, 0.5])
BASE, SLOPE = np.array([[2.0, 0.1], [-0.2, 1.5]]), np.array([[0.3, 1.5], [0.2, -1.0]])
STEPS = 9


def forward_backward(initial, transitions, emission):
    """Rabiner's equations 19 to 27 in logs: log p(y), and P(z_t = k | y) as (steps, states)."""
    n_steps = len(emission)
    alpha, beta = np.zeros_like(emission), np.zeros_like(emission)
    alpha[0] = np.log(initial) + emission[0]
    for t in range(1, n_steps):
        alpha[t] = normalised((alpha[t - 1][:, None] + np.log(transitions[t])).T)[0] + emission[t]
    for t in range(n_steps - 2, -1, -1):
        beta[t] = normalised(np.log(transitions[t + 1]) + emission[t + 1] + beta[t + 1])[0]
    return normalised(alpha[-1])[0], normalised(alpha + beta)[1]


def of_chain():
    alpha = np.ones((2, 2)) + 4.0 * np.eye(2)
    return sum(stats.dirichlet.logpdf(row, a) for row, a in zip(TRANSITION, alpha, strict=True))


def of_gaussian():
    return stats.norm.logpdf(MU, 0, 5).sum() + stats.halfnorm.logpdf(SD, scale=2).sum()


def of_covariates():
    return stats.norm.logpdf(BASE, 2 * np.eye(2), 1).sum() + stats.norm.logpdf(SLOPE, 0, 1).sum()


def softmax_transitions(x):
    odds = np.exp(BASE + SLOPE * x[:, None, None])
    return odds / odds.sum(-1, keepdims=True)


def scanned(membership):
    return {"z_0": membership[0], "z": membership[1:]}


def looped(membership):
    return {f"z_{t}": row for t, row in enumerate(membership)}


PARAMS = {"initial": INITIAL, "transition": TRANSITION, "mu": MU, "sd": SD, "rate": RATE, "base": BASE, "slope": SLOPE}
both = pytest.mark.parametrize("way", [scanned, looped])


@both
def test_gaussian_agrees(way):
    (y,), _ = hmm.simulate(0, STEPS)
    evidence, membership = forward_backward(INITIAL, [TRANSITION] * STEPS, stats.norm.logpdf(y[:, None], MU, SD))
    model = hmm.model if way is scanned else hmm.loop_model
    agrees(model, (y,), PARAMS, of_chain() + of_gaussian() + evidence, way(membership), verify=False)


def test_exponential_agrees():
    (y,), _ = hmm.simulate(0, STEPS, emission="exponential")
    emission = stats.expon.logpdf(y[:, None], scale=1 / RATE)
    evidence, membership = forward_backward(INITIAL, [TRANSITION] * STEPS, emission)
    prior = of_chain() + stats.gamma.logpdf(RATE, 1).sum()
    agrees(hmm.exponential_model, (y,), PARAMS, prior + evidence, scanned(membership), verify=False)


@both
def test_covariates_in_the_transitions_agree(way):
    (y, x), _ = hmm.simulate(0, STEPS, covariates=True)
    evidence, membership = forward_backward(INITIAL, softmax_transitions(x), stats.norm.logpdf(y[:, None], MU, SD))
    model = hmm.covariate_model if way is scanned else hmm.covariate_loop_model
    agrees(model, (y, x), PARAMS, of_covariates() + of_gaussian() + evidence, way(membership), verify=False)


@both
def test_sequences_of_unequal_length_agree(way):
    """Beyond a sequence's end its states go on unobserved: they sum to one."""
    (y, length), _ = hmm.simulate_batch(0, [4, 2, 1])
    total, rows = of_chain() + of_gaussian(), []
    for row, n in zip(y, length, strict=True):
        emission = stats.norm.logpdf(row[:, None], MU, SD) * (np.arange(len(row)) < n)[:, None]
        evidence, membership = forward_backward(INITIAL, [TRANSITION] * len(row), emission)
        alone, _ = forward_backward(INITIAL, [TRANSITION] * n, emission[:n])
        assert np.isclose(evidence, alone, rtol=1e-13, atol=0), "the oracle: a longer array changes nothing"
        total, rows = total + evidence, [*rows, membership]
    model = hmm.batch_model if way is scanned else hmm.batch_loop_model
    marginal = agrees(model, (y, length), PARAMS, total, way(np.stack(rows, axis=1)), verify=False)
    assert [u.shape for u in marginal.kernel.units] == [(3,)], "one unit per sequence"


def test_works_for_200_steps():
    assert "one forward pass" in works(hmm.model, hmm.simulate(1, 200)[0])


def test_covariates_work_for_200_steps():
    assert "one forward pass" in works(hmm.covariate_model, hmm.simulate(1, 200, covariates=True)[0])


def test_50_sequences_work():
    length = np.random.default_rng(0).integers(20, 101, 50)
    assert "50 chains" in works(hmm.batch_model, hmm.simulate_batch(1, length)[0])


@pytest.mark.slow  # half a minute to compile: the program has as many sites as the sequence has steps
@pytest.mark.parametrize("name", ["loop_model", "covariate_loop_model"])
def test_loops_work_for_200_steps(name):
    args, _ = hmm.simulate(1, 200, covariates="covariate" in name)
    assert "one forward pass" in works(getattr(hmm, name), args)
