"""A program that was read before, with the same data, is evaluated by the functions that were compiled then.

What makes two programs the same is the jaxpr of all their log-probabilities together with the gradient (so that
functions with derivatives of their own are told apart by what these compute), every array in it, and what else was
read: sites, supports, scales. Whatever cannot be compared, a callback for one, makes a program like no other.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import threading
import weakref
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from marginalia.lanes import bounds
from marginalia.marginal.kernel import Kernel
from marginalia.program import Program

KEPT = 4  # programs, the latest ones, if their data are small; larger ones as long as something else holds them
MOST_BYTES = 2**26
MOST_EQUATIONS = 3000  # beyond this comparing costs as much as it may spare


class _Unlike(Exception):
    """There is something in the program that cannot be compared."""


_lock = threading.Lock()
_latest: OrderedDict[str, Kernel] = OrderedDict()
_alive: weakref.WeakValueDictionary[str, Kernel] = weakref.WeakValueDictionary()


def recall(program: Program) -> Kernel:
    """The kernel of a program: the one of an equal program, with all that was compiled for it, or a new one."""
    key = fingerprint(program)
    if key is None:
        return Kernel(program)
    with _lock:
        found = _alive.get(key)
    if found is None:
        found = Kernel(program)
    with _lock:
        _alive[key] = found
        if sum(int(np.size(x)) * 8 for x in found.closed) <= MOST_BYTES:
            _latest[key] = found
            _latest.move_to_end(key)
            if len(_latest) > KEPT:
                _latest.popitem(last=False)
    return found


def fingerprint(program: Program) -> str | None:
    """A word that equal programs share and no others do, or None where that cannot be told."""
    endless = any(discrete.endless for discrete in program.discretes.values())
    simple = program.fixed_supports and not endless and not program.drawn
    if not simple or len(program.jaxpr.jaxpr.eqns) > MOST_EQUATIONS:
        return None
    digest = hashlib.blake2b()
    try:
        _add(digest, _with_gradient(program.jaxpr))
        _add(digest, list(program.jaxpr.consts))
        for sites in (program.latents, program.discretes, program.observed, program.deterministics):
            _add(digest, {name: _site(site) for name, site in sites.items()})
        _add(digest, [program.plates, [dataclasses.astuple(term) for term in program.terms], bounds.current()])
    except _Unlike:
        return None
    return digest.hexdigest()


def _site(site: Any) -> dict[str, Any]:
    own = {f.name: getattr(site, f.name) for f in dataclasses.fields(site)}
    if "support" in own:
        leaves, tree = jax.tree.flatten(own["support"])
        own["support"] = [repr(type(own["support"])), str(tree), leaves]
    return own


def _with_gradient(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """The program's terms and the gradient of their sum, its arrays as arguments."""
    avals = [jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)) for x in closed.consts]
    inputs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals]

    def both(consts: list[Any], values: list[Any]) -> Any:
        moving = [i for i, v in enumerate(values) if jnp.issubdtype(v.dtype, jnp.inexact)]

        def terms(moved: list[Any]) -> list[Any]:
            every = list(values)
            for i, x in zip(moving, moved, strict=True):
                every[i] = x
            return jax.core.eval_jaxpr(closed.jaxpr, consts, *every)

        found, pull = jax.vjp(terms, [values[i] for i in moving])
        return found, pull([jnp.ones(x.shape, x.dtype) for x in found])

    try:
        return jax.make_jaxpr(both)(avals, inputs)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise _Unlike from error


def _add(digest: Any, value: Any) -> None:
    """Take a value into the digest, unambiguously."""
    if isinstance(value, core.ClosedJaxpr):
        _add_jaxpr(digest, value.jaxpr)
        _add(digest, list(value.consts))
    elif isinstance(value, core.Jaxpr):
        _add_jaxpr(digest, value)
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise _Unlike
        digest.update(f"array {array.shape} {array.dtype}:".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # as they lie: data may be large
    elif isinstance(value, dict):
        digest.update(f"dict {len(value)}:".encode())
        for key, own in value.items():
            _add(digest, key)
            _add(digest, own)
    elif type(value).__name__ == "PRNGImpl":
        digest.update(f"generator {value.name};".encode())
    elif isinstance(value, tuple | list):
        digest.update(f"{type(value).__name__} {len(value)}:".encode())
        for own in value:
            _add(digest, own)
    elif isinstance(value, set | frozenset):
        digest.update(f"set {sorted(map(_word, value))}:".encode())
    else:
        digest.update(f"{_word(value)};".encode())


def _word(value: Any) -> str:
    """A simple value in full."""
    if value is None or isinstance(value, str | bytes | bool | int | float | complex | np.dtype | type | enum.Enum):
        return f"{type(value).__name__} {value!r}"
    if dataclasses.is_dataclass(value) and type(value).__module__.startswith(("jax", "marginalia")):
        fields = [(f.name, _word(getattr(value, f.name))) for f in dataclasses.fields(value)]
        return f"{type(value).__name__} {fields}"
    raise _Unlike


def _add_jaxpr(digest: Any, jaxpr: core.Jaxpr) -> None:
    names: dict[Any, int] = {}

    def new(variables: Any) -> None:
        for v in variables:
            names[v] = len(names)
            digest.update(f"v{names[v]} {v.aval.str_short()};".encode())

    def read(atoms: Any) -> None:
        for atom in atoms:
            if isinstance(atom, core.Literal):
                _add(digest, np.asarray(atom.val))
            else:
                digest.update(f"r{names[atom]};".encode())

    new([*jaxpr.constvars, *jaxpr.invars])
    for equation in _live(jaxpr):
        digest.update(f"{equation.primitive.name}(".encode())
        # Of a call only what is called: its other parameters say how it is compiled.
        for key in ["jaxpr"] if equation.primitive.name in ("jit", "pjit") else sorted(equation.params):
            digest.update(f"{key}=".encode())
            _add(digest, equation.params[key])
        read(equation.invars)
        new(equation.outvars)
    read(jaxpr.outvars)


def _live(jaxpr: core.Jaxpr) -> list[Any]:
    """Equations that the outputs depend on: the draws that NumPyro makes on the way are not among them."""
    wanted = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or wanted.intersection(equation.outvars):
            kept.append(equation)
            wanted.update(v for v in equation.invars if not isinstance(v, core.Literal))
    return kept[::-1]
