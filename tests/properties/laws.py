"""What the engine says about a random program, beside brute force."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from grammar import Written, compiled, step_by_step
from jax.flatten_util import ravel_pytree
from scipy.special import logsumexp

import marginalia as mg
from marginalia.lanes import alike, sums
from marginalia.marginal import chain, scaled
from marginalia.rows import streaming
from oracle import Oracle, enumerate_all, trace

FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiling costs more than running here."""

EXACT = 1e-9


@dataclass
class Verdict:
    """`kind`: "exact", "refused", "idle" (the oracle itself is not finite here), or "wrong" with the reasons."""

    kind: str
    why: list[str] = field(default_factory=list)


def judge(written: Written, *, hessian: bool = False, brief: bool = False) -> Verdict:
    """Compare density, gradient, marginals, mode and, unless `brief`, log-likelihood of a program with brute force."""
    model = written.model
    try:
        with np.errstate(invalid="ignore"):  # where everything is impossible
            truth = enumerate_all(_unscaled(written), (), written.params, compiler_options=FAST)
    except TypeError as error:  # JAX cannot run it at all: the grammar does not know of weak types
        return Verdict("idle", [str(error)])
    if not np.isfinite(truth.density):
        return Verdict("idle")
    with _checking(written.checked), _eager(len(written.source) % 2 == 0, by_rows=len(written.source) % 8 == 0):
        try:
            marginal = mg.marginalize(model)
        except mg.Refusal as refusal:
            return Verdict("refused", [str(refusal)])
        return Verdict(*_compared(written, marginal, truth, hessian, brief))


@contextlib.contextmanager
def _eager(yes: bool, *, by_rows: bool) -> Iterator[None]:
    """Strategies that are for many discretes, used for few: every second program tests them so.

    Every eighth also goes in blocks of two rows and, if it is a chain, in linear space: two ways more to compile.
    """
    before = sums.COUNT_FROM, chain.SHORTEST, alike.FEWEST
    rows = streaming.FEWEST_ROWS, streaming.LONGEST_BLOCK, chain.LONG, scaled.SHORTEST_SEGMENT
    if yes:
        sums.COUNT_FROM, chain.SHORTEST, alike.FEWEST = 4, 3, 2
    if by_rows:
        streaming.FEWEST_ROWS, streaming.LONGEST_BLOCK, chain.LONG, scaled.SHORTEST_SEGMENT = 2, 2, 1, 1
    try:
        yield
    finally:
        sums.COUNT_FROM, chain.SHORTEST, alike.FEWEST = before
        streaming.FEWEST_ROWS, streaming.LONGEST_BLOCK, chain.LONG, scaled.SHORTEST_SEGMENT = rows


@contextlib.contextmanager
def _checking(yes: bool) -> Iterator[None]:
    """NumPyro's validation as the program wants it."""
    numpyro.enable_validation(yes)
    try:
        yield
    finally:
        numpyro.enable_validation(True)


def _unscaled(written: Written) -> Any:
    source = written.source.replace("handlers.scale(scale=2.5)", "handlers.scale(scale=1.0)")
    return compiled(source, step_by_step)


def _by_step(written: Written, answers: dict[str, Any]) -> dict[str, Any]:
    """Answers for the sites of a loop, one name for each step, as brute force has them."""
    found = {}
    for name, value in answers.items():
        steps = written.steps.get(name)
        found |= {name: value} if steps is None else {f"{i}/{name}": value[i] for i in range(steps)}
    return found


