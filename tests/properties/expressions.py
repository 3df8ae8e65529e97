"""Expressions over discretes, as text: what users write, and what they might.

Each function gives one expression in the names that are there; many do not fit their shapes, and JAX says so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grammar import Writer


def _axis(w: Writer, x: str) -> str:
    rank = len(w.shapes[x])
    return "0" if rank == 0 else str(w.pick([*range(-rank, rank), -1]))


def _arithmetic(w: Writer) -> str:
    op = w.pick(["+", "-", "*", "*", "/", "//", "%", "**"])
    x, y = w.reader(), w.any()
    if op == "**":
        return f"{x} ** {w.pick([2, 3])}"
    if op in ("/", "//", "%"):
        return f"{x} {op} {w.pick(['2', '3', '-2', f'(1 + {y} ** 2)', f'({y} * {y} + 2)'])}"
    return w.pick([f"{x} {op} {y}", f"{y} {op} {x}", f"{x} {op} {w.pick([2, -1, 0.5])}"])


def _comparison(w: Writer) -> str:
    x = w.reader("i")
    return f"{x} {w.pick(['==', '!=', '<', '<=', '>', '>='])} {w.pick([w.any('i'), '1', '0', '2'])}"


def _boolean(w: Writer) -> str:
    x, y = f"({_comparison(w)})", w.pick([w.any("b"), f"({_comparison(w)})"])
    return w.pick([f"{x} & {y}", f"{x} | {y}", f"~{x}", f"{x} ^ {y}", f"jnp.logical_and({x}, {y})"])


def _where(w: Writer) -> str:
    test = w.pick([f"({_comparison(w)})", w.reader("b")])
    return f"jnp.where({test}, {w.any()}, {w.pick([w.any(), '0.5', '-1.', w.reader()])})"


def _index(w: Writer) -> str:
    z, y = w.reader("i"), w.any("i")
    n = w.pick([0, 1])
    return w.pick(
        [
            f"mu[{z}]",
            f"mu[{z}]",
            f"k3[{z}]",
            f"t[{z}]",
            f"t[{z}, {y}]",
            f"t[{n}, {z}]",
            f"t[:, {z}]",
            f"jnp.asarray(k23)[{n}, {z}]",
            f"t[{z}, {z}]",
            f"t[{z}][..., {y}]",
            f"jnp.take(mu, {z}, mode='clip')",
            f"mu[{z} % 3]",
            f"mu[-{z}]",
            f"jnp.take(t, {z} % 4, axis={n})",
            f"mu.at[{z}].get(mode='fill', fill_value=0.25)",
            f"{w.any()}[{z}]",
        ]
    )


def _position(w: Writer) -> str:
    x = w.reader()
    return w.pick(
        [
            f"{x}[0]",
            f"{x}[-1]",
            f"{x}[1:]",
            f"{x}[:-1]",
            f"{x}[::-1]",
            f"{x}[::2]",
            f"{x}[g[:{w.pick([2, 3, 5])}] % 2]",
            f"{x}[i3]",
            f"{x}[..., 0]",
            f"{x}[..., ::-1]",
            f"{x}[:, 1]",
            f"{x}[None]",
            f"{x}[..., None]",
            f"{x}[[1, 0]]",
            f"{x}.at[jnp.array([0, 7])].get(mode='fill', fill_value=1)",
            f"{x}[jnp.array([[0, 1], [1, 1]])]",
            f"lax.dynamic_slice_in_dim({x}, 1, 1)",
            f"lax.dynamic_index_in_dim({x}, {w.any('i')} % 2, keepdims=False)",
            f"{x}[[0, 1], [1, 0]]",
            f"{x}[:, [1, 0, 1]]",
            f"jnp.take({x}, jnp.array([0, -1, 9]), mode='clip', axis=-1)",
        ]
    )


def _layout(w: Writer) -> str:
    x, y = w.reader(), w.any()
    size = math.prod(w.shapes[x])
    axis = _axis(w, x)
    return w.pick(
        [
            f"jnp.stack([{x}, {y}])",
            f"jnp.stack([{x}, {y}], -1)",
            f"jnp.vstack([{x}, {y}])",
            f"jnp.hstack([{x}, {y}])",
            f"jnp.concatenate([{x}, {y}], {axis})",
            f"jnp.concatenate([{x}[1:], {x}[:1]])",
            f"{x}.reshape(-1)",
            f"{x}.reshape({w.pick([(2, size // 2), (size // 2, 2), (1, size), (size, 1), (3, size // 3)])})",
            f"jnp.transpose({x})",
            f"jnp.swapaxes({x}, 0, -1)",
            f"jnp.moveaxis({x}, 0, -1)",
            f"jnp.roll({x}, {w.pick([1, -1])})",
            f"jnp.roll({x}, 1, axis={axis})",
            f"jnp.flip({x}, {axis})",
            f"jnp.pad(jnp.atleast_1d({x}), {w.pick(['1', '(0, 1)', '(2, 0)'])})",
            f"jnp.pad(jnp.atleast_1d({x}), 1, mode='{w.pick(['edge', 'wrap', 'reflect'])}')",
            f"jnp.tile({x}, 2)",
            f"jnp.repeat({x}, 2)",
            f"jnp.repeat({x}, 2, axis={axis})",
            f"jnp.diff({x})",
            f"jnp.diff({x}, axis={axis})",
            f"jnp.broadcast_to({x}, (2, *{w.shapes[x]}))",
            f"jnp.squeeze({x})",
            f"jnp.ravel({x}, order='F')",
            f"jnp.tril(jnp.atleast_2d({x}))",
            f"jnp.diag({x})",
            f"jnp.concatenate([{x}, jnp.zeros(1)])",
            f"jnp.split({x}, 2)[0]",
            f"jnp.append({x}, {y})",
            f"jnp.rot90({x})",
        ]
    )


def _reduction(w: Writer) -> str:
    x = w.reader()
    axis = w.pick([_axis(w, x), _axis(w, x), "None"])
    keep = w.pick(["", "", ", keepdims=True"])
    name = w.pick(["sum", "sum", "mean", "max", "min", "prod", "any", "all", "var", "median", "std", "ptp"])
    if name in ("any", "all"):
        x = f"({x} > {w.pick([0, 1])})"
    if name in ("std", "var"):
        return f"jnp.var({x} * 1.0, axis={axis}{keep})"
    return f"jnp.{name}({x}, axis={axis}{keep})"


def _scanning(w: Writer) -> str:
    x = w.reader()
    axis = _axis(w, x)
    return w.pick(
        [
            f"jnp.cumsum({x}, axis={axis})",
            f"jnp.cumprod({x} * 0.5, axis={axis})",
            f"lax.cummax({x} * 1.0)",
            f"jnp.sort({x}, axis={axis})",
            f"jnp.argmax({x}, axis={axis})",
            f"jnp.argmin({x}, axis={axis})",
            f"jnp.argsort({x}, axis={axis})",
            f"jnp.cumsum({x})",
            f"jax.nn.logsumexp({x} * 1.0, axis={axis})",
            f"jax.nn.softmax({x} * 1.0, axis={axis})",
            f"lax.top_k({x}, 2)[0]",
            f"jax.nn.log_softmax({x} * 1.0, axis={axis})",
            f"lax.cumlogsumexp({x} * 1.0)",
            f"jnp.searchsorted(jnp.array([-0.5, 0.5, 1.5]), {x})",
            f"jnp.searchsorted(jnp.sort({x}), 0.7)",
            f"lax.associative_scan(jnp.add, {x})",
            f"lax.associative_scan(jnp.maximum, {x})",
        ]
    )


def _product(w: Writer) -> str:
    x, y = w.reader(), w.any()
    return w.pick(
        [
            f"jnp.dot({x}, {y})",
            f"{x} @ {y}",
            f"jnp.matmul(t, {x})",
            f"{x} @ k3",
            f"k23 @ {x}",
            f"jnp.outer({x}, {y})",
            f"jnp.dot({x}, {x})",
            f"jnp.einsum('i,i->i', {x}, {y})",
            f"jnp.einsum('i,j->ji', {x}, {y})",
            f"jnp.einsum('ij,j->i', {x}, {y})",
            f"jnp.einsum('ij,ij->', {x}, {x})",
            f"jnp.einsum('ij,kj->ik', {x}, {y})",
            f"jnp.einsum('ii->i', {x})",
            f"jnp.vdot({x}, {y})",
            f"t[:{'2' if w.chance(50) else '3'}, :2] @ {x}",
            f"jnp.kron({x}, {y})",
            f"jnp.trace(jnp.outer({x}, {x}))",
            f"jnp.linalg.norm({x} + 0.5)",
            f"jnp.linalg.norm({x} + 0.5, axis=-1)",
            f"jnp.linalg.solve(jnp.eye(2) * 3. + jnp.outer({x}[:2], {x}[:2]), jnp.ones(2))",
            f"jnp.linalg.slogdet(jnp.eye(2) * 3. + jnp.outer({x}[:2], {x}[:2]))[1]",
            f"jnp.tensordot({x}, {y}, 1)",
            f"jnp.linalg.cholesky(jnp.eye(2) * 9. + 0.5 * jnp.diag({x}[:2]))",
            f"jnp.convolve({x}, {w.pick(['k3', y])})",
        ]
    )


def _pointwise(w: Writer) -> str:
    x, y = w.reader(), w.any()
    return w.pick(
        [
            f"jnp.tanh({x})",
            f"jnp.exp(-({x}) ** 2 * 0.1)",
            f"jnp.log1p(jnp.abs({x}))",
            f"jax.nn.sigmoid({x} * 1.0)",
            f"jax.nn.softplus({x} * 1.0)",
            f"jax.nn.relu({x} * 1.0)",
            f"jax.scipy.special.xlogy({x} * 1.0, s)",
            f"jax.scipy.special.xlogy({x} ** 2 * 1.0, 1.0 + {y} ** 2)",
            f"jnp.clip({x}, 0, 1)",
            f"jnp.clip({x}, -1, {y})",
            f"jnp.abs({x})",
            f"jnp.sign({x})",
            f"jnp.maximum({x}, {y})",
            f"jnp.minimum({x}, 1)",
            f"{x}.astype(float)",
            f"{x}.astype(int)",
            f"{x}.astype(bool)",
            f"jnp.logaddexp({x} * 1.0, {y} * 1.0)",
            f"jnp.float32({x})",
            f"jnp.sqrt(1. + {x} ** 2)",
            f"jax.scipy.special.gammaln(1.5 + {x} ** 2)",
            f"jnp.round({x} * 0.7)",
            f"jnp.mod({x}, 3)",
            f"jnp.floor_divide({x}, 2)",
            f"jax.nn.one_hot({x}, 3)",
            f"jax.nn.one_hot({x}, 2) @ mu[:2]",
            f"lax.stop_gradient({x})",
            f"jax.scipy.stats.norm.logcdf({x} * 1.0)",
            f"jax.nn.gelu({x} * 1.0)",
            f"jnp.hypot({x} + 0.5, {y} + 0.1)",
            f"jnp.arctan2({x} + 0.5, 2.)",
            f"jnp.nan_to_num({x} * 1.0)",
            f"jnp.select([{x} == 0, {x} == 1], [{y}, a], 0.3)",
            f"jnp.piecewise({x} * 1.0, [{x} > 0], [0.2, 0.7])",
            f"jnp.interp({x} * 1.0, k3[[1, 0, 2]], k3)",
            f"jnp.bitwise_and({x}, 1)",
            f"jnp.left_shift({x}, 1)",
            f"jnp.polyval(k3, {x} * 1.0)",
        ]
    )


def _placing(w: Writer) -> str:
    x, y = w.reader(), w.any()
    z = w.reader("i")
    return w.pick(
        [
            f"{x}.at[0].set({y})",
            f"{x}.at[0].set(1)",
            f"{x}.at[1:].set(0)",
            f"{x}.at[-1].add(1)",
            f"{x}.at[i3[:2]].set(2)",
            f"{x}.at[0].multiply(2)",
            f"jnp.zeros({w.shapes[x]}).at[...].set({x})",
            f"jnp.zeros(3).at[{z}].set(1.)",
            f"jnp.zeros(3).at[{z}].add(0.5)",
            f"jnp.zeros(3).at[jnp.atleast_1d({z})].add(jnp.ravel({y})[0])",
            f"jnp.zeros((3, 2)).at[i3[:2]].add(jnp.atleast_1d({x})[:2, None] * mu[:2])",
            f"lax.top_k(jnp.atleast_1d({x}), 1)[{w.pick([0, 1])}]",
            f"jnp.digitize({x} * 1.0, jnp.array([0.5, 1.5]))",
            f"mu.at[{z}].set(0.1)",
            f"mu.at[0].set({y})",
            f"{x}.at[:, 0].set({y})",
            f"{x}.at[..., 0].add({y})",
            f"jax.ops.segment_sum({x}, g[:{max(1, (*w.shapes[x], 1)[0])}], 3)",
            f"jax.ops.segment_max({x} * 1.0, np.arange({max(1, (*w.shapes[x], 1)[0])}) % 2, 2)",
            f"jnp.bincount(jnp.atleast_1d({z}), length=3)",
            f"jnp.take_along_axis({x}, {w.any('i')}, axis={_axis(w, x)}, mode='clip')",
            f"jnp.take_along_axis(t, {z}[:, None] % 4, axis=1)",
            f"jnp.take_along_axis(mu, jnp.atleast_1d({z}), 0)",
            f"lax.dynamic_update_slice({x}, jnp.ones_like({x}[:1]), (1,) * {len(w.shapes[x])})",
            f"jnp.argwhere(jnp.atleast_1d({x}), size=2)[:, 0]",
            f"jnp.unique({z}, size=3, fill_value=0)",
            f"jnp.count_nonzero({x})",
            f"jax.ops.segment_sum(mu[:{max(1, (*w.shapes[z], 1)[0])}], {z}, 3)",
        ]
    )


def _control(w: Writer) -> str:
    x, y, z = w.reader(), w.any(), w.reader("i")
    first = f"jnp.ravel({z})[0]"
    return w.pick(
        [
            f"lax.cond({first} > 0, lambda: {x} * 1.0, lambda: {x} * 0.5)",
            f"lax.cond({first} == 1, lambda v: v + 1, lambda v: v * 2, {x})",
            f"lax.switch({first}, [lambda v: v * 1., lambda v: v * a, lambda v: -1. * v], {y})",
            f"jax.vmap(lambda i: mu[i])({z})",
            f"jax.vmap(lambda i, v: jnp.where(i == 1, v, -v))({z}, {x})",
            f"jax.vmap(lambda v: jnp.sum(v))({x})",
            f"jax.jit(lambda v: v * a + 1)({x})",
            f"jax.vmap(lambda i: lax.cond(i > 0, lambda: a, lambda: 0.5))({z})",
            f"jax.vmap(lambda i: lax.switch(i, [lambda: a, lambda: s, lambda: 0.]))({z})",
            f"lax.scan(lambda c, v: (c + v, c), jnp.zeros_like({x}[0]), {x})[1]",
            f"lax.scan(lambda c, v: (v, c * v), jnp.ones_like({x}[0]), {x})[1]",
            f"lax.scan(lambda c, v: (v, mu[c % 4] + v), 0, {z})[1]",
            f"lax.scan(lambda c, v: ((c[1], v), c[0] + v), (0, 0), {z})[1]",
            f"lax.scan(lambda c, v: (v, t[c % 4, v % 4]), 0, {z}, reverse=True)[1]",
            f"lax.scan(lambda c, v: (0.5 * c + v, c), 0.0, {x})[0]",
            f"lax.scan(lambda c, v: (c + 1, mu[v % 4] * c), 0., {z})[1]",
            f"lax.fori_loop(0, 2, lambda i, v: v + {x}[i], 0. * {x}[0])",
            f"lax.fori_loop(0, 3, lambda i, v: v * 0.5 + {y}, {x} * 1.0)",
            f"lax.map(lambda v: v * 2 + a, {x})",
            f"lax.map(lambda i: mu[i % 4], {z})",
            f"lax.while_loop(lambda v: v < 2, lambda v: v + 1, {first})",
            f"jax.checkpoint(lambda v: jnp.tanh(v * a))({x} * 1.0)",
            f"jax.grad(lambda v: jnp.sum(jnp.tanh(v) ** 2))({x} * 1.0)",
            f"jnp.vectorize(lambda i: mu[i])({z})",
            f"jax.vmap(lambda i: t[i % 4].sum())({z})",
            f"jax.vmap(lambda r: r @ r)({x})",
            f"jnp.apply_along_axis(lambda r: r.max(), -1, {x})",
        ]
    )


EXPRESSIONS = [
    _arithmetic,
    _comparison,
    _boolean,
    _where,
    _where,
    _index,
    _index,
    _index,
    _position,
    _position,
    _layout,
    _layout,
    _reduction,
    _reduction,
    _scanning,
    _product,
    _pointwise,
    _pointwise,
    _placing,
    _control,
]
