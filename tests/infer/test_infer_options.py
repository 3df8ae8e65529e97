"""Options refuse what makes no sense, in words that name the option, the value and what is allowed."""

from __future__ import annotations

import pytest

from marginalia import infer
from marginalia.errors import OptionError


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
            "Expected one of 'diagonal', 'dense'. Got 'full'.",
        ),
        (
            lambda: infer.MAP(starts=2.5),
            "MAP: the option 'starts' has a value that makes no sense. "
            "Expected a whole number of at least 1, or None. Got 2.5.",
        ),
        (
            lambda: infer.options_from("nutz"),
            "method: there is no such method. Expected one of 'auto', 'nuts', 'map', or mg.Auto(...), "
            "mg.NUTS(...), mg.MAP(...). Got 'nutz'.",
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
