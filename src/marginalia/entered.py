"""Which thread has entered a handler.

The list of handlers that all threads share does not say, and nothing else does: the thread may be anywhere in its own
code meanwhile. So handlers note it, from when this module is imported: when marginalia first reads a program, never by
`import marginalia`. One that was entered before counts as entered by whoever asks. Nothing else changes about NumPyro.
"""

from __future__ import annotations

import threading
from typing import Any

from numpyro.primitives import Messenger

_ENTERED_BY = "_marginalia_entered_by"


def entered_here(handler: Any) -> bool:
    """Whether this thread has entered the handler."""
    here = threading.get_ident()
    return bool(getattr(handler, _ENTERED_BY, here) == here)


def _enter(handler: Messenger) -> Any:
    setattr(handler, _ENTERED_BY, threading.get_ident())
    return _enter_numpyro(handler)


_enter_numpyro = Messenger.__enter__
Messenger.__enter__ = _enter
