"""What holds while a user's program runs: handlers of this thread alone, parameters checked, loops of one dtype.

NumPyro keeps its handlers in one list for all threads, so that two programs read at the same time would see each
other's sites. While a program is read, its thread has a list of its own; all other threads have NumPyro's, as ever.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpyro
from numpyro import primitives

from marginalia.parameters import Pending, checked_parameters
from marginalia.shared import InPlace
from marginalia.widths import WideLoops

_NUMPYRO = str(Path(numpyro.__file__ or "").parent)
_STACK = "_PYRO_STACK"
"""The name under which NumPyro's modules know their handlers."""


class _OfThread(MutableSequence[Any]):
    """The handlers of the thread that asks: its own list while it reads a program, else the one that all share."""

    def __init__(self, shared: list[Any]) -> None:
        self.shared = shared
        self._own = threading.local()

    @property
    def stacks(self) -> list[list[Any]]:
        """Lists of this thread, the innermost program's last."""
        if not hasattr(self._own, "stacks"):
            self._own.stacks = []
        return self._own.stacks

    def _list(self) -> list[Any]:
        stacks = self.stacks
        return stacks[-1] if stacks else self.shared

    def __getitem__(self, index: Any) -> Any:
        return self._list()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._list()[index] = value

    def __delitem__(self, index: Any) -> None:
        del self._list()[index]

    def __len__(self) -> int:
        return len(self._list())

    def insert(self, index: int, value: Any) -> None:
        self._list().insert(index, value)


_of_thread = _OfThread(getattr(primitives, _STACK))


@contextmanager
def own_handlers() -> Iterator[None]:
    """Handlers of this thread alone. Those around the call hold for a program that is not read inside another."""
    with _stacks.wanted():
        outermost = not _of_thread.stacks
        around = list(_of_thread.shared) if outermost and _of_thread.shared and not _others_in_numpyro() else []
        _of_thread.stacks.append(around)
        try:
            yield
        finally:
            _of_thread.stacks.pop()


def _put(stack: Any) -> None:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "numpyro" and _STACK in vars(module):
            setattr(module, _STACK, stack)


_stacks = InPlace(lambda: _put(_of_thread), lambda: _put(_of_thread.shared))


def _others_in_numpyro() -> bool:
    """Whether another thread is inside NumPyro, so that the handlers that all share are not this thread's."""
    for thread, at in sys._current_frames().items():
        frame: FrameType | None = at if thread != threading.get_ident() else None
        while frame is not None:
            if frame.f_code.co_filename.startswith(_NUMPYRO):
                return True
            frame = frame.f_back
    return False


@contextmanager
def running() -> Iterator[list[Pending]]:
    """All that holds while a program runs; gives what is to be checked of its parameters later."""
    with own_handlers(), checked_parameters() as pending, WideLoops():
        yield pending
