"""Keys and values on the CPU: arrays that the graph extends in place, one lane a request.

A single request runs on its own lane as it lies. Requests that run together share an arena, or a few: attention reads
all lanes of one as far as its longest, so that a long context among short ones would cost as much as many long ones.
They move there once, when the company changes, and not again while it stays.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.engine.backend import check_room

VIEW_BLOCK = 16  # what a single request attends to is rounded up to this many rows, so that bindings last
ARENA_BLOCK = 64  # arenas grow by this many, so that copies are rare
PARTING_PAYS = (
    0.8  # share of one arena's rows that several may have at most, for the nodes that another one costs
)


def round_up(rows: int, multiple: int) -> int:
    return -(-rows // multiple) * multiple


class Arena:
    """arrays: for key.0, value.0, key.1, … one float32 [lanes, rows, kv_heads * head_dim] each.

    Rows up to `ready` hold zeros past a lane's length, or what a canvas left there: finite, masked, overwritten by what
    comes next. Rows from there on hold anything, since memory that nobody reads yet need not be touched.
    """

    def __init__(self, config: DenoiserConfig, lanes: int, rows: int) -> None:
        shape = (lanes, rows, config.num_key_value_heads * config.head_dim)
        self.arrays = [np.empty(shape, np.float32) for _ in range(2 * config.num_hidden_layers)]
        self.lanes, self.rows, self.ready = lanes, rows, 0
        self.tenants: weakref.WeakSet[OnnxContext] = weakref.WeakSet()

    def prepare(self, rows: int) -> None:
        """Makes all lanes' rows before `rows` fit to be read."""
        if rows > self.ready:
            for array in self.arrays:
                array[:, self.ready : rows] = 0
            self.ready = rows

    def free_lanes(self) -> list[int]:
        """Lanes whose requests have gone."""
        return sorted(set(range(self.lanes)) - {context.lane for context in self.tenants})


