"""Products that sum over axes, and linear algebra: the axes that are mixed become lanes, the others stay a batch."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from marginalia.jaxpr import constants
from marginalia.lanes.interpret import apply_elementwise, fold, rule
from marginalia.lanes.structure import on_axes
from marginalia.lanes.value import Value, explode, guard, materialize, plain, table_over, unite


@rule("dot_general")
def _dot_general(equation: Any, values: list[Value]) -> list[Value]:
    left, right = values
    (contract_l, contract_r), (batch_l, batch_r) = equation.params["dimension_numbers"]
    if left.is_plain() and right.is_plain():
        return [plain(o) for o in constants.bind(equation.primitive, equation.params, left.array, right.array)]
    free_l = [i for i in range(left.rank) if i not in (*contract_l, *batch_l)]
    free_r = [i for i in range(right.rank) if i not in (*contract_r, *batch_r)]
    n_batch, n_l, n_r = len(batch_l), len(free_l), len(free_r)
    # Both as (batch, left free, right free, contracted): a product and a sum, whose axes the lanes follow.
    common = jnp.result_type(left.array.dtype, right.array.dtype)
    left, right = _as_type(left, common), _as_type(right, common)
    left = _arrange(left, [*batch_l, *free_l, *contract_l], list(range(n_batch + n_l, n_batch + n_l + n_r)))
    right = _arrange(right, [*batch_r, *free_r, *contract_r], list(range(n_batch, n_batch + n_l)))
    rank = n_batch + n_l + n_r + len(contract_l)
    shape = tuple(max(a, b) for a, b in zip(left.shape, right.shape, strict=True))
    summed = range(n_batch + n_l + n_r, rank)
    dtype = equation.outvars[0].aval.dtype
    left, right = (Value(v.array, shape, v.lanes) for v in (left, right))
    if any(left.lane_varies(axis) or right.lane_varies(axis) for axis in summed):
        product = apply_elementwise("mul", [left, right])
        return [_as_type(fold("add", product, summed), dtype)]
    return [_as_type(_contract(left, right, list(summed), shape), dtype)]


def _arrange(value: Value, order: list[int], new_axes: list[int]) -> Value:
    def act(array: Any, n: int) -> Any:
        array = array.transpose([*range(n), *[n + i for i in order]])
        for axis in new_axes:
            array = (
                np.expand_dims(array, n + axis) if isinstance(array, np.ndarray) else jnp.expand_dims(array, n + axis)
            )
        return array

    shape = [value.shape[i] for i in order]
    for axis in new_axes:
        shape.insert(axis, 1)
    return on_axes(value, tuple(shape), act)


def _as_type(value: Value, dtype: Any) -> Value:
    return value if value.array.dtype == dtype else Value(value.array.astype(dtype), value.shape, value.lanes)


def _contract(left: Value, right: Value, summed: list[int], shape: tuple[int, ...]) -> Value:
    """Sum products along axes without lanes, as one einsum over the tables."""
    lanes = unite([left, right])
    guard(lanes, shape, [left.physical, right.physical])
    tables = [jnp.asarray(table_over(materialize(v, summed), lanes)) for v in (left, right)]
    n = len(lanes)
    letters = list(range(n + len(shape)))
    operands: list[Any] = []
    for table in tables:
        keep = [i for i in letters if table.shape[i] != 1 or i - n in summed]
        operands += [table.reshape([table.shape[i] for i in keep]), keep]
    out = [i for i in letters if i - n not in summed and any(t.shape[i] != 1 for t in tables)]
    array = jnp.einsum(*operands, out, precision="highest")
    full = [array.shape[out.index(i)] if i in out else 1 for i in letters if i - n not in summed]
    kept = tuple(s for i, s in enumerate(shape) if i not in summed)
    own = tuple(lane.without(summed) for lane in lanes)
    return Value(array.reshape(full), kept, own)


_MATRIX = ("cholesky", "lu", "qr", "eigh", "svd")


@rule(*_MATRIX)
def _matrix_operation(equation: Any, values: list[Value]) -> list[Value]:
    """Matrix operations: leading axes are a batch, the last two are one object."""
    rank = values[0].rank
    return _over_batches(equation, values, [[rank - 2, rank - 1]])


@rule("triangular_solve")
def _triangular_solve(equation: Any, values: list[Value]) -> list[Value]:
    """Each right-hand side is solved on its own, whether it is a column or (from the right) a row."""
    rank = values[0].rank
    mixed = rank - 2 if equation.params["left_side"] else rank - 1
    return _over_batches(equation, values, [[rank - 2, rank - 1], [mixed]])


def _over_batches(equation: Any, values: list[Value], mixed: list[list[int]]) -> list[Value]:
    """Apply an operation that mixes the given axes of each input and treats the others one by one."""
    rank = values[0].rank
    matrix = [rank - 2, rank - 1]
    values = [materialize(explode(v, axes), matrix) for v, axes in zip(values, mixed, strict=True)]
    lanes = unite(values)
    tables = [jnp.asarray(table_over(v, lanes)) for v in values]
    lead = len(lanes) + rank - 2
    common = np.broadcast_shapes(*[t.shape[:lead] for t in tables])
    guard(lanes, values[-1].shape, [v.physical[:-2] for v in values])
    tables = [jnp.broadcast_to(t, common + t.shape[lead:]) for t in tables]
    arrays = constants.bind(equation.primitive, equation.params, *tables)
    outputs = []
    for array, variable in zip(arrays, equation.outvars, strict=True):
        shape = tuple(variable.aval.shape)
        own = []
        for lane in lanes:
            # Lanes change along the last axes only where right-hand sides are apart, whose shape the output keeps.
            core = lane.shape[rank - 2 :] if len(shape) == rank else (1,) * (len(shape) - rank + 2)
            own.append(lane.reshaped(lane.shape[: rank - 2] + core))
        outputs.append(Value(array, shape, tuple(own)))
    return outputs
