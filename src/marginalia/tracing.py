"""Run a NumPyro program to look at it: its sites under trace, its failures told in the user's words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.primitives import Messenger

from marginalia.errors import DataError, ModelError, Refusal, compose
from marginalia.parameters import Pending
from marginalia.places import user_frame
from marginalia.running import running
from marginalia.steps import Look, Steps, given


class _Watch(Messenger):
    """Remembers which value belongs to which site, so that an error can speak of sites."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, tuple[Any, Any]] = {}

    def postprocess_message(self, message: dict[str, Any]) -> None:
        if message["type"] == "sample":
            self.values[message["name"]] = (message["value"], message["fn"])


def placeholder(site: dict[str, Any], step: Any) -> Any:
    """For every latent a value of the right shape that was not drawn."""
    if site["value"] is not None or site["is_observed"]:
        return None
    fn = site["fn"]
    dtype = jnp.result_type(int) if is_discrete(fn) else jnp.result_type(float)
    # A value that JAX does not know: what is computed from it is abstract, as it will be in the density.
    return jax.lax.optimization_barrier(jnp.ones(fn.shape(site["kwargs"].get("sample_shape") or ()), dtype))


class AnyRows(Messenger):
    """Tells plates that would draw some of their rows which rows to take: all of them, or those given by name."""

    def __init__(self, chosen: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.chosen = chosen

    def process_message(self, message: dict[str, Any]) -> None:
        if message["type"] != "plate" or message["value"] is not None:
            return
        size, drawn = message["args"]
        rows = self.chosen.get(message["name"])
        message["drawn"] = drawn
        message["args"] = (size, None if rows is None else len(rows))
        with jax.ensure_compile_time_eval():  # known numbers, so that they may index a NumPy array too
            message["value"] = jnp.asarray(np.arange(size) if rows is None else rows)


class OnRows:
    """A model whose plates take the rows that they are told instead of drawing some (see `AnyRows`).

    `cut` are plates whose data are some rows already, so that there is nothing to draw.
    """

    def __init__(
        self, model: Callable[..., Any], chosen: Mapping[str, np.ndarray], cut: frozenset[str] = frozenset()
    ) -> None:
        functools.update_wrapper(self, model)
        self.inner = model
        self.chosen = dict(chosen)
        self.cut = cut

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with AnyRows(self.chosen):
            return self.inner(*args, **kwargs)


def run_model(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Any],
    key: Any = None,
    look: Look | None = None,
) -> dict[str, dict[str, Any]]:
    """Run a program under trace with values put in, its failures told in the user's words.

    What `look` gives of a site, where it stands, is its `seen` (see `Steps`).
    """
    seed = handlers.seed(rng_seed=0 if key is None else key)
    steps = Steps(given(values), look)
    with reading(), handlers.trace() as sites, seed, steps:
        model(*args, **kwargs)
    return {name: site | {"seen": steps.seen.get(name)} for name, site in sites.items()}


@contextmanager
def reading() -> Iterator[list[Pending]]:
    """Tell the failures of a program in the user's words; gives what is to be checked of its parameters later."""
    watch = _Watch()
    try:
        with running() as pending, watch:
            yield pending
    except jax.errors.ConcretizationTypeError as error:
        raise _explain_python_use(error, watch) from error
    except jax.errors.TracerArrayConversionError as error:
        raise _explain_python_use(error, watch) from error
    except jax.errors.TracerIntegerConversionError as error:
        raise _explain_python_use(error, watch) from error
    except jax.errors.NonConcreteBooleanIndexError as error:
        raise _explain_python_use(error, watch) from error
    except AssertionError as error:
        if "unique names" in str(error):
            raise ModelError(
                compose(
                    str(error),
                    remedy="give every sample statement a name of its own, f-strings help in loops.",
                )
            ) from error
        if "size of plate" in str(error):
            raise DataError(
                compose(
                    "the data have no rows: a plate has size 0",
                    expected="at least one row",
                    remedy="check how the table was filtered.",
                )
            ) from error
        raise


