"""A run's state on disk: the same call goes on where it stopped, and ends in the same draws, byte for byte.

A method that can resume takes a `Checkpoint` and needs two lines of it:

    saved = checkpoint.load()                       # None, or what was saved last
    checkpoint.save(lambda: {"step": i, "x": x})    # as often as you like: written every few seconds

A state is made of dicts, lists, tuples, numbers, words, None, arrays, and the frozen classes of this package.
Nothing is pickled, so that opening a file runs no code of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import re
import time
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from marginalia import __version__
from marginalia.errors import DataError, OptionError, compose
from marginalia.infer.lock import Held, take

FORMAT = 3
EVERY_SECONDS = 2.0
WRITING_SHARE = 0.05  # at most this part of the time goes into writing
OURS = "marginalia."
DECISIVE = ("jax", "jaxlib", "numpyro", "numpy")  # another version of these may give other draws


class Checkpoint(Protocol):
    """Where a method keeps its state."""

    def load(self) -> Any:
        """What was saved last, None if nothing was."""

    def save(self, make: Callable[[], Any], *, now: bool = False) -> None:
        """Keep the state that `make` gives, if it is time to, or `now`: at the end of a stage or an interrupt."""

    def part(self, name: str) -> Checkpoint:
        """A place of its own for a stage of the run; both are in one file."""


class Nowhere:
    """Keeps nothing."""

    def load(self) -> Any:
        return None

    def save(self, make: Callable[[], Any], *, now: bool = False) -> None:
        pass

    def part(self, name: str) -> Checkpoint:
        return self

    def only(self, name: str, state: Any) -> None:
        pass

    def close(self) -> None:
        pass


NOWHERE = Nowhere()


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run is, so that no state of another one is ever taken for it.

    Attributes:
        versions: Of all that the draws depend on.
        method: The name of its options class.
        options: Its options, as JSON gives them back.
        seed: None where the call leaves it open; the file then decides.
        data: A digest of each observed site.
        model: A digest of the program.
    """

    versions: dict[str, str]
    method: str
    options: dict[str, Any]
    seed: int | None
    data: dict[str, str]
    model: str


def identify(marginal: Any, options: Any, seed: int | None) -> Identity:
    """The identity of a run with these options on a marginal."""
    program = marginal.program
    data = {name: _digest(site.value) for name, site in program.observed.items()}
    words = [_without_addresses(str(program.jaxpr.jaxpr))]
    words += [f"{term.name} {term.kind} {term.shape} {_digest(term.scale)}" for term in program.terms]
    words += [f"{name} {site.shape} {_without_addresses(str(site.support))}" for name, site in program.latents.items()]
    words += [f"{name} {site.shape} {_digest(site.values)}" for name, site in program.discretes.items()]
    words += [_digest(value) for value in program.jaxpr.consts if _digest(value) not in data.values()]
    plain = {name: _as_json(value) for name, value in dataclasses.asdict(options).items()}
    model = hashlib.sha256("\n".join(words).encode()).hexdigest()
    versions = {"marginalia": __version__, **{name: version(name) for name in DECISIVE}}
    return Identity(versions, type(options).__name__, plain, seed, data, model)


