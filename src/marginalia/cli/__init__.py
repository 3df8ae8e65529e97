"""The shell command `marginalia`.

Exit status: 0 all is well; 1 a file cannot be written, or an unexpected error; 2 bad input or options, or a
refusal; 3 the fit is not to be trusted yet (its results are written); 130 stopped by Ctrl-C and 143 by SIGTERM (what
there was is written).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType

from typer.main import get_command

from marginalia.cli.app import app
from marginalia.cli.show import complain
from marginalia.errors import MarginaliaError

BAD_INPUT = 2
FAILED = 1


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the given words, by default those of the shell, and exit."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    if debug:
        words = [word for word in words if word != "--debug"]
    else:
        sys.excepthook = say_unexpected
    try:
        get_command(app)(args=words, prog_name="marginalia")
    except MarginaliaError as error:
        if debug:
            raise
        complain(str(error))
        sys.exit(BAD_INPUT)
    except OSError as error:
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        complain(f"{place}{error.strerror or error}. Remedy: check the folder, its rights and the space left.")
        sys.exit(FAILED)


def say_unexpected(kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    """Say one sentence instead of a traceback for an error that marginalia did not foresee."""
    words = (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
    complain(f"an unexpected error, {kind.__name__}: {words}. Run with --debug for the traceback.")
