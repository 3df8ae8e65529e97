"""What holds while a user's program runs: handlers of this thread alone, parameters checked, loops of one dtype.

NumPyro keeps its handlers in one list for all threads, so that two programs read at the same time would see each
other's sites. While a program is read, its thread has a list of its own; all other threads have NumPyro's, as ever.
That list begins with the handlers that the thread itself has entered before, whatever other threads do at the time.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, MutableSequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from numpyro import primitives

from marginalia.entered import entered_here
from marginalia.parameters import Pending, checked_parameters
from marginalia.shared import InPlace
from marginalia.widths import WideLoops

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
    around = _handlers_around()
    with _stacks.wanted():
        _of_thread.stacks.append(around)
        try:
            yield
        finally:
            _of_thread.stacks.pop()


def _handlers_around() -> list[Any]:
    """The handlers that this thread has entered, and those it works under (see `Threads`); none inside a program."""
    if _of_thread.stacks:
        return []
    own = [handler for handler in list(_of_thread.shared) if entered_here(handler)]
    return [*getattr(_working_under, "handlers", ()), *own]


_working_under = threading.local()


class Threads(ThreadPoolExecutor):
    """Threads that work under the handlers of whoever gives them work: they may have to read his program."""

    def submit[**P, T](self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return super().submit(_under, _handlers_around(), work, *args, **kwargs)


def _under[**P, T](around: list[Any], work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    _working_under.handlers = around
    try:
        return work(*args, **kwargs)
    finally:
        del _working_under.handlers


def _put(stack: Any) -> None:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "numpyro" and _STACK in vars(module):
            setattr(module, _STACK, stack)


_stacks = InPlace(lambda: _put(_of_thread), lambda: _put(_of_thread.shared))


@contextmanager
def running() -> Iterator[list[Pending]]:
    """All that holds while a program runs; gives what is to be checked of its parameters later."""
    with own_handlers(), checked_parameters() as pending, WideLoops():
        yield pending
