"""Values as sums of products of parameters and data, so that a sum over many of them is one matrix product.

An expression that only sums and products have touched, `((y - mu) / sd)**2` say, is a polynomial in the data whose
coefficients are parameters: y^2 / sd^2 - 2 y mu / sd^2 + mu^2 / sd^2. Summed over the columns of y, that is a product
of a matrix of coefficients (components x features) with one of features (features x rows): the sufficient statistics
of an exponential family, found by algebra and not by the name of a distribution. Data are centred first. What is lost
is digits, where the products are large and cancel: their size is bounded beforehand, and where the bound is too large
the expression is evaluated as it was written.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from marginalia.jaxpr import constants
from marginalia.rows.held import ROWS, Axes, Held, Unreadable, align, broadcast_all, rows_last

MOST_TERMS = 10
"""Longer sums of products are not worth their algebra."""

_tokens = itertools.count()


@dataclass(frozen=True, eq=False)
class Product:
    """One summand: a coefficient (no rows) times a feature (data only), None for 1."""

    coefficient: Held
    feature: Held | None
    largest: Held | None
    """The largest absolute value of the feature over all rows, laid out as the feature."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear map of features, or its square: coefficients (atoms..., features) and the features (features, rows)."""

    coefficients: Any
    features: Any
    largest: Any
    axes: Axes
    squared: bool = False


type Key = tuple[Any, ...]
"""The features that are multiplied, in any order: data by their token, or (feature, how it was moved)."""


@dataclass(frozen=True, eq=False)
class Form:
    """A sum of products by what features they hold, or a linear map."""

    products: dict[Key, Product]
    linear: Linear | None = None

    def moved(self, equation: Any, act: Callable[[Held], Held]) -> Form | None:
        """The form of the value with its positions moved."""
        if self.linear is not None:
            return self._without_units(equation)
        # A feature moved is another feature, the same wherever it is moved in the same way.
        move = _move(equation)
        try:
            return Form(
                {
                    tuple((factor, move) for factor in key): Product(
                        act(p.coefficient),
                        None if p.feature is None else act(p.feature),
                        None if p.largest is None else act(p.largest),
                    )
                    for key, p in self.products.items()
                }
            )
        except Unreadable:
            return None

    def _without_units(self, equation: Any) -> Form | None:
        assert self.linear is not None
        old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        if [n for n in old if n != 1] != [n for n in new if n != 1] or equation.primitive.name == "transpose":
            return None
        own = iter(axis for axis in self.linear.axes if axis)
        axes = tuple(() if n == 1 else next(own) for n in new)
        return Form({}, replace(self.linear, axes=axes))


def _move(equation: Any) -> tuple[Any, ...]:
    """What tells one way to move positions from another."""
    p = equation.params
    told = tuple(p.get(name) for name in ("broadcast_dimensions", "permutation", "start_indices", "strides"))
    return (equation.primitive.name, equation.invars[0].aval.shape, equation.outvars[0].aval.shape, *told)


def leaf(value: Held, centre: np.ndarray, largest: np.ndarray) -> Form:
    """The form of an array of data: its distance from a centre, and the centre; both laid out as the data."""
    token = next(_tokens)
    one = Held(np.ones((1,) * value.array.ndim, value.dtype), value.axes)
    return Form(
        {
            (): Product(Held(centre, value.axes), None, None),
            (token,): Product(one, Held(value.array - centre, value.axes), Held(largest, value.axes)),
        }
    )


def form_of(value: Held) -> Form | None:
    """The value's own form; a value without rows is a coefficient."""
    if value.form is not None:
        return value.form
    if value.row_axis is not None and value.array.shape[-1] != 1:
        return None
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return None
    return Form({(): Product(value, None, None)})


def combine(reading: Any, equation: Any, values: Sequence[Held]) -> Form | None:
    """The form of a sum, difference, product, quotient by a parameter or square."""
    name = equation.primitive.name
    if name in ("stop_gradient", "copy", "convert_element_type"):
        same = values[0].dtype == equation.outvars[0].aval.dtype
        return values[0].form if same and name != "stop_gradient" else None
    if name not in ("add", "add_any", "sub", "mul", "div", "neg", "integer_pow", "square"):
        return None
    forms = [form_of(v) for v in values]
    if any(f is None for f in forms):
        return None
    found = [f for f in forms if f is not None]
    if name == "square" or (name == "integer_pow" and equation.params["y"] == 2):
        return _square(reading, found[0])
    if name == "mul" and len(values) == 2 and values[0].array is values[1].array and values[0].axes == values[1].axes:
        return _square(reading, found[0])
    if any(f.linear is not None for f in found):
        return None
    if name in ("add", "add_any", "sub"):
        second = found[1].products
        if name == "sub":
            second = {key: _scaled(reading, "neg", p) for key, p in second.items()}
        return _limited(_added(reading, found[0].products, second))
    if name == "neg":
        return Form({key: _scaled(reading, "neg", p) for key, p in found[0].products.items()})
    if name == "div":
        if set(found[1].products) != {()}:
            return None
        by = found[1].products[()].coefficient
        return Form({key: _scaled(reading, "div", p, by) for key, p in found[0].products.items()})
    if name == "mul":
        return _multiplied(reading, found[0].products, found[1].products)
    return None


