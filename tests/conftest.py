"""What every test stands on: JAX on the CPU unless the caller says otherwise, and the path of the data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests compile thousands of small programs and run each once or twice: compiling is what they cost.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")


@pytest.fixture
def galaxies() -> Path:
    from marginalia.data import galaxies

    return galaxies()