class OnnxContext:
    """Committed tokens of one request: `length` rows of one lane, which it gets with its first pass. Its memory goes
    when nobody holds it.

    last_logits: float32 [V] of the last clean row, for models whose canvas rows predict what follows them.
    """

    def __init__(self, config: DenoiserConfig, capacity: int) -> None:
        self.config, self.limit = config, config.max_position_embeddings
        self.last_logits: np.ndarray | None = None
        self._length = 0
        self._rows = round_up(max(1, min(capacity, self.limit)), ARENA_BLOCK)
        self.home: Arena | None = None
        self.lane = 0
        self.crew: int | None = None  # which of several cores has its lane, see onnx_crews
        self.viewed = 0  # rows of its lane that its last call alone could see

    @property
    def arena(self) -> Arena:
        """Where its lane lies; one of its own until it runs with others."""
        if self.home is None:
            self.home = Arena(self.config, 1, self._rows)
            self.home.tenants.add(self)
        return self.home

    @property
    def length(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes of its lane; 0 before the first pass."""
        return 0 if self.home is None else sum(a[self.lane].nbytes for a in self.home.arrays)

    def truncate(self, length: int) -> None:
        """Forgets all tokens from `length` on; their memory stays."""
        if length < self._length:
            self._length, self.last_logits = max(0, length), None

    def copy(self, other: OnnxContext, length: int) -> None:
        """Takes over the first `length` tokens of another context; this one holds none yet."""
        if self.arena.rows < length:
            self.move_out(length)
        self.arena.prepare(length)
        for theirs, own in zip(other.arena.arrays, self.arena.arrays, strict=True):
            own[self.lane, :length] = theirs[other.lane, :length]
        self._length = length

    def extend(self, rows: int) -> None:
        """Counts `rows` rows that a pass has written as clean tokens."""
        self._length += rows

    def check_room(self, rows: int) -> None:
        """Raises RequestError when `rows` more don't fit."""
        check_room(self._length, rows, self.limit)

    def move(self, arena: Arena, lane: int) -> None:
        """Copies the live rows into a lane of another arena and lives there from now on."""
        if self.home is not None:
            for old, new in zip(self.home.arrays, arena.arrays, strict=True):
                new[lane, : self._length] = old[self.lane, : self._length]
            self.home.tenants.discard(self)
        self.home, self.lane = arena, lane
        arena.tenants.add(self)

    def move_out(self, rows: int) -> None:
        """Into an arena of its own with at least `rows` rows."""
        arena = Arena(self.config, 1, round_up(max(rows, 1), ARENA_BLOCK))
        arena.prepare(self._length)
        self.move(arena, 0)


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


def gather(
    config: DenoiserConfig, contexts: Sequence[OnnxContext], needed: Sequence[int], groups: int = 1
) -> list[CacheView]:
    """Where these contexts can run together, each with at least `needed` rows: at most `groups` views, the one with
    the fewest rows first.

    One context needs only its lane. Several share the lanes of a few arenas, between which some idle ones may lie (a
    request that sits this call out). A newcomer takes the lane of one that has gone, if it is long enough; an arena
    that has become too short is copied into a longer one, and all are copied when they could lie better.
    """
    if len(contexts) == 1:
        context, rows = contexts[0], needed[0]
        if context.arena.rows < rows:
            context.move_out(max(rows, min(context.arena.rows * 3 // 2, context.limit)))
        rows = round_up(rows, VIEW_BLOCK)
        if rows < context.viewed <= rows + VIEW_BLOCK:
            rows = context.viewed  # a shorter draft than the last needs no new bindings
        context.viewed = rows = min(rows, context.arena.rows)
        context.arena.prepare(rows)
        return [CacheView(context.arena, context.lane, 1, rows)]
    homes = _homes(contexts)
    if len(homes) > groups or any(c.home is None for c in contexts):
        _seat(contexts, needed, homes[:groups])
        homes = _homes(contexts)
    views = _views(contexts, needed, homes)
    settled = len(homes) <= groups and all(c.home is not None for c in contexts)
    if not settled or sum(view.lanes for view in views) > 2 * len(contexts):
        homes = _regroup(config, contexts, needed, groups)
    elif any(view.rows < rows for view, rows in zip(views, _longest(homes, contexts, needed), strict=True)):
        homes = _lengthen(config, contexts, needed, homes, groups)
    else:
        return _in_order(views)
    return _in_order(_views(contexts, needed, homes))


def _in_order(views: list[CacheView]) -> list[CacheView]:
    for view in views:
        view.arena.prepare(view.rows)
    return sorted(views, key=lambda view: (view.rows, id(view.arena)))


def _homes(contexts: Sequence[OnnxContext]) -> list[Arena]:
    """The arenas these contexts live in, those with the most of them first."""
    counted = Counter(c.home for c in contexts if c.home is not None)
    return [arena for arena, _ in counted.most_common()]


def _longest(homes: Sequence[Arena], contexts: Sequence[OnnxContext], needed: Sequence[int]) -> list[int]:
    """Rows that each arena's longest context needs."""
    return [max(n for c, n in zip(contexts, needed, strict=True) if c.home is arena) for arena in homes]


def _views(contexts: Sequence[OnnxContext], needed: Sequence[int], homes: Sequence[Arena]) -> list[CacheView]:
    views = []
    for arena, longest in zip(homes, _longest(homes, contexts, needed), strict=True):
        lanes = [c.lane for c in contexts if c.home is arena]
        # Of one lane any number of rows lies together.
        rows = arena.rows if len(lanes) > 1 else min(arena.rows, round_up(longest, VIEW_BLOCK))
        views.append(CacheView(arena, min(lanes), max(lanes) - min(lanes) + 1, rows))
    return views


def _seat(contexts: Sequence[OnnxContext], needed: Sequence[int], arenas: Sequence[Arena]) -> None:
    """Moves those who live elsewhere into free lanes of these arenas, the shortest that do; nobody, if not all can."""
    free = {arena: arena.free_lanes() for arena in arenas}
    moves = []
    for context, rows in zip(contexts, needed, strict=True):
        if context.home in free:
            continue
        fitting = [arena for arena in arenas if arena.rows >= rows and free[arena]]
        if not fitting:
            return
        arena = min(fitting, key=lambda arena: arena.rows)
        moves.append((context, arena, free[arena].pop(0)))
    for context, arena, lane in moves:
        arena.prepare(arena.rows)
        context.move(arena, lane)


def _lengthen(
    config: DenoiserConfig,
    contexts: Sequence[OnnxContext],
    needed: Sequence[int],
    homes: Sequence[Arena],
    groups: int,
) -> list[Arena]:
    """Copies the arenas that have become too short into longer ones; all of them, if other company saves enough."""
    parts = [[i for i, c in enumerate(contexts) if c.home is arena] for arena in homes]
    rows = [max(round_up(needed[i], ARENA_BLOCK) for i in part) for part in parts]
    apart = part_by_length(sorted(round_up(n, ARENA_BLOCK) for n in needed), groups)
    if _padded(apart) <= PARTING_PAYS * sum(len(part) * n for part, n in zip(parts, rows, strict=True)):
        return _regroup(config, contexts, needed, groups)
    out = []
    for arena, part in zip(homes, parts, strict=True):
        own, longest = [contexts[i] for i in part], [needed[i] for i in part]
        out += [arena] if max(longest) <= arena.rows else _regroup(config, own, longest, 1)
    return out


def _regroup(
    config: DenoiserConfig, contexts: Sequence[OnnxContext], needed: Sequence[int], groups: int
) -> list[Arena]:
    """Moves contexts into new arenas; who is left behind moves out, so that no idle lane keeps an arena alive."""
    left = _homes(contexts)
    order = sorted(range(len(contexts)), key=lambda i: needed[i])
    arenas = []
    for part in part_by_length([round_up(needed[i], ARENA_BLOCK) for i in order], groups):
        arena = Arena(config, len(part), part[-1])
        arena.prepare(arena.rows)
        for lane in range(len(part)):
            contexts[order.pop(0)].move(arena, lane)
        arenas.append(arena)
    for old in left:
        for idle in list(old.tenants):
            idle.move_out(idle.length)
    return arenas


def part_by_length(rows: list[int], groups: int) -> list[list[int]]:
    """Rows of lanes, in rising order, as at most `groups` runs of it with as little padding as can be; fewer runs when
    parting saves too little."""
    if groups == 1 or len(rows) == 1:
        return [rows]
    ways = [[rows[:cut], *part_by_length(rows[cut:], groups - 1)] for cut in range(1, len(rows))]
    best = min(ways, key=_padded)
    return best if _padded(best) <= PARTING_PAYS * _padded([rows]) else [rows]


def _padded(parts: list[list[int]]) -> int:
    return sum(len(part) * part[-1] for part in parts)
