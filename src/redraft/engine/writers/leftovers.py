"""What canvases said of places that aren't written yet, kept for the next proposal wherever that begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from redraft.sampling import Canvas

AT_MOST = 4  # times its own bytes that a view may keep from being freed


@dataclass(frozen=True, eq=False)
class Leftovers:
    """rows: float32 [V] logits by output position, of canvases whose context was right as far as it went; never of one
    behind a wrong token (measured: what is said behind one is seldom right afterwards). newest: the positions that the
    last evaluation said something of; the others were read before the last token was known."""

    rows: Mapping[int, np.ndarray] = field(default_factory=dict)
    newest: frozenset[int] = frozenset()

    def after(
        self, position: int, accepted: int, drafts: Mapping[int, Canvas], logits: np.ndarray | None
    ) -> Leftovers:
        """What holds when the text goes on at output position `position`, `accepted` tokens of a proposal being right.

        drafts: the canvases of that evaluation by how many of these tokens they stand behind, in ascending order;
        logits: float32 of the slots that each wants, one canvas after the other. Of two that speak of one position the
        one counts that knew more of the text.
        """
        kept = {at: row for at, row in self.rows.items() if at >= position}
        newest: dict[int, np.ndarray] = {}
        if drafts and logits is not None:
            each = len(logits) // len(drafts)
            kept_as = _as_they_lie if _nearly_alone(logits) else np.copy
            for number, (behind, canvas) in enumerate(drafts.items()):
                if behind <= accepted:
                    own = logits[number * each : (number + 1) * each]
                    places = (canvas.position + canvas.wanted).tolist()
                    newest |= {
                        at: kept_as(row) for at, row in zip(places, own, strict=True) if at >= position
                    }
        return Leftovers(kept | newest, frozenset(newest))

    def of(self, position: int, most: int) -> np.ndarray | None:
        """float32 [k, V], a copy: what is known of `position` and those right behind it, `most` at most; None for
        nothing."""
        stop = position
        while stop < position + most and stop in self.rows:
            stop += 1
        return np.stack([self.rows[at] for at in range(position, stop)]) if stop > position else None


def _nearly_alone(logits: np.ndarray) -> bool:
    """Whether these rows are a good part of the array that a view of them would keep; where many requests shared the
    evaluation it holds the logits of all."""
    return logits.base is None or logits.base.nbytes <= AT_MOST * logits.nbytes


def _as_they_lie(row: np.ndarray) -> np.ndarray:
    return row
