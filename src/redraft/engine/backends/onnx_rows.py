"""Which row is where: the index arrays and the mask of one call, from what each request brings to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.layouts import canvas_start, clean_start
from redraft.denoiser.rotary import frequencies
from redraft.engine.backend import Pass

MASKED = np.float32(-1e30)  # finite, so that a row that sees nothing averages garbage in place of giving NaN
# onnxruntime multiplies one query row by another kernel than several, which rounds otherwise: a lone row of the
# grid gets a copy of itself for company, so that it comes out as it would among others.
LEAST_GRID_ROWS = 2
FEW_ROWS = 16  # clean rows up to which a mask is written row by row
NO_ROWS = np.empty(0, np.int64)


class Share(NamedTuple):
    """One request's rows in a call: `encode` clean rows after `length` cached ones, then `canvas` slots. branches: as
    in Pass, () for one canvas behind all clean rows."""

    lane: int
    encode: int
    canvas: int
    length: int
    branches: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return self.encode + self.canvas


def visible(config: DenoiserConfig, share: Share, slots: int) -> np.ndarray:
    """bool [rows, slots]: what each of a request's rows sees of its lane, where slot s holds position s.

    The rule of `layouts.allowed`, spelt out for rows in this order: clean
    rows before a row's `start`, and for a canvas row its whole canvas.
    """
    block, anchor = config.canvas_length, share.length + share.encode
    start = np.empty((share.rows, 1), np.int64)
    own = np.arange(share.length, anchor)
    start[: share.encode, 0] = np.minimum(clean_start(config.layout, own, block), anchor)
    start[share.encode :, 0] = canvas_start(config.layout, anchor, block)
    seen = np.arange(slots) < start
    for first, each, begin in _canvases(share):
        rows = seen[share.encode + first : share.encode + first + each]
        if share.branches:
            rows[:, share.length + begin :] = False
        rows[:, anchor + first : anchor + first + each] = True
    return seen


def _canvases(share: Share) -> list[tuple[int, int, int]]:
    """Each canvas's first slot, number of slots, and the clean rows of its pass that it stands behind."""
    starts = share.branches or (share.encode,)
    each = share.canvas // len(starts)
    return [(i * each, each, start) for i, start in enumerate(starts)]


@dataclass(frozen=True)
class Frame:
    """The arrays of a group of lanes that depend on how many rows each request brings, and not on where they stand.

    grid, place: see onnx_graph. For each row of the group, int64 [N]: columns, which of its request's rows it is;
    owner, which request; role, as the graph counts them: 0 clean, 1 canvas. first: each request's first row, int64.
    """

    grid: np.ndarray
    place: np.ndarray
    columns: np.ndarray
    owner: np.ndarray
    role: np.ndarray
    first: np.ndarray


@lru_cache(maxsize=256)
def frame(
    rows: tuple[tuple[int, int, int], ...], lanes: int, before: int = 0, least: int = LEAST_GRID_ROWS
) -> Frame:
    """For requests as (lane, clean rows, canvas rows) on a grid of `lanes` lanes and at least `least` columns, behind
    `before` rows of other groups."""
    counts = np.array([encode + canvas for _, encode, canvas in rows])
    owner = np.repeat(np.arange(len(rows)), counts)
    first = np.cumsum(counts) - counts
    columns = np.arange(len(owner)) - first[owner]
    role = (columns >= np.array([encode for _, encode, _ in rows])[owner]).astype(np.int64)
    place = np.empty((1, len(owner), 2), np.int64)
    place[0, :, 0], place[0, :, 1] = np.array([lane for lane, _, _ in rows])[owner], columns
    grid = np.zeros((lanes, max(least, counts.max()), 2), np.int64)
    grid[:, :, 1] = before
    for (lane, _, _), start, count in zip(rows, first, counts, strict=True):
        grid[lane, :, 1] += start + np.minimum(np.arange(grid.shape[1]), count - 1)
    return Frame(grid, place, columns, owner, role, first)


Group = tuple[tuple[tuple[int, int, int], ...], int, int, int]  # what `frame` makes one of


@dataclass(frozen=True)
class EarlyFrame:
    """The arrays of a call for layers before open slots enter, which the other rows pass alone; where there are none
    one row stands in, since products need some, and what it writes nobody reads.

    rows: int64 [E], which rows of the call these are. For each group: columns, which of its rows; grids and places as
    in Frame, for the shorter list.
    """

    rows: np.ndarray
    columns: tuple[np.ndarray, ...]
    grids: tuple[np.ndarray, ...]
    places: tuple[np.ndarray, ...]


@lru_cache(maxsize=256)
def early(groups: tuple[Group, ...], everything: bool) -> EarlyFrame:
    """For a call of these groups: of its clean rows, or of all."""
    frames = [frame(*group) for group in groups]
    runs = (np.concatenate([made.role for made in frames]) == 0) | everything
    if not runs.any():
        runs[0] = True
    number = np.cumsum(runs) - 1
    ends = np.cumsum([len(made.role) for made in frames])
    columns = tuple(np.flatnonzero(own) for own in np.split(runs, ends[:-1]))
    grids, places = [], []
    for made, own in zip(frames, columns, strict=True):
        grid = made.grid.copy()
        grid[..., 1] = np.where(runs[grid[..., 1]], number[grid[..., 1]], 0)
        grids.append(grid)
        places.append(made.place[:, own])
    return EarlyFrame(np.flatnonzero(runs), columns, tuple(grids), tuple(places))


