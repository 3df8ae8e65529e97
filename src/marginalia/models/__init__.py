"""Ready NumPyro programs. Each is made from a few plain options, so a saved fit can make it again by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from marginalia.errors import OptionError, compose
from marginalia.models import mixture
from marginalia.models.mixture import gaussian_mixture
from marginalia.models.ready import Ready

__all__ = ["Ready", "build", "gaussian_mixture", "names"]

_FACTORIES: dict[str, Callable[..., Ready]] = {mixture.NAME: mixture.from_options}


def names() -> tuple[str, ...]:
    """Name the ready programs.

    >>> names()
    ('gaussian-mixture',)
    """
    return tuple(_FACTORIES)


def build(name: str, options: Mapping[str, Any]) -> Ready:
    """Make a ready program again from its name and the options it was saved with.

    `build(ready.model_name, ready.model_options)` has the same priors as `ready`, whatever data come next.
    Raises OptionError for a name or an option that there is not.
    """
    if name not in _FACTORIES:
        raise OptionError(
            compose(f"there is no ready program {name!r}", expected="one of " + ", ".join(names()), got=repr(name))
        )
    try:
        return _FACTORIES[name](**options)
    except TypeError as error:
        raise OptionError(compose(f"the options of the ready program {name!r} do not fit", got=str(error))) from error
