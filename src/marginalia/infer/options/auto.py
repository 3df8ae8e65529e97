"""Options of the choice of a method."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Auto:
    """Let the library choose the method. For now it is NUTS with its defaults."""
