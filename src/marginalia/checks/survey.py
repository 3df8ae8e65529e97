"""Run a program once to look at it: its sites, plates and data, without judging any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.primitives import Messenger

from marginalia.checks.identity import addresses, identities
from marginalia.jaxpr.known import known_values
from marginalia.steps import Steps
from marginalia.tracing import AnyRows, is_discrete, peel, placeholder, reading

type Kind = Literal["latent", "discrete", "observed", "factor"]


@dataclass
class Seen:
    """A sample site. Arrays are None where they depend on a latent; `elements` says which numbers in memory."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    plates: tuple[str, ...]
    distribution: str = ""
    support: str = ""
    element_dim: int = 0
    improper: bool = False
    value: np.ndarray | None = None
    elements: np.ndarray | None = None
    mask: np.ndarray | None = None
    inside: np.ndarray | None = None

    @property
    def used(self) -> np.ndarray:
        """Which elements of the value count: true where no mask hides them."""
        if self.mask is None:
            return np.ones(self.shape, bool)
        mask = np.asarray(self.mask, bool)
        try:
            return np.broadcast_to(mask, self.shape)
        except ValueError:
            return np.broadcast_to(mask.reshape(mask.shape + (1,) * (len(self.shape) - mask.ndim)), self.shape)

    @property
    def masked_out(self) -> bool:
        return self.mask is not None and self.mask.size > 0 and not np.any(self.mask)


@dataclass
class Survey:
    """Sites in program order, plates with every size they were given; `complete` when the program came to its end."""

    sites: dict[str, Seen] = field(default_factory=dict)
    plates: dict[str, list[int]] = field(default_factory=dict)
    complete: bool = False


class _Watch(Messenger):
    """Hands every site and plate over as soon as it is known, so that a program that stops has left its traces."""

    def __init__(self, see: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self.see = see

    def postprocess_message(self, message: dict[str, Any]) -> None:
        self.see(message)


@contextmanager
def _watched(see: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    with reading(), handlers.trace(), _Watch(see), handlers.seed(rng_seed=0), Steps(placeholder), AnyRows({}):
        yield


def survey(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Survey:
    """Look at a program. Raises what the program raises, and `Refusal` where Python wants a discrete's value."""
    result = Survey()
    outputs: list[Any] = []
    places: list[tuple[Seen, str]] = []

    def put(seen: Seen, attribute: str, value: Any) -> None:
        if isinstance(value, jax.core.Tracer):
            outputs.append(value)
            places.append((seen, attribute))
        elif isinstance(value, np.ndarray | jax.Array):
            setattr(seen, attribute, np.asarray(value))
            if attribute == "value":
                seen.elements = addresses(value)
        else:
            setattr(seen, attribute, np.asarray(value))

    def see(message: dict[str, Any]) -> None:
        if message["type"] == "plate":
            result.plates.setdefault(message["name"], []).append(message["args"][0])
        elif message["type"] == "sample":
            result.sites[message["name"]] = _site(message, put)

    def run() -> list[Any]:
        with _watched(see):
            model(*args, **kwargs)
        return outputs

    closed = jax.make_jaxpr(run)()
    elements = identities(closed)
    for (seen, attribute), known, own in zip(places, known_values(closed), elements, strict=True):
        setattr(seen, attribute, None if known is None else known.get())
        if attribute == "value":
            seen.elements = own
    result.complete = True
    return result


def shapes(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Survey:
    """Only shapes and plates, as far as the program comes: one that does not fit together leaves what it had."""
    result = Survey()

    def see(message: dict[str, Any]) -> None:
        if message["type"] == "plate":
            result.plates.setdefault(message["name"], []).append(message["args"][0])
        elif message["type"] == "sample":
            plates = tuple(frame.name for frame in message["cond_indep_stack"])
            result.sites[message["name"]] = Seen(message["name"], "latent", tuple(np.shape(message["value"])), plates)
            if message["is_observed"]:
                _log_prob_must_fit(message)

    def run() -> None:
        with _watched(see):
            model(*args, **kwargs)

    # What a program does with arrays that do not fit is its own or a library's affair; only that it stops matters.
    try:
        jax.make_jaxpr(run)()
    except (TypeError, ValueError, IndexError, AssertionError, RuntimeError):
        return result
    result.complete = True
    return result


def _log_prob_must_fit(message: dict[str, Any]) -> None:
    """A site whose data and distribution pair up only by stretching the data does not fit."""
    shape, own = tuple(np.shape(message["value"])), message["fn"].shape()
    if np.broadcast_shapes(shape, own) != shape and shape:
        raise ValueError(f"{shape} under {own}")


def _site(message: dict[str, Any], put: Callable[[Seen, str, Any], None]) -> Seen:
    fn = message["fn"]
    shape = tuple(np.shape(message["value"]))
    plates = tuple(frame.name for frame in message["cond_indep_stack"])
    if isinstance(fn, dist.Unit):
        return Seen(message["name"], "factor", shape, plates)
    base, mask = peel(fn)
    kind: Kind = "observed" if message["is_observed"] else "discrete" if is_discrete(fn) else "latent"
    seen = Seen(
        message["name"],
        kind,
        shape,
        plates,
        type(base).__name__,
        str(base.support),
        base.event_dim,
        isinstance(base, dist.ImproperUniform),
    )
    if mask is not None:
        put(seen, "mask", mask)
    if kind == "observed":
        put(seen, "value", message["value"])
        if _fits(shape, tuple(fn.shape())):
            put(seen, "inside", base.support(jnp.asarray(message["value"])))
    return seen


def _fits(shape: tuple[int, ...], own: tuple[int, ...]) -> bool:
    try:
        np.broadcast_shapes(shape, own)
    except ValueError:
        return False
    return True
