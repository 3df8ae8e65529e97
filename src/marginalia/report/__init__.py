"""One self-contained HTML page about a fit: the verdict first, then what it rests on."""

from marginalia.report.page import render, write_report

__all__ = ["render", "write_report"]
