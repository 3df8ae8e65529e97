"""To take part in each step of NumPyro's `scan` as one takes part in a program outside.

NumPyro shows the sites of a `scan` to handlers around it only after the loop: their distributions have been taken to
pieces and put together along time, which not all of them survive (supports, private parts, validation). What is asked
of a site is therefore asked where it stands, in its own step; the answers come out of the loop stacked along time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.primitives import Messenger

from marginalia.data_checks import check_scanned
from marginalia.errors import Refusal, compose

type Message = dict[str, Any]
type Choose = Callable[[Message, Any], Any]
type Look = Callable[[Message, Any], Any]


class Steps(Messenger):
    """Gives values to sites and looks at them, in loops as outside.

    `choose(site, step)` gives a site's value or None; `look(site, step)` gives arrays, kept in `seen` by the name
    of the site, those of a loop stacked along time. `step` is the place along time inside a loop, None outside.
    """

    def __init__(self, choose: Choose | None = None, look: Look | None = None) -> None:
        super().__init__()
        self.choose, self.look = choose, look
        self.seen: dict[str, Any] = {}
        self._waiting: set[str] = set()  # sites of a loop that are to be shown after it

    def process_message(self, message: Message) -> None:
        if message["type"] == "control_flow":
            if _is_loop(message):
                self._enter(message)
            else:
                _into_branches(self.choose, message, None)
        elif message["type"] == "sample" and not message.get("_control_flow_done"):
            _choose(self.choose, message, None)

    def postprocess_message(self, message: Message) -> None:
        if message["type"] == "control_flow" and _is_loop(message):
            last, (trace, (collected, seen)) = message["value"]
            message["value"] = (last, (trace, collected))
            self.seen.update(seen)
            self._waiting = set(seen)
        elif message["type"] == "sample" and self.look is not None:
            if not self._waiting:  # outside, or one of the branches of `cond`
                self.seen[message["name"]] = self.look(message, None)
            elif message["name"] in self._waiting:
                self._waiting.remove(message["name"])
            else:
                raise Refusal(
                    compose(
                        "a site of a `scan` is renamed by a handler around the `scan`",
                        where=f"site '{message['name']}'",
                        expected="names that are the same inside the loop",
                        remedy="put the handler (`handlers.scope`) inside the function that is scanned.",
                    )
                )

    def _enter(self, message: Message) -> None:
        body, initial, scanned, length, reverse = message["args"]
        check_scanned(scanned)
        if length is None:
            length = jnp.shape(jax.tree.leaves(scanned)[0])[0]

        def step(carry: Any, now: Any) -> Any:
            place, x = now
            with _Step(self, place) as inside:
                carry, collected = body(carry, x)
            return carry, (collected, inside.seen)

        message["args"] = (step, initial, (np.arange(length), scanned), length, reverse)


class _Step(Messenger):
    def __init__(self, outer: Steps, place: Any) -> None:
        super().__init__()
        self.outer, self.place = outer, place
        self.seen: dict[str, Any] = {}
        self._loop_within = False

    def __enter__(self) -> _Step:
        super().__enter__()
        return self

    def process_message(self, message: Message) -> None:
        if message["type"] == "control_flow":
            if _is_loop(message):
                self._loop_within = True
                return
            _into_branches(self.outer.choose, message, self.place)
        elif message["type"] == "sample" and not message.get("_control_flow_done"):
            _choose(self.outer.choose, message, self.place)

    def postprocess_message(self, message: Message) -> None:
        if message["type"] != "sample":
            return
        if self._loop_within and message.get("_control_flow_done"):
            raise Refusal(
                compose(
                    "a `scan` inside a `scan` has sites of its own",
                    where=f"site '{message['name']}'",
                    expected="sites in one `scan` at a time, as NumPyro reads them",
                    remedy="write the inner loop in Python, or as an array in the outer loop's step.",
                )
            )
        if self.outer.look is not None:
            self.seen[message["name"]] = self.outer.look(message, self.place)


def _is_loop(message: Message) -> bool:
    return len(message["args"]) == 5  # body, start, what is scanned, length, direction; `cond` has four


def _into_branches(choose: Choose | None, message: Message, step: Any) -> None:
    if choose is not None:
        message["kwargs"]["substitute_stack"].append(("substitute", lambda site: choose(site, step)))


def _choose(choose: Choose | None, message: Message, step: Any) -> None:
    value = None if choose is None else choose(message, step)
    if value is not None:
        message["value"] = value


def given(values: Mapping[str, Any]) -> Choose:
    """Values by the names of sites; those of a loop have time first."""

    def choose(message: Message, step: Any) -> Any:
        value = values.get(message["name"])
        if value is None or step is None:
            return value
        return jax.lax.dynamic_index_in_dim(jnp.asarray(value), step, keepdims=False)

    return choose