class OnDisk:
    """One file for one run, and the lock on it."""

    def __init__(self, path: Path, identity: Identity, parts: dict[str, Any], lock: Held | None = None) -> None:
        self._path = path
        self._lock = lock
        self._identity = identity
        self._parts = parts
        self._written = time.monotonic()
        self._took = 0.0

    @property
    def seed(self) -> int:
        assert self._identity.seed is not None
        return self._identity.seed

    def load(self) -> Any:
        return self._parts.get("")

    def save(self, make: Callable[[], Any], *, now: bool = False) -> None:
        self.keep("", make, now)

    def part(self, name: str) -> Checkpoint:
        return _Part(self, name)

    def parts(self) -> dict[str, Any]:
        return self._parts

    def keep(self, name: str, make: Callable[[], Any], now: bool) -> None:
        waited = time.monotonic() - self._written
        if now or waited >= max(EVERY_SECONDS, self._took / WRITING_SHARE):
            self._parts[name] = make()
            self.write()

    def only(self, name: str, state: Any) -> None:
        """Keep this part and no other: the run is complete."""
        self._parts = {name: state}
        self.write()

    def close(self) -> None:
        """Let other runs have the file."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    def write(self) -> None:
        """The whole file anew, beside the old one, which it replaces when it is safe on the disk."""
        begun = time.monotonic()
        arrays: list[np.ndarray] = []
        about = {"format": FORMAT, **dataclasses.asdict(self._identity), "parts": encode(self._parts, arrays)}
        temporary = self._path.with_name(f".{self._path.name}.part")
        try:
            with temporary.open("wb") as file:
                np.savez(file, *arrays, about=np.array(json.dumps(about)))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as error:
            raise DataError(
                compose(
                    "the checkpoint cannot be written",
                    where=str(self._path),
                    got=str(error),
                    remedy="choose another folder.",
                )
            ) from error
        self._written = time.monotonic()
        self._took = self._written - begun


@dataclasses.dataclass(frozen=True)
class _Part:
    file: OnDisk
    name: str

    def load(self) -> Any:
        return self.file.parts().get(self.name)

    def save(self, make: Callable[[], Any], *, now: bool = False) -> None:
        self.file.keep(self.name, make, now)

    def part(self, name: str) -> Checkpoint:
        return _Part(self.file, f"{self.name}/{name}")


def open_checkpoint(path: str | Path, identity: Identity, draw_seed: Callable[[], int]) -> OnDisk:
    """The file of this run, made if there is none; its seed is the call's, else the file's, else a drawn one.

    It is the run's alone until it is closed.

    Raises:
        DataError: The file is damaged or no checkpoint, cannot be written, is of another model, of other data or of
            another version, or another run has it open.
        OptionError: It is of another method, or of other options or another seed.
    """
    path = Path(path)
    lock = take(path)
    with contextlib.ExitStack() as unless_opened:
        if lock is not None:
            unless_opened.callback(lock.release)
        if path.exists():
            about, parts = _read(path)
            _refuse_another(path, about, identity)
            opened = OnDisk(path, dataclasses.replace(identity, seed=int(about["seed"])), parts, lock)
        else:
            seed = draw_seed() if identity.seed is None else identity.seed
            opened = OnDisk(path, dataclasses.replace(identity, seed=seed), {}, lock)
            opened.write()  # at once: a folder that cannot be written to is said now, and a drawn seed is kept
        unless_opened.pop_all()
    return opened


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            if about["format"] == FORMAT:
                return about, decode(about["parts"], file)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            compose(
                "this is no checkpoint of marginalia, or it is damaged",
                where=str(path),
                got=f"{type(error).__name__}: {error}",
                remedy="give another path, or delete this file to begin anew.",
            )
        ) from error
    raise DataError(
        compose(
            "this checkpoint was written by another version of marginalia",
            where=str(path),
            expected=f"format {FORMAT}",
            got=f"format {about['format']}",
            remedy="resume it with the version that wrote it, or delete the file to begin anew.",
        )
    )


def _refuse_another(path: Path, about: dict[str, Any], here: Identity) -> None:
    """Say all that differs between the run of the file and this one."""
    chosen, given = [], []
    if about["method"] != here.method:
        chosen.append(f"the method was {about['method']!r} and is {here.method!r}")
    else:
        names = dict.fromkeys([*about["options"], *here.options])
        for name in names:
            was, now = about["options"].get(name), here.options.get(name)
            if was != now:
                chosen.append(f"the option {name!r} was {was!r} and is {now!r}")
    if here.seed is not None and here.seed != about["seed"]:
        chosen.append(f"random_seed was {about['seed']} and is {here.seed}")
    changed = [name for name in about["data"] if name in here.data and about["data"][name] != here.data[name]]
    if changed:
        given.append(f"the data of {', '.join(map(repr, changed))} are others")
    # Other data may change shapes and numbers all over the program: then only the data are named.
    if about["data"].keys() != here.data.keys() or (not changed and about["model"] != here.model):
        given.append("the model is another one, or reads other arguments")
    for name in dict.fromkeys([*about["versions"], *here.versions]):
        was, now = about["versions"].get(name, "none"), here.versions.get(name, "none")
        if was != now:
            given.append(f"{name} was {was} and is {now}")
    if not chosen and not given:
        return
    kind = DataError if given else OptionError
    raise kind(
        compose(
            "this checkpoint is of another run",
            where=f"checkpoint {path}",
            expected="the same model, data, options, seed and versions as when it was begun",
            got=f"differences: {'; '.join([*given, *chosen])}",
            remedy="make the same call as then to resume it; for a new run give another path or delete the file.",
        )
    )


# ---- states as JSON and arrays ----------------------------------------------------------------------------------


def encode(value: Any, arrays: list[np.ndarray]) -> Any:
    """A state as JSON; its arrays go to the list."""
    if value is None or isinstance(value, bool | int | str) or type(value) is float:
        return value
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        arrays.append(np.asarray(value))
        return {"array": len(arrays) - 1}
    if isinstance(value, dict):
        return {"dict": [[str(key), encode(item, arrays)] for key, item in value.items()]}
    if dataclasses.is_dataclass(value) and type(value).__module__.startswith(OURS):
        fields = {f.name: encode(getattr(value, f.name), arrays) for f in dataclasses.fields(value)}
        return {"class": [type(value).__module__, type(value).__qualname__], "fields": fields}
    if type(value) in (list, tuple):
        return {type(value).__name__: [encode(item, arrays) for item in value]}
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def decode(value: Any, arrays: Any) -> Any:
    """The inverse of `encode`; `arrays` maps "arr_0", "arr_1", ... to the arrays, as NumPy names them."""
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[f"arr_{value['array']}"]
    if "dict" in value:
        return {key: decode(item, arrays) for key, item in value["dict"]}
    if "list" in value:
        return [decode(item, arrays) for item in value["list"]]
    if "tuple" in value:
        return tuple(decode(item, arrays) for item in value["tuple"])
    module, name = value["class"]
    found = getattr(importlib.import_module(module), name) if module.startswith(OURS) else None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"a checkpoint does not hold a {module}.{name}")
    return found(**{key: decode(item, arrays) for key, item in value["fields"].items()})


def leaves(state: Any) -> list[np.ndarray]:
    """The arrays of a JAX pytree, random keys as their bits."""
    return [np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf) for leaf in jax.tree.leaves(state)]


def rebuild(template: Any, values: list[np.ndarray]) -> Any:
    """The inverse of `leaves`; `template` is a pytree of the same structure, of arrays or of their shapes."""
    shapes, structure = jax.tree.flatten(template)
    back = [
        jax.random.wrap_key_data(jnp.asarray(value), impl="threefry2x32") if _is_key(shape) else value
        for shape, value in zip(shapes, values, strict=True)
    ]
    return jax.tree.unflatten(structure, back)


def _is_key(leaf: Any) -> bool:
    return bool(jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _digest(value: Any) -> str:
    if isinstance(value, jax.Array) and _is_key(value):
        value = jax.random.key_data(value)
    array = np.ascontiguousarray(np.asarray(value))
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()


def _as_json(value: Any) -> Any:
    """An option as JSON gives it back; functions (of an optimiser, say) by their names and what they close over."""
    try:
        return json.loads(json.dumps(value, default=_described))
    except ValueError:  # functions that close over each other
        return _without_addresses(repr(value))


def _described(value: Any) -> Any:
    closed = getattr(value, "__closure__", None)
    if closed is None:
        return _without_addresses(repr(value))
    return [value.__qualname__, [cell.cell_contents for cell in closed]]


def _without_addresses(text: str) -> str:
    """Functions are printed with where they lie in memory, which differs from run to run."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)
