"""Look at a program and its data before the long run: what is wrong, and what to do about it."""

from marginalia.checks.findings import Finding, Findings
from marginalia.checks.run import check

__all__ = ["Finding", "Findings", "check"]
