"""A model and its arguments as they are now: what the user changes afterwards changes nothing that was read.

A program runs many times: when it is read, for each prediction, on other rows. Every run has to see the same data. So
the arrays among the arguments are copied, and with them those that the model reaches by itself: in what it closes over,
in the globals that it names, in the object whose method it is, in a handler around it. Copies cannot be written to: a
program that changes its data in place would give another density each time.
"""

from __future__ import annotations

import builtins
import copy
import dataclasses
import dis
import functools
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpyro import handlers
from numpyro.primitives import Messenger

from marginalia.jaxpr.device import copied, is_copy

_LIBRARIES = {"jax", "jaxlib", "numpy", "scipy", "numpyro", "builtins", "functools", "types", "typing"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)
_CONSTANT = (*_PLAIN, type, types.ModuleType)
_MUTATORS = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "remove", "clear"}
_BY_NAME = {"globals", "eval", "exec"}

_ours: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""What was copied here before, by where it lies: it does not change, so no second copy is made."""


def keep(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The model and its arguments with copies of all arrays that can be reached from them; equal in all else.

    A model that reaches no data by itself is given back as it is.

    >>> model, (kept,), _ = keep(lambda y: y.sum(), (y := np.zeros(3),), {})
    >>> y[0] = 1.0
    >>> float(model(kept))
    0.0
    """
    model = _unseeded(model)
    copies = _Copies(_package(model))
    args = tuple(copies.argument(value) for value in args)
    return copies.of(model), args, {name: copies.argument(value) for name, value in kwargs.items()}


def _unseeded(model: Any) -> Any:
    """The model without the user's own seed around it, which would draw the same numbers in every run."""
    if not isinstance(model, Messenger) or model.fn is None:
        return model
    inner = _unseeded(model.fn)
    if isinstance(model, handlers.seed):
        return inner
    if inner is not model.fn:
        model = copy.copy(model)
        model.fn = inner
    return model


