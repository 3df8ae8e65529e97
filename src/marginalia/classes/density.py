"""Evaluate a function of parameters and data with each class of equal elements computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.classes import calls as _calls  # noqa: F401  its rules
from marginalia.classes.rules import Reading, apply
from marginalia.classes.value import Classed, Joins, Unclassed, dense, in_full
from marginalia.classes.value import known as known_value
from marginalia.rows.steps import Step, Steps, flatten, needed

FEWEST_NUMBERS = 20_000
"""Numbers computed by an evaluation below which nothing is worth another way."""

WORTH = 2.0
"""So many times fewer numbers are worth it."""

SMALL = 4096


@dataclass(frozen=True, eq=False)
class ByClasses:
    """A function of parameters and data, as `function(params, data)`."""

    program: Steps
    rest: tuple[Step, ...]
    known: dict[int, Classed]
    parameters: tuple[int, ...]
    traced: tuple[int, ...]
    """Places among the data of arrays that are taken as they are given."""
    inputs: tuple[int, ...]
    structure: Any
    joins: Joins
    computed: int
    otherwise: int
    """Numbers that an evaluation computes, and would compute without classes."""

    def __call__(self, params: Any, data: Sequence[Any]) -> Any:
        values = dict(self.known)
        flat = self.structure.flatten_up_to(params)
        values.update({i: in_full(jnp.asarray(x)) for i, x in zip(self.parameters, flat, strict=True)})
        values.update({self.inputs[k]: in_full(jnp.asarray(data[k])) for k in self.traced})
        _run(Reading(self.joins), self.rest, values)
        (output,) = self.program.outputs
        return jnp.asarray(dense(_get(values, output)))


def by_equal_elements(
    function: Callable[[Any, Any], Any],
    params: Any,
    data: Sequence[Any],
    *,
    fewest: int = FEWEST_NUMBERS,
    worth: float = WORTH,
) -> ByClasses | None:
    """`function(params, data)`, a number, by classes of equal elements; None where hardly any are equal.

    `data` are the arrays themselves: what is equal is told from them.
    """
    if not any(_repeats(x) for x in data):
        return None
    program = flatten(jax.make_jaxpr(function)(params, data))
    leaves, structure = jax.tree.flatten(params)
    parameters, inputs = program.inputs[: len(leaves)], program.inputs[len(leaves) :]
    known: dict[int, Classed] = {}
    traced = []
    try:
        for k, (i, x) in enumerate(zip(inputs, data, strict=True)):
            if _plain(x) and (np.size(x) <= SMALL or _repeats(x)):
                known[i] = known_value(np.asarray(x))
            else:
                traced.append(k)
        for i, x in program.closed.items():
            known[i] = known_value(np.asarray(x)) if _plain(x) else in_full(x)
        rest = needed(program.steps, program.outputs)
        joins = Joins()
        reading = Reading(joins)
        found: list[Step] = []

        def abstract(flat: list[Any], taken: list[Any]) -> int:
            values = dict(known)
            values.update({i: in_full(x) for i, x in zip(parameters, flat, strict=True)})
            values.update({inputs[k]: in_full(x) for k, x in zip(traced, taken, strict=True)})
            found[:] = _run(reading, rest, values, known)
            return 0

        shapes = [jax.ShapeDtypeStruct(np.shape(data[k]), jnp.result_type(data[k])) for k in traced]
        jax.eval_shape(abstract, leaves, shapes)
    except Unclassed:
        return None
    if reading.otherwise < max(fewest, worth * reading.computed):
        return None
    return ByClasses(
        program, tuple(found), known, parameters, tuple(traced), inputs, structure, joins,
        reading.computed, reading.otherwise,
    )  # fmt: skip


def _plain(x: Any) -> bool:
    return not jax.dtypes.issubdtype(jnp.result_type(x), jax.dtypes.extended)


def _repeats(x: Any) -> bool:
    """Whether an array of data has few different elements."""
    size = int(np.size(x))
    if size < 32 or not _plain(x):
        return False
    sample = np.asarray(x).reshape(-1)[: 2**16]
    return 2 * len(np.unique(sample)) <= len(sample)


def _run(
    reading: Reading, steps: Iterable[Step], values: dict[int, Classed], known: dict[int, Classed] | None = None
) -> list[Step]:
    """Carry out the steps; those whose results do not depend on parameters go into `known`, the others are given."""
    rest = []
    for step in steps:
        results = apply(reading, step.equation, [_get(values, i) for i in step.inputs])
        values.update(zip(step.outputs, results, strict=True))
        if known is not None and all(v.known for v in results):
            known.update(zip(step.outputs, results, strict=True))
            continue
        rest.append(step)
        reading.count(step.equation, results)
    return rest


def _get(values: dict[int, Classed], at: int | np.ndarray) -> Classed:
    return values[at] if isinstance(at, int) else known_value(np.asarray(at))
