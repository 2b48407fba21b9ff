"""A batch of adaptation: rows of clean text and the canvases over them. A pure function of (seed, step, row)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from redraft.training.adaptation_canvases import Drafts, Tokens, draw, draw_kinds
from redraft.training.adaptation_recipe import Losses, States
from redraft.training.batch import visibility
from redraft.training.canvases import Canvases
from redraft.training.packing import Row, Rows


@dataclass(frozen=True)
class AdaptBatch:
    """B rows of L clean tokens with N canvases of C slots each.

    clean, positions, clean_document (-1: padding): int64 [B, L]; clean_visible: bool [B, L, L]. The rest as in Drafts
    with B in front, and slot_positions int64 [B, N, C]; canvas_visible: bool [B, N, C, L + C], what each slot sees of
    text and canvas. With a shift the last slot of a canvas that shows nothing stands aside: it predicts no slot, and
    decoding leaves it out.
    """

    clean: np.ndarray
    positions: np.ndarray
    clean_document: np.ndarray
    clean_visible: np.ndarray
    shown: np.ndarray
    target: np.ndarray
    locked: np.ndarray
    document: np.ndarray
    slot_positions: np.ndarray
    canvas_visible: np.ndarray
    teacher: np.ndarray
    weight: np.ndarray
    fill: np.ndarray

    def part(self, first: int, last: int) -> AdaptBatch:
        """Rows first..last of it."""
        return AdaptBatch(*(array[first:last] for array in vars(self).values()))

    @property
    def aside(self) -> np.ndarray:
        """bool [B, N]: canvases whose last slot stands aside, and unused ones."""
        return ~self.canvas_visible[:, :, 0, -1]

    def without_last(self) -> AdaptBatch:
        """What is seen of canvases [B, N, C] without their last slots: [B, N, C - 1]. What they learn stays."""
        return replace(
            self,
            shown=self.shown[..., :-1],
            locked=self.locked[..., :-1],
            slot_positions=self.slot_positions[..., :-1],
            canvas_visible=self.canvas_visible[..., :-1, :-1],
        )

    def divisors(self) -> tuple[float, ...]:
        """What sums of losses are divided by, in the order of adaptation_objective.DIVISORS: weight of drafted slots,
        of those with a teacher, number of others, number of clean tokens with a next one."""
        taught = self.weight * (self.teacher >= 0)
        return (
            float(self.weight.sum()),
            float(taught.sum()),
            float(self.fill.sum()),
            float((self.following >= 0).sum()),
        )

    @property
    def following(self) -> np.ndarray:
        """int64 [B, L]: the token after each clean one in its document, -1 where there's none."""
        out = np.full_like(self.clean, -1)
        document = self.clean_document
        same = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] >= 0)
        out[:, :-1] = np.where(same, self.clean[:, 1:], -1)
        return out

    @property
    def supervised(self) -> int:
        return int(((self.weight > 0) | (self.fill > 0)).sum())

    @property
    def tokens(self) -> int:
        """Clean tokens that are not padding."""
        return int(self.clean_visible.any(-1).sum())

    @property
    def canvas_rows(self) -> int:
        return self.shown.size


def build(
    data: Rows,
    states: States,
    losses: Losses,
    tokens: Tokens,
    shift: bool,
    *,
    step: int,
    rows: range,
    batch_rows: int,
    seed: int,
    kind: int | None = None,
) -> AdaptBatch:
    """Rows `rows` (of the step's batch_rows) of step `step`. kind: the one state of all canvases, else drawn."""
    parts = []
    for r in rows:
        row = data[step * batch_rows + r]
        rng = np.random.default_rng((seed, step, 1 + r))
        kinds, length = draw_kinds(states, rng, np.random.default_rng((seed, step, 0)), kind)
        drafts = draw(row, kinds, length, losses, tokens, rng, shift)
        aside = blank(drafts.shown, tokens.mask, tokens.null) & shift
        parts.append(_arrays(row, drafts, length, aside))
    return AdaptBatch(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))


def blank(shown: np.ndarray, mask: int | None, null: int | None) -> np.ndarray:
    """Which canvases [..., C] show open or empty slots alone: bool [...]."""
    same: np.ndarray = ((shown == mask) | (shown == null)).all(-1)
    return same


def _arrays(row: Row, drafts: Drafts, length: int, aside: np.ndarray) -> tuple[np.ndarray, ...]:
    """aside: bool [N], whose last slot sees nothing of its canvas but itself, and is not seen."""
    laid = Canvases(
        drafts.target, drafts.locked, drafts.document, drafts.position, np.zeros(len(drafts.document), bool)
    )
    clean_visible, canvas_visible = visibility(row, laid, length, "causal_context")
    canvas_visible[aside, :-1, -1] = False
    canvas_visible[aside, -1, -length:-1] = False
    return (
        row.tokens,
        row.position,
        row.document,
        clean_visible,
        drafts.shown,
        drafts.target,
        drafts.locked,
        drafts.document,
        drafts.position[:, None] + np.arange(length),
        canvas_visible,
        drafts.teacher,
        drafts.weight,
        drafts.fill,
    )