class _Copies:
    """One copy of each thing that is met: what two names share stays shared."""

    def __init__(self, package: str) -> None:
        self._packages = {package, "__main__"}
        self._deep = False
        self._made: dict[int, tuple[Any, Any]] = {}

    def argument(self, value: Any) -> Any:
        """An argument is data, whatever it holds."""
        outside, self._deep = self._deep, True
        try:
            return self._made_of(value)
        finally:
            self._deep = outside

    def of(self, value: Any) -> Any:
        """What a model reaches: itself where nothing below it can change."""
        outside, self._deep = self._deep, False
        try:
            return self._made_of(value)
        finally:
            self._deep = outside

    def _made_of(self, value: Any) -> Any:
        if isinstance(value, _CONSTANT) or _ours.get(id(value)) is value:
            return value
        if id(value) in self._made:
            return self._made[id(value)][1]
        if not (self._deep and isinstance(value, dict | list)) and not self._holds(value, set()):
            return value
        new = self._copied(value)
        self._made[id(value)] = value, new  # what was copied is held, so that its place is not given to another
        return new

    def _copied(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return _array(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(self.of(value.__func__), self._made_of(value.__self__))
        if isinstance(value, functools.partial):
            named = {n: self.argument(a) for n, a in value.keywords.items()}
            return functools.partial(self.of(value.func), *map(self.argument, value.args), **named)
        if isinstance(value, dict | list):
            new: Any = copy.copy(value)
            self._made[id(value)] = value, new  # before what it holds: that may hold it in turn
            for key, own in list(value.items() if isinstance(value, dict) else enumerate(value)):
                new[key] = self._made_of(own)
            return new
        if isinstance(value, tuple):
            parts = [self._made_of(own) for own in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        if _is_table(value):
            return copy.deepcopy(value)
        return self._object(value)

    def _object(self, value: Any) -> Any:
        new = copy.copy(value)
        self._made[id(value)] = value, new
        for name, own in _attributes(value):
            if (other := self._made_of(own)) is not own:
                object.__setattr__(new, name, other)
        _mark(new)
        return new

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        code = function.__code__
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        written = _written(code, "STORE_DEREF")
        kept = [
            old if n in written else new for n, old, new in zip(code.co_freevars, _cells(function), cells, strict=True)
        ]
        scope = function.__globals__ if _written(code, "STORE_GLOBAL") else self._globals(function)
        new = types.FunctionType(code, scope, function.__name__, None, tuple(kept))
        self._made[id(function)] = function, new  # before what it names: that may name it in turn
        functools.update_wrapper(new, function, updated=())
        new.__dict__ = {**function.__dict__}
        new.__defaults__ = None if function.__defaults__ is None else tuple(map(self.of, function.__defaults__))
        if function.__kwdefaults__:
            new.__kwdefaults__ = {name: self.of(value) for name, value in function.__kwdefaults__.items()}
        mutates = _mutates(code)
        for old, cell in zip(_cells(function), cells, strict=True):
            if (found := _content(old)) is not _EMPTY:
                cell.cell_contents = self._seen(found, mutates)
        if scope is not function.__globals__:
            scope.update({n: self._seen(function.__globals__[n], mutates) for n in _global_names(function)})
        _mark(new)
        return new

    def _globals(self, function: types.FunctionType) -> dict[str, Any]:
        """The names that a function may read, to be filled; all of them where it may look them up by other means."""
        own = function.__globals__
        if _BY_NAME & _names(function.__code__):
            return dict(own)
        dunder = ("__name__", "__file__", "__package__", "__builtins__", "__spec__", "__loader__")
        return {"__builtins__": builtins, **{n: own[n] for n in dunder if n in own}}

    def _seen(self, value: Any, mutates: bool) -> Any:
        """What a function sees under a name; a list or dict of numbers that it may keep its own account in stays."""
        if isinstance(value, list | dict) and mutates and not _any_array(value):
            return value
        return self.of(value)

    def _holds(self, value: Any, seen: set[int]) -> bool:
        """Whether something below a value can change."""
        if isinstance(value, _CONSTANT) or id(value) in seen or _ours.get(id(value)) is value:
            return False
        seen.add(id(value))
        if isinstance(value, np.ndarray):
            return not is_copy(value)
        if isinstance(value, types.FunctionType):
            if _package(value) not in self._packages:
                return False
            named = [function_global for _, function_global in _named_globals(value)]
            closed = [found for cell in _cells(value) if (found := _content(cell)) is not _EMPTY]
            # Another value may be put under each of these names later on.
            return any(_is_value(v) or self._holds(v, seen) for v in (*named, *closed, *_defaults(value)))
        if isinstance(value, types.MethodType):
            return self._holds(value.__func__, seen) or self._holds(value.__self__, seen)
        if isinstance(value, functools.partial):
            return any(self._holds(v, seen) for v in (value.func, *value.args, *value.keywords.values()))
        if isinstance(value, dict):
            return any(isinstance(v, _PLAIN) or self._holds(v, seen) for v in value.values())
        if isinstance(value, list):
            return any(isinstance(v, _PLAIN) or self._holds(v, seen) for v in value)
        if isinstance(value, tuple):
            return any(self._holds(v, seen) for v in value)
        if _is_table(value):
            return True
        return self._is_walked(value) and any(_is_value(v) or self._holds(v, seen) for _, v in _attributes(value))

    def _is_walked(self, value: Any) -> bool:
        """Objects of the user's own classes, and NumPyro's handlers and distributions; not what others made."""
        package = type(value).__module__.partition(".")[0]
        if package == "numpyro":
            return hasattr(value, "__dict__")
        if isinstance(value, types.SimpleNamespace):
            return True
        own = self._deep or package in self._packages or dataclasses.is_dataclass(value)
        return own and package not in _LIBRARIES


_EMPTY = object()


def _array(value: np.ndarray) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray):
        # A cell that is masked is missing: it is refused where it is observed, unless the program masks it too.
        missing = np.ma.getmaskarray(value)
        value = np.where(missing, np.nan, value.data) if missing.any() else value.data
    if value.dtype == np.longdouble:
        value = value.astype(np.float64)  # the widest that JAX knows
    return copied(value)


def _mark(value: Any) -> None:
    try:
        _ours[id(value)] = value
    except TypeError:  # an object that nothing can refer to weakly is copied anew each time
        return


def _is_table(value: Any) -> bool:
    """A frame or series, of whatever library."""
    return hasattr(value, "to_numpy") and not isinstance(value, np.ndarray)


def _is_value(value: Any) -> bool:
    """A number or word: the name may stand for another one later."""
    return isinstance(value, _PLAIN)


def _any_array(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return any(map(_any_array, value.values() if isinstance(value, dict) else value))
    return isinstance(value, np.ndarray) or _is_table(value)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from list(getattr(value, "__dict__", {}).items())
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _package(value: Any) -> str:
    while isinstance(value, functools.partial):
        value = value.func
    while not isinstance(value, types.FunctionType) and hasattr(value, "fn"):  # a handler around it
        value = value.fn
    module = getattr(value, "__module__", None) or type(value).__module__
    return str(module).partition(".")[0]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _names(code: types.CodeType) -> set[str]:
    return {name for each in _codes(code) for name in each.co_names}


def _named_globals(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    own = function.__globals__
    for name in sorted(_names(function.__code__)):
        if name in own:
            yield name, own[name]


def _global_names(function: types.FunctionType) -> list[str]:
    return [name for name, _ in _named_globals(function)]


def _written(code: types.CodeType, operation: str) -> set[str]:
    return {i.argval for each in _codes(code) for i in dis.get_instructions(each) if i.opname == operation}


def _mutates(code: types.CodeType) -> bool:
    """Whether it may write into a list or dict."""
    return bool(_MUTATORS & _names(code)) or any(
        i.opname == "STORE_SUBSCR" for each in _codes(code) for i in dis.get_instructions(each)
    )


def _cells(function: types.FunctionType) -> tuple[types.CellType, ...]:
    return function.__closure__ or ()


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _EMPTY


def _defaults(function: types.FunctionType) -> tuple[Any, ...]:
    return (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
