"""Options refuse what makes no sense, in words that name the option, the value and what is allowed."""

from __future__ import annotations

import pytest

from marginalia import infer
from marginalia.errors import OptionError
from marginalia.infer.driver import METHODS


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: infer.NUTS(draws=0),
            "NUTS: the option 'draws' has a value that makes no sense. Expected a whole number of at least 1. Got 0.",
        ),
        (
            lambda: infer.NUTS(chains=True),
            "NUTS: the option 'chains' has a value that makes no sense. "
            "Expected a whole number of at least 1. Got True.",
        ),
        (
            lambda: infer.NUTS(target_accept=1.0),
            "NUTS: the option 'target_accept' has a value that makes no sense. "
            "Expected a number between 0 and 1, both excluded. Got 1.0.",
        ),
        (
            lambda: infer.NUTS(metric="full"),
            "NUTS: the option 'metric' has a value that makes no sense. "
            "Expected one of 'diagonal', 'dense', 'low-rank'. Got 'full'.",
        ),
        (
            lambda: infer.MAP(starts=2.5),
            "MAP: the option 'starts' has a value that makes no sense. "
            "Expected a whole number of at least 1, or None. Got 2.5.",
        ),
    ],
)
def test_a_senseless_option_is_refused_word_for_word(make, words):
    with pytest.raises(OptionError) as caught:
        make()
    assert str(caught.value) == words


def test_names_stand_for_defaults_and_options_pass():
    assert infer.options_from("nuts") == infer.NUTS(draws=1000, tune=1000, chains=4, target_accept=0.8)
    assert infer.options_from("auto") == infer.Auto()
    mine = infer.MAP(steps=7)
    assert infer.options_from(mine) is mine


def test_an_unknown_method_is_refused_with_all_names_there_are():
    with pytest.raises(OptionError) as caught:
        infer.options_from("nutz")
    names = ", ".join(repr(name) for name in METHODS)
    spelled = ", ".join(f"mg.{method.options.__name__}(...)" for method in METHODS.values())
    assert str(caught.value) == (f"method: there is no such method. Expected one of {names}, or {spelled}. Got 'nutz'.")
    assert {"auto", "nuts", "laplace", "map"} <= set(METHODS)
