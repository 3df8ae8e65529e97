"""What every test stands on: JAX on the CPU unless the caller says otherwise, and the path of the data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture
def galaxies() -> Path:
    from marginalia.data import galaxies

    return galaxies()
