"""Keys and values on the CPU: arrays that the graph extends in place, one lane a request.

A single request runs on its own lane as it lies. Requests that run together share an arena; they move there once,
when the company changes, and not again while it stays.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.errors import RequestError

VIEW_BLOCK = 16  # what a single request attends to is rounded up to this many rows, so that bindings last
ARENA_BLOCK = 64  # arenas grow by this many, so that copies are rare


def round_up(rows: int, multiple: int) -> int:
    return -(-rows // multiple) * multiple


class Arena:
    """arrays: for key.0, value.0, key.1, … one float32 [lanes, rows, kv_heads * head_dim] each.

    Rows past a lane's length hold zeros or what a canvas left there: finite, masked, overwritten by what comes next.
    """

    def __init__(self, config: DenoiserConfig, lanes: int, rows: int) -> None:
        shape = (lanes, rows, config.num_key_value_heads * config.head_dim)
        self.arrays = [np.zeros(shape, np.float32) for _ in range(2 * config.num_hidden_layers)]
        self.rows = rows
        self.tenants: weakref.WeakSet[OnnxContext] = weakref.WeakSet()


class OnnxContext:
    """Committed tokens of one request: `length` rows of one lane. Its memory goes when nobody holds it.

    last_logits: float32 [V] of the last clean row, for models whose canvas rows predict what follows them.
    """

    def __init__(self, config: DenoiserConfig, capacity: int) -> None:
        self.config, self.limit = config, config.max_position_embeddings
        self.last_logits: np.ndarray | None = None
        self._length = 0
        rows = round_up(max(1, min(capacity, self.limit)), ARENA_BLOCK)
        self.arena, self.lane = Arena(config, 1, rows), 0
        self.arena.tenants.add(self)

    @property
    def length(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes of its lane."""
        return sum(a[self.lane].nbytes for a in self.arena.arrays)

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on; their memory stays."""
        if length < self._length:
            self._length, self.last_logits = max(0, length), None

    def extend(self, rows: int) -> None:
        """Counts `rows` rows that a pass has written as clean tokens."""
        self._length += rows

    def check_room(self, rows: int) -> None:
        """Raises RequestError when `rows` more don't fit the model's positions."""
        needed = self._length + rows
        if needed > self.limit:
            raise RequestError(
                f"{needed} tokens don't fit into the context of {self.limit}: shorten the prompt"
            )

    def move(self, arena: Arena, lane: int) -> None:
        """Copies the live rows into a lane of another arena and lives there from now on."""
        for old, new in zip(self.arena.arrays, arena.arrays, strict=True):
            new[lane, : self._length] = old[self.lane, : self._length]
        self.arena.tenants.discard(self)
        self.arena, self.lane = arena, lane
        arena.tenants.add(self)

    def move_out(self, rows: int) -> None:
        """Into an arena of its own with at least `rows` rows."""
        self.move(Arena(self.config, 1, round_up(max(rows, 1), ARENA_BLOCK)), 0)


@dataclass(frozen=True)
class CacheView:
    """The part of one arena that a call sees: lanes first … first + lanes - 1, `rows` rows of each."""

    arena: Arena
    first: int
    lanes: int
    rows: int

    def arrays(self) -> list[np.ndarray]:
        """Contiguous float32 [lanes, rows, kv_heads * head_dim], in the graph's order."""
        return [a[self.first : self.first + self.lanes, : self.rows] for a in self.arena.arrays]

    def key(self) -> tuple[weakref.ref[Arena], int, int, int]:
        """Equal for equal views of a living arena; keeps no memory alive."""
        return weakref.ref(self.arena), self.first, self.lanes, self.rows


def gather(config: DenoiserConfig, contexts: Sequence[OnnxContext], rows: int) -> CacheView:
    """Where these contexts can run together, with at least `rows` rows each.

    One context needs only its lane. Several share the lanes of one arena, between which a few idle ones may lie
    (a request that sits this call out); otherwise all are copied into a new arena, in their order.
    """
    first = contexts[0]
    if len(contexts) == 1:
        if first.arena.rows < rows:
            first.move_out(max(rows, min(first.arena.rows * 3 // 2, first.limit)))
        return CacheView(first.arena, first.lane, 1, min(round_up(rows, VIEW_BLOCK), first.arena.rows))
    lanes = [c.lane for c in contexts]
    low, span = min(lanes), max(lanes) - min(lanes) + 1
    together = all(c.arena is first.arena for c in contexts) and span <= 2 * len(contexts)
    if not together or first.arena.rows < rows:
        return _regroup(config, contexts, round_up(rows, ARENA_BLOCK))
    return CacheView(first.arena, low, span, first.arena.rows)


def _regroup(config: DenoiserConfig, contexts: Sequence[OnnxContext], rows: int) -> CacheView:
    """Moves contexts into one new arena; who is left behind moves out, so that no idle lane keeps an arena alive."""
    left = {id(c.arena): c.arena for c in contexts}.values()
    arena = Arena(config, len(contexts), rows)
    for lane, context in enumerate(contexts):
        context.move(arena, lane)
    for old in left:
        for idle in list(old.tenants):
            idle.move_out(idle.length)
    return CacheView(arena, 0, len(contexts), rows)
