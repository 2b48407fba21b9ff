"""Who sees whom: one predicate for every attention layout, the same in training and in inference.

Each row (a token the network reads) is clean text or a canvas slot. Two numbers decide what it sees:

    start   clean rows of its document at positions < start are visible
    block   a canvas row also sees the canvas rows of its own block, both ways

The layouts differ only in the `start` they give a row:

    causal_context   clean: position + 1          canvas: where its canvas starts   (redraft, DiffusionGemma)
    block_causal     clean: end of its block      canvas: where its block starts    (SDAR, LLaDA2, BD3-LM)
    full             clean: end of the document   canvas: 0, the document is its one block (LLaDA, Dream, MDLM)

Works on numpy arrays and torch tensors alike; the arrays only need to broadcast against one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

END = 1 << 30  # a start beyond every position: sees all clean rows of its document


@dataclass(frozen=True)
class Rows:
    """Rows of one sequence. All arrays have the same shape [..., T]; integers, `canvas` is boolean.

    document: rows of different documents never see each other; a padding row has document -1, sees nothing and is seen
    by none.
    """

    canvas: Any
    document: Any
    position: Any
    start: Any
    block: Any

    def queries(self) -> Rows:
        """[..., T] -> [..., T, 1], so that allowed(rows.queries(), rows.keys()) is [..., T, T]."""
        return Rows(*(a[..., :, None] for a in self._arrays()))

    def keys(self) -> Rows:
        return Rows(*(a[..., None, :] for a in self._arrays()))

    def _arrays(self) -> tuple[Any, ...]:
        return (self.canvas, self.document, self.position, self.start, self.block)


def allowed(query: Rows, key: Rows) -> Any:
    """True where the query row may attend to the key row."""
    same_document = (query.document == key.document) & (key.document >= 0)
    clean_key = ~key.canvas & (key.position < query.start)
    canvas_key = query.canvas & key.canvas & (query.block == key.block)
    return same_document & (clean_key | canvas_key)


def clean_start(layout: str, position: Any, block_length: int) -> Any:
    """The `start` of clean rows at these positions under a layout."""
    if layout == "causal_context":
        return position + 1
    if layout == "block_causal":
        return (position // block_length + 1) * block_length
    return position * 0 + END


def canvas_start(layout: str, anchor: Any, block_length: int) -> Any:
    """The `start` of canvas rows whose canvas begins at clean position `anchor`.

    block_causal canvases sit on multiples of block_length, so that the clean rows they see have seen no later text.
    """
    if layout == "full":
        return anchor * 0
    if layout == "block_causal":
        return anchor // block_length * block_length
    return anchor
