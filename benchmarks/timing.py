"""Clocks and memory, the same for every contender."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import Answer

# Relative error that a sum over rows may have, by float type: stated with the table.
PRECISION = {"float64": 1e-11, "float32": 3e-5}


def fastest(function: Callable[[], Any], *, seconds: float = 1.5, least: int = 5, most: int = 300) -> float:
    """Seconds of the fastest of several calls: the one that the machine's other work disturbed least."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < least or (len(times) < most and time.perf_counter() < until):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return min(times)


STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mb() -> float:
    """The most memory this process has held so far, or since `forget_peak`, in megabytes."""
    found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024


def forget_peak() -> None:
    """Let the peak begin anew, where the system can: making the data may have held more than all that follows."""
    if FORGET.exists():
        FORGET.write_text("5")


def exactly(value: Any, gradient: Any, dtype: str) -> dict[str, Answer]:
    """A density and its gradient as answers: the error is the float type's, relative to the largest number."""
    precision = PRECISION[dtype]
    flat = np.concatenate([np.ravel(np.asarray(gradient[name], float)) for name in sorted(gradient)])
    return {
        "log density": Answer(np.array([float(value)]), np.array([precision * abs(float(value))])),
        "gradient": Answer(flat, np.full(flat.shape, precision * np.abs(flat).max())),
    }


def evaluate(
    function: Callable[..., Any], params: dict[str, np.ndarray], data: Any, dtype: str, *, begun: float, base_mb: float
) -> tuple[dict[str, float], dict[str, Answer]]:
    """Compile a JAX log density with its gradient, time it, and hand over figures and answers.

    `begun` and `base_mb` are the clock and the memory when the data existed and nothing had been read or traced.
    """
    import jax

    params = {name: jax.numpy.asarray(v, dtype) for name, v in params.items()}
    data = jax.tree.map(jax.numpy.asarray, data)
    run = jax.jit(jax.value_and_grad(function)).lower(params, data).compile()
    compiled = time.perf_counter() - begun
    value, gradient = jax.block_until_ready(run(params, data))
    figures = {
        "compile_s": compiled,
        "evaluation_ms": 1e3 * fastest(lambda: jax.block_until_ready(run(params, data))),
        "peak_mb": peak_mb() - base_mb,
    }
    memory = run.memory_analysis()
    if memory is not None:
        figures["buffers_mb"] = memory.temp_size_in_bytes / 2**20
    return figures, exactly(value, gradient, dtype)
