"""A ready program: a NumPyro model that knows the name and the options it can be made from again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Ready:
    """A NumPyro program with its name and its options (plain numbers, strings and lists, as JSON holds them).

    Call it as any NumPyro program; a saved fit keeps the name and the options, never the code.
    """

    model_name: str
    model_options: Mapping[str, Any]
    program: Callable[..., None]

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.program(*args, **kwargs)

    @property
    def __name__(self) -> str:
        return self.model_name
