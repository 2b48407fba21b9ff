"""Canvases whose changes are proposed from both sides and checked from the left before they are made: a noisy channel.

The denoise role reads a given canvas once and proposes changes; the encode role then reads the text as it stands
and with each of them, and what it says decides. What to propose and how to weigh it is the caller's
(editing/noisy_channel.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from redraft.engine.given import GivenCanvas


@dataclass(frozen=True)
class Change:
    """Slots start … start + len(slots) - 1 of a canvas hold `slots` instead."""

    start: int
    slots: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + len(self.slots)

    def made(self, slots: Sequence[int]) -> list[int]:
        """A canvas's slots with the change."""
        return [*slots[: self.start], *self.slots, *slots[self.stop :]]


class Review(Protocol):
    def propose(self, canvas: GivenCanvas, log_p: np.ndarray) -> Sequence[Change]:
        """Changes worth a check, none of which reaches a locked slot or one that isn't committed. log_p: float32
        [C, V], of the denoise role, what may never be chosen at -inf."""
        ...

    def decide(
        self, canvas: GivenCanvas, changes: Sequence[Change], log_p: Sequence[np.ndarray]
    ) -> Sequence[tuple[Change, float]]:
        """Those of `changes`, which were proposed, that are made, disjoint, each with its probability of being right.
        log_p: float32 [n + 1, V] of the encode role for the text as it stands, and then with each of the changes: row
        j predicts token j of the canvas's n tokens (its slots without nulls), the last what follows them."""
        ...


def log_softmax(logits: np.ndarray, never: Sequence[int]) -> np.ndarray:
    """float32 [rows, V], with the tokens `never` at -inf."""
    out: np.ndarray = logits.astype(np.float32)
    out[:, list(never)] = -np.inf
    out -= out.max(axis=-1, keepdims=True)
    out -= np.log(np.exp(out).sum(axis=-1, keepdims=True))
    return out
