"""Ctrl-C and SIGTERM stop a command in the same way: a run ends with what there is; a second one ends the command.

The exit status is 128 and the signal's number, as in shells: 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from marginalia.cli import show

_by = int(signal.SIGINT)


def status() -> int:
    """The exit status of a command that was stopped."""
    return 128 + _by


class Stoppable(TyperGroup):
    """Commands that SIGTERM stops as Ctrl-C does."""

    def invoke(self, ctx: Any) -> Any:
        with _listening():
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                show.complain("stopped.")
                raise typer.Exit(status()) from None


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    global _by
    _by = int(signal.SIGINT)
    # Only the main thread may listen; and who has told the command to ignore SIGTERM, is obeyed.
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(number: int, _frame: FrameType | None) -> None:
    global _by
    _by = number
    raise KeyboardInterrupt
