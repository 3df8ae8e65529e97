"""Keep compiled programs on disk, so that the next process need not compile them again."""

from __future__ import annotations

import os
from pathlib import Path

from marginalia.errors import OptionError, compose

SHORTEST = 0.2
"""Seconds of compiling from which on a program is worth a file."""


def cache_folder() -> Path:
    """Where compiled programs are kept unless told otherwise: `marginalia/jax` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marginalia" / "jax"


def keep_compiled(folder: str | Path | None = None) -> Path:
    """Keep compiled programs in a folder, for this process and later ones; gives the folder.

    The library never does this by itself, because it changes JAX's own settings (`jax_compilation_cache_dir` and
    `jax_persistent_cache_min_compile_time_secs`) for the whole process, programs of others included. The command does
    it, unless told `--no-cache`. Call it once, before the first fit. What is kept depends on the versions of JAX and
    XLA and on the machine, and is found by content: a stale file is never used.

    Parameters:
        folder: Any folder that can be written to; made where it is missing. The user's cache folder by default.

    Raises:
        OptionError: The folder cannot be made.

    >>> import marginalia as mg
    >>> mg.keep_compiled()  # doctest: +SKIP
    PosixPath('/home/you/.cache/marginalia/jax')
    """
    path = cache_folder() if folder is None else Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            compose(
                f"compiled programs cannot be kept in {path}",
                got=str(error),
                remedy="name another folder: mg.keep_compiled('some/folder').",
            )
        ) from error
    import jax

    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
    return path
