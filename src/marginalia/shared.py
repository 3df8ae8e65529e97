"""What all threads see, put in place while at least one of them reads a program."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class InPlace:
    """Something that `put` puts in place for the first thread that wants it, and `take_away` takes away after the last.

    What is put must leave all other threads as they were.
    """

    def __init__(self, put: Callable[[], None], take_away: Callable[[], None]) -> None:
        self._put, self._take_away = put, take_away
        self._lock = threading.Lock()
        self._wanted = 0

    @contextmanager
    def wanted(self) -> Iterator[None]:
        with self._lock:
            if self._wanted == 0:
                self._put()
            self._wanted += 1
        try:
            yield
        finally:
            with self._lock:
                self._wanted -= 1
                if self._wanted == 0:
                    self._take_away()