def _square(reading: Any, form: Form) -> Form | None:
    if form.linear is not None:
        return None if form.linear.squared else Form({}, replace(form.linear, squared=True))
    return _multiplied(reading, form.products, form.products)


def _limited(products: dict[Key, Product]) -> Form | None:
    return Form(products) if len(products) <= MOST_TERMS else None


_OPERATIONS: dict[str, Any] = {"add": jax.lax.add, "mul": jax.lax.mul, "div": jax.lax.div, "neg": jax.lax.neg}


def _binary(reading: Any, name: str, *values: Held) -> Held:
    axes, arrays = align([v.without_form() for v in values], reading.rows)
    known = constants.elementwise(name, {}, arrays)
    if known is not None:
        return Held(known, axes)
    return Held(_OPERATIONS[name](*broadcast_all(arrays)), axes)


def _scaled(reading: Any, name: str, product: Product, *by: Held) -> Product:
    return replace(product, coefficient=_binary(reading, name, product.coefficient, *by))


def _added(reading: Any, first: dict[Key, Product], second: dict[Key, Product]) -> dict[Key, Product]:
    result = dict(first)
    for key, product in second.items():
        if key in result:
            both = _binary(reading, "add", result[key].coefficient, product.coefficient)
            result[key] = replace(result[key], coefficient=both)
        else:
            result[key] = product
    return result


def _multiplied(reading: Any, first: dict[Key, Product], second: dict[Key, Product]) -> Form | None:
    if len(first) * len(second) > MOST_TERMS**2:
        return None
    total: dict[Key, Product] = {}
    for (a, p), (b, q) in itertools.product(first.items(), second.items()):
        key = tuple(sorted((*a, *b), key=repr))
        coefficient = _binary(reading, "mul", p.coefficient, q.coefficient)
        features = [x for x in (p.feature, q.feature) if x is not None]
        largest = [x for x in (p.largest, q.largest) if x is not None]
        if len(features) == 2:
            product = Product(coefficient, _binary(reading, "mul", *features), _binary(reading, "mul", *largest))
        elif features:
            product = Product(coefficient, features[0], largest[0])
        else:
            product = Product(coefficient, None, None)
        total = _added(reading, total, {key: product})
    return _limited(total)


# ---- the sum over columns as one matrix product ------------------------------------------------------------------


def contract(reading: Any, value: Held, axes: Sequence[int]) -> Held | None:
    """The sum of a form along axes that are not the rows, as a matrix product; None where that is not what it is."""
    assert value.form is not None
    if value.form.linear is not None:
        return _contract_square(reading, value.form.linear, axes)
    products = list(value.form.products.values())
    if not any(p.feature is not None for p in products):
        return None
    parts = [v for p in products for v in (p.coefficient, p.feature, p.largest) if v is not None]
    layout, arrays = align(parts, reading.rows)
    atoms = [a for axis in layout for a in axis]
    if ROWS not in atoms:
        return None
    lengths = list(rows_last(atoms, atoms))
    starts = np.cumsum([0, *(len(a) for a in layout)])
    places = list(rows_last(range(len(atoms)), atoms))
    summed = [places.index(p) for axis in axes for p in range(starts[axis], starts[axis + 1])]
    kept = [i for i in range(len(lengths) - 1) if i not in summed]
    each = iter(arrays)
    constant: Any = 0.0
    left, right, bounds = [], [], []
    for product in products:
        coefficient = next(each)
        if product.feature is None:
            repeated = math.prod(lengths[i] for i in summed if coefficient.shape[i] == 1)
            constant = constant + jnp.sum(coefficient, axis=tuple(summed), keepdims=True) * float(repeated)
            continue
        feature = next(each)
        largest = next(each)
        if any(feature.shape[i] != 1 for i in kept):
            return None
        # Summed over what the feature does not change along.
        own = [i for i in summed if feature.shape[i] != 1]
        rest = tuple(i for i in summed if feature.shape[i] == 1)
        repeated = math.prod(lengths[i] for i in rest if coefficient.shape[i] == 1)
        coefficient = jnp.sum(coefficient, axis=rest, keepdims=True) * float(repeated)
        wide = [coefficient.shape[i] if i in kept else feature.shape[i] for i in range(len(lengths) - 1)]
        coefficient = jnp.broadcast_to(coefficient[..., 0], wide)
        coefficient = jnp.moveaxis(coefficient, own, range(-len(own), 0)) if own else coefficient
        count = math.prod(feature.shape[:-1])
        left.append(coefficient.reshape((*[wide[i] for i in kept], count)))
        right.append(feature.reshape((count, feature.shape[-1])))
        bounds.append(jnp.broadcast_to(largest, (*feature.shape[:-1], 1)).reshape(count))
    extent = np.broadcast_shapes(*[x.shape[:-1] for x in left])
    matrix = jnp.concatenate([jnp.broadcast_to(x, (*extent, x.shape[-1])) for x in left], -1)
    features = jnp.concatenate(right, 0)
    _bounded(reading, jnp.abs(matrix) @ jnp.concatenate(bounds), jnp.abs(constant))
    total = (matrix.reshape((-1, matrix.shape[-1])) @ features).reshape((*extent, features.shape[-1]))
    if not isinstance(constant, float):
        total = total + constant.reshape(([constant.shape[i] for i in kept]) + [1])
    remaining = tuple(axis for i, axis in enumerate(layout) if i not in axes)
    return Held(total, remaining)


