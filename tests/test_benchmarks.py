"""The benchmarks' own judgement: a wrong answer is caught, a ratio points the right way, a gap is said."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import judging, table
from benchmarks.contest import Answer, Contender, Goal, Outcome, Row, disagreements, from_file, to_file
from benchmarks.judging import Measured
from benchmarks.rows import ROWS
from benchmarks.timing import exactly

VALUE, GRADIENT = -332_346.66122668, {"mu": np.array([[12.0, -3.5e3], [0.2, 7.0]]), "w": np.array([5.0, -1.0])}


def nothing() -> Outcome:
    return Outcome()


def row(goals: tuple[Goal, ...] = (), figure: str = "evaluation_ms", **more) -> Row:
    contenders = [Contender("marginalia", nothing, role="ours")]
    contenders += [Contender(name, nothing) for name in ("slow peer", "fast peer")]
    return Row(
        "row", "a row", "ms", figure, (*contenders, Contender("by hand", nothing, role="yardstick")), goals, **more
    )


def chains(mean: float, seed: int) -> dict[str, np.ndarray]:
    return {"mu": np.random.default_rng(seed).normal(mean, 1.0, size=(4, 500, 2))}


def test_the_same_density_is_no_disagreement() -> None:
    rounded = {name: v.astype("float32") for name, v in GRADIENT.items()}
    answers = {
        "ours": exactly(VALUE, GRADIENT, "float64"),
        "peer": exactly(VALUE * (1 + 1e-12), GRADIENT, "float64"),
        "single": exactly(np.float32(VALUE), rounded, "float32"),
    }
    assert disagreements(answers) == []


@pytest.mark.parametrize("place", ["value", "gradient"])
def test_a_wrong_density_is_caught_in_either_float_type(place: str) -> None:
    for dtype, wrong in (("float64", 1e-8), ("float32", 1e-3)):
        value = VALUE * (1 + wrong) if place == "value" else VALUE
        off = {**GRADIENT, "mu": GRADIENT["mu"] * (1 + wrong)} if place == "gradient" else GRADIENT
        answers = {"ours": exactly(VALUE, GRADIENT, "float64"), "peer": exactly(value, off, dtype)}
        (words,) = disagreements(answers)
        assert ("log density" if place == "value" else "gradient") in words
        assert "ours and peer" in words


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_no_number_is_no_agreement(wrong: float) -> None:
    assert disagreements({"a": exactly(VALUE, GRADIENT, "float64"), "b": exactly(wrong, GRADIENT, "float64")})


def test_a_number_too_few_is_caught() -> None:
    short = {"w": GRADIENT["w"]}
    (words,) = disagreements({"a": exactly(VALUE, GRADIENT, "float64"), "b": exactly(VALUE, short, "float64")})
    assert "gives (6,) numbers" in words


def test_posterior_means_are_compared_in_their_standard_errors() -> None:
    """2000 draws of sd 1: a mean that is off by a fifth is caught, also against a published one."""
    with_draws = row(columns=lambda draws: draws["mu"], reference={"posterior means": Answer(np.zeros(2), 0.02)})
    settled = {
        name: judging.settle(with_draws, Outcome(draws=chains(mean, seed)), wall=10.0)
        for name, mean, seed in [("ours", 0.0, 1), ("right", 0.0, 2), ("wrong", 0.2, 3)]
    }
    figures, _ = settled["ours"]
    assert 1500 < figures["effective"] < 2500
    assert figures["effective_per_s"] == figures["effective"] / 10
    found = judging.compare(with_draws, {name: answers for name, (_, answers) in settled.items()})
    assert len(found) == 3
    assert all("wrong" in words for words in found)


def measured(figure: str, **values: list[float]) -> Measured:
    out = Measured()
    for name, numbers in values.items():
        for number in numbers:
            out.add(name.replace("_", " "), {figure: number})
    return out


def test_a_ratio_says_how_many_times_better_ours_is() -> None:
    goals = (
        Goal("≥ 3×", "marginalia", "evaluation_ms", "peer", 3),
        Goal("≥ 1×", "marginalia", "evaluation_ms", "by hand", 1),
    )
    found = measured(
        "evaluation_ms", marginalia=[2.0, 1.0, 2.0], slow_peer=[99.0] * 3, fast_peer=[8.0, 8.0, 6.0], by_hand=[1.0] * 3
    )
    peer, hand = judging.verdicts(row(goals), found)
    assert (peer.ratio, peer.met) == ((4.0, 3.0, 8.0), "yes")
    assert peer.against == "fast peer 8.00 ms"
    assert (hand.ratio, hand.met) == ((0.5, 0.5, 1.0), "no")


def test_more_draws_a_second_are_better() -> None:
    goals = (Goal("≥ 5×", "marginalia", "effective_per_s", "peer", 5),)
    found = measured("effective_per_s", marginalia=[600.0], slow_peer=[100.0], fast_peer=[150.0])
    (verdict,) = judging.verdicts(row(goals, "effective_per_s"), found)
    assert verdict.against.startswith("fast peer")
    assert (verdict.ratio[0], verdict.met) == (4.0, "no")


def test_what_did_not_run_is_said_and_no_goal_is_met_by_it() -> None:
    goals = (Goal("≥ 3×", "marginalia", "evaluation_ms", "slow peer", 3), Goal("< 5", "marginalia", "peak_mb", most=5))
    found = measured("evaluation_ms", marginalia=[1.0])
    found.skipped["slow peer"] = "pymc not installed"
    ratio, memory = judging.verdicts(row(goals), found)
    assert (ratio.met, memory.met) == ("", "")
    text = table.plain(table.HEADS, table.lines([row(goals)], {"row": found}))
    assert "slow peer: pymc not installed" in text


def test_a_memory_goal_is_ours_alone() -> None:
    goals = (Goal("< 5", "marginalia", "peak_mb", most=5),)
    assert [judging.verdicts(row(goals), measured("peak_mb", marginalia=[v]))[0].met for v in (4.0, 6.0)] == [
        "yes",
        "no",
    ]


def test_outcomes_and_measurements_come_back_from_their_files(tmp_path) -> None:
    outcome = Outcome({"a": 1.5}, exactly(VALUE, GRADIENT, "float64"), chains(0.0, 1), "a note")
    to_file(outcome, tmp_path / "outcome")
    back = from_file(tmp_path / "outcome")
    assert (back.figures, back.note) == (outcome.figures, outcome.note)
    assert np.array_equal(back.draws["mu"], outcome.draws["mu"])
    assert disagreements({"a": outcome.answers, "b": back.answers}) == []
    found = measured("evaluation_ms", marginalia=[1.25, 2.5])
    found.skipped["peer"] = "left out"
    found.disagreements.append("a and b are 7 errors apart")
    judging.write_measured(tmp_path / "measured.csv", {"row": found})
    assert judging.read_measured(tmp_path / "measured.csv") == {"row": found}


def test_the_goals_speak_of_contenders_that_there_are() -> None:
    assert len({r.key for r in ROWS}) == len(ROWS)
    for r in ROWS:
        names = {c.name for c in r.contenders}
        assert len(names) == len(r.contenders), r.key
        assert {c.role for c in r.contenders} <= {"ours", "peer", "yardstick"}
        for goal in r.goals:
            assert goal.ours in names, (r.key, goal)
            assert goal.against in names | {"", "peer"}, (r.key, goal)
            assert (goal.most > 0) != (goal.least > 0), (r.key, goal)
