"""Random programs: exact or a clear refusal, never silently wrong.

The same programs in every run, whatever ran before: program n is made from the seed n, here as in
`python tests/properties/nightly.py --programs 10000`.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable

import jax
import numpy as np
import pytest
from grammar import Written, write
from laws import judge

from marginalia.marginal.kernel import Kernel

PROGRAMS = int(os.environ.get("MARGINALIA_PROGRAMS", "400"))
FAST = 16
"""As many of them in `make test`, the rest in `make validate`."""
PARTS = 8
FAST_PARTS = 2  # so that each has enough programs to say how many are exact
REFUSED: dict[int, str] = {}
"""Programs among these that are refused though brute force can do them, with the reason; at most 2 %."""

# What JAX and NumPyro say of the odd things that random programs do is no concern of ours.
pytestmark = pytest.mark.filterwarnings("ignore")


def each_of(parts: int) -> pytest.MarkDecorator:
    """Parts that may run side by side."""
    marked = [pytest.param(p, marks=pytest.mark.xdist_group(f"random programs {p}")) for p in range(parts)]
    return pytest.mark.parametrize("part", marked)


@each_of(FAST_PARTS)
def test_random_programs_are_exact_or_refused(part: int, record_property: Callable[[str, object], None]) -> None:
    """Density, gradient, marginals, mode and log-likelihood of programs that nobody thought of."""
    _are_exact_or_refused(range(part, FAST, FAST_PARTS), record_property)


@pytest.mark.slow
@each_of(PARTS)
def test_more_random_programs_are_exact_or_refused(part: int, record_property: Callable[[str, object], None]) -> None:
    """The same of more programs."""
    _are_exact_or_refused(range(FAST + part, PROGRAMS, PARTS), record_property)


def _are_exact_or_refused(numbers: range, record_property: Callable[[str, object], None]) -> None:
    counts: Counter[str] = Counter()
    for number in numbers:
        written = write(random.Random(number))
        verdict = judge(written, brief=number % 3 > 0)
        counts[verdict.kind] += 1
        assert verdict.kind != "wrong", "\n".join([f"program {number}", *verdict.why, written.source])
        refused = verdict.kind == "refused"
        assert not refused or number in REFUSED, "\n".join([f"program {number} refused", *verdict.why, written.source])
        if sum(counts.values()) % 25 == 0:
            jax.clear_caches()  # no program compiles what another did
    assert counts["exact"] >= 0.6 * sum(counts.values()), dict(counts)
    record_property("random programs", dict(counts))  # added up and shown at the end of the run


def test_few_programs_are_refused() -> None:
    assert len(REFUSED) <= 0.02 * PROGRAMS


def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gather that reads the wrong state is found by the laws."""
    program = Written(
        "def model():\n"
        '    a = numpyro.sample("a", dist.Normal(0.0, 2.0))\n'
        '    z = numpyro.sample("z", dist.Bernoulli(0.3).expand([3]))\n'
        '    numpyro.sample("y", dist.Normal(a * z, 1.0), obs=np.array([0.1, 2.0, -1.0]))\n',
        {"a": np.array(0.4)},
        8,
        1.0,
    )
    assert judge(program).kind == "exact"
    true = Kernel.log_density
    monkeypatch.setattr(Kernel, "log_density", lambda self, p, d: true(self, p, d) + 1e-7 * p["a"])
    verdict = judge(program)
    assert verdict.kind == "wrong"
    assert any(w.startswith("density") for w in verdict.why)
