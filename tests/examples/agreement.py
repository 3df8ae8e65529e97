"""What every example has to show: the oracle's numbers at a small size, and that it works at a moderate one.

The oracles are NumPy and SciPy by hand, one per model, beside its test; they share nothing with the engine nor with
the program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import marginalia as mg
from study import close


def agrees(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    params: Mapping[str, Any],
    density: float,
    memberships: Mapping[str, np.ndarray],
    *,
    verify: bool = True,
    **kwargs: Any,
) -> mg.Marginal:
    """Density and memberships equal the oracle's to 1e-10, and enumeration agrees, gradient included.

    `verify=False` leaves the enumeration to `test_enumeration.py`, where it takes seconds to compile.
    """
    marginal = mg.marginalize(model, *args, **kwargs)
    kernel = marginal.kernel
    with jax.enable_x64(True):
        point = {name: np.asarray(params[name], dtype=np.float64) for name in marginal.program.latents}
        both = jax.jit(lambda p, d: (kernel.log_density(p, d), kernel.posterior(p, d)))
        value, found = jax.device_get(both(point, kernel.data))
    close(value, density, "log density")
    assert set(found) == set(memberships)
    for name, expected in memberships.items():
        close(found[name], expected, f"membership of {name}")
    if verify:
        enumeration_agrees(marginal)
    return marginal


def enumeration_agrees(marginal: mg.Marginal) -> None:
    verification = mg.verify(marginal)
    assert verification.complete, "a size at which all joint states can be enumerated"
    assert verification.agrees, str(verification)


def works(model: Callable[..., Any], args: tuple[Any, ...], **kwargs: Any) -> str:
    """At a moderate size: read, explained, density and gradient finite, as a sampler sees them. Gives the plan."""
    marginal = mg.marginalize(model, *args, **kwargs)
    kernel = marginal.kernel
    rng = np.random.default_rng(0)
    start = {name: rng.normal(0, 0.5, shape) for name, shape in kernel.unconstrained_shapes.items()}

    def density(unconstrained: Any, data: Any) -> Any:
        params, jacobian = kernel.constrain(unconstrained)
        return kernel.log_density(params, data) + jacobian

    with jax.enable_x64(True):
        value, gradient = jax.device_get(jax.jit(jax.value_and_grad(density))(start, kernel.data))
    assert np.isfinite(value)
    for name, slope in gradient.items():
        assert np.isfinite(slope).all(), f"gradient of {name}: {slope}"
        assert np.all(slope != 0), f"{name} has no part in the density"
    plan = marginal.explain()
    names = list(marginal.program.discretes)
    assert names[0] in plan, plan
    assert names[-1] in plan, plan
    return plan


def normalised(log_joint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log of the sum over the last axis, and what each entry has of it."""
    largest = log_joint.max(-1, keepdims=True)
    total = np.exp(log_joint - largest).sum(-1, keepdims=True)
    return (largest + np.log(total))[..., 0], np.exp(log_joint - largest) / total


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
