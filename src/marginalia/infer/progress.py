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


class Watched:
    """Passes all on to another progress, and remembers where the run is."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._name, self._total, self._done = "", 0, 0

    @property
    def where(self) -> str:
        """The stage in words, as in "at starts, 12 of 64"."""
        return f"at {self._name}, {self._done} of {self._total}" if self._name else "at the beginning"

    def stage(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        self._inner.stage(name, total)

    def update(self, done: int, note: str = "") -> None:
        self._done = done
        self._inner.update(done, note)

    def close(self) -> None:
        self._inner.close()


class Pace:
    """How quickly steps are made; the first ones, in which things compile, do not count."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def words(self, now: float, done: int) -> str:
        """The pace after `done` steps, once there is one."""
        if self._first is None:
            self._first = now, done
        seconds, steps = now - self._first[0], done - self._first[1]
        if steps <= 0 or seconds <= 0:
            return ""
        return f"{steps / seconds:.0f}/s" if steps >= seconds else f"{seconds / steps:.1f} s each"


class Lines:
    """Writes a plain line to standard error every few seconds, for logs and pipes."""

    def __init__(self) -> None:
        self._name, self._total = "", 0
        self._said, self._pace = time.monotonic(), Pace()

    def stage(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._said, self._pace = time.monotonic(), Pace()

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        pace = self._pace.words(now, done)
        if now - self._said < LINE_EVERY_SECONDS:
            return
        self._said = now
        parts = [f"{self._name}: {done} of {self._total}", pace, note]
        sys.stderr.write(", ".join(part for part in parts if part) + "\n")
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
        self._pace = Pace()
        self._rich.start()

    def stage(self, name: str, total: int) -> None:
        self._pace = Pace()
        self._task = self._rich.add_task(name, total=total, rate="", note="")

    def update(self, done: int, note: str = "") -> None:
        if self._task is not None:
            rate = self._pace.words(time.monotonic(), done)
            self._rich.update(self._task, completed=done, rate=rate, note=note)

    def close(self) -> None:
        self._rich.stop()


def make_progress(show: bool) -> Progress:
    """The progress that suits where standard error goes."""
    if not show:
        return Silent()
    console = Console(stderr=True)
    return Bar(console) if console.is_terminal or console.is_jupyter else Lines()
