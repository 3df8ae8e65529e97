"""Arguments of `fit` under the names that other tools give them, or in a place where they do not belong."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from marginalia.errors import OptionError, compose
from marginalia.infer import options

_ELSEWHERE = {
    "random_seed": ("seed", "rng_seed", "rng_key", "key", "random_state"),
    "progressbar": ("progress", "progress_bar", "show_progress"),
    "draws": ("num_samples", "iter_sampling", "n_samples", "samples"),
    "tune": ("num_warmup", "warmup", "iter_warmup", "burn_in"),
    "chains": ("num_chains",),
    "target_accept": ("target_accept_prob", "adapt_delta"),
}
"""Our name, and what PyMC, NumPyro, Stan, scikit-learn and people call it."""


def refuse_misplaced(model: Callable[..., Any], kwargs: Mapping[str, Any], method: type) -> None:
    """Say where a named argument belongs that the model does not take. `method` is the class of the chosen options.

    Raises:
        OptionError: An argument is one of `fit` under another name, or an option of a method.
    """
    try:
        parameters = inspect.signature(model).parameters
    except (TypeError, ValueError):
        return
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for name, value in kwargs.items():
        if name in parameters:
            continue
        ours = next((own for own, others in _ELSEWHERE.items() if name in others), name)
        takers = [o for o in options.__all__ if ours in {f.name for f in dataclasses.fields(getattr(options, o))}]
        if ours in ("random_seed", "progressbar"):
            remedy = f"say `{ours}=...`: that is its name here."
        elif takers:
            chosen = method.__name__ if method.__name__ in takers else "NUTS" if "NUTS" in takers else takers[0]
            remedy = f"it is an option of the method: `method=mg.{chosen}({ours}={value!r})`."
        else:
            continue
        raise OptionError(
            compose(
                f"neither `fit` nor the model {getattr(model, '__name__', '')} takes an argument `{name}`",
                where="fit()",
                remedy=remedy,
            )
        )
