"""Change points against the sum over all years, by hand; the data against their source."""

from __future__ import annotations

import numpy as np
from agreement import agrees, normalised, works
from scipy import stats

import change_point

Y = change_point.DISASTERS
RATE = np.array([3.0, 1.1, 0.6])


def one(params, y):
    early, late = params["early"], params["late"]
    n = len(y)
    log_joint = np.array(
        [stats.poisson.logpmf(y[:s], early).sum() + stats.poisson.logpmf(y[s:], late).sum() for s in range(1, n)]
    )
    evidence, membership = normalised(log_joint)
    return evidence - np.log(n - 1) - early - late, {"change": membership}


def segments(rate, y, a, b):
    parts = (y[:a], y[a:b], y[b:])
    return sum(stats.poisson.logpmf(part, r).sum() for part, r in zip(parts, rate, strict=True))


def two(params, y):
    n, rate = len(y), params["rate"]
    years = range(1, n)
    log_joint = np.array([[segments(rate, y, min(a, b), max(a, b)) for b in years] for a in years])
    evidence, membership = normalised(log_joint.ravel())
    table = membership.reshape(log_joint.shape)
    return evidence - 2 * np.log(n - 1) - rate.sum(), {"a": table.sum(1), "b": table.sum(0)}


def ordered(params, y):
    n, rate = len(y), params["rate"]
    log_joint = np.full((n - 1, n - 1), -np.inf)
    for a in range(1, n):
        for b in range(a, n):
            log_joint[a - 1, b - 1] = segments(rate, y, a, b) - np.log(n - 1) - np.log(n - a)
    evidence, membership = normalised(log_joint.ravel())
    table = membership.reshape(log_joint.shape)
    return evidence - rate.sum(), {"first": table.sum(1), "second": table.sum(0)}


def test_the_data_are_those_of_the_source():
    """112 years, 191 explosions; the years of the old rate up to 1891 have 3.1 a year, the others 0.9."""
    assert (len(Y), Y.sum()) == (112, 191)
    early = Y[: 1892 - change_point.FIRST_YEAR]
    assert (round(early.mean(), 1), round(Y[len(early) :].mean(), 1)) == (3.1, 0.9)


def test_one_change_agrees_with_the_sum_by_hand():
    params = {"early": np.array(3.1), "late": np.array(0.9)}
    marginal = agrees(change_point.model, (Y,), params, *one(params, Y))
    best = change_point.FIRST_YEAR + 1 + marginal.posterior(params)["change"].argmax()
    assert best == 1892, "the year in which the new rate begins"


def test_two_changes_agree_with_the_sum_by_hand():
    y = Y[25:50]
    agrees(change_point.two_changes, (y,), {"rate": RATE}, *two({"rate": RATE}, y))


def test_ordered_changes_agree_with_the_sum_by_hand():
    y = Y[25:40]
    agrees(change_point.ordered_changes, (y,), {"rate": RATE}, *ordered({"rate": RATE}, y))


def test_ordered_changes_work_for_all_years():
    works(change_point.ordered_changes, (Y,))
