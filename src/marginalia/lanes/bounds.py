"""How large a table may become before the program is refused, and the words of the refusal."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from marginalia.errors import OptionError, Refusal, compose
from marginalia.lanes.run import Ids, Run

if TYPE_CHECKING:
    from marginalia.lanes.value import Lane


@dataclass(frozen=True)
class Limits:
    """States of one clique, numbers in one table, and the part of a sum over endless support that may be lost.

    `up_to` are the last values that the user has summed of discretes without a largest one, for each site or all.
    """

    max_states: int = 2**20
    max_numbers: int = 2**28
    max_lost: float = 1e-12
    up_to: int | tuple[tuple[str, int], ...] | None = None

    def last_of(self, name: str) -> int | None:
        """The last value to be summed of a discrete without a largest one, None where that is not said."""
        return dict(self.up_to).get(name) if isinstance(self.up_to, tuple) else self.up_to

    def vouches(self, name: str) -> bool:
        """Whether the user answers for where a discrete's support is cut."""
        return self.last_of(name) is not None


@dataclass
class Context:
    """What the guards need to speak of the user's variables."""

    limits: Limits = field(default_factory=Limits)
    names: tuple[str, ...] = ()
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    doing: str = ""
    register: Any = None
    """The sums met so far that are discretes of their own (`count.Register`)."""


DEFAULT = Limits()

_limits: contextvars.ContextVar[Limits] = contextvars.ContextVar("marginalia_limits", default=DEFAULT)
_context: contextvars.ContextVar[Context | None] = contextvars.ContextVar("marginalia_context", default=None)


def current() -> Limits:
    return _limits.get()


def context() -> Context | None:
    """What is being read now, None outside the reading of a program."""
    return _context.get()


@contextlib.contextmanager
def limits(
    *,
    max_states: int | None = None,
    max_numbers: int | None = None,
    max_lost: float | None = None,
    up_to: int | Mapping[str, int] | None = None,
) -> Iterator[Limits]:
    """Allow larger (or smaller) tables while a model is marginalised, or say where its endless sums may stop.

    `max_states` bounds the joint states of the discretes that one term reads together; `max_numbers` bounds the
    numbers held in one table; `max_lost` bounds, relative to each sum, what may be lost where a discrete without a
    largest value (Poisson, negative binomial, geometric) is cut.

    `up_to` is for those whose loss cannot be proved to be small: the values of such a discrete up to this one are
    summed and no others, on your word. A number holds for all of them, `{site: number}` for some.

    >>> with mg.limits(max_states=2**24):
    ...     marginal = mg.marginalize(model, y)
    >>> with mg.limits(up_to={"n": 500}):
    ...     fit = mg.fit(model, y)
    """
    for name, value in (("max_states", max_states), ("max_numbers", max_numbers)):
        if value is not None and value < 1:
            raise OptionError(compose(f"{name} is {value}", expected="a whole number of at least 1"))
    if max_lost is not None and not 0.0 < max_lost < 1.0:
        raise OptionError(compose(f"max_lost is {max_lost}", expected="a number between 0 and 1, both excluded"))
    if up_to is not None:
        last = tuple(up_to.items()) if isinstance(up_to, Mapping) else up_to
        for value in dict(last).values() if isinstance(last, tuple) else (last,):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 2:
                raise OptionError(
                    compose(f"up_to is {up_to!r}", expected="a whole number of at least 2, or one a site")
                )
    old = _limits.get()
    token = _limits.set(
        Limits(
            old.max_states if max_states is None else max_states,
            old.max_numbers if max_numbers is None else max_numbers,
            old.max_lost if max_lost is None else max_lost,
            old.up_to if up_to is None else last,
        )
    )
    try:
        yield _limits.get()
    finally:
        _limits.reset(token)


@contextlib.contextmanager
def under(kept: Limits) -> Iterator[None]:
    """The limits that held when a model was marginalised, whenever it is evaluated."""
    token = _limits.set(kept)
    try:
        yield
    finally:
        _limits.reset(token)


@contextlib.contextmanager
def speaking_of(context: Context) -> Iterator[Context]:
    token = _context.set(context)
    try:
        yield context
    finally:
        _context.reset(token)


def describe_variables(ids: Ids, names: tuple[str, ...], offsets: np.ndarray, most: int = 6) -> str:
    """Flat identities in the user's words: `z (all 60 elements)`, `z[3], z[4]`, `a, b`."""
    if not isinstance(ids, Run):
        ids = np.unique(ids.reshape(-1))
        ids = ids[ids >= 0]
    words: list[str] = []
    for s, name in enumerate(names):
        size = int(offsets[s + 1] - offsets[s])
        own: Sequence[int] | np.ndarray
        if isinstance(ids, Run):
            own = range(max(ids.start - int(offsets[s]), 0), min(ids.stop - int(offsets[s]), size))
        else:
            own = ids[(ids >= offsets[s]) & (ids < offsets[s + 1])] - offsets[s]
        if len(own) == 0:
            continue
        if len(own) == size:
            words.append(f"'{name}'" if size == 1 else f"'{name}' (all {size} elements)")
        elif len(own) > 3:
            words.append(f"'{name}' ({len(own)} of {size} elements)")
        else:
            words.extend(f"'{name}'[{i}]" for i in own)
    if len(words) > most:
        words = [*words[:most], f"and {len(words) - most} more"]
    return ", ".join(words)


def refuse_wide(lanes: tuple[Lane, ...], states: int, numbers: int) -> None:
    """Raise `Refusal` when one term would read too many discretes at once."""
    bound = current()
    if states <= bound.max_states and numbers <= bound.max_numbers:
        return
    context = _context.get()
    first = lanes[0].held if len(lanes) == 1 else None
    read = first if isinstance(first, Run) else np.concatenate([np.unique(lane.ids) for lane in lanes])
    who = describe_variables(read, context.names, context.offsets) if context else f"{len(lanes)} discretes"
    refuse_clique(who, states, numbers, where=context.doing if context else "")


def in_words(count: int) -> str:
    """A count, however large: 2^1000 states exceed every float."""
    if count.bit_length() < 1000:
        return f"{float(count):.3g}"
    return f"10^{int(count.bit_length() * math.log10(2))}"


def refuse_clique(who: str, states: int, numbers: int, *, where: str = "") -> None:
    """Raise the refusal that every strategy shares: the variables, the size, the limit, the remedy."""
    bound = current()
    over_states = states > bound.max_states
    size = f"about {in_words(states)} joint states" if states > 10**6 else f"{states} joint states"
    numbers_text = f"a table of {in_words(numbers)} numbers"
    limit = f"max_states={bound.max_states}" if over_states else f"max_numbers={bound.max_numbers}"
    raise Refusal(
        compose(
            f"the discretes {who} are read together and cannot be summed out one at a time",
            where=where,
            expected=f"at most {limit}",
            got=f"{size} ({numbers_text})",
            remedy="let each term read fewer discretes (index with z[i] or z instead of a sum, maximum or sort over "
            "all of z), split the group into plates of independent groups, or raise the limit with "
            "`mg.limits(max_states=...)` if the machine can hold it.",
        )
    )
