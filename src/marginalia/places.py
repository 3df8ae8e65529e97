"""Which line of the user's own code something is about."""

from __future__ import annotations

import linecache
import sys
import traceback
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import jax
import numpy as np
import numpyro

_LIBRARIES = tuple(str(Path(m.__file__ or "").parent) for m in (jax, numpyro, np)) + (str(Path(__file__).parent),)


def _theirs(filename: str) -> bool:
    return not filename.startswith(_LIBRARIES) and "contextlib" not in filename


def user_frame(tb: TracebackType | None) -> tuple[str, int, str, dict[str, Any]] | None:
    """The innermost frame of the user's own code: file, line, text, local variables."""
    found = None
    while tb is not None:
        if _theirs(tb.tb_frame.f_code.co_filename):
            text = traceback.extract_tb(tb, limit=1)[0].line or ""
            found = (tb.tb_frame.f_code.co_filename, tb.tb_lineno, text, dict(tb.tb_frame.f_locals))
        tb = tb.tb_next
    return found


def user_line() -> tuple[str, int] | None:
    """File and line of the innermost frame of the user's own code that is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not _theirs(frame.f_code.co_filename):
        frame = frame.f_back
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def spoken(line: tuple[str, int] | None) -> str:
    """A line as errors name it, with its text."""
    if line is None:
        return ""
    text = linecache.getline(*line).strip()
    return f"{Path(line[0]).name}, line {line[1]}" + (f" (`{text}`)" if text else "")
