"""Which observed sites a prediction draws anew, and which it holds at what was observed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from marginalia.errors import OptionError, compose
from marginalia.jaxpr.reads import dependencies
from marginalia.running import running

OBSERVED, UNOBSERVED = "_observed", "_unobserved"
"""What NumPyro adds to the name of a site that is given for some elements (`obs_mask=`): it makes two sites of it."""


class Anew(Messenger):
    """Draws observed sites anew, but for those that are held."""

    def __init__(self, fn: Callable[..., Any], held: Collection[str]) -> None:
        super().__init__(fn)
        self.held = held

    def process_message(self, message: dict[str, Any]) -> None:
        if message["type"] == "control_flow":
            # Inside a scan, so that what is drawn at a step is what the next one reads.
            message["kwargs"]["substitute_stack"].append(("substitute", self._draw))
        if message.get("_control_flow_done") or not self._is_drawn(message):
            return
        message["is_observed"], message["value"] = False, None
        if message["kwargs"]["rng_key"] is None:  # `seed` has passed over what was observed
            message["kwargs"]["rng_key"] = numpyro.prng_key()

    def _is_drawn(self, site: dict[str, Any]) -> bool:
        observed = site["type"] == "sample" and site["is_observed"] and site["name"] not in self.held
        return observed and not isinstance(site["fn"], dist.Unit)

    def _draw(self, site: dict[str, Any]) -> Any:
        if not self._is_drawn(site):
            return None
        return site["fn"](rng_key=numpyro.prng_key(), sample_shape=site["kwargs"]["sample_shape"])


@dataclass(frozen=True)
class Choice:
    """`held` says why each site is held, `read` which drawn sites are read by others: `{site: its readers}`."""

    held: dict[str, str] = field(default_factory=dict)
    read: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def said(self) -> dict[str, str]:
        """Attributes of a prediction."""
        words = {}
        if self.held:
            words["held"] = "at what was observed: " + "; ".join(f"{n}, {why}" for n, why in self.held.items())
        if self.read:
            words["covariates"] = "; ".join(
                f"{n} is drawn anew, and {_listed(by)} follows what was drawn: hold={n!r} keeps what was observed"
                for n, by in self.read.items()
            )
        return words


def choose(
    run: Callable[[], Mapping[str, Any]], observed: Collection[str], hold: Sequence[str], draw: Sequence[str]
) -> Choice:
    """Which of the observed sites are held.

    `run` gives the program's trace, its continuous latents at some draw. A site is held without being named where

    - it was given for some elements only (`obs_mask=`) and another site reads it: a row whose label is known keeps it;
    - a continuous latent or a factor reads it: the draws were made with this value;
    - one of its numbers serves several of another site's, which has more of them or lies in a plate that this one does
      not lie in: a parameter that was fixed (`handlers.condition`), what is known of a group.

    Other observed sites are drawn, also where another reads them, number by number (a covariate with a distribution of
    its own).

    Raises:
        OptionError: `hold` or `draw` name what is no observed site, or both the same.
    """
    hold, draw = (_resolved(names, observed, what) for names, what in ((hold, "hold"), (draw, "draw")))
    if both := [n for n in hold if n in draw]:
        raise OptionError(
            compose("a site cannot be held and drawn", where=f"predict(), site {both[0]!r}", remedy="name it once.")
        )
    sites, reads = _readers(run, observed)
    held = {name: "as asked for" for name in observed if name in hold}
    read: dict[str, tuple[str, ...]] = {}
    for name in observed:
        if name in held or name not in sites:
            continue
        readers = [n for n, of in reads.items() if name in of and n != name]
        why = None if name in draw else _reason(name, readers, sites)
        if why is not None:
            held[name] = why
        elif readers:
            read[name] = tuple(readers)
    return Choice(held, {n: by for n, by in read.items() if any(r not in held for r in by)})


def _reason(name: str, readers: Sequence[str], sites: Mapping[str, Any]) -> str | None:
    own = sites[name]
    if readers and name.endswith(OBSERVED) and name.removesuffix(OBSERVED) + UNOBSERVED in sites:
        return f"given for some elements and read by {_listed(readers)}"
    for reader in readers:
        other = sites[reader]
        if isinstance(other["fn"], dist.Unit):
            return f"read by the factor {reader}"
        continuous = not other["is_observed"] and not other["fn"].support.is_discrete
        if continuous and not reader.endswith(UNOBSERVED):
            return f"read by {reader}, whose draws were made with it"
        larger = math.prod(np.shape(other["value"])) > math.prod(np.shape(own["value"]))
        if larger or _plates(other) - _plates(own):
            return f"shared by several numbers of {reader}"
    return None


def _plates(site: Mapping[str, Any]) -> set[str]:
    return {frame.name for frame in site["cond_indep_stack"]}


class _Shaken(Messenger):
    """Adds an unknown zero to each observed value, so that what is computed from it can be told."""

    def __init__(self, zeros: Mapping[str, Any]) -> None:
        super().__init__()
        self.zeros = zeros

    def process_message(self, message: dict[str, Any]) -> None:
        if message["type"] == "sample" and message["is_observed"] and message["name"] in self.zeros:
            value = jnp.asarray(message["value"])
            zero = self.zeros[message["name"]]
            message["value"] = value ^ (zero > 0) if value.dtype == bool else value + zero.astype(value.dtype)


def _readers(
    run: Callable[[], Mapping[str, Any]], observed: Collection[str]
) -> tuple[dict[str, Any], dict[str, set[str]]]:
    """The sites, and which observed values the log-probability of each depends on."""
    names = list(observed)
    sites: dict[str, Any] = {}

    def outputs(zeros: list[Any]) -> list[Any]:
        with running(), _Shaken(dict(zip(names, zeros, strict=True))):
            trace = run()
        sites.update({n: s for n, s in trace.items() if s["type"] == "sample"})
        return [jnp.asarray(s["fn"].log_prob(s["value"])) for s in sites.values()]

    found = dependencies(jax.make_jaxpr(outputs)([jax.ShapeDtypeStruct((), float)] * len(names)).jaxpr)
    return sites, {n: {names[i] for i in of} for n, of in zip(sites, found, strict=True)}


def _resolved(names: Sequence[str], observed: Collection[str], what: str) -> list[str]:
    found = []
    for name in (names,) if isinstance(names, str) else names:
        own = name if name in observed else f"{name}{OBSERVED}"
        if own not in observed:
            raise OptionError(
                compose(
                    f"there is no observed site {name!r}",
                    where=f"predict({what}=...)",
                    expected=f"some of {_listed(observed)}" if observed else "a program that observes data",
                )
            )
        found.append(own)
    return found


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(str, names))


def combined(trace: Mapping[str, Any]) -> dict[str, Any]:
    """The sites that were given for some elements, whole: `{name: value}`."""
    whole = {n.removesuffix(UNOBSERVED) for n in trace if n.endswith(UNOBSERVED)}
    return {n: trace[n]["value"] for n in whole if n in trace and trace[n]["type"] == "deterministic"}
