"""One process at a time on one checkpoint: a lock of the operating system, which ends with the process that holds it.

The lock is on a file of its own beside the checkpoint, as the checkpoint itself is replaced at each write. What a
killed process leaves behind is a file without a lock, which the next run takes over.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO

from marginalia.errors import DataError, compose

AT = 1 << 30  # Windows locks bytes, which nobody can read meanwhile: one far behind the words


class Held:
    """A lock that is held until `release`."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file

    def release(self) -> None:
        """Let others in."""
        if sys.platform != "win32":  # there no open file can be removed, and it stays
            self._path.unlink(missing_ok=True)
        self._file.close()


def take(checkpoint: Path) -> Held | None:
    """The lock of a checkpoint; None where files cannot be locked, as on some network drives.

    Raises:
        DataError: Another run holds it.
    """
    path = checkpoint.with_name(f".{checkpoint.name}.lock")
    while True:
        try:
            file = path.open("ab+")
        except OSError:
            return None  # the folder cannot be written to: the checkpoint itself will say so
        try:
            _lock(file)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = file.read().decode("ascii", "replace")
            file.close()
            raise DataError(
                compose(
                    "another run is writing this checkpoint at the moment",
                    where=f"checkpoint {checkpoint}",
                    got=f"process {holder}" if holder else "",
                    remedy="wait until it has ended, or stop it and make the same call again to go on from where it "
                    "was; for another run give another path.",
                )
            ) from error
        except OSError:
            file.close()
            return None
        if _is_at(file, path):
            file.truncate(0)
            file.write(str(os.getpid()).encode())
            file.flush()
            return Held(path, file)
        file.close()  # its holder removed it meanwhile: the lock on it would keep nobody out


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file.fileno()), there)


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        file.seek(AT)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
