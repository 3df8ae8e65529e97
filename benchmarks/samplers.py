"""A posterior by each of the libraries: raw draws come back, and what they are worth is computed after the clock."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import Answer, Outcome

DATA = Path(__file__).parent.parent / "tests" / "data"
Columns = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def ours(program: str, y: np.ndarray, method: Callable[[Any], Any], *args: Any) -> Outcome:
    """`mg.fit` of the unmodified program; `method` is called with the library, so that options can be made."""
    import marginalia as mg
    from benchmarks import programs

    fit = mg.fit(getattr(programs, program), y, *args, method=method(mg), random_seed=1, progressbar=False)
    return Outcome(_seconds(fit.result.info), draws=fit.draws, note=" ".join([fit.method, *fit.status]))


def _seconds(info: Mapping[str, Any]) -> dict[str, float]:
    return {f"{name}_s": float(value) for name, value in info.items() if name.startswith("seconds")}


def by_numpyro(
    model: Callable[..., Any], y: np.ndarray, *, draws: int, tune: int, chains: int, dtype: str = "float32",
    parallel: int = 1, start: Mapping[str, np.ndarray] | None = None,
) -> Outcome:  # fmt: skip
    """NumPyro's NUTS on a program without discretes, or on one that it enumerates itself."""
    import jax
    import numpyro
    from numpyro.infer import MCMC, NUTS, init_to_uniform, init_to_value

    jax.config.update("jax_enable_x64", dtype == "float64")
    if parallel > 1:
        numpyro.set_host_device_count(parallel)
    how = "parallel" if parallel > 1 else "vectorized"
    begin = init_to_value(values=dict(start)) if start else init_to_uniform
    mcmc = MCMC(
        NUTS(model, init_strategy=begin),
        num_warmup=tune,
        num_samples=draws,
        num_chains=chains,
        chain_method=how,
        progress_bar=False,
    )
    with warnings.catch_warnings():
        # it counts on as many devices as chains; fewer work in turn
        warnings.filterwarnings("ignore", message="There are not enough devices")
        mcmc.run(jax.random.key(1), y.astype(dtype))
    found = {name: np.asarray(v) for name, v in mcmc.get_samples(group_by_chain=True).items()}
    return Outcome(draws=found)


def by_pymc(build: Callable[[Any], Any], *, draws: int, tune: int, chains: int, nutpie: bool = False) -> Outcome:
    """PyMC's NUTS, or nutpie's on PyMC's compiled density; `build` is called with PyMC and gives the model."""
    import pymc as pm

    model = build(pm)
    if nutpie:
        import nutpie as sampler

        begun = time.perf_counter()
        compiled = sampler.compile_pymc_model(model)
        figures = {"compile_s": time.perf_counter() - begun}
        found = sampler.sample(compiled, draws=draws, tune=tune, chains=chains, cores=2, seed=1, progress_bar=False)
    else:
        figures = {}
        with model:
            found = pm.sample(draws, tune=tune, chains=chains, cores=2, random_seed=1, progressbar=False)
    names = [variable.name for variable in model.free_RVs]
    return Outcome(figures, draws={name: found.posterior[name].values for name in names})


def in_order(by: str, others: tuple[str, ...]) -> Columns:
    """Components from left to right in every draw, for all contenders alike: `by` is what is sorted, `(.., K)`."""

    def columns(draws: Mapping[str, np.ndarray]) -> np.ndarray:
        order = np.argsort(draws[by], axis=-1)
        return np.concatenate([np.take_along_axis(np.asarray(draws[n]), order, axis=-1) for n in (by, *others)], -1)

    return columns


def published(mean: list[float], sd: list[float], digits: list[float], effective: float = 2000) -> Mapping[str, Answer]:
    """An answer printed to `digits`, from so many effective draws."""
    error = np.hypot(np.array(sd) / np.sqrt(effective), np.array(digits) / np.sqrt(12))
    return {"posterior means": Answer(np.array(mean), error)}
