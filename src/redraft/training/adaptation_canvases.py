"""Canvases for adaptation: random anchors over clean text, in the states that drafting and filling meet.

A canvas at anchor a sees the clean rows before a, and itself. What the AR self predicts for its slot j comes from clean
row a + j - 1. It is the right teacher only where the canvas row sees no more than the AR self does: no token to the
right of the slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.training.adaptation_recipe import Losses, States
from redraft.training.canvases import with_gaps
from redraft.training.packing import Row

PREFIX_RATE = 0.9  # of the geometric law of how many slots are visible at first
HALF_LIFE = 0.25  # of a canvas: after so many slots a slot is half as likely to be revealed
FULLY_OPEN = 0.5  # share of holes that show nothing of themselves
DRAFT, PREFIX, REVEALED, HOLE = KINDS = range(4)  # states of a canvas


@dataclass(frozen=True)
class Drafts:
    """N canvases of C slots over one row.

    shown: int64 [N, C], what the slots hold; target: what they should; locked: bool [N, C]. document, position: int64
    [N], of the anchor; document -1 marks an unused canvas. teacher: int64 [N, C], the clean row whose AR prediction is
    for this slot, -1 where there's none to learn from. weight: float32 [N, C], of the losses against the AR self; fill:
    of the cross-entropy where more is seen. Slots of weight 0 in both are not supervised.
    """

    shown: np.ndarray
    target: np.ndarray
    locked: np.ndarray
    document: np.ndarray
    position: np.ndarray
    teacher: np.ndarray
    weight: np.ndarray
    fill: np.ndarray


@dataclass(frozen=True)
class Tokens:
    mask: int
    null: int
    ends: tuple[int, ...]


def draw(
    row: Row,
    kinds: np.ndarray,
    length: int,
    losses: Losses,
    tokens: Tokens,
    rng: np.random.Generator,
    shift: bool,
) -> Drafts:
    """Canvases of these states (see draw_kinds) and so many slots, at anchors drawn from all places that have a token
    before them in their document.

    shift: the first slot is predicted by the last clean row, which nothing can teach: it isn't supervised.
    """
    count = len(kinds)
    ends = _ends(row)
    inside = np.flatnonzero(row.supervise & (row.document >= 0) & (row.position >= 1))
    inside = inside[inside + 1 < ends[inside]]
    empty = Drafts(
        shown=np.full((count, length), tokens.mask, np.int64),
        target=np.full((count, length), tokens.null, np.int64),
        locked=np.zeros((count, length), bool),
        document=np.full(count, -1, np.int64),
        position=np.zeros(count, np.int64),
        teacher=np.full((count, length), -1, np.int64),
        weight=np.zeros((count, length), np.float32),
        fill=np.zeros((count, length), np.float32),
    )
    if not len(inside):
        return empty
    anchors = np.sort(rng.choice(inside, count, replace=len(inside) < count))
    for n, (anchor, kind) in enumerate(zip(anchors, kinds, strict=True)):
        text = row.tokens[anchor : min(int(anchor) + length, int(ends[anchor]))]
        whole = int(row.tokens[ends[anchor] - 1]) in tokens.ends
        empty.document[n], empty.position[n] = row.document[anchor], row.position[anchor]
        if kind == HOLE and length >= 4 and (whole or len(text) == length):
            _hole(empty, n, text, tokens, rng)
        else:
            _draft(empty, n, text, int(anchor), int(kind), losses.decay, whole, rng)
    if shift:
        empty.weight[:, 0] = empty.fill[:, 0] = 0
    return empty


def draw_kinds(
    states: States, rng: np.random.Generator, step: np.random.Generator, only: int | None = None
) -> tuple[np.ndarray, int]:
    """The state of each of a row's canvases, of KINDS (int64), and how many slots they have. rng: of the row; step: of
    the whole step, the same for all its rows. only: the one state of all."""
    shares = np.array(states.shares) if only is None else np.eye(len(KINDS))[only]
    drafts = step.random() * shares.sum() < shares[DRAFT]
    if states.apart:
        shares = np.where((np.array(KINDS) == DRAFT) == drafts, shares, 0)
    count, length = states.size(drafts)
    return rng.choice(KINDS, count, p=shares / shares.sum()), length


def _ends(row: Row) -> np.ndarray:
    """For each token one past the last of its document, int64 [row_length]."""
    ends = np.zeros(len(row.tokens), np.int64)
    for document in range(int(row.document.max()) + 1):
        own = np.flatnonzero(row.document == document)
        ends[own] = own[-1] + 1
    return ends


def _hole(out: Drafts, n: int, text: np.ndarray, tokens: Tokens, rng: np.random.Generator) -> None:
    """Gaps and nulls between locked runs; of the gaps a random share is open, or all."""
    target, locked = with_gaps(text, out.target.shape[1], tokens.null, rng)
    ratio = 1.0 if rng.random() < FULLY_OPEN else rng.uniform(0.1, 1)
    opened = ~locked & (rng.random(len(target)) < ratio)
    if not opened.any():
        opened = ~locked
    out.target[n], out.locked[n] = target, locked
    out.shown[n] = np.where(opened, tokens.mask, target)
    out.fill[n] = opened


def _draft(
    out: Drafts,
    n: int,
    text: np.ndarray,
    anchor: int,
    kind: int,
    decay: float,
    whole: bool,
    rng: np.random.Generator,
) -> None:
    """All masks, a visible prefix, or slots revealed here and there. Past the document's end nulls are due if it is
    whole, and nothing is if it was cut."""
    length, held = out.target.shape[1], len(text)
    out.target[n, :held] = text
    slots = np.arange(length)
    visible = np.zeros(length, bool)
    if kind == PREFIX:
        law = PREFIX_RATE ** np.arange(1, length)
        visible[: 1 + rng.choice(length - 1, p=law / law.sum())] = True
    elif kind == REVEALED:
        visible = rng.random(length) < rng.random() * 0.5 ** (slots / (HALF_LIFE * length))
    visible &= slots < held
    if visible[:held].all():
        visible[held - 1] = False
    out.shown[n, visible] = out.target[n, visible]
    last = int(np.flatnonzero(visible)[-1]) if visible.any() else -1
    prefix = int(np.flatnonzero(~visible)[0])
    due = ~visible & (slots < held if not whole else True)
    alone = slots > last  # nothing to the right is visible: the AR self knows as much
    weights = np.exp(-(slots - prefix) / decay)
    out.weight[n] = np.where(due & alone, weights, 0)
    out.fill[n] = due & ~alone
    out.teacher[n] = np.where(due & alone & (slots < held), anchor + slots - 1, -1)
