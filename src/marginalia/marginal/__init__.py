"""Sum out the discretes of a program, exactly or not at all."""

from marginalia.lanes.bounds import limits
from marginalia.marginal.marginal import Marginal, marginalize
from marginalia.marginal.verify import Verification, verify

__all__ = ["Marginal", "Verification", "limits", "marginalize", "verify"]