def _compared(written: Written, marginal: Any, truth: Oracle, hessian: bool, brief: bool) -> tuple[str, list[str]]:
    kernel = marginal.kernel
    whole = marginal.complete.kernel  # with the discretes that no data reach

    def everything(params: Any) -> Any:
        value, gradient = jax.value_and_grad(kernel.log_density)(params, kernel.data)
        answers = {
            "posterior": whole.posterior(params, whole.data),
            "mode": whole.mode(params, whole.data),
        }
        if not brief:
            answers["likelihood"] = kernel.log_likelihood(params, kernel.data)
        return value, gradient, answers

    with jax.enable_x64(True):
        params = {n: jnp.asarray(v, float) for n, v in written.params.items()}
        value, gradient, answers = jax.device_get(jax.jit(everything, compiler_options=FAST)(params))
    why: list[str] = []
    # Brute force rounds to float32 where the program does (a cast, the mean of whole numbers of 32 bits).
    close = functools.partial(_close, tolerance=1e-5 if _rounds_to_singles(written) else EXACT)
    close(value, written.scale * truth.density, "density", why)
    for name, expected in truth.gradient.items():
        if np.isfinite(expected).all():
            close(gradient[name], written.scale * expected, f"gradient of {name}", why)
        elif not np.isfinite(gradient[name]).all():  # brute force meets a pole in a branch that is not taken
            why.append(f"gradient of {name}: {gradient[name]}")
    posterior, mode = (_by_step(written, answers[key]) for key in ("posterior", "mode"))
    for name, expected in truth.marginals().items():
        close(posterior[name], expected, f"posterior of {name}", why)
    best = truth.table[truth.index(mode)]
    close(best, truth.table.max(), "joint at the mode", why)
    proper = abs(logsumexp(truth.prior)) < 1e-9  # a masked discrete counts its states instead of weighing them
    if not brief and proper and not any(n.startswith("c") for n in written.params):
        # No continuous latent hangs on a discrete: what is left of the density are the latents' own priors.
        total = sum(float(np.sum(v)) for v in answers["likelihood"].values())
        prior = truth.log_prior_of_latents()
        close(total, truth.density - prior, "total of log_likelihood", why)
    if hessian and not why:
        close(_curvature(kernel, written), _reference_curvature(written, truth), "hessian", why, tolerance=1e-6)
    return ("wrong" if why else "exact"), why


def _rounds_to_singles(written: Written) -> bool:
    def densities(params: Any) -> list[Any]:
        return [site["fn"].log_prob(site["value"]) for site in trace(written.model, params, ()).values()]

    with jax.enable_x64(True):
        return "f32[" in str(jax.make_jaxpr(densities)(written.params))


def _curvature(kernel: Any, written: Written) -> np.ndarray:
    with jax.enable_x64(True):
        fixed, flat, back = _free(written)
        density = lambda x: kernel.log_density({**fixed, **back(x)}, kernel.data)  # noqa: E731
        function = jax.jit(jax.hessian(density), compiler_options=FAST)
        return np.asarray(function(flat))


def _free(written: Written) -> tuple[dict[str, np.ndarray], Any, Any]:
    """The latents that can be moved one number at a time; a point on the simplex cannot."""
    fixed = {n: v for n, v in written.params.items() if n == "w"}
    flat, back = ravel_pytree({n: jnp.asarray(v, float) for n, v in written.params.items() if n not in fixed})
    return fixed, flat, back


def _reference_curvature(written: Written, truth: Oracle) -> np.ndarray:
    """Central differences of the brute-force gradient, for the second derivatives of custom rules."""
    rows = []
    step = 1e-5
    with jax.enable_x64(True):
        fixed, flat, back = _free(written)
        for i in range(len(flat)):
            sides = []
            for sign in (1, -1):
                moved = np.array(flat)
                moved[i] += sign * step
                o = enumerate_all(_unscaled(written), (), {**fixed, **back(jnp.asarray(moved))}, compiler_options=FAST)
                sides.append(np.asarray(ravel_pytree({n: o.gradient[n] for n in back(flat)})[0]))
            rows.append((sides[0] - sides[1]) / (2 * step))
    return written.scale * np.array(rows)


def _close(actual: Any, expected: Any, what: str, why: list[str], tolerance: float = EXACT) -> None:
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    if actual.shape != expected.shape:
        why.append(f"{what}: shape {actual.shape} instead of {expected.shape}")
        return
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    if not np.isfinite(actual).all() or np.max(np.abs(actual - expected), initial=0.0) > tolerance * scale:
        text = re.sub(r"\s+", " ", f"{what}: {actual} instead of {expected}")
        why.append(text)
