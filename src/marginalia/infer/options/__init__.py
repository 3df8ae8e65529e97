"""Options of the inference methods: small frozen classes that check themselves, one file a method.

They load no JAX, so that `mg.NUTS(draws=500)` costs nothing.
"""

from __future__ import annotations

from marginalia.infer.options.advi import ADVI
from marginalia.infer.options.auto import Auto
from marginalia.infer.options.ensemble import Ensemble
from marginalia.infer.options.laplace import Laplace
from marginalia.infer.options.map import MAP
from marginalia.infer.options.metropolis import Metropolis
from marginalia.infer.options.nuts import NUTS
from marginalia.infer.options.slice import Slice
from marginalia.infer.options.smc import SMC

__all__ = ["ADVI", "MAP", "NUTS", "SMC", "Auto", "Ensemble", "Laplace", "Metropolis", "Slice"]