def _explain_python_use(error: Exception, watch: _Watch) -> ModelError | Refusal:
    frame = user_frame(error.__traceback__)
    if frame is None:
        return ModelError(compose("the program needs the value of a latent while it is being read", got=str(error)))
    filename, line, text, local = frame
    where = f"{Path(filename).name}, line {line}"
    named = [v for v in local if _mentions(text, v)]
    sites = [
        name for name, (value, fn) in watch.values.items() if is_discrete(fn) and any(local[v] is value for v in named)
    ]
    maybe = [name for name, (_, fn) in watch.values.items() if is_discrete(fn)]
    if sites or (maybe and not any(value is local.get(v) for value, _ in watch.values.values() for v in named)):
        who = ", ".join(f"'{s}'" for s in (sites or maybe))
        return Refusal(
            compose(
                f"the discrete site {who} decides a Python `if`, loop or index that Python itself evaluates: `{text}`",
                where=where,
                expected="the same program for every state of a discrete, so that all states can be summed",
                got="a decision that Python takes while the program is read",
                remedy="write the choice as an array operation: `jnp.where(z == 0, a, b)`, an index `mu[z]`, or "
                "`jax.lax.cond` / `jax.lax.switch`.",
            )
        )
    return ModelError(
        compose(
            f"Python needs the value of something that has none yet while the program is read: `{text}`",
            where=where,
            got=str(error).splitlines()[0],
            remedy="compute shapes and counts with NumPy from the data (`int(np.max(group)) + 1`), and choose between "
            "values with `jnp.where`.",
        )
    )


def _mentions(text: str, name: str) -> bool:
    try:
        code = compile(
            text.strip().rstrip(":") if not text.strip().startswith(("if", "while", "for")) else text.strip() + " pass",
            "<line>",
            "exec",
        )
    except SyntaxError:
        return name in text
    return name in code.co_names


def peel(fn: Any) -> tuple[Any, Any]:
    """A distribution without `.to_event`, `.mask`: its elements stay apart; the mask of each is given back."""
    mask: Any = None
    while True:
        if isinstance(fn, dist.Independent):
            mask = _wider(mask, fn.reinterpreted_batch_ndims)
            fn = fn.base_dist
        elif isinstance(fn, dist.MaskedDistribution):
            mask = _both(mask, fn._mask)
            fn = fn.base_dist
        elif isinstance(fn, dist.ExpandedDistribution) and isinstance(
            fn.base_dist, dist.Independent | dist.MaskedDistribution
        ):
            inner, own = peel(fn.base_dist)
            extra = fn.base_dist.event_dim - inner.event_dim
            fn = inner.expand((*fn.batch_shape, *fn.base_dist.event_shape[:extra]))
            return fn, _both(_wider(mask, extra), own)
        else:
            return fn, mask


def masks_of(fn: Any) -> int:
    """How many masks a distribution carries."""
    count = 0
    while isinstance(fn, dist.Independent | dist.MaskedDistribution | dist.ExpandedDistribution):
        count += isinstance(fn, dist.MaskedDistribution)
        fn = fn.base_dist
    return count


def masks_around(fn: Any, own: int) -> Any:
    """The mask put on a distribution from outside, beyond its `own` masks; of each element, None if there is none."""
    mask: Any = None
    while masks_of(fn) > own:
        mask = _both(mask, fn._mask)
        fn = fn.base_dist
    return _wider(mask, fn.event_dim - peel(fn)[0].event_dim)


def _wider(mask: Any, axes: int) -> Any:
    return mask if mask is None or not np.ndim(mask) else jnp.reshape(mask, (*jnp.shape(mask), *(1,) * axes))


def _both(first: Any, second: Any) -> Any:
    return second if first is None else first if second is None else first & second


def is_discrete(fn: Any) -> bool:
    support = fn.support
    return bool(getattr(support, "is_discrete", False)) and not isinstance(fn, dist.Unit | dist.Delta)
