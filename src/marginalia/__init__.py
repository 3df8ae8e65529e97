"""marginalia: models with discrete latent variables, the discretes summed out exactly.

Importing it sets nothing and loads no JAX; each public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from marginalia.errors import DataError, FitError, MarginaliaError, ModelError, OptionError, Refusal

if TYPE_CHECKING:
    from marginalia.checks import Finding, Findings, check
    from marginalia.compilation import keep_compiled
    from marginalia.distributions import Density
    from marginalia.fitting import Fit, fit, load
    from marginalia.infer.options import ADVI, MAP, NUTS, SMC, Auto, Ensemble, Laplace, Metropolis, Slice
    from marginalia.marginal import Marginal, Verification, limits, marginalize, verify

__version__ = "0.1.0"

__all__ = [
    "ADVI",
    "MAP",
    "NUTS",
    "SMC",
    "Auto",
    "DataError",
    "Density",
    "Ensemble",
    "Finding",
    "Findings",
    "Fit",
    "FitError",
    "Laplace",
    "Marginal",
    "MarginaliaError",
    "Metropolis",
    "ModelError",
    "OptionError",
    "Refusal",
    "Slice",
    "Verification",
    "__version__",
    "check",
    "fit",
    "keep_compiled",
    "limits",
    "load",
    "marginalize",
    "verify",
]

_HOMES = {
    "ADVI": "marginalia.infer.options",
    "Auto": "marginalia.infer.options",
    "Ensemble": "marginalia.infer.options",
    "Laplace": "marginalia.infer.options",
    "MAP": "marginalia.infer.options",
    "Metropolis": "marginalia.infer.options",
    "NUTS": "marginalia.infer.options",
    "SMC": "marginalia.infer.options",
    "Slice": "marginalia.infer.options",
    "Density": "marginalia.distributions",
    "Finding": "marginalia.checks",
    "Findings": "marginalia.checks",
    "check": "marginalia.checks",
    "keep_compiled": "marginalia.compilation",
    "Fit": "marginalia.fitting",
    "fit": "marginalia.fitting",
    "load": "marginalia.fitting",
    "Marginal": "marginalia.marginal",
    "Verification": "marginalia.marginal",
    "limits": "marginalia.marginal",
    "marginalize": "marginalia.marginal",
    "verify": "marginalia.marginal",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'marginalia' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
