"""Laying canvases over clean text: what each slot of the noisy half should hold, and what is locked.

Nulls pad on the noisy side only: the clean half stays the compacted text with contiguous positions, and slot j of a
canvas that starts at clean position p has position p + j (DESIGN decision 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.training.packing import Row
from redraft.training.recipe import Canvas


@dataclass(frozen=True)
class Canvases:
    """N canvases of C slots over one row. target int64 [N, C] (a token or the null), locked bool [N, C];
    document, anchor int64 [N] (the clean position where it starts); draft bool [N]: corrupted wholly.
    An unused canvas has document -1; one in use has a slot that isn't locked."""

    target: np.ndarray
    locked: np.ndarray
    document: np.ndarray
    anchor: np.ndarray
    draft: np.ndarray

    def repeated(self, copies: int) -> Canvases:
        """The same canvases `copies` times, one copy of all after the other: [copies * N, ...]."""
        return Canvases(*(np.concatenate([a] * copies) for a in vars(self).values()))


@dataclass(frozen=True)
class Span:
    """What a canvas is laid over: row tokens from at to end, those before first given (locked)."""

    at: int
    first: int
    end: int


def lay(
    row: Row,
    count: int,
    length: int,
    settings: Canvas,
    null_id: int,
    eos_ids: tuple[int, ...],
    rng: np.random.Generator,
    grid: bool = False,
) -> Canvases:
    """Tiles each document with canvases from a random offset; `count` of them, drawn evenly when there are more.

    eos_ids: a document that ends with none of them was cut, and no canvas runs over its end: a null there would teach
    that text may stop anywhere. grid: anchors on multiples of `length` and plain canvases only, for layouts whose
    blocks sit on them; given tokens that share a block with the first supervised ones are locked.
    """
    spans = [
        span
        for document in range(int(row.document.max()) + 1)
        for span in _spans(row, document, length, eos_ids, rng, grid)
    ]
    if len(spans) > count:
        spans = [spans[i] for i in np.sort(rng.choice(len(spans), count, replace=False))]
    target = np.full((count, length), null_id, np.int64)
    locked = np.zeros((count, length), bool)
    owner = np.full(count, -1, np.int64)
    anchor = np.zeros(count, np.int64)
    for i, span in enumerate(spans):
        target[i], locked[i] = _fill(
            row.tokens[span.at : span.end], length, settings, null_id, rng, plain=grid
        )
        locked[i, : span.first - span.at] = True
        owner[i], anchor[i] = row.document[span.at], row.position[span.at]
    draft = rng.random(count) < settings.draft_share
    return Canvases(target, locked, owner, anchor, draft)


def _spans(
    row: Row, document: int, length: int, eos_ids: tuple[int, ...], rng: np.random.Generator, grid: bool
) -> list[Span]:
    inside = np.flatnonzero((row.document == document) & row.supervise)
    if not len(inside):
        return []
    first, end = int(inside[0]), int(inside[-1]) + 1
    if grid:
        starts = list(range(first - int(row.position[first]) % length, end, length))
    else:
        # A random shorter first canvas makes every offset equally likely as a start.
        starts = [first, *range(first + int(rng.integers(1, length + 1)), end, length)]
    whole = int(row.tokens[end - 1]) in eos_ids
    return [Span(at, max(at, first), end) for at in starts if whole or at + length <= end]


def _fill(
    text: np.ndarray, length: int, settings: Canvas, null_id: int, rng: np.random.Generator, plain: bool
) -> tuple[np.ndarray, np.ndarray]:
    """One canvas over the tokens that follow its anchor; slots past the end of the document are null."""
    kind = 1.0 if plain else rng.random()
    if kind < settings.gap_share and length >= 4:
        return with_gaps(text, length, null_id, rng)
    target = np.full(length, null_id, np.int64)
    locked = np.zeros(length, bool)
    if kind < settings.gap_share + settings.insert_share:
        slots = np.flatnonzero(np.arange(length) % (settings.insert_every + 1) != settings.insert_every)
    else:
        slots = np.arange(length)
    slots = slots[: len(text)]
    target[slots] = text[: len(slots)]
    if not plain and rng.random() < settings.pin_share and len(slots):
        pins = min(len(slots), length - 1, int(rng.integers(1, 4)))
        locked[rng.choice(slots, pins, replace=False)] = True
    return target, locked


def with_gaps(
    text: np.ndarray, length: int, null_id: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Gaps of unknown length (text, then nulls) between locked runs: what filling meets at its start."""
    target = np.full(length, null_id, np.int64)
    locked = np.zeros(length, bool)
    slot = taken = 0
    while slot < length:
        gap = min(int(rng.integers(1, length + 1)), length - slot)
        surplus = int(rng.integers(0, gap)) if rng.random() < 0.7 else 0
        held = text[taken : taken + gap - surplus]
        target[slot : slot + len(held)] = held
        slot, taken = slot + gap, taken + len(held)
        run = text[taken : taken + int(rng.integers(1, length + 1))][: length - slot]
        target[slot : slot + len(run)] = run
        locked[slot : slot + len(run)] = True
        slot, taken = slot + len(run), taken + len(run)
    return target, locked
