"""ADVI on the models of `exact.py`: what it states holds, in standard errors.

It states the Gaussian that it ended at and how far that may be from the best one (`error_of_iterates`), the ELBO with
its error, and each draw's density under target and approximation, of which k-hat says whether they may be corrected by
their ratio. The best Gaussian is found here without the library, by Gauss-Hermite quadrature and BFGS.
"""

from __future__ import annotations

import functools
import itertools
import warnings

import numpy as np
import pytest
from exact import MODELS, Exact, funnel
from scipy import optimize, special

import marginalia as mg
from marginalia.errors import MarginaliaWarning

pytestmark = pytest.mark.slow

SIGMAS = 4.0
NAMES = ["conjugate", "hidden Markov", "latent class", "regressions"]
FAMILIES = ["mean-field", "full-rank"]
NODES = 20  # of the quadrature, on each axis
ROUNDING = 1e-4  # of the optimiser that finds the best Gaussian, in its standard deviations


@functools.cache
def exact(name: str) -> Exact:
    return MODELS[name]()


@functools.cache
def fitted(name: str, family: str) -> mg.Fit:
    method = mg.ADVI(family=family, draws=4000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarginaliaWarning)  # the status has the same words
        return mg.fit(exact(name).model, *exact(name).args, method=method, random_seed=11, progressbar=False)


def unconstrained(model: Exact, u: np.ndarray) -> np.ndarray:
    """Log density of points `(S, n)` of the unconstrained space, with the Jacobian."""
    columns = u.T
    if not model.unit:
        return model.log_density(*columns)
    jacobian = (special.log_expit(columns) + special.log_expit(-columns)).sum(axis=0)
    return model.log_density(*special.expit(columns)) + jacobian


@functools.cache
def best(name: str, family: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, root of the covariance and ELBO of the Gaussian nearest to the posterior."""
    model = exact(name)
    n = model.parameters
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    noise = np.array(list(itertools.product(nodes, repeat=n)))
    weight = np.prod(list(itertools.product(weights / weights.sum(), repeat=n)), axis=1)
    rows, columns = np.tril_indices(n, -1) if family == "full-rank" else (np.empty(0, int),) * 2

    def parts(phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        root = np.diag(np.exp(phi[n : 2 * n]))
        root[rows, columns] = phi[2 * n :]
        return phi[:n], root

    def loss(phi: np.ndarray) -> float:
        mean, root = parts(phi)
        entropy = phi[n : 2 * n].sum() + 0.5 * n * (1 + np.log(2 * np.pi))
        return -float(weight @ unconstrained(model, mean + noise @ root.T)) - entropy

    mode = optimize.minimize(lambda u: -unconstrained(model, u[None])[0], _beginning(model), method="Nelder-Mead").x
    start = np.concatenate([mode, np.full(n, np.log(0.3)), np.zeros(len(rows))])
    found = optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-5})
    return *parts(found.x), -found.fun


def _beginning(model: Exact) -> np.ndarray:
    """The exact means of the parameters, which come first among the functions."""
    means = np.array(list(model.means.values())[: model.parameters])
    return special.logit(means) if model.unit else means


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_it_ends_at_the_best_gaussian_within_the_error_it_states(name: str, family: str) -> None:
    fit, (mean, root, bound) = fitted(name, family), best(name, family)
    group, info = fit.data["approximation"], fit.result.info
    off = np.linalg.solve(root, group["mean"].values - mean)
    turned = np.linalg.solve(root, np.linalg.cholesky(group["covariance"].values)) - np.eye(len(mean))
    error = SIGMAS * info["error_of_iterates"] + ROUNDING
    assert np.abs(off).max() < error, (off, error)
    assert np.abs(turned).max() < error, (turned, error)
    # A posterior that is a Gaussian leaves no noise in the ELBO, only rounding.
    assert abs(info["elbo"] - bound) < SIGMAS * info["elbo_error"] + 1e-6, (info["elbo"], bound)


@pytest.mark.parametrize("family", [*FAMILIES, "flow"])
@pytest.mark.parametrize("name", NAMES)
def test_k_hat_is_told_and_below_its_limit_weighted_draws_are_the_posteriors(name: str, family: str) -> None:
    """Evidence and means by importance weights, against quadrature; above the limit the status says so."""
    fit = fitted(name, family)
    if fit.result.info["k_hat"] > 0.7:
        assert [words for words in fit.status if "is not the posterior: the Pareto k-hat" in words] == list(fit.status)
        assert fit.status
        return
    assert fit.status == ()
    log_ratio = (fit.result.stats["lp"] - fit.result.stats["log_q"])[0]
    ratio = np.exp(log_ratio - log_ratio.max())
    error = ratio.std() / ratio.mean() / np.sqrt(len(ratio))
    evidence = np.log(ratio.mean()) + log_ratio.max()
    assert abs(evidence - exact(name).log_evidence) < SIGMAS * error + 1e-6  # rounding, as above
    weight = ratio / ratio.sum()
    for what, function in exact(name).functions.items():
        values = function(fit.draws)[0]
        found = weight @ values
        error = np.sqrt(weight**2 @ (values - found) ** 2)
        assert abs(found - exact(name).means[what]) < SIGMAS * error, (what, found)


@pytest.mark.parametrize("name", NAMES)
def test_some_family_is_accepted(name: str) -> None:
    """So that the comparison above is made for each model."""
    assert min(fitted(name, family).result.info["k_hat"] for family in (*FAMILIES, "flow")) < 0.7


@pytest.mark.parametrize("family", FAMILIES)
def test_a_funnel_is_refused(family: str) -> None:
    """No Gaussian has its shape: where the draws do not tell, the ascent finds no end."""
    model = funnel(2.0)
    with pytest.warns(MarginaliaWarning, match="the Pareto k-hat|has not converged after 30000 steps"):
        fit = mg.fit(model.model, *model.args, method=mg.ADVI(family=family), random_seed=1, progressbar=False)
    assert fit.result.info["k_hat"] > 0.7 or not fit.result.info["converged"]