def _required(value: Held | None) -> Held:
    assert value is not None
    return value


def _bounded(reading: Any, *parts: Any) -> None:
    """Note how large the products are that cancel."""
    total = sum(jnp.max(jax.lax.stop_gradient(p)) for p in parts)
    reading.bounds.append(total)


# ---- linear maps (a mean and a Cholesky factor) ------------------------------------------------------------------


def solved(reading: Any, equation: Any, matrix: Any, b: Held, axes: Axes, n: int) -> Form | None:
    """L^-1 (y - mu) as a linear map of y and 1: `matrix` is L, (components..., n, n)."""
    assert b.form is not None
    if b.form.linear is not None:
        return None
    shape = matrix.shape[:-2]
    (inverse,) = constants.bind(
        equation.primitive, equation.params, matrix, jnp.broadcast_to(jnp.eye(n, dtype=matrix.dtype), matrix.shape)
    )
    coefficients, features, largest = [], [], []
    constant: Any = None
    for product in b.form.products.values():
        # (components..., n) of the coefficient, the rows of length one gone
        _, (own, _) = align([product.coefficient, Held(np.empty((1,) * sum(len(a) for a in axes)), axes)], reading.rows)
        own = jnp.broadcast_to(own[..., 0], (*shape, n))
        if product.feature is None:
            constant = jnp.einsum("...jd,...d->...j", inverse, own)[..., None]
            continue
        feature = product.feature.array
        if math.prod(feature.shape[:-2]) != 1 or feature.shape[-2] != n:
            return None
        coefficients.append(inverse * own[..., None, :])
        features.append(feature.reshape((n, feature.shape[-1])))
        largest.append(jnp.asarray(_required(product.largest).array).reshape(n))
    if not features:
        return None
    if constant is not None:
        coefficients.append(constant)
        features.append(jnp.ones((1, features[0].shape[-1]), features[0].dtype))
        largest.append(jnp.ones((1,), features[0].dtype))
    full = jnp.concatenate(coefficients, -1)
    return Form({}, Linear(full, jnp.concatenate(features, 0), jnp.concatenate(largest), axes))


def _contract_square(reading: Any, linear: Linear, axes: Sequence[int]) -> Held | None:
    """sum_j (sum_f C[j, f] s[f])^2 as one product with the features s[f] s[g]."""
    full = [i for i, axis in enumerate(linear.axes) if axis and axis != (ROWS,)]
    wanted = [i for i in axes if linear.axes[i]]
    if not linear.squared or wanted != [full[-1]] or len(linear.axes[full[-1]]) != 1:
        return None
    c = linear.coefficients
    gram = jnp.einsum("...jf,...jg->...fg", c, c)
    count = c.shape[-1]
    first, second = np.triu_indices(count)
    twice = np.where(first == second, 1.0, 2.0).astype(c.dtype)
    # Slices in the order of these pairs: an index would be a gather, which `unroll` does not follow.
    matrix = jnp.concatenate([gram[..., i, i:] for i in range(count)], -1) * twice
    features = _in_pairs(linear.features)
    _bounded(reading, jnp.abs(matrix) @ _in_pairs(linear.largest))
    total = (matrix.reshape((-1, len(first))) @ features).reshape((*matrix.shape[:-1], features.shape[-1]))
    return Held(total, tuple(axis for i, axis in enumerate(linear.axes) if i not in axes))


def _in_pairs(x: Any) -> Any:
    """The products of each entry with itself and all that follow."""
    return jnp.concatenate([jax.lax.slice_in_dim(x, i, i + 1) * x[i:] for i in range(len(x))])
