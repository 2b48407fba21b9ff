"""Which row is where: the index arrays and the mask of one call, from what each request brings to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.denoiser.config import DenoiserConfig
from redraft.denoiser.layouts import canvas_start, clean_start
from redraft.denoiser.rotary import frequencies
from redraft.engine.backend import Pass

MASKED = np.float32(-1e30)  # finite, so that a row that sees nothing averages garbage in place of giving NaN
# onnxruntime multiplies one query row by another kernel than several, which rounds otherwise: a lone row of the
# grid gets a copy of itself for company, so that it comes out as it would among others.
LEAST_GRID_ROWS = 2
NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Share:
    """One request's rows in a call: `encode` clean rows after `length` cached ones, then `canvas` slots."""

    lane: int
    length: int
    encode: int
    canvas: int

    @property
    def rows(self) -> int:
        return self.encode + self.canvas


@dataclass(frozen=True)
class Geometry:
    """Everything of a call that doesn't depend on tokens; see onnx_graph for the arrays' meaning and shapes."""

    position: np.ndarray
    turn: np.ndarray
    slot: np.ndarray
    grid: np.ndarray
    place: np.ndarray
    mask: np.ndarray


def visible(config: DenoiserConfig, share: Share, slots: int) -> np.ndarray:
    """bool [rows, slots]: what each of a request's rows sees of its lane, where slot s holds position s.

    The rule of `layouts.allowed`, spelt out for rows in this order, because it is asked for at every AR step: clean
    rows before a row's `start`, and for a canvas row its whole canvas.
    """
    block, anchor = config.canvas_length, share.length + share.encode
    start = np.empty((share.rows, 1), np.int64)
    own = np.arange(share.length, anchor)
    start[: share.encode, 0] = np.minimum(clean_start(config.layout, own, block), anchor)
    start[share.encode :, 0] = canvas_start(config.layout, anchor, block)
    seen = np.arange(slots) < start
    seen[share.encode :, anchor : anchor + share.canvas] = True
    return seen


def geometry(
    config: DenoiserConfig, shares: tuple[Share, ...], lanes: int, slots: int, least: int = LEAST_GRID_ROWS
) -> Geometry:
    """Arrays for these shares on a grid of `lanes` lanes of at least `least` rows over caches of `slots` rows."""
    rows = sum(s.rows for s in shares)
    width = max(least, *(s.rows for s in shares))
    grid = np.zeros((lanes, width, 2), np.int64)
    mask = np.zeros((lanes, 1, width, slots), np.float32)
    slot, place = np.empty((2, 1, rows, 2), np.int64)
    offset = 0
    for share in shares:
        own = slice(offset, offset + share.rows)
        column = np.arange(share.rows)
        grid[share.lane, :, 1] = offset + np.minimum(np.arange(width), share.rows - 1)
        mask[share.lane, 0, : share.rows][~visible(config, share, slots)] = MASKED
        place[0, own, 0] = slot[0, own, 0] = share.lane
        place[0, own, 1], slot[0, own, 1] = column, share.length + column
        offset += share.rows
    return Geometry(slot[0, :, 1], np.arange(rows)[None], slot, grid, place, mask)


class RotaryTable:
    """cos and sin of the rotary angles, float32 [positions, rotary_dim / 2], grown as positions come."""

    def __init__(self, config: DenoiserConfig) -> None:
        exponents = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / np.float32(config.rotary_dim)
        self.frequency = np.asarray(frequencies(exponents, config), np.float32)
        self.cos, self.sin = self._table(min(config.max_position_embeddings, 4096))

    def _table(self, positions: int) -> tuple[np.ndarray, np.ndarray]:
        angles = np.arange(positions, dtype=np.float32)[:, None] * self.frequency
        return np.cos(angles), np.sin(angles)

    def rows(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """cos, sin [N, rotary_dim / 2] for int64 positions [N]."""
        if position.size and position.max() >= len(self.cos):
            self.cos, self.sin = self._table(2 * int(position.max()) + 2)
        return self.cos[position], self.sin[position]


@dataclass(frozen=True)
class Wanted:
    """Rows of one pass, counted from its first, whose logits are needed: int64, in the order they come back.

    canvas: row of each wanted slot, None without a canvas. With a shift slot j is predicted by the row before it:
    slot 0 by the last clean row, if this pass has it, else by what its context remembers (`remembered` marks those
    slots, whose row here only stands in). last: the last clean row, for the context to remember.
    """

    encode: np.ndarray
    canvas: np.ndarray | None
    remembered: np.ndarray | None
    last: np.ndarray

    def rows(self) -> np.ndarray:
        return np.concatenate([self.encode, *([] if self.canvas is None else [self.canvas]), self.last])


def wanted_rows(p: Pass, shift: bool) -> Wanted:
    """What a pass asks for."""
    encoded = len(p.encode)
    first = {"none": encoded, "last": max(encoded - 1, 0), "all": 0}[p.encode_logits]
    encode = np.arange(first, encoded)
    last = np.arange(encoded - 1, encoded) if shift and encoded else NO_ROWS
    if p.canvas is None:
        return Wanted(encode, None, None, last)
    slots = np.arange(len(p.canvas)) if p.canvas_rows is None else np.asarray(p.canvas_rows, np.int64)
    if not shift:
        return Wanted(encode, encoded + slots, None, last)
    remembered = (slots == 0) & (encoded == 0) & (p.context.length > 0)
    return Wanted(encode, np.maximum(encoded + slots - 1, 0), remembered, last)


def tokens_and_roles(passes: Sequence[Pass]) -> tuple[np.ndarray, np.ndarray]:
    """int64 [N] each, for all rows of a call; roles as the graph counts them: clean, canvas, locked."""
    tokens, roles = [], []
    for p in passes:
        tokens.append(p.encode)
        roles.append(np.zeros(len(p.encode), np.int64))
        if p.canvas is not None:
            tokens.append(p.canvas)
            roles.append(np.ones(len(p.canvas), np.int64))
            if p.locked is not None:
                roles[-1] += np.asarray(p.locked, bool)
    return np.concatenate(tokens).astype(np.int64, copy=False), np.concatenate(roles)


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
