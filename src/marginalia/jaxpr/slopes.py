"""The same program with slopes that are numbers wherever a value is impossible.

The logarithm of a probability that is 0 has an infinite slope. A state with such a probability weighs nothing, but
reverse differentiation multiplies its weight 0 with infinity. So an operation that may meet a pole of its slope, or
what is not finite, is written in two halves: where it does, its value is taken as it is and nothing is differentiated;
everywhere else it is as before. `ranges.py` says where no pole is possible: a program without one is left as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from marginalia.jaxpr import constants
from marginalia.jaxpr.calls import inner_program, scan_counts
from marginalia.jaxpr.operations import range_of_operation
from marginalia.jaxpr.ranges import LADDER, REAL, Maybe, Range, join, range_of_array, widened, within
from marginalia.jaxpr.reads import live_equations


class Held(NamedTuple):
    """A value of the program: its array (None while it is only looked at), its range, whether it moves with a latent.

    A `tangent` is one of a function with a derivative of its own, or what is computed linearly from such.
    """

    array: Any
    range: Maybe
    moves: bool
    tangent: bool = False


class Pole(NamedTuple):
    """Where an operation has no slope: whether its ranges exclude it, where it is, and what stands in for a number."""

    excluded: Callable[..., bool]
    at: Callable[..., Any]
    instead: float


def _positive(x: Range) -> bool:
    return x.positive


_BELOW_ZERO = Pole(_positive, lambda x: x <= 0, 1.0)
_GAMMA = Pole(_positive, lambda x: (x <= 0) & (x == jnp.floor(x)), 1.0)
_UNIT = Pole(lambda x: x.above(-1.0) and x.below(1.0), lambda x: jnp.abs(x) >= 1, 0.0)


def _no_power(x: Any, y: Any) -> Any:
    """Where x ** y has no slope in x. Of a number below zero only whole powers are numbers."""
    return ((x == 0) & (y < 1)) | ((x < 0) & (y != jnp.floor(y)))


POLES: dict[str, Pole] = {
    "log": _BELOW_ZERO,
    "log2": _BELOW_ZERO,
    "sqrt": _BELOW_ZERO,
    "rsqrt": _BELOW_ZERO,
    "lgamma": _GAMMA,
    "digamma": _GAMMA,
    "cbrt": Pole(lambda x: x.nonzero, lambda x: x == 0, 1.0),
    "log1p": Pole(lambda x: x.above(-1.0), lambda x: x <= -1, 0.0),
    "acos": _UNIT,
    "asin": _UNIT,
    "atanh": _UNIT,
    "erf_inv": _UNIT,
    "acosh": Pole(lambda x: x.above(1.0), lambda x: x <= 1, 2.0),
    "div": Pole(lambda x, y: y.nonzero, lambda x, y: y == 0, 1.0),
    "pow": Pole(lambda x, y: x.positive or y.low >= 1, lambda x, y: _no_power(x, y), 1.0),
}
"""Operations with poles of their slope inside what they are used on."""

# fmt: off
NONLINEAR = frozenset({
    "asinh", "atan", "atan2", "bessel_i0e", "bessel_i1e", "cos", "cosh", "erf", "erfc", "exp", "exp2", "expm1",
    "igamma", "igammac", "integer_pow", "logistic", "mul", "polygamma", "regularized_incomplete_beta", "sin", "sinh",
    "square", "tan", "tanh", "zeta",
}) | frozenset(POLES)
# fmt: on
"""Elementwise operations whose slope is not finite where an operand is not."""


def with_finite_slopes(closed: core.ClosedJaxpr, ranges: Sequence[Maybe]) -> core.ClosedJaxpr:
    """The same function; `ranges` are those of its inputs."""
    inputs = [Held(None, r, _inexact(v.aval)) for r, v in zip(ranges, closed.jaxpr.invars, strict=True)]
    looking = _Reading(only_looking=True)
    looking.run_closed(closed, inputs)
    if not looking.doubtful:
        return closed

    def rewritten(*arrays: Any) -> list[Any]:
        held = [h._replace(array=a) for h, a in zip(inputs, arrays, strict=True)]
        return [h.array for h in _Reading().run_closed(closed, held)]

    return jax.make_jaxpr(rewritten)(*[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals])


def ranges_of_outputs(closed: core.ClosedJaxpr, ranges: Sequence[Maybe]) -> list[Maybe]:
    """Between which numbers each output lies; `ranges` are those of the inputs."""
    inputs = [Held(None, r, False) for r in ranges]
    return [h.range for h in _Reading(only_looking=True).run_closed(closed, inputs)]


def _inexact(aval: Any) -> bool:
    return bool(jnp.issubdtype(aval.dtype, jnp.inexact))


def _nothing(aval: Any) -> Held:
    return Held(None, REAL, False)


@dataclass
class _Reading:
    """One pass over a program: looking for what is doubtful, or writing it anew.

    Of the `tangents` of a function with a derivative of its own, only the slopes that multiply them matter.
    """

    only_looking: bool = False
    tangents: bool = False
    doubtful: bool = False

    def run_closed(self, closed: core.ClosedJaxpr, inputs: Sequence[Held]) -> list[Held]:
        consts = [Held(c, _range_of_constant(c), False) for c in closed.consts]
        return self.run(closed.jaxpr, consts, inputs)

    def run(self, jaxpr: core.Jaxpr, consts: Sequence[Held], inputs: Sequence[Held]) -> list[Held]:
        held: dict[Any, Held] = dict(zip(jaxpr.constvars, consts, strict=True))
        held.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Held:
            if isinstance(atom, core.Literal):
                about: Any = atom.aval
                array = np.asarray(atom.val, dtype=about.dtype)
                return Held(array, range_of_array(array), False)
            return held[atom]

        for equation in live_equations(jaxpr):
            held.update(
                zip(equation.outvars, self._equation(equation, [read(a) for a in equation.invars]), strict=True)
            )
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Held]) -> list[Held]:
        name = equation.primitive.name
        if name == "custom_jvp_call":
            return self._custom_jvp(equation, inputs)
        if (inner := inner_program(equation)) is not None and not name.startswith("custom"):
            return self._jit(equation, inner, inputs)
        if name == "scan":
            return self._scan(equation, inputs)
        if name == "cond":
            return self._cond(equation, inputs)
        moves = any(h.moves for h in inputs)
        ranges = range_of_operation(equation, [h.range for h in inputs])
        if name in ("max", "min") and any(_is_bottom(h, name) for h in inputs):
            ranges = [next((h.range for h in inputs if not _is_bottom(h, name)), None)]
        doubtful = moves and self._doubts(equation, inputs)
        self.doubtful = self.doubtful or doubtful
        if self.only_looking:
            arrays: list[Any] = [None] * len(equation.outvars)
        elif doubtful and self.tangents:
            arrays = [_without_infinite(equation, inputs)]
        elif doubtful:
            arrays = [_in_halves(equation, inputs)]
        else:
            arrays = constants.bind(equation.primitive, equation.params, *[h.array for h in inputs])
        return [
            Held(a, r, moves and _inexact(v.aval), any(h.tangent for h in inputs))
            for a, r, v in zip(arrays, ranges, equation.outvars, strict=True)
        ]

    def _doubts(self, equation: Any, inputs: list[Held]) -> bool:
        """Whether a slope of this operation may be infinite or no number."""
        name = equation.primitive.name
        if any(getattr(v.aval.dtype, "kind", "") == "c" for v in equation.invars):
            return False  # poles of complex functions are left as JAX has them
        infinite = [h.range is None for h in inputs]
        if name in ("mul", "dot_general"):
            return (inputs[0].moves and infinite[1]) or (inputs[1].moves and infinite[0])
        if name not in NONLINEAR:
            return False
        if name == "integer_pow" and equation.params["y"] < 0:
            return infinite[0] or not inputs[0].range.nonzero  # type: ignore[union-attr]
        if name == "div" and not inputs[1].moves:
            return infinite[1] or not inputs[1].range.nonzero  # type: ignore[union-attr]
        return any(infinite) or (name in POLES and not POLES[name].excluded(*[h.range for h in inputs]))

    # ---- programs inside ------------------------------------------------------------------------------------

    def _looked_at(self, closed: core.ClosedJaxpr, inputs: list[Held]) -> tuple[list[Held], bool]:
        looking = _Reading(only_looking=True, tangents=self.tangents)
        outputs = looking.run_closed(closed, [h._replace(array=None) for h in inputs])
        self.doubtful = self.doubtful or looking.doubtful
        return outputs, looking.doubtful

    def _as_it_is(self, equation: Any, inputs: list[Held], outputs: list[Held]) -> list[Held]:
        if self.only_looking:
            return outputs
        arrays = constants.bind(equation.primitive, equation.params, *[h.array for h in inputs])
        return [h._replace(array=a) for h, a in zip(outputs, arrays, strict=True)]

    def _jit(self, equation: Any, inner: core.ClosedJaxpr, inputs: list[Held]) -> list[Held]:
        outputs, doubtful = self._looked_at(inner, inputs)
        if self.only_looking or not doubtful:
            return self._as_it_is(equation, inputs, outputs)
        return self.run_closed(inner, inputs)

    def _scan(self, equation: Any, inputs: list[Held]) -> list[Held]:
        body, length, reverse = (equation.params[k] for k in ("jaxpr", "length", "reverse"))
        n_consts, n_carry = scan_counts(equation)
        fixed, scanned = inputs[:n_consts], inputs[n_consts + n_carry :]
        carry = [h._replace(array=None) for h in inputs[n_consts : n_consts + n_carry]]
        found: list[Held] = []
        for _ in range(2 + len(LADDER) * n_carry):
            found, doubtful = self._looked_at(body, [*fixed, *carry, *scanned])
            after = [
                Held(
                    None,
                    b.range if within(a.range, b.range) else widened(b.range, a.range),
                    a.moves or b.moves,
                    a.tangent or b.tangent,
                )
                for a, b in zip(found[:n_carry], carry, strict=True)
            ]
            if after == carry:
                break
            carry = after
        else:
            return self._as_it_is(equation, inputs, [h._replace(range=None) for h in found])
        outputs = [*carry, *found[n_carry:]]
        if self.only_looking or not doubtful:
            return self._as_it_is(equation, inputs, outputs)

        def step(arrays: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
            now = [h._replace(array=a) for h, a in zip(carry, arrays, strict=True)]
            own = [h._replace(array=x) for h, x in zip(scanned, xs, strict=True)]
            result = [h.array for h in self.run_closed(body, [*fixed, *now, *own])]
            return result[:n_carry], result[n_carry:]

        start = [h.array for h in inputs[n_consts : n_consts + n_carry]]
        last, collected = jax.lax.scan(step, start, [h.array for h in scanned], length, reverse)
        return [h._replace(array=a) for h, a in zip(outputs, [*last, *collected], strict=True)]

    def _cond(self, equation: Any, inputs: list[Held]) -> list[Held]:
        which, *operands = inputs
        branches = equation.params["branches"]
        looked = [self._looked_at(b, operands) for b in branches]
        outputs = [
            Held(None, join([h.range for h in cases]), any(h.moves for h in cases), any(h.tangent for h in cases))
            for cases in zip(*[found for found, _ in looked], strict=True)
        ]
        if self.only_looking or not any(doubtful for _, doubtful in looked):
            return self._as_it_is(equation, inputs, outputs)

        def branch(closed: core.ClosedJaxpr, *arrays: Any) -> list[Any]:
            held = [h._replace(array=a) for h, a in zip(operands, arrays, strict=True)]
            return [jnp.asarray(h.array) for h in self.run_closed(closed, held)]

        index = which.array.astype(jnp.int32)
        arrays = jax.lax.switch(index, [functools.partial(branch, b) for b in branches], *[h.array for h in operands])
        return [h._replace(array=a) for h, a in zip(outputs, arrays, strict=True)]

    def _custom_jvp(self, equation: Any, inputs: list[Held]) -> list[Held]:
        """A function with a derivative of its own: its value as it is, its slopes 0 where they are not finite."""
        body = equation.params["call_jaxpr"]
        outputs, doubtful = self._looked_at(body, inputs)
        if self.only_looking or not doubtful:
            return self._as_it_is(equation, inputs, outputs)
        moving = [i for i, h in enumerate(inputs) if _inexact(h.array)]

        def call(*arrays: Any) -> list[Any]:
            return constants.bind(equation.primitive, equation.params, *arrays)

        def push(arrays: list[Any], tangents: list[Any]) -> list[Any]:
            def of_moving(*moved: Any) -> list[Any]:
                every = list(arrays)
                for i, x in zip(moving, moved, strict=True):
                    every[i] = x
                return call(*every)

            return jax.jvp(of_moving, [arrays[i] for i in moving], tangents)[1]

        function = jax.custom_jvp(call)

        @function.defjvp
        def derivative(primals: Any, tangents: Any) -> Any:
            avals = [jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)) for p in primals]
            closed = jax.make_jaxpr(push)(avals, [avals[i] for i in moving])
            held = [h._replace(array=p) for h, p in zip(inputs, primals, strict=True)]
            held += [Held(tangents[i], REAL, True, True) for i in moving]
            slopes = _Reading(tangents=True).run_closed(closed, held)
            return function(*primals), [h.array for h in slopes]

        arrays = function(*[jnp.asarray(h.array) for h in inputs])
        return [h._replace(array=a) for h, a in zip(outputs, arrays, strict=True)]


def _is_bottom(held: Held, name: str) -> bool:
    """Whether a number of the program is the one that changes no maximum, or no minimum."""
    return isinstance(held.array, np.ndarray) and bool(np.all(held.array == (-np.inf if name == "max" else np.inf)))


def _range_of_constant(array: Any) -> Maybe:
    dtype = jnp.result_type(array)
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) or isinstance(array, jax.core.Tracer):
        return REAL
    return range_of_array(array)


# ---- one operation ------------------------------------------------------------------------------------------


def _in_halves(equation: Any, inputs: list[Held]) -> Any:
    """The operation, its slopes 0 at poles and where an operand is not finite."""
    name = equation.primitive.name
    arrays = [jnp.asarray(h.array) for h in inputs]
    (whole,) = constants.bind(equation.primitive, equation.params, *[jax.lax.stop_gradient(a) for a in arrays])
    if name == "dot_general":
        cleaned = [jnp.where(jnp.isfinite(a), a, 0) if _inexact(a) else a for a in arrays]
        bad = ~jnp.isfinite(whole)
    else:
        pole = POLES.get(name)
        bad = jnp.zeros((), bool) if pole is None else pole.at(*arrays)
        if name == "integer_pow" and equation.params["y"] < 0:
            bad = arrays[0] == 0
        for h, a in zip(inputs, arrays, strict=True):
            if h.range is None and _inexact(a):
                bad = bad | ~jnp.isfinite(a)
        instead = 1.0 if pole is None else pole.instead
        cleaned = [jnp.where(bad, jnp.asarray(instead, a.dtype), a) if _inexact(a) else a for a in arrays]
    if name == "pow":  # of a number below zero there is no slope in the power
        cleaned[1] = jnp.where(cleaned[0] < 0, jax.lax.stop_gradient(cleaned[1]), cleaned[1])
    (good,) = constants.bind(equation.primitive, equation.params, *cleaned)
    return jnp.where(bad, whole, good)


def _without_infinite(equation: Any, inputs: list[Held]) -> Any:
    """A product with a tangent: a slope that is not finite is 0. Linear in the tangent, as what it is part of."""
    name = equation.primitive.name
    arrays = [jnp.asarray(h.array) for h in inputs]
    if name not in ("mul", "div", "dot_general") or not any(h.tangent for h in inputs):
        return constants.bind(equation.primitive, equation.params, *arrays)[0]
    cleaned = [a if h.tangent else jnp.where(jnp.isfinite(a), a, 0) for h, a in zip(inputs, arrays, strict=True)]
    if name != "div":
        return constants.bind(equation.primitive, equation.params, *cleaned)[0]
    zero = cleaned[1] == 0
    return jnp.where(zero, 0, cleaned[0] / jnp.where(zero, 1, cleaned[1]))
