"""What every test stands on: JAX on the CPU unless the caller says otherwise, and the path of the data."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dear import DEAR

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests compile thousands of small programs and run each once or twice: compiling is what they cost.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

# ArviZ puts a lazy NumPyro in its place; a bare `import numpyro.distributions` after that loads the package twice and
# leaves `numpyro.factor` broken. Loading it whole, first, makes the tests independent of their order.
import numpyro  # noqa: F401


@pytest.fixture
def galaxies() -> Path:
    from marginalia.data import galaxies

    return galaxies()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests go to one worker, where what they share is made once; or a group of their own."""
    for item in items:
        if f"{Path(item.location[0]).name}::{item.name}" in DEAR:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(Path(item.location[0]).stem))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests counted (`record_property` with a dict of numbers), added up over all of them and all workers."""
    totals: dict[str, Counter[str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, counts in getattr(report, "user_properties", []):
                if getattr(report, "when", "call") == "call" and isinstance(counts, dict):
                    totals.setdefault(name, Counter()).update(counts)
    for name, counts in totals.items():
        said = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        terminalreporter.write_line(f"{name}: {sum(counts.values())} in all, {said}")
