"""Chains side by side: a compiled block of steps at a time, in threads, saved on the way."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from marginalia.infer.checkpoint import leaves, rebuild
from marginalia.infer.problem import workers
from marginalia.precision import in_float64
from marginalia.running import Threads

type Piece = list[np.ndarray]


@dataclass
class Chains:
    """Chains on their way: everything that a later step depends on.

    Attributes:
        held: Per chain, the sampler's state and the blocks so far: the block's arrays, each with the steps as
            leading axis. The two change together, so that an interrupt finds them in step.
        interrupted: Whether the user stopped them; they may then differ in length.
    """

    held: list[tuple[Any, list[Piece]]]
    interrupted: bool = False

    @property
    def pieces(self) -> list[list[Piece]]:
        """The blocks of each chain."""
        return [pieces for _, pieces in self.held]

    def part(self, index: int, first: int, last: int) -> np.ndarray:
        """One of the arrays, steps `first` to `last` of every chain: `(chain, step, ...)`."""
        return np.stack([np.concatenate([piece[index] for piece in pieces])[first:last] for pieces in self.pieces])

    def kept(self) -> dict[str, Any]:
        """Them as a checkpoint keeps them."""
        return {
            "states": [leaves(state) for state, _ in self.held],
            "blocks": [len(pieces) for pieces in self.pieces],
            "joined": [[np.concatenate(part) for part in zip(*pieces, strict=True)] for pieces in self.pieces],
        }


def begin(states: list[Any]) -> list[tuple[Any, list[Piece]]]:
    """What chains hold before their first block."""
    return [(state, []) for state in states]


def restore(template: Any, kept: dict[str, Any]) -> list[tuple[Any, list[Piece]]]:
    """What chains held when they were kept; `template` has the structure of a state."""
    return [
        (rebuild(template, values), _apart(joined, count))
        for values, joined, count in zip(kept["states"], kept["joined"], kept["blocks"], strict=True)
    ]


def advance(
    chains: Chains,
    blocks: int,
    step: Callable[[Any, list[Piece]], tuple[Any, Piece]],
    tell: Callable[[], None],
    save: Callable[[bool], None],
) -> None:
    """All chains to `blocks` blocks, in threads; stops early when the user interrupts.

    Args:
        chains: They change in place.
        blocks: Number of blocks per chain, those included that are there.
        step: From a chain's state and its blocks so far to the next state and block; depends on nothing else.
        tell: Called when there are new blocks.
        save: Called after that, with True at the end and at an interrupt.
    """
    held = chains.held
    run = in_float64(step)
    with Threads(min(workers(), len(held))) as pool:
        # One block of each chain is in the queue at any time, so the chains advance together.
        running: dict[Future[Any], int] = {
            pool.submit(run, *held[c]): c for c in range(len(held)) if len(held[c][1]) < blocks
        }
        try:
            while running:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    c = running.pop(future)
                    state, piece = future.result()
                    held[c] = state, [*held[c][1], piece]
                    if len(held[c][1]) < blocks:
                        running[pool.submit(run, *held[c])] = c
                tell()
                save(not running)
        except KeyboardInterrupt:
            chains.interrupted = True
            for future in running:
                future.cancel()
            save(True)


def _apart(joined: Piece, count: int) -> list[Piece]:
    """Blocks of equal length, from arrays of all their steps."""
    if not count:
        return []
    return [list(part) for part in zip(*(np.split(array, count) for array in joined), strict=True)]
