"""A canvas that a request brings along: what editing starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from redraft.errors import RequestError

OPEN = -1  # an open slot of GivenCanvas.initial


@dataclass(frozen=True)
class GivenCanvas:
    """initial: each slot's token at the start, OPEN where it is to be found. locked: slots that never change.
    commit: how many leading slots join the context when the canvas has settled, the rest is looked at alone (text
    behind a gap, the beginning of the next window). only: for some slots the tokens that they may hold. trial: these
    slots don't join the context but are read by the AR self, together with what was given behind them up to the next
    open slot, and the next canvas starts from the same context; so several can be tried and compared. fills: how many
    ways to fill a trial are sought and read, the likeliest by the canvas; a Commit comes of each. Raises RequestError
    when these contradict one another."""

    initial: tuple[int, ...]
    locked: tuple[bool, ...]
    commit: int
    only: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    trial: bool = False
    fills: int = 1

    def __post_init__(self) -> None:
        slots = len(self.initial)
        if not slots or len(self.locked) != slots:
            raise RequestError("a given canvas needs slots, and for each whether it is locked")
        if any(token == OPEN and locked for token, locked in zip(self.initial, self.locked, strict=True)):
            raise RequestError("an open slot can't be locked")
        if not 0 <= self.commit <= slots:
            raise RequestError(f"{self.commit} slots can't be committed of a canvas of {slots}")
        if any(not 0 <= slot < slots or not tokens for slot, tokens in self.only.items()):
            raise RequestError("a constraint must name a slot of the canvas and tokens for it")
        if self.fills < 1 or (self.fills > 1 and not self.trial):
            raise RequestError("fills must be at least 1, and more are sought of a trial alone")

    @cached_property
    def locked_tokens(self) -> dict[int, int]:
        """slot: token of the locked slots."""
        return {slot: self.initial[slot] for slot, locked in enumerate(self.locked) if locked}

    @cached_property
    def behind(self) -> tuple[int, ...]:
        """The tokens given behind those to be committed, up to the next open slot."""
        rest = self.initial[self.commit :]
        return rest[: rest.index(OPEN)] if OPEN in rest else rest

    def allowed(self, vocab_size: int) -> np.ndarray | None:
        """bool [C, V]: what each slot may hold; None without constraints."""
        if not self.only:
            return None
        allowed = np.ones((len(self.initial), vocab_size), dtype=bool)
        for slot, tokens in self.only.items():
            allowed[slot] = False
            allowed[slot, list(tokens)] = True
        return allowed
