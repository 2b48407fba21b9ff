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

ROW_BLOCK = 16  # views and arenas grow by this many rows, so bindings and shapes change rarely


def round_up(rows: int) -> int:
    return -(-rows // ROW_BLOCK) * ROW_BLOCK


class Arena:
    """arrays: for key.0, value.0, key.1, … one float32 [lanes, rows, kv_heads * head_dim] each.

    Rows past a lane's length hold zeros or what a canvas left there: finite, masked, overwritten by what comes next.
    """

    def __init__(self, config: DenoiserConfig, lanes: int, rows: int) -> None:
        shape = (lanes, rows, config.num_key_value_heads * config.head_dim)
        self.arrays = [np.zeros(shape, np.float32) for _ in range(2 * config.num_hidden_layers)]
        self.lanes, self.rows = lanes, rows


class OnnxContext:
    """Committed tokens of one request: `length` rows of one lane. Its memory goes when nobody holds it."""

    def __init__(self, config: DenoiserConfig, capacity: int) -> None:
        self.config = config
        self.length = 0
        self.arena, self.lane = Arena(config, 1, round_up(max(capacity, 1))), 0

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on; raises ValueError when there are fewer."""
        if not 0 <= length <= self.length:
            raise ValueError(f"a context of {self.length} tokens can't be cut to {length}")
        self.length = length

    def move(self, arena: Arena, lane: int) -> None:
        """Copies the live rows into a lane of another arena and lives there from now on."""
        for old, new in zip(self.arena.arrays, arena.arrays, strict=True):
            new[lane, : self.length] = old[self.lane, : self.length]
        self.arena, self.lane = arena, lane


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
            first.move(Arena(config, 1, round_up(max(rows, first.arena.rows * 3 // 2))), 0)
        return CacheView(first.arena, first.lane, 1, min(round_up(rows), first.arena.rows))
    lanes = [c.lane for c in contexts]
    low, span = min(lanes), max(lanes) - min(lanes) + 1
    together = all(c.arena is first.arena for c in contexts) and span <= 2 * len(contexts)
    if not together or first.arena.rows < rows:
        arena = Arena(config, len(contexts), round_up(rows))
        for lane, context in enumerate(contexts):
            context.move(arena, lane)
        low, span = 0, len(contexts)
    return CacheView(first.arena, low, span, first.arena.rows)