def write_mask(config: DenoiserConfig, shares: tuple[Share, ...], mask: np.ndarray) -> None:
    """Writes what is added to the scores into float32 mask [lanes, 1, columns, slots]. Spare columns and idle lanes see
    everything: nobody reads them, and a row that sees nothing would be slower."""
    slots = mask.shape[-1]
    mask.fill(0)
    for share in shares:
        seats = mask[share.lane, 0, : share.rows]
        if config.layout == "causal_context" and share.encode <= FEW_ROWS:
            _hide_later(share, seats)
        else:
            seats[...] = np.where(visible(config, share, slots), np.float32(0), MASKED)


def _hide_later(share: Share, seats: np.ndarray) -> None:
    """`visible` for causal contexts, row by row: at every step of few rows it is asked for."""
    for row in range(share.encode):
        seats[row, share.length + row + 1 :] = MASKED
    if not share.branches:
        if share.canvas:
            seats[share.encode :, share.length + share.rows :] = MASKED
        return
    anchor = share.length + share.encode
    for first, each, start in _canvases(share):
        rows = seats[share.encode + first : share.encode + first + each]
        rows[:, share.length + start : anchor + first] = MASKED
        rows[:, anchor + first + each :] = MASKED


class RotaryTable:
    """cos and sin of the rotary angles, float32 [positions, rotary_dim / 2], grown as positions come."""

    def __init__(self, config: DenoiserConfig) -> None:
        exponents = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / np.float32(config.rotary_dim)
        self.frequency = np.asarray(frequencies(exponents, config), np.float32)
        self.cos, self.sin = self._table(min(config.max_position_embeddings, 4096))

    def _table(self, positions: int) -> tuple[np.ndarray, np.ndarray]:
        angles = np.arange(positions, dtype=np.float32)[:, None] * self.frequency
        return np.cos(angles), np.sin(angles)

    def write(self, position: np.ndarray, array: Callable[..., np.ndarray], most: int) -> None:
        """Into the arrays "cos" and "sin" [N, rotary_dim / 2], as `Inputs.array` gives them, for int64 positions [N]
        below `most`."""
        if most > len(self.cos):
            self.cos, self.sin = self._table(2 * most)
        shape = len(position), self.cos.shape[1]
        self.cos.take(position, axis=0, out=array("cos", shape, np.float32), mode="clip")
        self.sin.take(position, axis=0, out=array("sin", shape, np.float32), mode="clip")


@dataclass(frozen=True)
class Wanted:
    """Rows of one pass, counted from its first, whose logits are needed: int64, in the order they come back.

    canvas: row of each wanted slot, None without a canvas. With a shift slot j is predicted by the row before it:
    slot 0 by the last clean row, if this pass has it, else by what its context remembers (`remembered` marks those
    slots, whose row here only stands in). more: the last clean row, if the context is to remember it and nobody else
    asks for it. last: where among all of these it is, None if it need not be remembered.
    """

    encode: np.ndarray
    canvas: np.ndarray | None
    remembered: np.ndarray | None
    more: np.ndarray
    last: int | None

    def rows(self) -> np.ndarray:
        parts = [p for p in (self.encode, self.canvas, self.more) if p is not None and len(p)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [NO_ROWS])


def wanted_rows(p: Pass, shift: bool) -> Wanted:
    """What a pass asks for."""
    encoded = len(p.encode)
    encode, more, last = NO_ROWS, NO_ROWS, None
    if encoded and p.encode_logits != "none":
        encode = np.arange(encoded - 1 if p.encode_logits == "last" else 0, encoded)
        last = len(encode) - 1 if shift else None
    canvas, remembered = None, None
    if p.canvas is not None:
        slots = p.wanted
        canvas = encoded + slots
        if shift:
            canvas = p.before(slots)
            remembered = (canvas < 0) & (p.context.length > 0)
            canvas = np.maximum(canvas, 0)
    if shift and encoded and last is None:
        last = len(encode) + (0 if canvas is None else len(canvas))
        more = np.array([encoded - 1])
    return Wanted(encode, canvas, remembered, more, last)


def write_tokens(
    passes: Sequence[Pass], frames: Sequence[Frame], tokens: np.ndarray, roles: np.ndarray
) -> None:
    """Writes into int64 [N] each, for all rows of a call; roles as the graph counts them: clean, canvas, locked."""
    at = 0
    for made in frames:
        roles[at : at + len(made.role)] = made.role
        at += len(made.role)
    at = 0
    for p in passes:
        if len(p.encode):
            tokens[at : at + len(p.encode)] = p.encode
            at += len(p.encode)
        if p.canvas is not None:
            tokens[at : at + len(p.canvas)] = p.canvas
            if p.locked is not None:
                roles[at : at + len(p.canvas)] += np.asarray(p.locked, bool)
            at += len(p.canvas)


def expectations(passes: Sequence[Pass], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """expected float32 [E, V] of all canvases that have one, and each row's index in it int64 [N], E for none."""
    parts = [np.empty((0, vocab_size), np.float32)]
    parts += [p.expected for p in passes if p.canvas is not None and p.expected is not None]
    expected = np.concatenate(parts).astype(np.float32, copy=False)
    row_of, taken = [], 0
    for p in passes:
        row_of.append(np.full(len(p.encode), len(expected)))
        if p.canvas is not None:
            known = p.expected is not None
            row_of.append(
                taken + np.arange(len(p.canvas)) if known else np.full(len(p.canvas), len(expected))
            )
            taken += len(p.canvas) if known else 0
    return expected, np.concatenate(row_of)
