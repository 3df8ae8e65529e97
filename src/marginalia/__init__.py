"""marginalia: models with discrete latent variables, the discretes summed out exactly.

Importing it sets nothing and loads no JAX; each public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from marginalia.errors import DataError, FitError, MarginaliaError, ModelError, OptionError, Refusal

if TYPE_CHECKING:
    from marginalia.checks import Finding, Findings, check
    from marginalia.fit import Fit, fit, load
    from marginalia.infer.options import MAP, NUTS, Auto
    from marginalia.marginalize import Marginal, Verification, limits, marginalize, verify

__version__ = "0.1.0"

__all__ = [
    "MAP",
    "NUTS",
    "Auto",
    "DataError",
    "Finding",
    "Findings",
    "Fit",
    "FitError",
    "Marginal",
    "MarginaliaError",
    "ModelError",
    "OptionError",
    "Refusal",
    "Verification",
    "__version__",
    "check",
    "fit",
    "limits",
    "load",
    "marginalize",
    "verify",
]

_HOMES = {
    "Auto": "marginalia.infer.options",
    "MAP": "marginalia.infer.options",
    "NUTS": "marginalia.infer.options",
    "Finding": "marginalia.checks",
    "Findings": "marginalia.checks",
    "check": "marginalia.checks",
    "Fit": "marginalia.fit",
    "fit": "marginalia.fit",
    "load": "marginalia.fit",
    "Marginal": "marginalia.marginalize",
    "Verification": "marginalia.marginalize",
    "limits": "marginalia.marginalize",
    "marginalize": "marginalia.marginalize",
    "verify": "marginalia.marginalize",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'marginalia' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """Keeps `marginalia.fit` and `marginalia.marginalize` functions, though there are such modules as well.

    Python binds a submodule in its package when it is imported, which would hide the function of that name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
