"""Row `million`: one density and gradient of a million rows of 64 columns, K = 64, beside an EM iteration."""

from __future__ import annotations

import functools
import math
import time
import warnings

import numpy as np

from benchmarks.contest import Answer, Contender, Goal, Outcome, Row
from benchmarks.density import Point, by_hand, diagonal_kernel, mixture_data, ours
from benchmarks.timing import PRECISION, forget_peak, peak_mb

N, D, K = 10**6, 64, 64
ITERATIONS = 2

make = functools.partial(mixture_data, N, D, K)


def prior(point: Point) -> tuple[float, np.ndarray]:
    """Log density of the priors of `programs.diagonal` at the point, and its gradient for the means."""
    mu, sd = point["mu"], point["sd"]
    value = math.lgamma(K) - 0.5 * ((mu / 5) ** 2).sum() - mu.size * (math.log(5) + 0.5 * math.log(2 * math.pi))
    return value - 0.5 * ((sd / 2) ** 2).sum() + sd.size * (0.5 * math.log(2 / math.pi) - math.log(2)), -mu / 25


def by_sklearn() -> Outcome:
    """EM of scikit-learn from the point. Its new means and weights give the gradient for the means."""
    y, point = make()
    forget_peak()
    base = peak_mb()
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    def fitted(iterations: int) -> tuple[float, GaussianMixture]:
        begun = time.perf_counter()
        model = GaussianMixture(
            K, covariance_type="diag", tol=0, max_iter=iterations, reg_covar=0, init_params="random_from_data",
            random_state=1, weights_init=point["w"], means_init=point["mu"], precisions_init=point["sd"] ** -2.0,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a few iterations are what is asked for
            model.fit(y)
        return time.perf_counter() - begun, model

    # a fit begins and ends with work that belongs to no iteration
    short, once = fitted(1)
    long, _ = fitted(1 + ITERATIONS)
    figures = {"evaluation_ms": 1e3 * (long - short) / ITERATIONS, "peak_mb": peak_mb() - base}
    log_prior, slope = prior(point)
    value = N * once.lower_bounds_[0] + log_prior  # the mean log likelihood at the point itself
    gradient = (N * once.weights_)[:, None] * (once.means_ - point["mu"]) / point["sd"] ** 2 + slope
    return Outcome(figures, _answers(value, gradient))


def _answers(value: float, slope: np.ndarray) -> dict[str, Answer]:
    size = PRECISION["float64"]
    return {
        "log density": Answer(np.array([value]), np.array([size * abs(value)])),
        "gradient for the means": Answer(slope.ravel(), np.full(slope.size, size * np.abs(slope).max())),
    }


def _of_means(found: Outcome) -> Outcome:
    """The gradient is sorted by site: means, standard deviations, weights."""
    value, gradient = found.answers["log density"].values, found.answers["gradient"].values
    return Outcome(found.figures, _answers(float(value[0]), gradient[: K * D]))


ROWS = (
    Row(
        "million",
        "one density and gradient, N = 1 000 000, D = 64, K = 64, diagonal",
        "ms",
        "evaluation_ms",
        (
            Contender("marginalia", lambda: _of_means(ours("diagonal", make, K)), role="ours"),
            Contender("scikit-learn", by_sklearn, needs=("sklearn",)),
            Contender(
                "by hand float64", lambda: _of_means(by_hand(diagonal_kernel, make, "float64")), role="yardstick"
            ),
        ),
        (Goal("≥ 4×", "marginalia", "evaluation_ms", "peer", 4),),
        note="scikit-learn: one iteration of EM.",
    ),
)
