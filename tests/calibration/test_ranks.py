"""The machinery of calibration: ranks are uniform for an exact sampler, and not for a wrong one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from calibrate import cells, code, judged, picture, ranks_of, read
from ranks import DRAWS, band, counting, p_value, rank, thinned
from simulated import MODELS, SCALE, SPREAD, WEIGHTS

import marginalia as mg
from marginalia.precision import float64

REPLICATIONS = 200
ROWS = 5


def ranks_of_normal(shift: float = 0.0, scale: float = 1.0, deaf: bool = False) -> np.ndarray:
    """Ranks of the mean of a normal, whose posterior is known; `shift` and `scale` in posterior deviations."""
    rng = np.random.default_rng(7)
    out = []
    for _ in range(REPLICATIONS):
        truth = rng.normal()
        y = rng.normal(truth, 1.0, ROWS)
        centre, spread = y.sum() / (ROWS + 1), (ROWS + 1) ** -0.5
        if deaf:  # draws from the prior: their ranks are uniform, those of the likelihood are not
            draws = rng.normal(size=DRAWS)
            out.append(rank(-np.sum((y - truth) ** 2), -np.sum((y - draws[:, None]) ** 2, axis=1)))
            continue
        draws = rng.normal(centre + shift * spread, scale * spread, DRAWS)
        out.append(rank(truth, draws))
    return np.array(out)


def test_an_exact_sampler_is_uniform():
    assert p_value(ranks_of_normal()) > 0.05


@pytest.mark.parametrize(
    "wrong", [{"shift": 0.5}, {"scale": 1.5}, {"scale": 0.7}, {"deaf": True}], ids=["shift", "wide", "narrow", "deaf"]
)
def test_a_wrong_sampler_is_not(wrong):
    assert p_value(ranks_of_normal(**wrong)) < 0.001


@pytest.mark.parametrize("name", MODELS)
def test_the_log_jacobian_is_that_of_the_library(name):
    """Up to a constant."""
    model, rng = MODELS[name], np.random.default_rng(8)
    y = model.draw(rng)[1]
    kernel = mg.marginalize(model.program, y).kernel
    found = []
    with float64():
        for params in (model.draw(rng)[0] for _ in range(3)):
            one = {site: value[None] for site, value in params.items()}
            log_det = float(kernel.constrain(kernel.unconstrain(params))[1])
            found.append(log_det - model.quantities(one, y)["log Jacobian"][0])
    assert np.ptp(found) < 1e-9


def test_a_missing_jacobian_is_seen():
    """Before any data: without it the prior of a weight is Dirichlet(1, 1), and a log scale lies lower."""
    model, rng = MODELS["mixture"], np.random.default_rng(9)
    mean, sd = SCALE
    ranks = []
    for _ in range(REPLICATIONS):
        truth, y = model.draw(rng)
        draws = {
            "w": rng.dirichlet(WEIGHTS - 1, DRAWS),
            "mu": rng.normal(0, SPREAD, (DRAWS, 2)),
            "sd": rng.lognormal(mean - sd**2, sd, (DRAWS, 2)),
        }
        true = model.quantities({site: value[None] for site, value in truth.items()}, y)
        ranks.append({what: rank(true[what][0], values) for what, values in model.quantities(draws, y).items()})
    assert p_value(np.array([one["log Jacobian"] for one in ranks])) < 0.0001
    assert p_value(np.array([one["smallest mean"] for one in ranks])) > 0.05


def test_p_values_of_uniform_ranks_are_uniform():
    rng = np.random.default_rng(1)
    found = np.array([p_value(rng.integers(DRAWS + 1, size=REPLICATIONS)) for _ in range(400)])
    for level in (0.05, 0.2, 0.5):
        error = np.sqrt(level * (1 - level) / len(found))
        assert abs(np.mean(found <= level) - level) < 4 * error


def test_the_band_holds_the_whole_function_as_often_as_it_says():
    rng = np.random.default_rng(2)
    _, low, high = band(REPLICATIONS, 0.9)
    parts = np.array([counting(rng.integers(DRAWS + 1, size=REPLICATIONS)) for _ in range(1000)]) / REPLICATIONS
    inside = np.mean(np.all((low <= parts) & (parts <= high), axis=1))
    assert abs(inside - 0.9) < 4 * np.sqrt(0.9 * 0.1 / 1000) + 0.01  # counts are whole: the level is met from above


def test_thinned_draws_come_from_all_chains():
    draws = {"x": np.arange(4 * 500.0).reshape(4, 500), "v": np.zeros((4, 500, 2, 3))}
    kept = thinned(draws)
    assert kept["v"].shape == (DRAWS, 2, 3)
    assert np.allclose(np.diff(kept["x"]), 2000 / DRAWS, atol=1)
    assert kept["x"][0] < 20 < 1980 < kept["x"][-1]


@pytest.mark.parametrize("name", MODELS)
def test_the_likelihood_by_hand_is_that_of_all_paths(name):
    """Brute force over the discretes of the first rows, in NumPy."""
    model, rows = MODELS[name], 4
    params, y = model.draw(np.random.default_rng(3))
    y = y[:rows]
    total = 0.0
    for number in range(2 ** (rows + 1)):
        before, *path = ((number >> np.arange(rows + 1)) & 1).tolist()
        p = 0.5
        for state, value in zip(path, y, strict=True):
            p *= params["transition"][before, state] if "transition" in params else params["w"][state]
            sd = np.broadcast_to(params["sd"], 2)[state]
            p *= np.exp(-0.5 * ((value - params["mu"][state]) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
            before = state
        total += p
    one = {site: value[None] for site, value in params.items()}
    assert model.quantities(one, y)["log-likelihood"][0] == pytest.approx(np.log(total), rel=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_quantities_do_not_change_with_the_labels(name):
    model = MODELS[name]
    params, y = model.draw(np.random.default_rng(4))
    one = {site: value[None] for site, value in params.items()}
    other = {site: np.flip(value, axis=tuple(range(1, value.ndim))) for site, value in one.items()}
    before, after = model.quantities(one, y), model.quantities(other, y)
    assert all(before[what] == pytest.approx(after[what]) for what in before)


class Exact:
    """What a fit is to the command, from the truth's own prior."""

    method = "exact"

    def __init__(self, draws, status=()):
        self.draws, self.status = draws, status


def test_lines_are_counted_read_and_drawn(tmp_path):
    model = MODELS["mixture"]
    rng = np.random.default_rng(5)
    lines = []
    for i in range(20):
        drawn = [model.draw(rng)[0] for _ in range(100)]
        draws = {site: np.stack([one[site] for one in drawn])[None] for site in drawn[0]}
        truth, y = model.draw(rng)
        found = Exact(draws, () if i % 4 else ("refused",))
        line = judged(model, truth, y, lambda found=found: found)
        lines.append({"model": "mixture", "method": "nuts", "replication": i, **line})
    (good, refused) = cells(lines)["mixture", "nuts"]
    assert (len(good), len(refused)) == (15, 5)
    assert all(p_value(ranks) > 0.001 for what, ranks in ranks_of(good).items() if what != "log-likelihood")
    assert p_value(ranks_of(good)["log-likelihood"]) < 0.001  # the truth fits its data better than the prior does
    panel = picture(lines).axes[0]
    assert "15 fits, 5 refused" in panel.get_title()
    path = tmp_path / "cut.jsonl"
    kept = {"code": code(), "ranks": {"spread": 3}}
    path.write_text(f"{json.dumps({'code': 'older'})}\n{json.dumps(kept)}\n{json.dumps(kept)[:-4]}")
    assert read(path) == [kept]
