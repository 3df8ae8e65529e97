"""Progress on the screen: a bar on a terminal, a line now and then elsewhere, nothing on request."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LINE_EVERY_SECONDS = 5.0


class Progress(Protocol):
    """What a method tells while it runs."""

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of `total` steps."""

    def update(self, done: int, note: str = "") -> None:
        """`done` steps of the stage are finished."""

    def close(self) -> None:
        """The run has ended, well or not."""


class Silent:
    """Says nothing."""

    def stage(self, name: str, total: int) -> None:
        pass

    def update(self, done: int, note: str = "") -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """Writes a plain line to standard error every few seconds, for logs and pipes."""

    def __init__(self) -> None:
        self._name, self._total = "", 0
        self._begun = self._said = time.monotonic()

    def stage(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._begun = self._said = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self._said < LINE_EVERY_SECONDS:
            return
        self._said = now
        parts = [f"{self._name}: {done} of {self._total}", f"{done / (now - self._begun):.0f}/s"]
        sys.stderr.write(", ".join(parts + ([note] if note else [])) + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        pass


class Bar:
    """A bar with rate, note and the time that is left."""

    def __init__(self, console: Console) -> None:
        self._rich = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID | None = None
        self._begun = time.monotonic()
        self._rich.start()

    def stage(self, name: str, total: int) -> None:
        self._begun = time.monotonic()
        self._task = self._rich.add_task(name, total=total, rate="", note="")

    def update(self, done: int, note: str = "") -> None:
        if self._task is not None:
            rate = f"{done / max(time.monotonic() - self._begun, 1e-9):.0f}/s"
            self._rich.update(self._task, completed=done, rate=rate, note=note)

    def close(self) -> None:
        self._rich.stop()


def make_progress(show: bool) -> Progress:
    """The progress that suits where standard error goes."""
    if not show:
        return Silent()
    console = Console(stderr=True)
    return Bar(console) if console.is_terminal or console.is_jupyter else Lines()
