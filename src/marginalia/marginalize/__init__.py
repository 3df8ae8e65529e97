"""Sum out the discretes of a program, exactly or not at all."""

from marginalia.marginalize.bounds import limits
from marginalia.marginalize.marginal import Marginal, marginalize
from marginalia.marginalize.verify import Verification, verify

__all__ = ["Marginal", "Verification", "limits", "marginalize", "verify"]
