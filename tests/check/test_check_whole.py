"""The whole check: silent on ordinary models, plain in print, and leaves nothing behind."""

from __future__ import annotations

import pickle

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import marginalia as mg
from marginalia.models import gaussian_mixture
from zoo import CASES

Y = np.array([-1.2, 0.4, 2.9, 0.1])
# Found rightly: discretes without children; one array observed whole at one site and in part at another.
RIGHTLY = {
    "no_children": ["unreached"],
    "counts_that_no_data_reach": ["unreached"] * 4,
    "vstack_dot_cumsum": ["twice"],
}
# Many are alike and differ only in what they compute from one discrete: a few stand for them.
ORDINARY = [name for name, case in CASES.items() if not case.quick] + ["reads_scan_carry", "reads_jit", "reads_while"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if i % 2 and n not in RIGHTLY else ()) for i, n in enumerate(ORDINARY)],
)
def test_ordinary_models(name: str) -> None:
    case = CASES[name]
    findings = mg.check(case.model, *case.args)
    assert [f.kind for f in findings] == RIGHTLY.get(name, []), str(findings)
    assert not findings.unchecked


@pytest.mark.parametrize("y", [Y, np.column_stack([Y, Y**2]), Y[:2]], ids=["1d", "2d", "as_many_rows_as_components"])
def test_ready_models(y: np.ndarray) -> None:
    assert not mg.check(gaussian_mixture(y, components=2), y)


def simple(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("idle", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def test_print_says_what_is_wrong_and_what_was_looked_at() -> None:
    findings = mg.check(simple, Y)
    text = str(findings)
    assert text.splitlines()[0] == "1 finding."
    assert text.splitlines()[1].startswith("1. Probably a mistake. Site 'idle': this latent reaches no data")
    assert "Remedy: " in text
    assert findings
    assert len(findings) == 1
    assert findings[0] is next(iter(findings))


def test_nothing_found_says_what_was_looked_at() -> None:
    case = CASES["gaussian_mixture"]
    first, second = str(mg.check(case.model, *case.args)).splitlines()
    assert first == "Nothing found."
    for words in ("Checked: ", "1 observed site", "4 latents", "twice", "by accident", "summed out"):
        assert words in second


def test_a_marginal_can_be_checked() -> None:
    assert mg.check(mg.marginalize(simple, Y)) == mg.check(simple, Y)


def test_a_program_error_is_raised_as_it_is() -> None:
    def broken(y):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        mg.check(broken, Y)


def test_the_precision_of_jax_is_left_alone() -> None:
    before = jax.config.jax_enable_x64
    mg.check(simple, Y)
    assert jax.config.jax_enable_x64 == before


def test_errors_keep_their_parts_and_survive_pickling() -> None:
    with pytest.raises(mg.DataError) as caught:
        mg.marginalize(simple, np.array([1.0, np.nan]))
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.args[0].where == "site 'y', row 1 (counting from 0)"
